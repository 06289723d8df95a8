"""Reading of JSON files that may be hostile: size-limited, strict, one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ModelFormatError, error_text

kMaxConfigBytes = 16 << 20
kMaxTokenizerBytes = 256 << 20


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {repeated!r:.80} twice in one object")
    return result


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parses UTF-8 JSON that must be one object; names repeated within an object are an error.

    Raises:
        ModelFormatError: not UTF-8, not JSON, nested too deeply, or not an object.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = "nesting too deep" if isinstance(error, RecursionError) else str(error)[:160]
        raise ModelFormatError(error_text(where, "content", "valid JSON", reason, "download the file again")) from None
    if not isinstance(value, dict):
        raise ModelFormatError(
            error_text(where, "content", "a JSON object", type(value).__name__, "download the file again")
        )
    return value


def read_limited(path: Path, max_bytes: int) -> bytes:
    """Returns the bytes of a file of at most `max_bytes`.

    Raises:
        ModelFormatError: the file is larger, unreadable or not a file.
    """
    try:
        size = path.stat().st_size
        if not path.is_file() or size > max_bytes:
            got = f"{size} bytes" if path.is_file() else "something else"
            raise ModelFormatError(
                error_text(path.name, "file", f"a file of at most {max_bytes} bytes", got, "check the checkpoint")
            )
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelFormatError(error_text(path.name, "file", "a readable file", reason, "check the path")) from None


def read_object(path: Path, max_bytes: int = kMaxConfigBytes) -> dict[str, Any]:
    """Reads a JSON object from a file of at most `max_bytes`."""
    return parse_object(read_limited(path, max_bytes), path.name)


def read_optional_object(path: Path, max_bytes: int = kMaxConfigBytes) -> dict[str, Any]:
    """Reads a JSON object, or returns an empty one where there is no such file."""
    return read_object(path, max_bytes) if path.exists() else {}
