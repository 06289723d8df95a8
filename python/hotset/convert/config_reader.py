"""Typed access to the objects of `config.json`."""

from __future__ import annotations

from typing import Any

from ..errors import ModelFormatError, UnsupportedModelError, error_text

kMaxCount = (1 << 31) - 1
kMinFloat, kMaxFloat = 1.0e-37, 3.0e38
_kRequired = object()


class Reader:
    """Typed access to one JSON object."""

    def __init__(self, values: dict[str, Any], where: str = "config.json") -> None:
        self.values_ = values
        self.where_ = where

    def error(self, key: str, expected: str) -> ModelFormatError:
        got = repr(self.values_[key])[:80] if key in self.values_ else "no such key"
        return ModelFormatError(error_text(self.where_, key, expected, got, "check the checkpoint's config.json"))

    def integer(self, key: str, default: Any = _kRequired) -> Any:
        value = self.values_.get(key)
        if value is None and default is not _kRequired:
            return default
        if type(value) is not int or not 0 < value <= kMaxCount:
            raise self.error(key, f"an integer from 1 to {kMaxCount}")
        return value

    def number(self, key: str, default: Any = _kRequired) -> Any:
        value = self.values_.get(key)
        if value is None and default is not _kRequired:
            return default
        # The comparison is false for NaN, and right for integers of any length. GGUF keeps these values in float32.
        if type(value) not in (int, float) or not kMinFloat <= value <= kMaxFloat:
            raise self.error(key, "a positive number")
        return float(value)

    def boolean(self, key: str, default: bool | None) -> bool | None:
        value = self.values_.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value


def unsupported(what: str, expected: str, got: object, remedy: str) -> UnsupportedModelError:
    return UnsupportedModelError(error_text("config.json", what, expected, repr(got)[:80], remedy))
