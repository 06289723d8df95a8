"""The plots of a report as PNG bytes, each for a light and a dark page.

One hue carries the measured series, a second one what it is compared with, greys the rest; series are named beside
their lines instead of in legends where there is room.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import Error, error_text
from .figures import Report

kSize = (7.6, 3.4)  # inches
kDpi = 150


@dataclass(frozen=True)
class Theme:
    """Colours of a page: background, text, faint text, rules, the measured series, its comparison, a filling."""

    paper: str
    ink: str
    faint: str
    rule: str
    main: str
    other: str
    fill: str


kThemes = {
    "light": Theme("#ffffff", "#1c2430", "#667080", "#dfe3e8", "#2563a8", "#c2611f", "#c9d9ea"),
    "dark": Theme("#151a21", "#e4e8ee", "#97a1af", "#2c343f", "#6ea8e6", "#e39455", "#2b415a"),
}


@dataclass(frozen=True)
class Plot:
    """A drawn plot: `name` is its file without ending, `png` maps themes to files."""

    name: str
    png: dict[str, bytes]


def import_matplotlib() -> ModuleType:
    """Returns matplotlib, or explains how to install it."""
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError:
        remedy = 'run: pip install "hotset[report]"'
        raise Error(error_text("report", "package matplotlib", "installed", "not installed", remedy)) from None
    return matplotlib


def draw_plots(report: Report) -> list[Plot]:
    """Draws every plot for which the report has figures, in the order of the page."""
    matplotlib = import_matplotlib()
    absent = {
        "persistence": report.model.persistence is None,
        "stability": not report.stability,
        "coactivation": not any(each.correlation for each in report.coactivation),
        "placement": report.placement is None,
    }
    return [
        Plot(name, {theme: _draw(matplotlib, draw, report, colours) for theme, colours in kThemes.items()})
        for name, draw in kDrawers.items()
        if not absent.get(name)
    ]


def _draw(matplotlib: ModuleType, draw: Callable, report: Report, theme: Theme) -> bytes:
    """Runs one drawer in a style that the user's matplotlibrc does not change; no window system is used."""
    style = {
        **{key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")},
        "font.size": 9, "figure.facecolor": theme.paper, "axes.facecolor": theme.paper, "text.color": theme.ink,
        "axes.labelcolor": theme.faint, "axes.edgecolor": theme.rule, "xtick.color": theme.faint,
        "ytick.color": theme.faint, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False,
        "grid.color": theme.rule, "grid.linewidth": 0.8, "axes.axisbelow": True, "xtick.major.size": 0,
        "ytick.major.size": 0, "lines.solid_capstyle": "round",
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = matplotlib.figure.Figure(figsize=kSize, dpi=kDpi, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
        draw(figure, report, theme)
        out = io.BytesIO()
        figure.savefig(out, format="png")
    return out.getvalue()


def _percent(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else 100 * value for value in values])


def _layer_axes(figure: Any, report: Report, label: str) -> Any:
    """Axes with layers from left to right and percent upwards."""
    axes = figure.subplots()
    n = len(report.layers)
    axes.set_xlim(-0.6, n - 0.4)
    axes.set_xticks(range(0, n, max(1, -(-n // 16))))
    axes.set_xlabel("layer")
    axes.set_ylabel(label)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    return axes


def _name_lines(axes: Any, theme: Theme, names: list[tuple[float, str, str]]) -> None:
    """Writes (height, text, colour) at the right end of lines, pushed apart where they would touch."""
    low, high = axes.get_ylim()
    step = 0.075 * (high - low)
    at = -np.inf
    for height, text, colour in sorted(names):
        at = max(height, at + step)
        axes.annotate(text, (1, at), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
                      va="center", color=colour, annotation_clip=False)  # fmt: skip


def _active_share(figure: Any, report: Report, theme: Theme) -> None:
    axes = _layer_axes(figure, report, "units active for a token, %")
    values = _percent([1 - layer.sparsity for layer in report.layers])
    mean = 100 * (1 - report.model.sparsity)
    axes.axhline(mean, color=theme.other, linewidth=1.2, zorder=0.9)
    axes.bar(range(values.size), values, width=0.72, color=theme.main)
    axes.set_ylim(0, min(104, max(1, 1.15 * values.max())))
    _name_lines(axes, theme, [(mean, f"mean {mean:.1f}", theme.other)])
    if values.size <= 20:
        for x, value in enumerate(values):
            axes.annotate(f"{value:.1f}", (x, value), xytext=(0, 3), textcoords="offset points", ha="center",
                          fontsize=8, bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 0})  # fmt: skip


def _hot_curve(figure: Any, report: Report, theme: Theme) -> None:
    axes = figure.subplots()
    curves = [(layer.layer, layer.activations.curve) for layer in report.layers if layer.activations.curve]
    for _, curve in curves:
        axes.plot(np.linspace(0, 100, len(curve)), _percent(curve), color=theme.main, linewidth=0.9, alpha=0.35)
    axes.plot([0, 100], [0, 100], color=theme.faint, linewidth=0.9, linestyle=(0, (2, 3)))
    axes.text(62, 60, "if all units fired equally often", color=theme.faint, va="top", fontsize=8)
    whole = report.model.activations
    if whole.curve and whole.units_for_80:
        axes.plot(np.linspace(0, 100, len(whole.curve)), _percent(whole.curve), color=theme.other, linewidth=2.2)
        x = 100 * whole.units_for_80
        axes.plot([x, x, 0], [0, 80, 80], color=theme.other, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.plot([x], [80], "o", color=theme.other, markersize=5)
        axes.annotate(f"{x:.0f} % of all units carry 80 %", (x, 80), xytext=(9, -11), textcoords="offset points",
                      color=theme.other, fontweight="bold", bbox={"facecolor": theme.paper, "edgecolor": "none",
                                                                  "pad": 1.5, "alpha": 0.85})  # fmt: skip
    axes.text(99, 6, "one line per layer", color=theme.main, ha="right")
    axes.text(99, 14, "whole model", color=theme.other, ha="right", fontweight="bold")
    axes.set(xlim=(0, 100), ylim=(0, 101), xlabel="hottest units, % of units", ylabel="activations carried, %")
    axes.grid()


def _units_for_80(figure: Any, report: Report, theme: Theme) -> None:
    axes = _layer_axes(figure, report, "units that carry 80 %, %")
    x = np.arange(len(report.layers))
    counts = _percent([layer.activations.units_for_80 for layer in report.layers])
    mass = _percent([layer.mass.units_for_80 for layer in report.layers])
    axes.vlines(x, np.fmin(counts, mass), np.fmax(counts, mass), color=theme.rule, linewidth=2)
    axes.plot(x, mass, "o", color=theme.other, markersize=5, markerfacecolor=theme.paper, markeredgewidth=1.5)
    axes.plot(x, counts, "o", color=theme.main, markersize=5.5)
    axes.set_ylim(0, max(10, 1.15 * np.nanmax(np.append(counts, mass))) if np.isfinite(counts).any() else 100)
    _name_lines(axes, theme, _ends([(counts, "by activations", theme.main), (mass, "by contribution", theme.other)]))


def _persistence(figure: Any, report: Report, theme: Theme) -> None:
    axes = _layer_axes(figure, report, "active again, %")
    x = np.arange(len(report.layers))
    measured = _percent([layer.persistence for layer in report.layers])
    chance = _percent([layer.persistence_by_chance for layer in report.layers])
    axes.vlines(x, np.fmin(measured, chance), np.fmax(measured, chance), color=theme.fill, linewidth=4)
    axes.plot(x, chance, "_", color=theme.faint, markersize=11, markeredgewidth=2)
    axes.plot(x, measured, "o", color=theme.main, markersize=5.5)
    top = np.nanmax(np.append(measured, chance)) if np.isfinite(measured).any() else 100
    axes.set_ylim(0, min(101, max(10, 1.2 * top)))
    _name_lines(axes, theme, _ends([(measured, "next token", theme.main), (chance, "any token", theme.faint)]))


def _ends(series: list[tuple[np.ndarray, str, str]]) -> list[tuple[float, str, str]]:
    """The last known value of each series with its name and colour; nothing for series without one."""
    return [(values[np.isfinite(values)][-1], name, colour) for values, name, colour in series
            if np.isfinite(values).any()]  # fmt: skip


def _stability(figure: Any, report: Report, theme: Theme) -> None:
    axes = _layer_axes(figure, report, "hot units shared, %")
    pairs = np.array([_percent(pair.layers) for pair in report.stability])
    x = np.arange(pairs.shape[1])
    axes.set_ylim(0, 101)
    axes.axhline(20, color=theme.faint, linewidth=0.9, linestyle=(0, (2, 3)))
    names = [(20.0, "chance", theme.faint)]
    known = np.isfinite(pairs).all(axis=0)
    if len(pairs) > 1 and known.any():
        axes.fill_between(x, pairs.min(axis=0), pairs.max(axis=0), where=known, color=theme.fill, linewidth=0)
    mean = pairs.mean(axis=0)
    axes.plot(x, mean, "o-", color=theme.main, linewidth=1.5, markersize=4.5)
    label = "mean of pairs" if len(pairs) > 1 else "both texts"
    _name_lines(axes, theme, names + _ends([(mean, label, theme.main)]))


def _coactivation(figure: Any, report: Report, theme: Theme) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    each = next(each for each in report.coactivation if each.correlation)
    values = np.array(each.correlation, dtype=np.float64)
    np.fill_diagonal(values, np.nan)
    limit = max(0.05, np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1
    colours = LinearSegmentedColormap.from_list("hotset", [theme.main, theme.paper, theme.other])
    colours = colours.with_extremes(bad=theme.rule)
    heatmap, lifts = figure.subplots(1, 2, width_ratios=(1, 1.1))
    image = heatmap.imshow(values, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
    heatmap.set(xticks=[], yticks=[], xlabel=f"layer {each.layer}: hottest {len(each.units)} units, hottest first")
    for spine in heatmap.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=heatmap, shrink=0.85, aspect=28, pad=0.03)
    bar.outline.set_visible(False)
    bar.set_label("correlation of a pair")
    known = [(one.layer, one.lift) for one in report.coactivation if one.lift is not None]
    heights = [lift for _, lift in known]
    lifts.axhline(1, color=theme.faint, linewidth=0.9, linestyle=(0, (2, 3)))
    lifts.plot([layer for layer, _ in known], heights, "o", color=theme.main, markersize=5)
    lifts.set_ylim(min([0.9, *(0.95 * lift for lift in heights)]), max([1.1, *(1.05 * lift for lift in heights)]))
    _name_lines(lifts, theme, [(1.0, "chance", theme.faint)])
    lifts.set(xlabel="layer", ylabel="pairs firing together, times chance")
    lifts.xaxis.get_major_locator().set_params(integer=True)
    lifts.grid(axis="y")


def _placement(figure: Any, report: Report, theme: Theme) -> None:
    axes = _layer_axes(figure, report, "on the device, %")
    layers = report.placement.layers
    units = _percent([layer.units for layer in layers])
    caught = _percent([layer.activations for layer in layers])
    axes.bar(range(units.size), units, width=0.72, color=theme.fill)
    axes.plot(range(caught.size), caught, "o", color=theme.main, markersize=5.5)
    axes.set_ylim(0, 104)
    names = _ends([(caught, "of activations", theme.main), (units, "of units", theme.faint)])
    _name_lines(axes, theme, names)


kDrawers = {
    "active_share": _active_share, "hot_curve": _hot_curve, "units_for_80": _units_for_80,
    "persistence": _persistence, "stability": _stability, "coactivation": _coactivation, "placement": _placement,
}  # fmt: skip
