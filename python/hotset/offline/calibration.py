"""Thresholds of predictors: how many units are named, and how much is missed, for every value that one could take.

The engine computes all units and counts, per layer, how much threshold each unit would have needed to be a candidate (its
slack): all units, active ones, and active ones by their mass. Sums of these counts give what any threshold would do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import _core

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Slack is counted between these, in what is added to margins; beyond, the outermost bins take it.
LOW, HIGH, N_BINS = -16.0, 16.0, 4096


@dataclass(frozen=True)
class Slacks:
    """One layer's units and tokens by slack, (n_bins) each.

    A threshold at the end of bin i names what bins 0 to i count; the last bin ends at infinity.

    Attributes:
        units: all of them.
        active: those that were active.
        mass: sum over active ones of |h| times the length of the unit's down row.
    """

    units: NDArray[np.float64]
    active: NDArray[np.float64]
    mass: NDArray[np.float64]


@dataclass(frozen=True)
class LayerThreshold:
    """One layer's threshold and what it does on the calibration text.

    Attributes:
        z: what is added to margins before their sign decides; infinite where everything has to be named.
        n_units: units counted, over all tokens.
        n_candidates: units named.
        n_active: active units.
        n_found: active units named.
        mass: of active units.
        missed: mass of active units not named.
    """

    z: float
    n_units: float
    n_candidates: float
    n_active: float
    n_found: float
    mass: float
    missed: float


@dataclass(frozen=True)
class Totals:
    """What the thresholds of several layers do together.

    Attributes:
        recall: share of active units that are named.
        over_selection: units named for each active one; NaN where none is active.
        missed_mass: share of the mass of active units that is not named.
        candidate_share: share of all units that are named.
    """

    recall: float
    over_selection: float
    missed_mass: float
    candidate_share: float

    @staticmethod
    def of(thresholds: Sequence[LayerThreshold | None]) -> Totals:
        """Adds layers up; None stands for a layer without predictor, which does not count."""
        layers = [t for t in thresholds if t is not None]

        def total(name: str) -> float:
            return float(sum(getattr(t, name) for t in layers))

        active, mass = total("n_active"), total("mass")
        return Totals(
            recall=total("n_found") / active if active else 1.0,
            over_selection=total("n_candidates") / active if active else float("nan"),
            missed_mass=total("missed") / mass if mass else 0.0,
            candidate_share=total("n_candidates") / max(1.0, total("n_units")),
        )


def measure_slacks(engine: _core.Engine, sequences: Sequence[Sequence[int]], sidecar: str) -> list[Slacks | None]:
    """Counts slacks of the predictor in a sidecar over token sequences; None for layers without one."""
    calibrator = _core.Calibrator(engine, predictor="", sidecar=sidecar, n_ctx=max(map(len, sequences)),
                                  n_threads=engine.stats()["n_threads"], n_batch=512, low=LOW, high=HIGH,
                                  n_bins=N_BINS)  # fmt: skip
    for begin in range(0, len(sequences), 8):
        calibrator.add(sequences[begin : begin + 8])
    return [None if layer is None else Slacks(**{name: np.asarray(layer[name], np.float64) for name in
                                                 ("units", "active", "mass")})
            for layer in calibrator.layers()]  # fmt: skip


def choose_threshold(slacks: Slacks, missed_mass: float) -> LayerThreshold:
    """Returns the threshold of fewest candidates that misses at most the share `missed_mass` of the layer's mass."""
    n_bins = len(slacks.units)
    missed = slacks.mass.sum() - np.cumsum(slacks.mass)
    missed[-1] = 0.0  # whatever rounding says
    last = int(np.argmax(missed <= missed_mass * slacks.mass.sum()))
    z = LOW + (last + 1) * (HIGH - LOW) / n_bins if last + 1 < n_bins else np.inf
    named = slice(0, last + 1)
    return LayerThreshold(float(z), slacks.units.sum(), slacks.units[named].sum(), slacks.active.sum(),
                          slacks.active[named].sum(), slacks.mass.sum(), float(missed[last]))  # fmt: skip


def largest_missed_mass(
    is_good: Callable[[float], bool], lowest: float = 1e-5, highest: float = 0.1, n_steps: int = 6
) -> float | None:
    """Returns the largest missed mass that `is_good` accepts, by halving the interval of its logarithm.

    None when not even `lowest` is accepted. Calls is_good at most n_steps + 2 times.
    """
    if is_good(highest):
        return highest
    if not is_good(lowest):
        return None
    low, high = lowest, highest
    for _ in range(n_steps):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if is_good(middle) else (low, middle)
    return low
