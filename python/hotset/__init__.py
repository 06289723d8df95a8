"""Runs large language models on the CPU and GPU at hand, faster where their activations are sparse.

    import hotset
    model = hotset.Model()                                  # the small model inside the package
    print(model.generate("Once upon a time", temperature=0))

Names are imported on first use: the command `hotset` starts without numpy and without the native module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .errors import (
    ContextLengthError,
    DeviceError,
    Error,
    ModelFormatError,
    OutOfMemoryError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from .generation import Completion, GenerateOptions, GenerateStats, Token, TokenStream
    from .model import Model
    from .model_info import KldResult, ModelStats
    from .session import Session

    __version__: str

__all__ = [
    "Completion",
    "ContextLengthError",
    "DeviceError",
    "Error",
    "GenerateOptions",
    "GenerateStats",
    "KldResult",
    "Model",
    "ModelFormatError",
    "ModelStats",
    "OutOfMemoryError",
    "Session",
    "Token",
    "TokenStream",
    "UnsupportedModelError",
    "__version__",
]

_MODULE_OF = {
    "Completion": ".generation",
    "GenerateOptions": ".generation",
    "GenerateStats": ".generation",
    "Token": ".generation",
    "TokenStream": ".generation",
    "Model": ".model",
    "KldResult": ".model_info",
    "ModelStats": ".model_info",
    "Session": ".session",
}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first asked for (PEP 562)."""
    if name == "__version__":
        value: object = importlib.import_module("._core", __name__).version()
    elif name in _MODULE_OF:
        value = getattr(importlib.import_module(_MODULE_OF[name], __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
