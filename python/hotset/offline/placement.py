"""Placement: which units, attention blocks and head live on the GPU, for the least predicted time per token.

The solver is native (core/placement.h), the same that a model is planned with; docs/ARCHITECTURE.md, "Placement", has the
model of time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..arguments import as_doubles, load_options, size_in_bytes
from ..errors import Error, error_text
from .sidecar import Sidecar, StoredPlacement

if TYPE_CHECKING:
    from .statistics import Statistics

# Keywords of `Model` that a plan depends on, with their defaults.
LOAD_DEFAULTS: dict[str, Any] = {"activation": None, "mode": "auto", "predictor": None, "sidecar": None,
                                 "device": "auto", "kv_type": "auto", "pin": "auto", "n_ctx": None, "n_threads": None,
                                 "n_batch": 512, "kv_place": "auto", "vram_budget": None, "adapt": None}  # fmt: skip


@dataclass(frozen=True)
class Rate:
    """How fast one side reads rows of one size.

    Attributes:
        dense_gbps: everything in order, GB/s.
        gathered: (density, GB/s) of rows of which that share is read, ascending.
    """

    dense_gbps: float
    gathered: Sequence[tuple[float, float]] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns it as the native side takes it."""
        return {"dense_gbps": float(self.dense_gbps), "gathered": [(float(d), float(g)) for d, g in self.gathered]}


@dataclass
class Layer:
    """One layer of a placement problem; bytes are of the weights as they are stored.

    Attributes:
        frequency: share of tokens for which a unit is active (n_units), descending; 1 for every unit of a dense layer.
        unit_bytes: of one unit, without its detect row. detect_bytes: of that row; 0 when all units are computed.
        device, host: how fast each side reads.
        attention_bytes: of attention and norms. kv_bytes: memory of keys and values. kv_read_bytes: read per token.
        predictor_bytes: of a predictor, what each side needs that has rows of it. predictor_unit_bytes: of a unit's
            row. Both are read per token; 0 = no predictor. over_selection: its candidates per active unit.
    """

    frequency: np.ndarray
    unit_bytes: int
    device: Rate
    host: Rate
    detect_bytes: int = 0
    attention_bytes: int = 0
    kv_bytes: int = 0
    kv_read_bytes: int = 0
    predictor_bytes: int = 0
    predictor_unit_bytes: int = 0
    over_selection: float = 1.0


@dataclass
class Problem:
    """A placement problem by itself, without a model: for experiments.

    Attributes:
        layers: by number. head_bytes: of the output head. budget: bytes of device memory.
        fixed_bytes: of device memory that anything on the device costs. handoff_seconds: of a layer's hand-off.
        unit_step: n_hot is a multiple of it. tolerance, max_nodes: where the search ends.
    """

    layers: list[Layer]
    budget: int
    head_bytes: int = 0
    fixed_bytes: int = 0
    handoff_seconds: float = 0.0
    unit_step: int = 32
    tolerance: float = 1e-4
    max_nodes: int = 400

    def solve(self) -> dict[str, Any]:
        """Returns the fastest placement: layers, head, seconds, bound, device_bytes, n_nodes.

        Raises:
            ValueError: frequencies are not from 1 to 0 descending, or rates or sizes are not positive.
        """
        return _core.place(self._as_dict())

    def seconds(self, placement: dict[str, Any]) -> tuple[float, int]:
        """Returns the predicted seconds of a token with any placement (its layers and head), and its device bytes."""
        return _core.evaluate_placement(self._as_dict(), placement)

    def _as_dict(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "layers"}
        layers = []
        for layer in self.layers:
            values = dict(vars(layer), device=layer.device.as_dict(), host=layer.host.as_dict())
            values["frequency"] = np.ascontiguousarray(layer.frequency, np.float64)
            layers.append(values)
        return {**own, "layers": layers}


@dataclass(frozen=True)
class RatesByHand:
    """Rates in place of those of machine.json: GB/s of the GPU and of the bus both ways, microseconds of a hand-off."""

    gpu_gbps: float | None = None
    pcie_gbps: float | None = None
    handoff_us: float | None = None


def default_machine() -> Path | None:
    """Returns the machine.json that `hotset bench --machine` wrote; None when there is none."""
    cache, home = os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("HOME", "")
    folder = Path(cache) if cache.startswith("/") else Path(home) / ".cache"
    path = folder / "hotset" / "machine.json"
    return path if path.is_file() else None


def plan(
    model: str | os.PathLike[str],
    *,
    vram_budget: int | str | None = None,
    frequencies: Sequence[np.ndarray] = (),
    machine: str | os.PathLike[str] | None = None,
    rates: RatesByHand = RatesByHand(),
    **load: Any,
) -> dict[str, Any]:
    """Returns where a model would lie, what that takes and how fast it would be, as `hotset plan --json` prints it.

    Without the memory of the process itself, which the command counts too.

    Args:
        model: a GGUF file.
        vram_budget: bytes of GPU memory or a text such as "8GiB"; None or "auto" = what is free, in this version 0.
        frequencies: per layer the share of tokens for which a unit is active, descending; empty = not known.
        machine: machine.json; None = what was measured here.
        rates: take the place of those of `machine`.
        **load: keywords of `Model`.

    Raises:
        ValueError: a budget beyond the GPU's memory or below what its buffers take, or another argument out of range.
        Error: a budget without rates of a GPU.
    """
    file = machine if machine is not None else default_machine()
    return _core.plan(
        os.fspath(model),
        load=load_options({**LOAD_DEFAULTS, **load}),
        vram_budget=size_in_bytes("plan", "vram_budget", vram_budget) or 0,
        frequencies=[as_doubles("plan", "frequencies", layer) for layer in frequencies],
        machine="" if file is None else os.fspath(file),
        **vars(rates),
    )


@dataclass
class PlacedModel:
    """A model placed by statistics.

    Attributes:
        plan: what `plan` returns. vram_budget: bytes. frequencies: per layer, in the order of units.
    """

    plan: dict[str, Any]
    vram_budget: int
    model_fingerprint: str
    frequencies: list[np.ndarray] = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the sidecar, or updates one that is there and keeps its predictors.

        Raises:
            ModelFormatError: the file that is there is damaged, or another model's.
            Error: it cannot be written, or its predictors are of other units.
        """
        if Path(path).exists():
            sidecar = Sidecar.load(path, self.model_fingerprint)
        else:
            sidecar = Sidecar(self.model_fingerprint, len(self.frequencies))
        sidecar.set_frequencies(self.frequencies)
        layers = self.plan["layers"]
        sidecar.placement = StoredPlacement(
            vram_budget=self.vram_budget,
            n_ctx=self.plan["n_ctx"],
            machine=self.plan["machine"],
            n_hot=[layer["n_hot"] for layer in layers],
            detect=[layer["detect"] for layer in layers],
            attention=[layer["attention"] for layer in layers],
            kv=[layer["kv"] for layer in layers],
            head=self.plan["head"],
            predicted_tg_ts=self.plan["predicted"]["tg_ts"],
            gap=self.plan["predicted"]["gap"],
        )
        sidecar.save(path)


def place(
    model: str | os.PathLike[str],
    statistics: Statistics,
    vram_budget: int | str,
    **options: Any,
) -> PlacedModel:
    """Places a model by its statistics; keywords as `plan`.

    Raises:
        Error: the statistics are another model's, or there are no rates; and what `plan` raises.
    """
    frequencies = [np.asarray(statistics.frequencies(layer), np.float64) for layer in range(statistics.n_layer)]
    n_bytes = size_in_bytes("place", "vram_budget", vram_budget) or 0
    result = plan(model, vram_budget=n_bytes, frequencies=[np.sort(f)[::-1] for f in frequencies], **options)
    if result["model_fingerprint"] not in ("", statistics.model_fingerprint):
        raise Error(error_text("place", "model of the statistics", result["model_fingerprint"],
                               statistics.model_fingerprint, "profile this model"))  # fmt: skip
    if result["predicted"]["tg_ts"] is None:
        raise Error(error_text("place", "machine rates", "a machine.json", "none", "run 'hotset bench --machine'"))
    return PlacedModel(result, n_bytes, statistics.model_fingerprint, frequencies)
