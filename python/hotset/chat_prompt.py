"""From a conversation to token ids: control tokens come from the template alone, never from what people wrote.

While the template is rendered, one character of every control token's text inside the messages is replaced by one of
Unicode's last plane, so that filters, slices and comparisons of the template see ordinary text; control tokens are then
looked for, and only in what is left between them the characters are put back. That holds for texts that become control
tokens together with what the template puts beside them, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .chat_template import FIRST_MARK, ChatTemplate, Message
from .errors import error_text

_LAST_PLANE = re.compile("[\U00100000-\U0010ffff]")
# As it is, or as Python writes it where a template prints a mapping.
_MARKS = re.compile(r"[\U00100000-\U0010ffff]|\\U0010[0-9a-f]{4}")
_MOST_LETTERS = 256  # of a control token's text that comes about half by half; no vocabulary has one that long
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "context")


class ControlTexts:
    """Texts of a vocabulary that only a template may turn into their tokens."""

    def __init__(self, tokens: Sequence[tuple[int, bytes]]) -> None:
        self._ids: dict[str, int] = {}
        for token, text in tokens:
            try:
                self._ids[text.decode("utf-8")] = token
            except UnicodeDecodeError:  # cannot be in a text
                pass
        self._pattern = _any_of(list(self._ids))
        self._joined = "\0".join(["", *self._ids, ""])
        self._n_longest = min(max(map(len, self._ids), default=0), _MOST_LETTERS)

    def __contains__(self, text: object) -> bool:
        return text in self._ids

    def escaped(self, value: Any) -> Any:
        """A message, or a part of one, without texts of control tokens in it."""
        if isinstance(value, str):
            return self._escaped_text(value)
        if isinstance(value, Mapping):
            return {self._escaped_key(key): self.escaped(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.escaped(each) for each in value]
        return value

    def encode(self, engine: Any, text: str) -> list[int]:
        """Token ids of a rendered prompt."""
        ids: list[int] = []
        begin = 0
        for match in self._pattern.finditer(text):
            ids += self._plain(engine, text[begin : match.start()])
            ids.append(self._ids[match[0]])
            begin = match.end()
        ids += self._plain(engine, text[begin:])
        if engine.adds_bos and ids[:1] != [engine.bos_id]:
            ids.insert(0, engine.bos_id)
        return ids

    def _plain(self, engine: Any, text: str) -> list[int]:
        if not text:
            return []
        restored = _MARKS.sub(_restored, text)
        return engine.tokenize(restored.encode("utf-8", "surrogateescape"), False, False)

    def _escaped_key(self, key: Any) -> Any:
        return self._escaped_text(key) if isinstance(key, str) and self._pattern.search(key) else key

    def _escaped_text(self, text: str) -> str:
        text = _LAST_PLANE.sub("\ufffd", text)
        spots = {match.start() for match in _MARKS.finditer(text)}
        begin = 0
        while match := self._pattern.search(text, begin):
            spots.add(match.start() + _spot(match[0]))
            begin = match.start() + 1  # they may overlap
        inner = text.strip()
        lengths = range(1, min(self._n_longest, len(inner) + 1))
        if any(f"{inner[:n]}\0" in self._joined for n in lengths):  # the end of a control token
            spots.add(text.index(inner[0]))
        if any(f"\0{inner[-n:]}" in self._joined for n in lengths):  # the beginning of one
            spots.add(len(text.rstrip()) - 1)
        if not spots:
            return text
        letters = list(text)
        for i in spots:
            letters[i] = chr(FIRST_MARK + ord(letters[i])) if ord(letters[i]) < 0x10000 else "\ufffd"
        return "".join(letters)


def _any_of(texts: list[str]) -> re.Pattern[str]:
    """A pattern that finds the longest of the texts that begin at a place.

    Texts that begin alike share their beginning: hundreds of <|reserved_special_token_1|> are otherwise compared wherever
    a "<" is.
    """
    groups: dict[str, list[str]] = {}
    for text in sorted(texts, key=len, reverse=True):
        groups.setdefault(text[:3], []).append(text)
    parts = []
    for _, group in sorted(groups.items(), key=lambda item: len(item[0]), reverse=True):
        shared = os.path.commonprefix(group)
        rests = "|".join(re.escape(text[len(shared) :]) for text in group)
        parts.append(f"{re.escape(shared)}(?:{rests})")
    return re.compile("|".join(parts) or "(?!)")


def _restored(match: re.Match[str]) -> str:
    mark = match[0]
    return chr((ord(mark) if len(mark) == 1 else int(mark[2:], 16)) - FIRST_MARK)


def _spot(text: str) -> int:
    """Which character of a control token's text is replaced: the first that has a mark."""
    return next((i for i, letter in enumerate(text) if ord(letter) < 0x10000), 0)


def prompt_tokens(
    engine: Any,
    controls: ControlTexts,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation up to where the answer begins.

    Raises:
        Error: the template refuses the messages.
        TypeError, ValueError: they are none.
    """
    checked = [_checked(i, message) for i, message in enumerate(messages)]
    if not checked:
        raise ValueError(error_text("chat", "messages", "at least one", "none", "pass one of role user"))
    text = template.render(
        [{**controls.escaped(message), "role": message["role"]} for message in checked],
        add_generation_prompt=True,
        tools=controls.escaped(tools) if tools else None,
        documents=controls.escaped(documents) if documents else None,
        options=controls.escaped(options) if options else None,
    )
    return controls.encode(engine, text)


def _checked(i: int, message: object) -> Message:
    """The message, if it is one."""
    where = f"message {i}"
    if not isinstance(message, Mapping):
        raise TypeError(f"messages are mappings with role and content, not {type(message).__name__}")
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        expected = f"one of {', '.join(_ROLES)}"
        raise ValueError(error_text("chat", f"role of {where}", expected, repr(role), "correct it"))
    if content is None and (message.get("tool_calls") or role == "assistant"):
        return {**message, "content": ""}
    if isinstance(content, str):
        return message
    if isinstance(content, (list, tuple)) and content:
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise ValueError(error_text("chat", f"content of {where}", "parts of type text", repr(kind),
                                            "leave the others out: models here read text alone"))  # fmt: skip
        return message
    raise ValueError(error_text("chat", f"content of {where}", "a text or a list of text parts", repr(content)[:40],
                                "correct it"))  # fmt: skip
