"""Speed against sparsity: the byte limit from tensor sizes and measured read rates, and the plot."""

from __future__ import annotations

import bisect
import json
import math
import os
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compare_programs import Case, Failure, run

if TYPE_CHECKING:
    from compare_report import Report


def load_rates(path: str | None) -> dict[str, Any] | None:
    """machine.json (docs/FORMATS.md); without a path that of `hotset bench --machine`. None when there is none there."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    file = Path(path) if path else Path(cache) / "hotset" / "machine.json"
    if not path and not file.exists():
        return None
    rates = json.loads(file.read_text())
    if rates.get("format") != "hotset-machine" or rates.get("version") != 1:
        raise ValueError(f"{file}: expected machine rates of version 1")
    return rates


def entries_for(rates: dict[str, Any], threads: int) -> list[dict[str, Any]]:
    """Entries of the nearest measured number of threads below, else of the smallest."""
    counts = {entry["n_threads"] for entry in rates["read"]}
    chosen = max((n for n in counts if n <= threads), default=min(counts))
    return [entry for entry in rates["read"] if entry["n_threads"] == chosen]


def dense_gbps(rates: dict[str, Any], threads: int) -> float:
    """Read bandwidth: the better kind of pages."""
    return max(entry["dense_gbps"] for entry in entries_for(rates, threads))


def place_of(values: list[float], value: float) -> tuple[int, int, float]:
    """Neighbours of a value in an ascending list, and the share of the upper one, in logarithms."""
    above = bisect.bisect_left(values, value)
    if above == 0:
        return 0, 0, 0.0
    if above == len(values):
        return above - 1, above - 1, 0.0
    low, high = math.log(values[above - 1]), math.log(values[above])
    return above - 1, above, (math.log(value) - low) / (high - low)


def interpolated(entry: dict[str, Any], row_bytes: float, density: float) -> float:
    """Rate of gathered rows from one entry of machine.json; 0 when it has none."""
    grid = {(each["row_bytes"], each["density"]): each["gbps"] for each in entry["gathered"]}
    if not grid:
        return 0.0
    sizes = sorted({size for size, _ in grid})
    densities = sorted({density for _, density in grid} | {1.0})
    size_low, size_high, size_share = place_of(sizes, row_bytes)
    low, high, share = place_of(densities, density)

    def at(size: int, place: int) -> float:
        return grid.get((sizes[size], densities[place]), entry["dense_gbps"])  # density 1

    def mixed(size: int) -> float:
        return at(size, low) + (at(size, high) - at(size, low)) * share

    return mixed(size_low) + (mixed(size_high) - mixed(size_low)) * size_share


def gathered_gbps(rates: dict[str, Any], threads: int, row_bytes: float, density: float) -> float:
    """Rate of gathered rows as core/machine_rates.cpp gives it: the better kind of pages; 0 when not measured."""
    return max(interpolated(entry, row_bytes, density) for entry in entries_for(rates, threads))


def token_bytes(tensors: list[dict[str, Any]]) -> tuple[int, list[tuple[int, float]]]:
    """Bytes that every token reads, and (bytes, bytes of a unit's row) of each matrix whose active rows alone are read.

    `tensors` as `hotset inspect --json` lists them; a shape has its contiguous dimension first. With a gate, up and down
    are read row by row; without one, down is. Of the embedding a token reads one row, unless it is the output head too.
    """
    names = {tensor["name"] for tensor in tensors}
    dense, gathered = 0, []
    for tensor in tensors:
        name, n_bytes, shape = tensor["name"], tensor["n_bytes"], tensor["shape"]
        match = re.fullmatch(r"(blk\.\d+\.)ffn_(up|down|down_t)\.weight", name)
        is_gated = bool(match) and match[1] + "ffn_gate.weight" in names
        if match and (match[2] != "up" or is_gated):
            n_units = shape[0] if match[2] == "down" else shape[1]
            gathered.append((n_bytes, n_bytes / n_units))
        elif name == "token_embd.weight" and "output.weight" in names:
            dense += n_bytes // shape[1]
        else:
            dense += n_bytes
    return dense, gathered


def limits_at(tensors: list[dict[str, Any]], rates: dict[str, Any], threads: int, active: float) -> dict[str, float]:
    """Tokens/s that reading alone allows: all bytes at the dense rate, and active rows at the gathered rate."""
    dense, gathered = token_bytes(tensors)
    rate = dense_gbps(rates, threads) * 1e9
    n_active = active * sum(n_bytes for n_bytes, _ in gathered)
    time = dense / rate
    for n_bytes, row_bytes in gathered:
        time += active * n_bytes / ((gathered_gbps(rates, threads, row_bytes, active) * 1e9) or rate)
    return {"dense_ts": rate / (dense + n_active), "gathered_ts": 1 / time}


def limits_of(
    hotset: list[str], case: Case, rates: dict[str, Any], thread_counts: list[int]
) -> dict[int, dict[str, float]]:
    """limits_at for a case's file; nothing when it cannot be inspected."""
    try:
        tensors = json.loads(run([*hotset, "inspect", "-m", case.hotset_file, "--json"], 120))["tensors"]
        return {threads: limits_at(tensors, rates, threads, case.active_share or 1.0) for threads in thread_counts}
    except (Failure, ValueError, KeyError, TypeError):
        return {}


def plot(report: Report, path: Path, note: Callable[[str], None]) -> None:
    """Draws decode speed and limits against sparsity, a panel for each recipe and number of threads."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return note("no plot: matplotlib is not installed")
    panels: dict[tuple[str, int], list[Any]] = {}
    for each in report.rounds:
        if each.case.active_share is not None:
            panels.setdefault((each.case.name.partition(": ")[2], each.threads), []).append(each)
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(7, 4.5 * len(panels)), squeeze=False)
    for axis, ((recipe, threads), group) in zip(axes[:, 0], panels.items()):
        for column in report.columns:
            points = []
            for each in group:
                results = [r for (name, test), r in each.samples.items() if name == column.name and test[:2] == "tg"]
                if results:
                    speeds = [result.tokens_per_s for result in results[0]]
                    points.append((100 * (1 - each.case.active_share), statistics.median(speeds), speeds))
            if points:
                x, y = [point[0] for point in points], [point[1] for point in points]
                spread = [[p[1] - min(p[2]) for p in points], [max(p[2]) - p[1] for p in points]]
                axis.errorbar(x, y, yerr=spread, marker="o", capsize=3, label=column.name)
        for key, label in (("dense_ts", "byte limit"), ("gathered_ts", "limit at gathered read rates")):
            known = [(each, report.limits.get(each.case.name, {}).get(threads)) for each in group]
            line = [(100 * (1 - each.case.active_share), limit[key]) for each, limit in known if limit]
            if line:
                axis.plot(*zip(*line), linestyle="--", label=label)
        axis.set(xlabel="units not active, %", ylabel="decode, tokens/s", ylim=(0, None))
        axis.set_title(f"{recipe}, {threads} threads", fontsize=8)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    note(f"wrote {path}")
