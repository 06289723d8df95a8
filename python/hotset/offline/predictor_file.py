"""Predictors in sidecars: keys `hotset.predictor.*` and tensors `blk.N.predictor.*` (docs/FORMATS.md, "Sidecars")."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from .gguf_parts import ARRAY, F64, STRING, U32, RawTensor, raw_value
from .sidecar import Sidecar
from .two_layer import TwoLayer

if TYPE_CHECKING:
    from .training import PredictorOptions, PredictorReport

# Types in which fc1 and fc2 may be stored: GGML number, bytes per weight.
STORED_TYPES = {"f16": (1, 2.0), "q8_0": (8, 34 / 32), "q4_0": (2, 18 / 32)}
_F32_VALUE = 6  # GGUF's number of a float32 value
_KEYS, _TENSORS = "hotset.predictor.", ".predictor."


def stored_bytes(predictor: TwoLayer, dtype: str) -> int:
    """Returns the bytes that a predictor of one layer takes in a file."""
    return int((predictor.fc1.size + predictor.fc2.size) * STORED_TYPES[dtype][1]) + 4 * predictor.bias.size


def without_predictor(sidecar: Sidecar) -> Sidecar:
    """Returns a sidecar with everything else of this one."""
    return replace(sidecar, keys={k: v for k, v in sidecar.keys.items() if not k.startswith(_KEYS)},
                   tensors={k: v for k, v in sidecar.tensors.items() if _TENSORS not in k})  # fmt: skip


def with_predictor(
    sidecar: Sidecar,
    predictors: Sequence[TwoLayer | None],
    options: PredictorOptions,
    thresholds: Sequence[float],
    report: PredictorReport | None = None,
) -> Sidecar:
    """Returns the sidecar with a predictor in place of its own.

    Rows of fc2 and biases are stored in slot order, so that the hot units' part is a prefix.

    Args:
        sidecar: with an order of units, unless all predictors are None.
        predictors: of each layer; None = none, or bit planes, which are made at load.
        options: kind, bits and stored type.
        thresholds: of each layer.
        report: its measured quality, stored too.
    """
    out = without_predictor(sidecar)
    keys = {"kind": raw_value(STRING, options.kind), "thresholds": raw_value(ARRAY, list(thresholds), _F32_VALUE)}
    if options.kind == "bit_planes":
        keys["bits"] = raw_value(U32, options.bits)
    if report is not None:
        keys["kld"] = raw_value(F64, report.kld)
        for name in ("recall", "over_selection", "missed_mass"):
            keys[name] = raw_value(F64, getattr(report.totals, name))
    out.keys.update({_KEYS + name: value for name, value in keys.items()})
    for layer, predictor in enumerate(predictors):
        if predictor is None:
            continue
        order = out.unit_of_slot[layer]
        for name, values in (("fc1", predictor.fc1), ("fc2", predictor.fc2[order])):
            data = _core.quantize(np.ascontiguousarray(values, np.float32), options.dtype.upper())
            kind = STORED_TYPES[options.dtype][0]
            out.tensors[f"blk.{layer}.predictor.{name}.weight"] = RawTensor(values.shape[::-1], kind, data)
        out.tensors[f"blk.{layer}.predictor.bias"] = RawTensor.of(predictor.bias[order])
    return out


@contextmanager
def stored(sidecar: Sidecar) -> Iterator[str]:
    """Yields the path of a file with the sidecar, which is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="hotset-") as folder:
        path = Path(folder) / "trial.hotset.gguf"
        sidecar.save(path)
        yield os.fspath(path)
