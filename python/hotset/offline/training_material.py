"""What predictors are made from: a model, token sequences for each step, and samples of what its layers saw and did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..errors import Error, error_text
from .predictor_file import without_predictor
from .sidecar import Sidecar
from .two_layer import LayerSamples

if TYPE_CHECKING:
    from ..model import Model
    from .training import PredictorOptions

# Tokens whose inputs are kept: memory is this times n_layer * (4 * n_embd + n_ff / 8) bytes.
MAX_SAMPLES = 16384


@dataclass(frozen=True)
class Material:
    """Everything that training reads.

    Attributes:
        model: the model. engine: its native half.
        calibrate: token sequences for thresholds. test: tokens for the model's quality. They share no sequence with each
            other or with the samples.
        profile: counts and samples, as `_core.Profiler.state` has them, and `down_norms` (n_layer, n_ff).
    """

    model: Model
    engine: _core.Engine
    calibrate: list[list[int]]
    test: list[int]
    profile: dict[str, Any]

    @staticmethod
    def read(model: Model, sequences: Iterable[Sequence[int]], options: PredictorOptions) -> Material:
        """Deals sequences out to training, calibration and test, in proportion, until each has its tokens.

        Raises:
            Error: there is too little text.
        """
        wanted = [0 if options.kind == "bit_planes" else options.n_train, options.n_calibrate, options.n_test]
        dealt: list[list[list[int]]] = [[], [], []]
        have = [0, 0, 0]
        for sequence in sequences:
            waiting = [step for step in range(3) if have[step] < wanted[step]]
            if not waiting:
                break
            step = min(waiting, key=lambda i: have[i] / wanted[i])
            dealt[step].append(list(sequence))
            have[step] += len(sequence)
        train, calibrate, test = dealt
        if have[2] < 2 * options.n_ctx or not calibrate or (wanted[0] and not train):
            needed = 2 * options.n_ctx * (1 + sum(wanted) // options.n_test)
            raise Error(error_text("train-predictor", "text", f"at least {needed} tokens", sum(have),
                                   "name more files, or make -c smaller"))  # fmt: skip
        engine = model._open_engine()
        state = _profile(engine, train or calibrate, min(MAX_SAMPLES, wanted[0]))
        return Material(model, engine, calibrate, [token for sequence in test for token in sequence], state)

    @property
    def n_layer(self) -> int:
        """Layers of the model."""
        return len(self.profile["counts"])

    @property
    def n_ff(self) -> int:
        """Units of a layer."""
        return int(self.profile["counts"].shape[1])

    @property
    def n_embd(self) -> int:
        """Elements of the FFN's input."""
        return int(_core.tensor_info(self.engine, self._detect_name(0))[1])

    def samples(self, layer: int) -> LayerSamples:
        """Returns the sampled inputs and active units of a layer.

        The mass of an active unit is the mean of what it contributes when it is active.
        """
        state = self.profile
        active = np.unpackbits(state["sample_masks"][layer], axis=1, count=self.n_ff, bitorder="little").astype(bool)
        counts = np.maximum(state["counts"][layer].astype(np.float64), 1)
        mean = (state["h_sums"][layer] * state["down_norms"][layer] / counts).astype(np.float32)
        return LayerSamples(np.asarray(state["sample_inputs"][layer], np.float32), active, active * mean)

    def detect(self, layer: int) -> tuple[np.ndarray, float]:
        """Returns the detect matrix of a layer, float32 (n_ff, n_embd), and the bytes of one of its rows in the file."""
        return _core.tensor(self.engine, self._detect_name(layer)), self.detect_bytes(layer) / self.n_ff

    def detect_bytes(self, layer: int) -> int:
        """Returns the bytes of a layer's detect matrix."""
        return _core.tensor_info(self.engine, self._detect_name(layer))[2]

    def _detect_name(self, layer: int) -> str:
        for name in (f"blk.{layer}.ffn_gate.weight", f"blk.{layer}.ffn_up.weight"):
            if _core.tensor_info(self.engine, name) is not None:
                return name
        raise Error(error_text("train-predictor", f"detect matrix of layer {layer}", "ffn_gate or ffn_up", "neither",
                               "choose another model"))  # fmt: skip


def begin_sidecar(material: Material, sidecar: Sidecar | None) -> Sidecar:
    """Returns the sidecar that a predictor goes into: `sidecar` without its predictor, or a new one; with an order."""
    out = without_predictor(sidecar) if sidecar else Sidecar(material.engine.fingerprint, material.n_layer)
    if out.model_fingerprint != material.engine.fingerprint:
        raise Error(error_text("train-predictor", "sidecar", f"one of model {material.engine.fingerprint}",
                               out.model_fingerprint, "name another file"))  # fmt: skip
    if not out.unit_of_slot:
        out.set_frequencies([counts / material.profile["n_tokens"] for counts in material.profile["counts"]])
    return out


def _profile(engine: _core.Engine, sequences: list[list[int]], n_samples: int) -> dict[str, Any]:
    stats = engine.stats()
    profiler = _core.Profiler(engine, kv_type=stats["kv_type"], n_ctx=max(map(len, sequences)),
                              n_threads=stats["n_threads"], n_batch=512, n_samples=n_samples)  # fmt: skip
    for begin in range(0, len(sequences), 8):
        profiler.add(sequences[begin : begin + 8])
    return {**profiler.state(), "down_norms": profiler.down_norms()}
