"""The figures of a report: arithmetic on statistics, without files and without plots.

Undefined figures are None, for example the share of nothing: JSON has no NaN.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import Error, error_text
from .sidecar_reader import Placement
from .statistics import Statistics

kCurveSteps = 100
kHotShare = 5  # the hottest fifth, 20 %
kHeatmapUnits = 64


@dataclass(frozen=True)
class Concentration:
    """How few units carry how much of a quantity; all None where there is none of it.

    Attributes:
        units_for_80: the smallest share of units that carries at least 80 %.
        hottest_fifth: what the hottest 20 % of units carry.
        curve: what the hottest 0 %, 1 %, .. 100 % of units carry.
    """

    units_for_80: float | None
    hottest_fifth: float | None
    curve: list[float] | None


@dataclass(frozen=True)
class UnitFigures:
    """A set of units: those of a layer, or of the whole model.

    Attributes:
        active: mean number of active units per token.
        sparsity: mean share of units that are not active.
        activations, mass: concentration of activation counts, and of |h| times the norm of the down row.
        n_dead, n_always_on: units active for no token, and for every token.
        persistence: of the active units of a token, the share that the token before had too. The first token of
            each sequence has none before it and counts as a miss.
        persistence_by_chance: the same for two tokens drawn at random, so what frequencies alone explain.
    """

    n_units: int
    active: float
    sparsity: float
    activations: Concentration
    mass: Concentration
    n_dead: int
    n_always_on: int
    persistence: float | None
    persistence_by_chance: float | None


@dataclass(frozen=True)
class LayerFigures(UnitFigures):
    """The units of a layer; `threshold` is the contribution from which a unit counts as active (0: not exactly 0)."""

    layer: int
    threshold: float


@dataclass(frozen=True)
class Stability:
    """Agreement of the hot sets (hottest 20 %, without units that never fired) of two files of statistics.

    Attributes:
        first, second: positions in `Report.sources`.
        overlap: share of the larger hot set that is in both, over all layers; 0.2 would be chance.
        layers: the same layer by layer.
        kept: activations of one text caught by the hot set of the other, relative to its own; mean of both directions.
    """

    first: int
    second: int
    overlap: float | None
    layers: list[float | None]
    kept: float | None


@dataclass(frozen=True)
class Coactivation:
    """How the hottest units (at most 64) of a layer fire together in the sampled rows.

    Attributes:
        lift: pairs seen together, relative to the number if every unit fired independently; 1 is chance.
        correlation: (units, units), phi of each pair; None for units that always or never fired in the sample, and
            wholly None in layers whose heatmap was not asked for.
    """

    layer: int
    n_rows: int
    units: list[int]
    lift: float | None
    correlation: list[list[float | None]] | None


@dataclass(frozen=True)
class LayerPlacement:
    """Where a layer works; shares are those of its units and of its activations that the device holds."""

    layer: int
    n_hot: int
    units: float
    activations: float | None
    detect: str | None
    attention: str | None


@dataclass(frozen=True)
class PlacementFigures:
    """A placement seen through the statistics; keys of the sidecar, None where it has none."""

    machine: str | None
    vram_budget: int | None
    n_ctx: int | None
    head: str | None
    predicted_tg_ts: float | None
    gap: float | None
    units: float
    activations: float | None
    layers: list[LayerPlacement]


@dataclass(frozen=True)
class Source:
    """One file of statistics."""

    name: str
    n_tokens: int
    sparsity: float


@dataclass(frozen=True)
class Report:
    """All figures of a report; `report.json` holds exactly these.

    Attributes:
        corpora: what the statistics say about their texts: name, sha256, n_tokens, n_bytes.
        stability: every pair of sources; empty with one.
        coactivation: layers with samples, ascending.
    """

    model_fingerprint: str
    n_tokens: int
    sources: list[Source]
    corpora: list[dict]
    model: UnitFigures
    layers: list[LayerFigures]
    stability: list[Stability]
    coactivation: list[Coactivation]
    placement: PlacementFigures | None
    format: str = "hotset-report"
    version: int = 1

    def to_json(self) -> str:
        """Returns the figures as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False)


def compute_report(parts: Sequence[Statistics], names: Sequence[str], placement: Placement | None = None,
                   heatmap_layer: int | None = None) -> Report:  # fmt: skip
    """Computes every figure.

    Args:
        parts: statistics of one model, one per source.
        names: one for each part.
        placement: what sits where.
        heatmap_layer: layer whose correlations are kept (default: the middle one of those with samples).

    Raises:
        Error: there are no statistics or no tokens, or parts or placement are of different models.
        ValueError: `heatmap_layer` has no samples.
    """
    check_parts(parts, names)
    whole = _merged(parts)
    return Report(
        model_fingerprint=whole.model_fingerprint,
        n_tokens=whole.n_tokens,
        sources=[Source(name, part.n_tokens, _unit_figures(part, part.layers).sparsity)
                 for name, part in zip(names, parts)],
        corpora=whole.corpora,
        model=_unit_figures(whole, whole.layers),
        layers=[_layer_figures(whole, layer) for layer in range(whole.n_layer)],
        stability=[_stability(parts, a, b) for a in range(len(parts)) for b in range(a + 1, len(parts))],
        coactivation=_coactivation(whole, heatmap_layer),
        placement=None if placement is None else _placement(whole, placement),
    )  # fmt: skip


def check_parts(parts: Sequence[Statistics], names: Sequence[str]) -> None:
    """Raises Error unless the parts have tokens and are of one model."""
    if not parts:
        raise Error(error_text("report", "statistics", "at least one file", "none", "run hotset profile first"))
    for name, part in zip(names, parts, strict=True):
        if part.n_tokens <= 0 or part.n_layer <= 0:
            raise Error(error_text(f"report {name}", "statistics", "at least one token and one layer",
                                   f"{part.n_tokens} tokens, {part.n_layer} layers",
                                   "profile some text"))  # fmt: skip
        if part.model_fingerprint != parts[0].model_fingerprint:
            raise Error(error_text(f"report {name}", "model fingerprint", f"{parts[0].model_fingerprint} as {names[0]}",
                                   part.model_fingerprint, "report on one model at a time"))  # fmt: skip
        sizes, first = ([layer.counts.size for layer in each.layers] for each in (part, parts[0]))
        if sizes != first:
            raise Error(error_text(f"report {name}", "layers and units", f"those of {names[0]}", "others",
                                   "report on one model at a time"))  # fmt: skip


def _merged(parts: Sequence[Statistics]) -> Statistics:
    try:
        return Statistics.merge(parts)
    except ValueError as error:  # thresholds that differ: wrong files, not wrong usage
        raise Error(str(error)) from None


def concentration(values: np.ndarray) -> Concentration:
    """How concentrated non-negative values (units,) are; counts are exact up to a sum of 2**50."""
    n_units = values.size
    carried = np.concatenate([[0.0], np.cumsum(np.sort(values.astype(np.float64))[::-1])])
    total = carried[-1]
    if not total > 0:
        return Concentration(None, None, None)
    n_for_80 = int(np.argmax(5 * carried >= 4 * total))
    at = np.linspace(0, n_units, kCurveSteps + 1)
    curve = np.interp(at, np.arange(n_units + 1), carried / total).tolist()
    return Concentration(n_for_80 / n_units, curve[kCurveSteps // kHotShare], curve)


def _unit_figures(statistics: Statistics, layers: Sequence) -> UnitFigures:
    n_tokens = statistics.n_tokens
    counts = np.concatenate([layer.counts for layer in layers])
    n_active = int(counts.sum())
    again = float((counts.astype(np.float64) * (counts.astype(np.float64) - 1)).sum())
    has_pairs = n_active > 0 and n_tokens > 1
    return UnitFigures(
        n_units=counts.size,
        active=n_active / n_tokens,
        sparsity=1 - n_active / (n_tokens * counts.size),
        activations=concentration(counts),
        mass=concentration(np.concatenate([layer.mass for layer in layers])),
        n_dead=int((counts == 0).sum()),
        n_always_on=int((counts == n_tokens).sum()),
        persistence=sum(layer.overlap for layer in layers) / n_active if has_pairs else None,
        persistence_by_chance=again / ((n_tokens - 1) * n_active) if has_pairs else None,
    )


def _layer_figures(statistics: Statistics, layer: int) -> LayerFigures:
    units = _unit_figures(statistics, [statistics.layers[layer]])
    shared = {field.name: getattr(units, field.name) for field in dataclasses.fields(units)}
    return LayerFigures(**shared, layer=layer, threshold=float(statistics.layers[layer].threshold))


def _hot_set(statistics: Statistics, layer: int) -> np.ndarray:
    counts = statistics.layers[layer].counts
    hottest = statistics.order(layer)[: -(-counts.size // kHotShare)]
    return hottest[counts[hottest] > 0]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _stability(parts: Sequence[Statistics], first: int, second: int) -> Stability:
    shared, sizes = [], []
    caught = [0, 0]  # activations of `second` in the hot set of `first`, and the other way round
    own = [0, 0]
    for layer in range(parts[first].n_layer):
        a, b = (parts[n].layers[layer].counts for n in (first, second))
        hot_a, hot_b = (_hot_set(parts[n], layer) for n in (first, second))
        shared.append(np.intersect1d(hot_a, hot_b).size)
        sizes.append(max(hot_a.size, hot_b.size))
        for side, (counts, theirs, ours) in enumerate(((b, hot_a, hot_b), (a, hot_b, hot_a))):
            caught[side] += int(counts[theirs].sum())
            own[side] += int(counts[ours].sum())
    kept = [_ratio(*each) for each in zip(caught, own)]
    return Stability(
        first=first,
        second=second,
        overlap=_ratio(sum(shared), sum(sizes)),
        layers=[_ratio(*each) for each in zip(shared, sizes)],
        kept=None if None in kept else sum(kept) / 2,
    )


def _coactivation(whole: Statistics, heatmap_layer: int | None) -> list[Coactivation]:
    sampled = [number for number, layer in enumerate(whole.layers) if layer.mask is not None]
    if heatmap_layer is None and sampled:
        heatmap_layer = sampled[len(sampled) // 2]
    if heatmap_layer is not None and heatmap_layer not in sampled:
        known = f"{sampled[0]} to {sampled[-1]}" if sampled else "none, as there are no samples"
        raise ValueError(error_text("report", "layer of the heatmap", known, heatmap_layer,
                                    "profile with --samples or choose another layer"))  # fmt: skip
    out = []
    for number in sampled:
        layer, units = whole.layers[number], whole.order(number)[:kHeatmapUnits]
        units = units[layer.counts[units] > 0]
        out.append(_fire_together(number, units, _unpacked(layer.mask, units), number == heatmap_layer))
    return out


def _unpacked(mask: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Columns `units` of packed rows (n, ceil(n_ff / 8)), lowest bit first, as float64 (n, units)."""
    return ((mask[:, units >> 3] >> (units & 7).astype(np.uint8)) & 1).astype(np.float64)


def _fire_together(layer: int, units: np.ndarray, active: np.ndarray, has_heatmap: bool) -> Coactivation:
    n_rows = active.shape[0]
    together = active.T @ active
    alone = np.diag(together)
    pairs = np.triu_indices(units.size, 1)
    lift = _ratio(n_rows * together[pairs].sum(), np.outer(alone, alone)[pairs].sum())
    correlation = None
    if has_heatmap:
        spread = np.sqrt(alone * (n_rows - alone))
        with np.errstate(invalid="ignore", divide="ignore"):
            phi = (n_rows * together - np.outer(alone, alone)) / np.outer(spread, spread)
        correlation = [[round(float(v), 4) if np.isfinite(v) else None for v in row] for row in phi]
    return Coactivation(layer, n_rows, units.tolist(), None if lift is None else float(lift), correlation)


def _placement(whole: Statistics, placement: Placement) -> PlacementFigures:
    if placement.model_fingerprint != whole.model_fingerprint:
        raise Error(error_text("report", "sidecar's model fingerprint", whole.model_fingerprint,
                               placement.model_fingerprint, "give the sidecar of the profiled model"))  # fmt: skip
    sizes = [layer.counts.size for layer in whole.layers]
    if [order.size for order in placement.unit_of_slot] != sizes:
        raise Error(error_text("report", "layers and units of the sidecar", "those of the statistics", "others",
                               "give the sidecar of the profiled model"))  # fmt: skip
    layers, caught = [], 0
    for n, (layer, order, n_hot) in enumerate(zip(whole.layers, placement.unit_of_slot, placement.n_hot)):
        on_device = int(layer.counts[order[:n_hot]].sum())
        caught += on_device
        layers.append(LayerPlacement(n, n_hot, n_hot / order.size, _ratio(on_device, int(layer.counts.sum())),
                                     placement.detect[n], placement.attention[n]))  # fmt: skip
    n_active = sum(int(layer.counts.sum()) for layer in whole.layers)
    return PlacementFigures(
        machine=placement.machine, vram_budget=placement.vram_budget, n_ctx=placement.n_ctx, head=placement.head,
        predicted_tg_ts=placement.predicted_tg_ts, gap=placement.gap, units=sum(placement.n_hot) / sum(sizes),
        activations=_ratio(caught, n_active), layers=layers,
    )  # fmt: skip
