"""The integer program of PowerInfer (arXiv 2312.12456, section 6): a second objective, to compare placements with.

It maximises how often units on the GPU are active, subject to memory and to a least number of units per layer that pays
for the hand-off. Needs the package `highspy` (extra `[ilp]`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from ..errors import Error, error_text

GROUP = 64  # units that are placed together, neighbours in descending frequency


def communication_threshold(unit_bytes: int, host_gbps: float, device_gbps: float, sync_seconds: float) -> int:
    """Returns C_l, the least number of units in GPU memory that is faster than none: T_sync / (T_cpu - T_gpu).

    T of a side is the time in which it reads one unit; a GPU that is no faster gives a number beyond any layer.
    """
    saved = unit_bytes / (host_gbps * 1e9) - unit_bytes / (device_gbps * 1e9)
    return math.ceil(sync_seconds / saved) if saved > 0 else 1 << 30


def solve_ilp(
    frequencies: Sequence[np.ndarray],
    unit_bytes: Sequence[int],
    budget: int,
    thresholds: Sequence[int],
    *,
    seconds: float = 10.0,
) -> list[int]:
    """Returns the number of hot units of each layer.

    Args:
        frequencies: per layer (n_units), descending.
        unit_bytes: of one unit of each layer, all its rows.
        budget: bytes of GPU memory for units.
        thresholds: C_l of each layer: so many units or none.
        seconds: limit of the search.

    Raises:
        Error: `highspy` is not installed, or found nothing in that time.
    """
    highspy = _import_highspy()
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("time_limit", seconds)
    solver.setOptionValue("mip_rel_gap", 1e-9)
    solver.changeObjectiveSense(highspy.ObjSense.kMaximize)
    sizes: list[np.ndarray] = []  # units of each group of each layer
    first: list[int] = []  # column of each layer's first group
    for values in frequencies:
        first.append(solver.getNumCol())
        sizes.append(np.diff(np.append(np.arange(0, len(values), GROUP), len(values))))
        for value in np.add.reduceat(values, np.arange(0, len(values), GROUP)):
            _add_binary(highspy, solver, float(value))
    n_groups = solver.getNumCol()
    cost = np.concatenate([size * float(n) for size, n in zip(sizes, unit_bytes)])
    solver.addRow(-highspy.kHighsInf, float(budget), n_groups, np.arange(n_groups, dtype=np.int32), cost)
    for layer, size in enumerate(sizes):
        column = solver.getNumCol()
        _add_binary(highspy, solver, 0.0)  # y_l: whether the layer has hot units
        index = np.append(np.arange(first[layer], first[layer] + len(size)), column).astype(np.int32)
        for least, most, bound in ((0.0, highspy.kHighsInf, min(thresholds[layer], int(size.sum()) + 1)),
                                   (-highspy.kHighsInf, 0.0, int(size.sum()))):  # fmt: skip
            solver.addRow(least, most, len(index), index, np.append(size, -bound).astype(np.float64))
    solver.run()
    values = np.asarray(solver.getSolution().col_value)
    if (
        len(values) < n_groups
        or solver.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible
    ):
        raise Error(error_text("ilp", "solution", f"one within {seconds:g} s", "none", "allow more time"))
    chosen = [values[begin : begin + len(size)] > 0.5 for begin, size in zip(first, sizes)]
    return [int(size[taken].sum()) for size, taken in zip(sizes, chosen)]


def _add_binary(highspy: ModuleType, solver: object, value: float) -> None:
    column = solver.getNumCol()  # type: ignore[attr-defined]
    solver.addCol(value, 0.0, 1.0, 0, np.empty(0, np.int32), np.empty(0))  # type: ignore[attr-defined]
    solver.changeColIntegrality(column, highspy.HighsVarType.kInteger)  # type: ignore[attr-defined]


def _import_highspy() -> ModuleType:
    try:
        import highspy
    except ImportError:
        raise Error(error_text("ilp", "package highspy", "installed", "not installed",
                               'run: pip install "hotset[ilp]"')) from None  # fmt: skip
    return highspy
