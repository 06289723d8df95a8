"""How large a two-layer predictor of each layer should be: bytes of the predictor against bytes of wrong candidates.

The paper (arXiv 2312.12456, section 5.1) starts from a layer's sparsity and lets its skew and the model's quality grow or
shrink the rank. Here quality is held by the threshold, whatever the rank: a predictor that is too small names more
units, which the exact detect row then rejects. So the rank that reads the fewest bytes per token is the right one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .two_layer import RANK_STEP, LayerSamples, Selection, TwoLayer, select

# A byte of rows picked here and there takes this many of a stream (docs/BENCHMARKS.md: 1.4 to 2).
GATHERED_COST = 1.6


@dataclass(frozen=True)
class Sized:
    """A predictor of one layer with what it costs and gives on the samples that judged it."""

    predictor: TwoLayer
    selection: Selection
    cost: float  # bytes of a stream per token: the predictor's own and those of the candidates' detect rows


def first_rank(samples: LayerSamples, largest: int) -> int:
    """Returns the rank to begin with: for a layer of which a tenth is active a quarter of n_embd, growing with the root
    of the density, less where few units carry most of the activity."""
    density = float(samples.active.mean())
    counts = np.sort(samples.active.sum(axis=0))[::-1].astype(np.float64)
    carried = np.cumsum(counts) / max(1.0, counts.sum())
    evenness = min(1.0, float((carried < 0.8).mean()) / 0.5)  # 1 where half of the units carry 80 %
    rank = samples.inputs.shape[1] / 4 * np.sqrt(density / 0.1) * (0.5 + 0.5 * evenness)
    return _on_grid(rank, largest)


def best_size(
    make: Callable[[int], TwoLayer],
    judge: LayerSamples,
    missed_mass: float,
    detect_row_bytes: float,
    bytes_per_weight: float,
    first: int,
    largest: int,
) -> Sized:
    """Returns the predictor that reads the fewest bytes, doubling or halving the rank while that helps.

    Args:
        make: makes a predictor of a rank.
        judge: samples that `make` has not seen.
        missed_mass: share of the contributions that may be missed.
        detect_row_bytes: bytes of one unit's detect row.
        bytes_per_weight: of the predictor as it is stored.
        first: rank to begin with, a multiple of RANK_STEP.
        largest: largest rank to try.
    """
    tried: dict[int, Sized] = {}

    def at(rank: int) -> Sized:
        if rank not in tried:
            predictor = make(rank)
            chosen = select(predictor.margins(judge.inputs), judge, missed_mass)
            n_ff = judge.active.shape[1]
            verified = chosen.candidates * n_ff * detect_row_bytes * GATHERED_COST
            tried[rank] = Sized(predictor, chosen, predictor.n_params * bytes_per_weight + verified)
        return tried[rank]

    best = first
    for factor in (2.0, 0.5):
        while (other := _on_grid(best * factor, largest)) != best and at(other).cost < at(best).cost:
            best = other
    return at(best)


def _on_grid(rank: float, largest: int) -> int:
    """The nearest multiple of RANK_STEP, at least one, at most `largest` rounded down."""
    most = max(1, largest // RANK_STEP)
    return RANK_STEP * int(np.clip(round(rank / RANK_STEP), 1, most))
