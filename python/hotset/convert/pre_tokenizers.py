"""Pre-tokenizers of `tokenizer.json` files by GGUF name (`tokenizer.ggml.pre`): chains of steps that hotset knows."""

from __future__ import annotations

import re
from typing import Any

from ..errors import UnsupportedModelError, error_text

kWhere = "tokenizer.json"
kRemedy = "convert a checkpoint with one of these pre-tokenizers"
# A step as (kind, what it is told). Regular expressions have \r and \n for the characters themselves.
Step = tuple[str, Any]

_kContractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_kSpaces = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_kLlama3 = rf"{_kContractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_kSpaces}"
_kQwen2 = _kLlama3.replace("{1,3}", "")
_kQwen35 = _kQwen2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_kSeedCoder = _kLlama3.replace("{1,3}", "{1}").replace(r"\p{N}]+[\r\n]*", r"\p{N}\r\n]+")
_kPowers = ("512", "256", "128", "64", "32", "16", "8", "4", "1,2")
_kManySpaces = "".join(rf"\s{{{count}}}(?!\S)|" for count in _kPowers) + r"\s{1}"
_kJais2 = _kLlama3.removesuffix(r"\s+(?!\S)|\s+") + _kManySpaces
_kBailing = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
             r"|\s+(?!\S)|\s+")  # fmt: skip
_kUpper, _kLower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_kTekken = (rf"[^\r\n\p{{L}}\p{{N}}]?{_kUpper}*{_kLower}+|[^\r\n\p{{L}}\p{{N}}]?{_kUpper}+{_kLower}*|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_kSpaces}")  # fmt: skip
_kGpt4o = _kTekken.replace(f"{_kLower}+|", f"{_kLower}+{_kContractions}?|").replace(
    rf"{_kLower}*|\p{{N}}|", rf"{_kLower}*{_kContractions}?|\p{{N}}{{1,3}}|")  # fmt: skip
_kDeepseekV3 = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|""" r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_kSpaces}")  # fmt: skip
# The letters with case of some version of Unicode, as DeepSeek's makers listed them.
_kCased = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-"
    "\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-"
    "\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80"
    "-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-"
    "\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_kWideMarks = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_kHanKana = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_kAsian = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_kByteLevel = ("ByteLevel", False)
_kEachNumber = ("Digits", True)

# Several checkpoints may share a chain under other names; the first name that fits is written.
kChains: dict[str, tuple[Step, ...]] = {
    "gpt-2": (("ByteLevel", True),),
    "smollm": (_kEachNumber, ("ByteLevel", True)),
    "llama-bpe": (("Split", _kLlama3), _kByteLevel),
    "dbrx": (("Split", _kLlama3), _kByteLevel),
    "minicpm5": (("Split", r"\p{N}{1,3}"), ("Split", _kLlama3.replace("{1,3}", "+")), _kByteLevel),
    "jais-2": (("Split", _kJais2), _kByteLevel),
    "qwen2": (("Split", _kQwen2), _kByteLevel),
    "bailingmoe": (("Split", _kBailing), _kByteLevel),
    "qwen35": (("Split", _kQwen35), _kByteLevel),
    "seed-coder": (("Split", _kSeedCoder), _kByteLevel),
    "gpt-4o": (("Split", _kGpt4o), _kByteLevel),
    "tekken": (("Split", _kTekken), _kByteLevel),
    "deepseek-v3": (("Split", r"\p{N}{1,3}"), ("Split", _kHanKana), ("Split", _kDeepseekV3), _kByteLevel),
    "deepseek-llm": (
        ("Split", r"[\r\n]"), ("Split", rf"\s?[{_kCased}]+"), ("Split", rf"\s?[{_kWideMarks}]+"), ("Split", r"\s+$"),
        ("Split", _kAsian), _kEachNumber, _kByteLevel,
    ),
    "deepseek-coder": (
        ("Split", r"[\r\n]"), ("Split", r"\s?\p{L}+"), ("Split", r"\s?\p{P}+"), ("Split", _kAsian), _kEachNumber,
        _kByteLevel,
    ),
    "falcon": (
        ("Punctuation", "Contiguous"), ("ByteLevel", True), ("Digits", False), ("Split", "[0-9][0-9][0-9]"),
    ),
}  # fmt: skip
# Of these names a pre-token that is in the vocabulary is taken whole, whatever the merges say.
kIgnoreMerges = {"llama-bpe", "minicpm5", "tekken"}
# Expressions that match every character of any text: taking the matches is then the same as isolating them.
_kComplete = {_kLlama3, _kQwen2, _kQwen35, _kSeedCoder, _kGpt4o, _kTekken}


def _unsupported(expected: object, got: object) -> UnsupportedModelError:
    return UnsupportedModelError(error_text(kWhere, "pre_tokenizer", expected, str(got)[:400], kRemedy))


def _split(step: dict[str, Any]) -> Step:
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(regex, str):
        raise _unsupported("a Split by a regular expression", repr(pattern))
    regex = regex.replace("\r", r"\r").replace("\n", r"\n")
    way = (step.get("behavior"), bool(step.get("invert")))
    if way != ("Isolated", False) and not (way == ("Removed", True) and regex in _kComplete):
        raise _unsupported("a Split that isolates its matches", f"{way[0]!r}, invert {way[1]}, of {regex}")
    return "Split", regex


def _step(step: dict[str, Any]) -> Step:
    """Returns a component of a tokenizer.json in the form of kChains."""
    kind = step["type"]
    if kind == "Split":
        return _split(step)
    if kind == "ByteLevel":
        if step.get("add_prefix_space"):
            raise _unsupported("ByteLevel with add_prefix_space false", "true")
        return kind, step.get("use_regex", True) is True
    if kind == "Digits":
        return kind, step.get("individual_digits") is True
    if kind == "Punctuation":
        return kind, step.get("behavior", "Isolated")
    raise _unsupported(
        "a chain of " + ", ".join(sorted({name for chain in kChains.values() for name, _ in chain})), kind
    )


def pre_tokenizer_names(chain: list[dict[str, Any]]) -> list[str]:
    """Returns GGUF's names of a chain of components; they differ in whether merges are ignored.

    Raises:
        UnsupportedModelError: hotset does not know the chain; the message shows it.
    """
    steps = tuple(_step(step) for step in chain)
    names = [name for name, known in kChains.items() if known == steps]
    if not names:
        got = " + ".join(f"{kind} {told}" for kind, told in steps)
        raise _unsupported("the one of " + ", ".join(kChains), got)
    return names


def as_components(name: str) -> list[dict[str, Any]]:
    """Returns the components of a chain as a tokenizer.json has them; the inverse of pre_tokenizer_names."""
    components: list[dict[str, Any]] = []
    for kind, told in kChains[name]:
        if kind == "Split":
            pattern = {"Regex": re.sub(r"(?<!\\)\\([rn])", lambda match: {"r": "\r", "n": "\n"}[match[1]], told)}
            components.append({"type": kind, "pattern": pattern, "behavior": "Isolated", "invert": False})
        elif kind == "ByteLevel":
            components.append({"type": kind, "add_prefix_space": False, "trim_offsets": True, "use_regex": told})
        elif kind == "Digits":
            components.append({"type": kind, "individual_digits": told})
        else:
            components.append({"type": kind, "behavior": told})
    return components
