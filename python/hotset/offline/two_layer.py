"""Predictors of two matrices, `margin = fc2 act(fc1 x) + bias`: trained ones (act = ReLU) and low-rank factors (none).

A unit whose margin is above 0 is a candidate; the exact detect row then decides. So a predictor can only cost quality
by leaving out units that are active, and only cost time by naming units that are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import Error, error_text

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

# Ranks are multiples of this: rows of fc2 are then whole blocks of Q8_0 and Q4_0.
RANK_STEP = 32


@dataclass(frozen=True)
class LayerSamples:
    """What one layer's FFN saw and did, for `n` sampled tokens.

    Attributes:
        inputs: (n, n_embd) float32, the FFN's input after the norm.
        active: (n, n_ff) bool, the units whose detect value is above 0.
        mass: (n, n_ff) float32, |h| times the norm of the unit's down row: what leaving it out would miss.
    """

    inputs: NDArray[np.float32]
    active: NDArray[np.bool_]
    mass: NDArray[np.float32]

    def split(self, n_first: int) -> tuple[LayerSamples, LayerSamples]:
        """Returns the first `n_first` tokens and the others."""
        first, rest = slice(0, n_first), slice(n_first, None)
        return (LayerSamples(self.inputs[first], self.active[first], self.mass[first]),
                LayerSamples(self.inputs[rest], self.active[rest], self.mass[rest]))  # fmt: skip


@dataclass(frozen=True)
class TwoLayer:
    """A predictor of one layer.

    Attributes:
        fc1: (r, n_embd) float32.
        fc2: (n_ff, r) float32; rows in order of units.
        bias: (n_ff) float32.
        is_linear: no ReLU between the two matrices.
    """

    fc1: NDArray[np.float32]
    fc2: NDArray[np.float32]
    bias: NDArray[np.float32]
    is_linear: bool

    @property
    def rank(self) -> int:
        """Rows of fc1."""
        return len(self.fc1)

    @property
    def n_params(self) -> int:
        """Elements of all three arrays."""
        return self.fc1.size + self.fc2.size + self.bias.size

    def margins(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns (n, n_ff), the margins of every unit for (n, n_embd) inputs."""
        hidden = inputs @ self.fc1.T
        if not self.is_linear:
            np.maximum(hidden, 0, out=hidden)
        return hidden @ self.fc2.T + self.bias


@dataclass(frozen=True)
class Selection:
    """What a threshold on the margins gives: `offset` is added to every margin before its sign decides."""

    offset: float
    candidates: float  # share of units named, over all tokens
    recall: float  # share of active units named
    missed_mass: float  # share of the mass of active units not named


def select(margins: NDArray[np.float32], samples: LayerSamples, missed_mass: float) -> Selection:
    """Returns the selection of fewest candidates that misses at most the share `missed_mass` of the mass."""
    at = samples.active.nonzero()
    active, mass = margins[at].astype(np.float64), samples.mass[at].astype(np.float64)
    total = mass.sum()
    if not total > 0:
        return Selection(-float(margins.max(initial=0)), 0.0, 1.0, 0.0)
    order = np.argsort(active, kind="stable")
    missed = np.cumsum(mass[order])
    n_missed = int(np.searchsorted(missed, missed_mass * total, side="right"))
    n_missed = min(n_missed, len(order) - 1)
    # Just below the first margin that has to be above 0.
    offset = -float(np.nextafter(np.float32(active[order[n_missed]]), np.float32(-np.inf)))
    named = active > -offset
    return Selection(offset, float((margins > -offset).mean()), float(named.mean()),
                     float(1 - mass[named].sum() / total))  # fmt: skip


class Factors:
    """Low-rank factors of a detect matrix for inputs like these, of every rank; no training.

    They minimise the mean square error of the products rather than of the weights: with C the second moment of the inputs
    and W C^(1/2) = U S V^T, fc2 = U_r S_r and fc1 = V_r^T C^(-1/2). Every unit's margin is then divided by the standard
    deviation of its error, so that one threshold suits all units of a layer.
    """

    def __init__(self, detect: NDArray[np.float32], inputs: NDArray[np.float32]) -> None:
        """Decomposes detect (n_ff, n_embd) for inputs (n, n_embd): cubic in n_embd, once for all ranks."""
        n_embd = detect.shape[1]
        moment = inputs.T.astype(np.float64) @ inputs / max(1, len(inputs))
        moment += np.eye(n_embd) * (1e-6 * np.trace(moment) / n_embd + 1e-30)
        values, vectors = np.linalg.eigh(moment)
        left, sizes, right = np.linalg.svd(detect @ ((vectors * np.sqrt(values)) @ vectors.T), full_matrices=False)
        self._fc1 = right @ ((vectors / np.sqrt(values)) @ vectors.T)
        self._fc2 = left * sizes

    def at(self, rank: int) -> TwoLayer:
        """Returns the factor of a rank."""
        # The error's variance is what the left-out singular values carry.
        error = np.sqrt((self._fc2[:, rank:] ** 2).sum(axis=1))
        largest = float(error.max(initial=0))
        fc2 = self._fc2[:, :rank] / np.maximum(error, 1e-6 * largest if largest > 0 else 1.0)[:, None]
        bias = np.zeros(len(fc2), np.float32)
        return TwoLayer(self._fc1[:rank].astype(np.float32), fc2.astype(np.float32), bias, is_linear=True)


def import_torch() -> ModuleType:
    """Returns torch, or explains how to install it."""
    try:
        import torch
    except ImportError:
        raise Error(error_text("train-predictor", "package torch", "installed", "not installed",
                               'run: pip install "hotset[offline]", or use --kind bit_planes or low_rank')) from None  # fmt: skip
    return torch


@dataclass(frozen=True)
class TrainOptions:
    """How a two-layer predictor is trained."""

    n_epochs: int = 10
    batch: int = 128
    learning_rate: float = 2e-2
    device: str = "cpu"
    seed: int = 0


def train(samples: LayerSamples, start: TwoLayer, options: TrainOptions) -> TwoLayer:
    """Trains a predictor, from `start` on, to tell active units from inactive ones.

    The loss is the logistic loss of every unit. An inactive unit counts 1; an active one the inverse of the layer's
    density, half of it evenly and half by its mass against the mean mass of active units: a unit that is missed costs
    what it would have added. Deterministic for one seed, torch version and device.

    Raises Error without torch, or when the weights become NaN.
    """
    torch = import_torch()
    generator = torch.Generator().manual_seed(options.seed)
    device = torch.device(options.device)
    inputs, active, weight = (
        torch.from_numpy(np.ascontiguousarray(a)).to(device)
        for a in (samples.inputs, samples.active, _loss_weights(samples))
    )
    parameters = [torch.from_numpy(a.copy()).to(device).requires_grad_() for a in (start.fc1, start.fc2, start.bias)]
    n = len(inputs)
    n_steps = (n + options.batch - 1) // options.batch * options.n_epochs
    # Each array moves at a rate in proportion to its own size: they differ by orders of magnitude.
    groups = [{"params": [p], "lr": options.learning_rate * max(float(p.detach().std()), 1e-3)} for p in parameters[:2]]
    groups.append({"params": parameters[2:], "lr": options.learning_rate})
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [g["lr"] for g in groups], total_steps=n_steps, pct_start=0.1)
    for _ in range(options.n_epochs):
        order = torch.randperm(n, generator=generator).to(device)
        for begin in range(0, n, options.batch):
            rows = order[begin : begin + options.batch]
            hidden = inputs[rows] @ parameters[0].T
            if not start.is_linear:
                hidden = torch.relu(hidden)
            logits = hidden @ parameters[1].T + parameters[2]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, active[rows].float(), weight=weight[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    out = [p.detach().cpu().numpy() for p in parameters]
    if not all(np.isfinite(p).all() for p in out):
        raise Error(error_text("train-predictor", "training", "finite weights", "NaN or infinity",
                               "lower the learning rate"))  # fmt: skip
    return TwoLayer(out[0], out[1], out[2], start.is_linear)


def with_relu(linear: TwoLayer) -> TwoLayer:
    """Returns a predictor with a ReLU between its matrices that computes what `linear` does, at twice the rank.

    Every row of fc1 comes twice, with both signs, as x = relu(x) - relu(-x).
    """
    return TwoLayer(np.concatenate([linear.fc1, -linear.fc1]), np.concatenate([linear.fc2, -linear.fc2], axis=1),
                    linear.bias, is_linear=False)  # fmt: skip


def _loss_weights(samples: LayerSamples) -> NDArray[np.float32]:
    """The weight of each token and unit in the loss, (n, n_ff)."""
    share = max(float(samples.active.mean()), 1e-6)
    mean_mass = float(samples.mass.sum()) / max(1, int(samples.active.sum()))
    relative = samples.mass / mean_mass if mean_mass > 0 else np.ones_like(samples.mass)
    positive = (0.5 + 0.5 * relative) * min(1 / share, 32.0)
    return np.where(samples.active, positive, 1).astype(np.float32)
