"""The offline phase: what is measured and decided before a model runs. docs/OFFLINE.md is its guide.

`profile` counts on real texts which units of a model are active: `texts` reads them, `profiler` runs the model,
`statistics` keeps the result, `npz` reads and writes its file.
`report` turns it into figures, plots and a page: `figures` does the arithmetic, `report_plots` draws, `report_page`
writes HTML, `sidecar_reader` reads a placement.
`placement` decides what lives on the GPU, `ilp` has the paper's integer program to compare with, `sidecar` keeps unit
order, placement and predictors beside a model, `gguf_parts` reads and writes its file.
`training` makes predictors: `two_layer` trains and factors, `sizing` chooses ranks, `calibration` thresholds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .profiler import Progress, profile, token_sequences
    from .report import make_report
    from .sidecar_reader import read_placement
    from .placement import place
    from .sidecar import Sidecar
    from .statistics import Statistics
    from .training import PredictorOptions, train_predictor

__all__ = [
    "PredictorOptions", "Progress", "Sidecar", "Statistics", "make_report", "place", "profile", "read_placement",
    "token_sequences", "train_predictor",
]  # fmt: skip

_HOMES = {
    "PredictorOptions": "training",
    "Progress": "profiler",
    "Sidecar": "sidecar",
    "Statistics": "statistics",
    "make_report": "report",
    "place": "placement",
    "profile": "profiler",
    "read_placement": "sidecar_reader",
    "token_sequences": "profiler",
    "train_predictor": "training",
}


def __getattr__(name: str) -> Any:
    """Imports public names on first use: they need NumPy and the native module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
