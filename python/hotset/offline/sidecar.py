"""Sidecars `*.hotset.gguf`: unit order, frequencies, placement and predictors of a model (docs/FORMATS.md, "Sidecars")."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Error, ModelFormatError, error_text
from .gguf_parts import ARRAY, F64, STRING, U32, U64, RawTensor, RawValue, raw_value, read_parts, write_parts

VERSION = 1
MAX_LAYERS = 1 << 14
_OWN_KEYS = ("general.architecture", "hotset.version", "hotset.model_fingerprint", "hotset.unit_kind", "hotset.n_layer")
_PLACEMENT = "hotset.placement."
_PLACES = {"detect": ("host", "split", "device"), "attention": ("host", "device"), "kv": ("host", "device")}


@dataclass(frozen=True)
class StoredPlacement:
    """What sits where on one machine with one budget.

    Attributes:
        vram_budget: bytes of GPU memory. n_ctx: positions that the KV memory holds. machine: its name.
        n_hot: units of each layer on the device: the first slots.
        detect, attention: "device", "host" or, for detect, "split", of each layer. head: "device" or "host".
        predicted_tg_ts: tokens per second. gap: proven relative distance from the fastest placement.
        kv: "device" or "host" of each layer; None = with the attention.
    """

    vram_budget: int
    n_ctx: int
    machine: str
    n_hot: list[int]
    detect: list[str]
    attention: list[str]
    head: str
    predicted_tg_ts: float
    gap: float
    kv: list[str] | None = None


@dataclass
class Sidecar:
    """A sidecar in memory.

    Attributes:
        model_fingerprint: `Model.fingerprint` of the model.
        unit_of_slot: per layer the units from the hottest on, int32 (n_ff); empty when the file has no order.
        unit_freq: per layer how often the unit of each slot is active, float32 (n_ff), descending; or empty.
        placement: or None.
        keys: all others, such as those of predictors, in their bytes.
        tensors: all others.
    """

    model_fingerprint: str
    n_layer: int
    unit_of_slot: list[np.ndarray] = field(default_factory=list)
    unit_freq: list[np.ndarray] = field(default_factory=list)
    placement: StoredPlacement | None = None
    keys: dict[str, RawValue] = field(default_factory=dict)
    tensors: dict[str, RawTensor] = field(default_factory=dict)

    @staticmethod
    def load(path: str | os.PathLike[str], model_fingerprint: str | None = None) -> Sidecar:
        """Reads a file.

        Raises:
            ModelFormatError: it is damaged, no sidecar, or not of the model with `model_fingerprint`.
            Error: it cannot be read.
        """
        return _Reader(os.fspath(path)).sidecar(model_fingerprint)

    def set_frequencies(self, frequencies: Sequence[np.ndarray]) -> None:
        """Orders the units by how often they are active, ties by unit number; rows of predictors go along.

        Args:
            frequencies: per layer the share of tokens for which each unit is active (n_ff), in the order of units.

        Raises:
            ValueError: a number is not within 0 to 1, or there are not as many layers.
            Error: predictors are stored whose rows are not those of the units.
        """
        if len(frequencies) != self.n_layer:
            raise ValueError(error_text("sidecar", "layers of the frequencies", self.n_layer, len(frequencies),
                                        "use statistics of this model"))  # fmt: skip
        orders = []
        for layer, values in enumerate(frequencies):
            if np.ndim(values) != 1 or not (np.greater_equal(values, 0) & np.less_equal(values, 1)).all():
                raise ValueError(error_text("sidecar", f"frequencies of layer {layer}", "numbers from 0 to 1",
                                            "others", "use statistics of this model"))  # fmt: skip
            orders.append(np.argsort(-np.asarray(values, np.float64), kind="stable").astype(np.int32))
        self._move_predictor_rows(orders)
        self.unit_of_slot = orders
        self.unit_freq = [np.asarray(f, np.float64)[order].astype(np.float32) for f, order in zip(frequencies, orders)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, whole or not at all; equal sidecars give equal bytes.

        Raises:
            Error: it cannot be written.
        """
        keys = {
            "general.architecture": raw_value(STRING, "hotset-sidecar"),
            "hotset.version": raw_value(U32, VERSION),
            "hotset.model_fingerprint": raw_value(STRING, self.model_fingerprint),
            "hotset.unit_kind": raw_value(STRING, "ffn"),
            "hotset.n_layer": raw_value(U32, self.n_layer),
            **self.keys,
        }
        if self.placement:
            keys.update(_placement_keys(self.placement))
        tensors: dict[str, RawTensor] = {}
        for layer in range(self.n_layer):
            if self.unit_freq:
                tensors[f"blk.{layer}.unit_freq"] = RawTensor.of(self.unit_freq[layer])
            if self.unit_of_slot:
                tensors[f"blk.{layer}.unit_of_slot"] = RawTensor.of(self.unit_of_slot[layer])
        write_parts(path, keys, {**tensors, **self.tensors})

    def _move_predictor_rows(self, orders: list[np.ndarray]) -> None:
        """Puts the rows of predictors, whatever their type, from the order of the slots into another."""
        moved = {}
        for layer, order in enumerate(orders):
            for name in (f"blk.{layer}.predictor.fc2.weight", f"blk.{layer}.predictor.bias"):
                tensor = self.tensors.get(name)
                if tensor is None:
                    continue
                slots = self.unit_of_slot[layer] if self.unit_of_slot else None
                if slots is None or len(slots) != len(order) or tensor.shape[-1] != len(order):
                    raise Error(error_text("sidecar", f"tensor {name}", f"a row for each of {len(order)} units",
                                           "others", "write another file, and train its predictor again"))  # fmt: skip
                rows = np.frombuffer(tensor.data, np.uint8).reshape(len(order), -1)
                moved[name] = replace(tensor, data=rows[np.argsort(slots)[order]].tobytes())
        self.tensors.update(moved)


def path_beside(model: str | os.PathLike[str]) -> Path:
    """Returns where a model's sidecar is looked for: model.hotset.gguf beside model.gguf."""
    path = Path(model)
    return path.with_name(path.name.removesuffix(".gguf") + ".hotset.gguf")


def _placement_keys(placement: StoredPlacement) -> dict[str, RawValue]:
    values = {
        "vram_budget": raw_value(U64, placement.vram_budget),
        "n_ctx": raw_value(U32, placement.n_ctx),
        "machine": raw_value(STRING, placement.machine),
        "n_hot": raw_value(ARRAY, placement.n_hot, U32),
        "detect": raw_value(ARRAY, placement.detect, STRING),
        "attention": raw_value(ARRAY, placement.attention, STRING),
        "head": raw_value(STRING, placement.head),
        "predicted_tg_ts": raw_value(F64, placement.predicted_tg_ts),
        "gap": raw_value(F64, placement.gap),
    }
    if placement.kv is not None:
        values["kv"] = raw_value(ARRAY, placement.kv, STRING)
    return {_PLACEMENT + name: value for name, value in values.items()}


class _Reader:
    """Checks a file part by part; what it does not know is kept as it is."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._keys, self._tensors = read_parts(path)

    def sidecar(self, model_fingerprint: str | None) -> Sidecar:
        for key, expected in (("general.architecture", "hotset-sidecar"), ("hotset.version", VERSION),
                              ("hotset.unit_kind", "ffn")):  # fmt: skip
            if (got := self._get(key, type(expected))) != expected:
                self._refuse(key, expected, got)
        fingerprint = self._get("hotset.model_fingerprint", str)
        if model_fingerprint is not None and fingerprint != model_fingerprint:
            self._refuse("fingerprint of its model", model_fingerprint, fingerprint, "name the sidecar of this model")
        n_layer = self._get("hotset.n_layer", int)
        if not 0 < n_layer <= MAX_LAYERS:
            self._refuse("hotset.n_layer", f"1 to {MAX_LAYERS}", n_layer)
        out = Sidecar(fingerprint, n_layer)
        out.unit_of_slot, out.unit_freq = self._vectors("unit_of_slot", n_layer), self._vectors("unit_freq", n_layer)
        self._check_orders(out)
        out.placement = self._placement(out)
        out.keys = {key: value for key, value in self._keys.items()
                    if key not in _OWN_KEYS and not key.startswith(_PLACEMENT)}  # fmt: skip
        out.tensors = self._tensors
        return out

    def _vectors(self, name: str, n_layer: int) -> list[np.ndarray]:
        """Takes a vector of every layer out of the tensors; empty when the first layer has none."""
        out = []
        for layer in range(n_layer):
            tensor = self._tensors.pop(key := f"blk.{layer}.{name}", None)
            if tensor is None and not out:
                return []
            values = tensor.vector() if tensor else None
            if values is None or values.dtype.kind != ("i" if name == "unit_of_slot" else "f"):
                self._refuse(f"tensor {key}", "a vector", "something else" if tensor else "nothing")
            out.append(values)
        return out

    def _check_orders(self, sidecar: Sidecar) -> None:
        for layer, units in enumerate(sidecar.unit_of_slot):
            if not np.array_equal(np.sort(units), np.arange(len(units))):
                self._refuse(f"tensor blk.{layer}.unit_of_slot", "every unit once", "something else")
        for layer, values in enumerate(sidecar.unit_freq):
            if not ((values >= 0) & (values <= 1)).all() or (np.diff(values) > 0).any():
                self._refuse(f"tensor blk.{layer}.unit_freq", "numbers from 1 to 0, descending", "others")
            if sidecar.unit_of_slot and len(values) != len(sidecar.unit_of_slot[layer]):
                self._refuse(f"tensor blk.{layer}.unit_freq", f"{len(sidecar.unit_of_slot[layer])} units", len(values))

    def _placement(self, sidecar: Sidecar) -> StoredPlacement | None:
        if _PLACEMENT + "n_hot" not in self._keys:
            return None
        n_hot = self._per_layer("n_hot", sidecar.n_layer, int)
        for layer, n in enumerate(n_hot):
            most = len(sidecar.unit_of_slot[layer]) if sidecar.unit_of_slot else 1 << 24
            if not 0 <= n <= most:
                self._refuse(f"hot units of layer {layer}", f"0 to {most}", n)
        present = [name for name in _PLACES if name != "kv" or _PLACEMENT + name in self._keys]
        places = {name: self._per_layer(name, sidecar.n_layer, str) for name in present}
        for name, values in (*places.items(), ("head", [self._get(_PLACEMENT + "head", str)])):
            if not set(values) <= set(known := _PLACES.get(name, ("host", "device"))):
                self._refuse(_PLACEMENT + name, " or ".join(known), "something else")
        numbers = {name: self._get(_PLACEMENT + name, int) for name in ("vram_budget", "n_ctx")}
        figures = {name: self._get(_PLACEMENT + name, float) for name in ("predicted_tg_ts", "gap")}
        if min(numbers.values()) < 0 or not all(map(math.isfinite, figures.values())):
            self._refuse("figures of the placement", "finite numbers from 0", "others")
        return StoredPlacement(**numbers, machine=self._get(_PLACEMENT + "machine", str), n_hot=n_hot, **places,
                               head=self._get(_PLACEMENT + "head", str), **figures)  # fmt: skip

    def _per_layer(self, name: str, n_layer: int, kind: type) -> list[Any]:
        values = self._get(_PLACEMENT + name, list)
        if len(values) != n_layer or not all(type(value) is kind for value in values):
            self._refuse(_PLACEMENT + name, f"{n_layer} values of type {kind.__name__}", "something else")
        return values

    def _get(self, key: str, kind: type) -> Any:
        value = self._keys[key].decoded() if key in self._keys else None
        if type(value) is not kind:
            self._refuse(key, f"a value of type {kind.__name__}", "nothing" if value is None else repr(value)[:80])
        return value

    def _refuse(self, what: str, expected: object, got: object, remedy: str = "make the sidecar again") -> Any:
        raise ModelFormatError(error_text(self._path, what, expected, got, remedy))
