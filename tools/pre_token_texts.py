"""Random texts that are hard to split: many scripts, marks, numbers, white space, emoji, bytes that are no UTF-8."""

from __future__ import annotations

import random
import unicodedata

# Stands for one byte that is no UTF-8: a noncharacter, which belongs to no class that patterns ask for.
INVALID = "\U0010ffff"
INVALID_BYTES = b"\xff\xc0\xf5\x80"
_BYTE_LEVEL_INVALID = "\u00f4\u0131\u00bf\u00bf"  # what ByteLevel makes of INVALID's four bytes
_ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "0123456789", " ", " ", "\n", "\r\n",
    "\t \n\r", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "'", "/", "_-",
    "\xe0\xe9\xd6\xdf\xb5\xaa\xba\u0131\u0130\u017f\u01c5\u01c8\u212a\u2126", "\u03b1\u03a9\u03c2\u1f7d\u0394",
    "\u0430\u0416\u0451\u0406", "\u05d0\u05e9\u05b8", "\u0627\u0644\u0639\u064e\u0651\u0640",
    "\u0915\u093f\u0928\u094d", "\u0e01\u0e34\u0e48", "\uac00\ud55c\uae00\u1100\u1161",
    "\u4e00\u9fa5\u6f22\u5b57\u9fff\u3400\U00020000", "\u3042\u304b\u30ab\u30ca\u30fc\u3099",
    "\uff21\uff41\uff11\uff01\uff5e\u3001\u3002\u300c", "\u0301\u0308\u20dd\ufe0f",
    "\xb2\xbd\u2167\u0663\u096a\U0001d7d8\u3007\u2460", "\u02b0\u02c6\ua717",
    "\u2018\u2019\u201c\u2026\u2014\xab\u061f", "\xa3\u20ac\xb1\u221a\xb0\xa8\u02c2\u2190",
    "\U0001f600\U0001f44d\U0001f3fd\U0001f468\u200d\U0001f469\u2764\ufe0f", "\xa0\u2003\u3000\x85\u2028\u1680\u202f",
    "\x00\x01\x1b\x7f\u200b\u200d\ufeff\xad", "\ue000\ufffd\U000f0000", INVALID,
    "\u10a0\u13a0\uab70\U00010400\U0001e900\ufb01", "\u0800\u0100\u07ff\ud7ff\uabff",
]  # fmt: skip
_WORDS = [
    "'s", "'T", "'Re", "'VE", "'m", "'ll", "'LL", "'d", "'\u017f", "I'll", "don't", "HTTPServer", "camelCase",
    "12345", "1,000.50", "http://a.b/c?d=e", "\r\n\r\n", "    ", "  \n  ", "=>", "...\n", "//\n", "\xf2\xb2", "x\xb2",
    "e\u0301", "\u0928\u092e\u0938\u094d\u0924\u0947",
]  # fmt: skip


def _any_character(rng: random.Random) -> str:
    """Returns a character that old versions of Unicode know too, or one that no version will."""
    while True:
        character = chr(rng.randrange(0x20, 0x3100 if rng.random() < 0.7 else 0x20000))
        if unicodedata.category(character) not in ("Cs", "Cn"):
            return character


def random_text(rng: random.Random) -> str:
    """Returns a text of up to some hundred characters; INVALID in it stands for bytes that are no UTF-8."""
    parts: list[str] = []
    favourites = rng.sample(_ALPHABETS, rng.randrange(2, 8))
    for _ in range(rng.randrange(1, 14)):
        chance = rng.random()
        if chance < 0.2:
            parts.append(rng.choice(_WORDS))
        elif chance < 0.3:
            parts.append(_any_character(rng))
        else:
            alphabet = rng.choice(favourites if chance < 0.85 else _ALPHABETS)
            parts.append("".join(rng.choices(alphabet, k=rng.choice((1, 1, 2, 3, 4, 7)))))
    if rng.random() < 0.02:
        parts.insert(rng.randrange(len(parts)), rng.choice(" \t\u00a0") * rng.randrange(1, 700))
    return "".join(parts)


def as_bytes(text: str) -> bytes:
    """Returns the text in UTF-8, each INVALID as a byte that is none."""
    parts = text.encode("utf-8").split(INVALID.encode("utf-8"))
    data = parts[0]
    for i, part in enumerate(parts[1:]):
        data += INVALID_BYTES[i % 4 : i % 4 + 1] + part
    return data


def n_bytes(piece: str) -> int:
    """Returns how many bytes of as_bytes() a piece stands for that ByteLevel has written in its alphabet."""
    return len(piece) - 3 * piece.count(_BYTE_LEVEL_INVALID)
