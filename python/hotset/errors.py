"""Typed errors of hotset; every message reads `[where] what: expected X, got Y; do Z`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .generation import Completion


class Error(Exception):
    """Base of every error that hotset raises on its own account."""


class ModelFormatError(Error):
    """A model file or checkpoint is damaged, truncated or contradicts itself."""


class UnsupportedModelError(Error):
    """A model is well formed, but of a kind that hotset does not run."""


class ContextLengthError(Error):
    """A prompt or a generation does not fit into the context.

    Attributes:
        partial: what generate() had produced when it met the end of the context; None otherwise.
    """

    partial: Completion | list[Completion] | None = None


class OutOfMemoryError(Error):
    """A device or the host has less free memory than the model needs."""


class DeviceError(Error):
    """A device is missing, failed, or refuses further work."""


def error_text(where: str, what: str, expected: object, got: object, remedy: str) -> str:
    """Returns the one-line message `[where] what: expected X, got Y; do Z`.

    Args:
        where: the part or file that complains, as the user knows it.
        what: the thing that is wrong.
        expected: what would have been right.
        got: what is there instead.
        remedy: what to do about it; a phrase that starts with a verb.
    """
    text = f"[{where}] {what}: expected {expected}, got {got}; {remedy}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
