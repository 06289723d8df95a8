"""Texts for the offline phase: files of plain text, JSON lines and conversations, read as a stream.

A source gives pieces; nothing holds a whole file. Bytes are passed on as they are, so any encoding that the tokenizer
takes is fine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from ..errors import Error, error_text

if TYPE_CHECKING:
    from .. import _core
    from ..chat_template import ChatTemplate

PIECE_BYTES = 64 << 10
MAX_LINE_BYTES = 64 << 20

_BLANK = object()  # the value of a line without one

# How conversations that say "from" and "value" call the roles.
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a text.

    Attributes:
        text: UTF-8, or whatever bytes the file has.
        starts: whether a new text begins here.
        data: the bytes of the file that it was made from.
        has_markup: whether it comes from a template, whose control tokens count.
    """

    text: bytes
    starts: bool
    data: bytes
    has_markup: bool = False


class Source(Protocol):
    """One corpus: a name, its size in bytes, and its pieces, the same ones each time."""

    name: str
    n_bytes: int

    def pieces(self, engine: _core.Engine) -> Iterator[Piece]:
        """Yields the corpus from its beginning."""
        ...


class PlainText:
    """A file that is one text. Cut into pieces after a line, else after a space: tokens never cross such a place."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.name, self.n_bytes = Path(path), Path(path).name, _size(path)

    def pieces(self, engine: _core.Engine) -> Iterator[Piece]:
        """Yields the file from its beginning."""
        starts, rest = True, b""
        with _opened(self.path) as file:
            while block := file.read(PIECE_BYTES):
                rest += block
                cut = _cut(rest) if len(rest) >= PIECE_BYTES else 0
                if cut:
                    yield Piece(rest[:cut], starts, rest[:cut])
                    starts, rest = False, rest[cut:]
        if rest:
            yield Piece(rest, starts, rest)


class JsonLines:
    """A file with one JSON object a line; the member `field` of each is a text or a list of texts."""

    def __init__(self, path: str | os.PathLike[str], field: str) -> None:
        self.path, self.name, self.n_bytes, self.field = Path(path), Path(path).name, _size(path), field

    def pieces(self, engine: _core.Engine) -> Iterator[Piece]:
        """Yields the texts, a piece each."""
        for number, line, value in _json_lines(self.path):
            if value is _BLANK:
                yield Piece(b"", True, line)
                continue
            texts = value.get(self.field) if isinstance(value, dict) else None
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                got = "another value" if isinstance(value, dict) and self.field in value else "none"
                _refuse_line(self.path, number, f"a text or list of texts in member {self.field!r}", got)
            for text in texts:
                yield Piece(text.encode("utf-8", "surrogatepass"), True, line)
                line = b""
            if line:
                yield Piece(b"", True, line)


class Chat:
    """A file with one conversation a line: `{"messages": [{"role": .., "content": ..}, ..]}`, the list alone, or
    `{"conversations": [{"from": .., "value": ..}, ..]}`; put through the model's chat template."""

    def __init__(self, path: str | os.PathLike[str], template: ChatTemplate) -> None:
        self.path, self.name, self.n_bytes, self.template = Path(path), Path(path).name, _size(path), template
        self.n_left_out = 0

    def pieces(self, engine: _core.Engine) -> Iterator[Piece]:
        """Yields the conversations, a piece each. Those whose messages hold control tokens as text are left out and
        counted: rendered, they could not be told from the template's own."""
        self.n_left_out = 0
        for number, line, value in _json_lines(self.path):
            if value is _BLANK:
                yield Piece(b"", True, line)
                continue
            messages = self._messages(value, number)
            texts = [message["content"].encode("utf-8", "surrogatepass") for message in messages]
            if any(engine.tokenize(t, False, True) != engine.tokenize(t, False, False) for t in texts):
                self.n_left_out += 1
                yield Piece(b"", True, line)
                continue
            yield Piece(self.template.render(messages).encode("utf-8", "surrogatepass"), True, line, True)

    def _messages(self, value: Any, number: int) -> list[dict[str, str]]:
        if isinstance(value, dict):
            value = value.get("messages", value.get("conversations"))
        messages = []
        for each in value if isinstance(value, list) else ():
            given = each if isinstance(each, dict) else {}
            role, content = given.get("role", given.get("from")), given.get("content", given.get("value"))
            if not isinstance(role, str) or not isinstance(content, str):
                _refuse_line(self.path, number, "messages with texts role and content", "others")
            messages.append({"role": _ROLES.get(role, role), "content": content})
        if not messages:
            _refuse_line(self.path, number, "a list of messages", "none")
        return messages


class Texts:
    """Texts in memory."""

    def __init__(self, texts: list[str], name: str = "texts") -> None:
        self._texts = [text.encode("utf-8", "surrogateescape") for text in texts]
        self.name, self.n_bytes = name, sum(map(len, self._texts))

    def pieces(self, engine: _core.Engine) -> Iterator[Piece]:
        """Yields the texts, cut as those of a file."""
        for text in self._texts:
            starts = True
            while text:
                cut = (_cut(text[:PIECE_BYTES]) if len(text) > PIECE_BYTES else 0) or len(text[:PIECE_BYTES])
                yield Piece(text[:cut], starts, text[:cut])
                starts, text = False, text[cut:]


def _cut(data: bytes) -> int:
    """Where to cut a piece: after its last line, else after its last space, else before its last character."""
    for mark in (b"\n", b" "):
        if (at := data.rfind(mark)) >= 0:
            return at + 1
    at = len(data) - 1
    while at > 0 and data[at] & 0xC0 == 0x80 and len(data) - at < 4:
        at -= 1
    return at


def _size(path: str | os.PathLike[str]) -> int:
    """Size of a file that is there and is no folder."""
    if not Path(path).is_file():
        got = "a folder" if Path(path).is_dir() else "none"
        raise Error(error_text("texts", f"file {os.fspath(path)!r}", "a file", got, "check the path"))
    return Path(path).stat().st_size


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise Error(error_text("texts", f"file {str(path)!r}", "a readable file", error.strerror, "check it")) from None


def _json_lines(path: Path) -> Iterator[tuple[int, bytes, Any]]:
    """Yields number, bytes and value of each line; _BLANK for a blank one."""
    with _opened(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                _refuse_line(path, number, f"at most {MAX_LINE_BYTES} bytes", "more")
            if not line.strip():
                yield number, line, _BLANK
                continue
            try:
                yield number, line, json.loads(line)
            except (ValueError, RecursionError):
                _refuse_line(path, number, "a JSON value", "something else")


def _refuse_line(path: Path, number: int, expected: str, got: str) -> NoReturn:
    raise Error(error_text("texts", f"{path}, line {number}", expected, got, "correct the file or the flags"))
