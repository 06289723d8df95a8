"""Reads the placement of a sidecar (`*.hotset.gguf`, docs/FORMATS.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Error, error_text
from .gguf_reader import GgufReader

kMaxLayers = 10_000


@dataclass(frozen=True)
class Placement:
    """What sits where; per layer in the order of layer numbers.

    Attributes:
        n_hot: units on the device: the first slots.
        unit_of_slot: units (n_units,) from the hottest on.
        detect, attention: `device`, `host` or `split`; None where the file does not say.
        vram_budget: bytes. predicted_tg_ts: tokens/s. gap: proven distance to the optimum, a share.
    """

    model_fingerprint: str
    n_hot: list[int]
    unit_of_slot: list[np.ndarray]
    detect: list[str | None]
    attention: list[str | None]
    head: str | None = None
    machine: str | None = None
    vram_budget: int | None = None
    n_ctx: int | None = None
    predicted_tg_ts: float | None = None
    gap: float | None = None


def read_placement(path: str | Path) -> Placement:
    """Returns the placement in a sidecar.

    Raises:
        ModelFormatError: the file is damaged, contradicts itself, or is no sidecar.
        Error: it is a sidecar without a placement.
    """
    file = GgufReader(Path(path))
    for key, value in (("general.architecture", "hotset-sidecar"), ("hotset.version", 1), ("hotset.unit_kind", "ffn")):
        if file.keys.get(key) != value:
            raise file.error(key, f"{value}", file.keys.get(key, "nothing"))
    n_layer = _optional(file, "hotset.n_layer", int)
    if n_layer is None or not 0 < n_layer <= kMaxLayers:
        raise file.error("hotset.n_layer", f"1 to {kMaxLayers}", n_layer)
    prefix = "hotset.placement."
    n_hot = file.keys.get(f"{prefix}n_hot")
    if n_hot is None:
        raise Error(error_text(str(path), "placement", "present", "none in this sidecar", "run hotset place"))
    if not isinstance(n_hot, np.ndarray) or n_hot.dtype.kind not in "iu" or n_hot.size != n_layer:
        raise file.error(f"{prefix}n_hot", f"{n_layer} integers", "something else")
    orders = [_unit_order(file, layer, int(n_hot[layer])) for layer in range(n_layer)]
    return Placement(
        model_fingerprint=_optional(file, "hotset.model_fingerprint", str) or "",
        n_hot=n_hot.tolist(),
        unit_of_slot=orders,
        detect=_texts(file, f"{prefix}detect", n_layer),
        attention=_texts(file, f"{prefix}attention", n_layer),
        head=_optional(file, f"{prefix}head", str),
        machine=_optional(file, f"{prefix}machine", str),
        vram_budget=_optional(file, f"{prefix}vram_budget", int),
        n_ctx=_optional(file, f"{prefix}n_ctx", int),
        predicted_tg_ts=_optional(file, f"{prefix}predicted_tg_ts", float),
        gap=_optional(file, f"{prefix}gap", float),
    )


def _optional(file: GgufReader, key: str, kind: type) -> Any:
    value = file.keys.get(key)
    if value is not None and (type(value) is not kind or (kind is float and not math.isfinite(value))):
        raise file.error(key, f"one finite {kind.__name__}" if kind is float else f"one {kind.__name__}", value)
    return value


def _texts(file: GgufReader, key: str, n_layer: int) -> list[str | None]:
    values = file.keys.get(key, [None] * n_layer)
    if not isinstance(values, list) or len(values) != n_layer:
        raise file.error(key, f"{n_layer} texts", "something else")
    return values


def _unit_order(file: GgufReader, layer: int, n_hot: int) -> np.ndarray:
    name = f"blk.{layer}.unit_of_slot"
    order = file.tensor(name)
    if order.dtype.kind != "i" or not np.array_equal(np.sort(order), np.arange(order.size)):
        raise file.error(f"tensor {name}", "every unit once", "something else")
    if not 0 <= n_hot <= order.size:
        raise file.error(f"hot units of layer {layer}", f"0 to {order.size}", n_hot)
    return order
