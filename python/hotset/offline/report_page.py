"""The page of a report: one HTML file with its plots inside, for light and dark screens, without scripts."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape

from .figures import LayerFigures, Report, kHeatmapUnits
from .report_plots import Plot

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2430; --faint: #596373; --rule: #dfe3e8;
  --card: #f5f7f9; --main: #2563a8; --bar: #d6e3f1; }
@media (prefers-color-scheme: dark) { :root { --paper: #151a21; --ink: #e4e8ee; --faint: #97a1af; --rule: #2c343f;
  --card: #1c232c; --main: #6ea8e6; --bar: #24405e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { margin: 0 0 .3rem; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 3rem 0 .4rem; font-size: 1.25rem; }
p { max-width: 44rem; margin: .5rem 0; }
.faint, figcaption, dt, th { color: var(--faint); }
code { font-size: .9em; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(var(--card-width), 1fr)); gap: .8rem;
  margin: 1.6rem 0 0; padding: 0; }
/* A list says the term first; the eye wants the figure first. */
.cards div { display: flex; flex-direction: column-reverse; justify-content: flex-end;
  background: var(--card); border-radius: .6rem; padding: .9rem 1rem; }
.cards dd { margin: 0; font-size: 1.75rem; font-weight: 650; color: var(--main); line-height: 1.25; }
.cards dt { font-size: .88rem; line-height: 1.4; }
figure { margin: 1rem 0 0; }
figure img { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; margin-top: 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
th { font-weight: 500; text-align: right; vertical-align: bottom; padding: .3rem .45rem; line-height: 1.3; }
td { text-align: right; padding: .28rem .45rem; border-top: 1px solid var(--rule); white-space: nowrap; }
td.bar { background: linear-gradient(to right, var(--bar) var(--share), transparent var(--share)); }
tfoot td { font-weight: 650; border-top: 2px solid var(--rule); }
.text { text-align: left; overflow-wrap: anywhere; white-space: normal; }
"""


def render_page(report: Report, plots: Sequence[Plot]) -> str:
    """Returns the page. Every text from outside is escaped."""
    images = {plot.name: plot for plot in plots}
    sections = [_active, _hot, _contribution, _persistence, _stability, _coactivation, _placement]
    body = "\n".join(part for part in (section(report, images) for section in sections) if part)
    content = "\n".join([_header(report), body, _layer_table(report), _sources(report)])
    content = content.replace(" %", "\u00a0%")  # a number keeps its unit on its line
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Activation report: {_percent(report.model.sparsity)} sparse</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{content}
</main>
</body>
</html>
"""


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def _count(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f")


def _bytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def _extremes(report: Report, value: Callable[[LayerFigures], float | None]) -> str:
    """`12.0 % (layer 3) to 40.0 % (layer 7)`: where a figure is smallest and largest."""
    known = [(value(layer), layer.layer) for layer in report.layers if value(layer) is not None]
    if not known:
        return "unknown in all layers"
    low, high = min(known), max(known, key=lambda each: (each[0], -each[1]))
    return f"{_percent(low[0])} (layer {low[1]}) to {_percent(high[0])} (layer {high[1]})"


def _image(plot: Plot, alt: str) -> str:
    """Both versions of a plot; the browser shows the one that fits."""
    data = {theme: base64.b64encode(png).decode("ascii") for theme, png in plot.png.items()}
    return f"""<figure><picture>
<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{data["dark"]}">
<img src="data:image/png;base64,{data["light"]}" alt="{escape(alt)}">
</picture></figure>"""


def _section(title: str, plot: Plot, alt: str, *paragraphs: str) -> str:
    text = "\n".join(f"<p>{each}</p>" for each in paragraphs)
    return f"<section>\n<h2>{title}</h2>\n{text}\n{_image(plot, alt)}\n</section>"


def _header(report: Report) -> str:
    model, placement = report.model, report.placement
    by_chance = _percent(model.persistence_by_chance)
    fixed = f"{_count(model.n_dead)} never fired, {_count(model.n_always_on)} always did"
    cards = [
        (_percent(model.sparsity), "of the feed-forward units rest while a token is computed"),
        (_percent(model.activations.units_for_80), "of the units carry 80 % of all activations"),
        (
            _percent(model.persistence),
            f"of active units were active one token before; by chance {by_chance}",
        ),
        (_percent((model.n_dead + model.n_always_on) / model.n_units), f"of the units never change: {fixed}"),
    ]
    if report.stability:
        lowest = min((pair.overlap for pair in report.stability if pair.overlap is not None), default=None)
        cards.append((_percent(lowest), "of the hot units are the same in two texts, where texts differ most"))
    if placement:
        cards.append((_percent(placement.activations),
                      f"of the activations meet the {_percent(placement.units)} of units on the device"))  # fmt: skip
    width = "12rem" if len(cards) <= 4 else "16rem"  # four in a row, or rows of three
    items = "\n".join(f"<div><dt>{text}</dt><dd>{value}</dd></div>" for value, text in cards)
    return f"""<header>
<h1>Which units of the model fire</h1>
<p class="faint">{_count(report.n_tokens)} tokens, {len(report.layers)} layers, {_count(model.n_units)} units.
Model fingerprint <code>{escape(report.model_fingerprint)}</code></p>
<dl class="cards" style="--card-width: {width}">
{items}
</dl>
</header>"""


def _active(report: Report, images: dict[str, Plot]) -> str:
    share = _percent(1 - report.model.sparsity)
    is_exact = not any(layer.threshold for layer in report.layers)
    exact = "A unit counts as active when its activation is not exactly zero, so leaving the others out changes nothing."
    approximate = (
        "A unit counts as active when its contribution |h|·‖down row‖ reaches the layer’s threshold, so leaving the "
        "others out is an approximation."
    )
    return _section(
        "How sparse the layers are",
        images["active_share"],
        f"Bars: share of active units per layer, {_extremes(report, lambda x: 1 - x.sparsity)}, mean {share}.",
        f"For an average token {share} of the units are active: the weights of the others need not be read.",
        exact if is_exact else approximate,
    )


def _hot(report: Report, images: dict[str, Plot]) -> str:
    whole = report.model.activations
    for_80 = _percent(whole.units_for_80)
    return _section(
        "How much the hot units carry",
        images["hot_curve"],
        "Curves: share of activations against share of units, one per layer and one for the whole model, which reaches "
        f"80 % at {for_80} of the units.",
        "Units are sorted by how often they fire, the hottest first. The steeper a line rises, the more of the work a "
        "small, fast memory can hold.",
        f"Over the whole model {for_80} of the units carry 80 % of the activations, and the hottest 20 % carry "
        f"{_percent(whole.hottest_fifth)}.",
    )


def _contribution(report: Report, images: dict[str, Plot]) -> str:
    model = report.model
    return _section(
        "Frequency and contribution",
        images["units_for_80"],
        "Dots: share of units that carry 80 % of the activations per layer, "
        f"{_extremes(report, lambda x: x.activations.units_for_80)}, with the same by contribution.",
        "The share of units that carry 80 %, counted in two ways: by how often a unit fires, which decides the work, "
        "and by what it adds to the result (|h|·‖down row‖), which decides the quality when units are left out.",
        f"For the whole model: {_percent(model.activations.units_for_80)} of the units by activations, "
        f"{_percent(model.mass.units_for_80)} by contribution.",
    )


def _persistence(report: Report, images: dict[str, Plot]) -> str:
    model = report.model
    if model.persistence is None:
        return ""
    return _section(
        "From one token to the next",
        images["persistence"],
        "Dots: share of active units that were active one token before, per layer, "
        f"{_extremes(report, lambda x: x.persistence)}; marks show what chance would give.",
        f"Of the units that are active for a token, {_percent(model.persistence)} were active for the token before it. "
        f"Two tokens picked at random would share {_percent(model.persistence_by_chance)}, because hot units fire "
        "often anyway; what lies above is memory of the context.",
        "The first token of each sequence has none before it and counts as sharing nothing.",
    )


def _stability(report: Report, images: dict[str, Plot]) -> str:
    if not report.stability:
        return ""
    lines = [
        f"{escape(report.sources[pair.first].name)} and {escape(report.sources[pair.second].name)}: "
        f"{_percent(pair.overlap)} of the hot units are shared; the hot units of one catch {_percent(pair.kept)} "
        "of what the other’s own would catch."
        for pair in report.stability
    ]
    return _section(
        "Does the hot set hold for other texts",
        images["stability"],
        "Line: share of hot units that two texts have in common, per layer; dashed: chance, 20 %.",
        "The hottest 20 % of the units of each layer, found on one text and looked for on another. Chance would give "
        "20 %. What counts in the end is how many activations the set of one text catches on the other.",
        "<br>\n".join(lines),
    )


def _coactivation(report: Report, images: dict[str, Plot]) -> str:
    shown = next((each for each in report.coactivation if each.correlation), None)
    if shown is None:
        return ""
    lifts = [each.lift for each in report.coactivation if each.lift is not None]
    ends = [f"{lift:.2f}" for lift in (min(lifts), max(lifts))] if lifts else ["an unknown number of"]
    between = f"{' to '.join(dict.fromkeys(ends))} times"
    return _section(
        "Do hot units fire together",
        images["coactivation"],
        f"Left: correlation of each pair of the {len(shown.units)} hottest units of layer {shown.layer}. "
        f"Right: pairs firing together relative to chance, per layer, {between} as often.",
        f"Pairs among the {kHeatmapUnits} hottest units of a layer fire together {between} as often as if each unit "
        "fired on its own account.",
        f"The map shows layer {shown.layer} in {_count(shown.n_rows)} sampled tokens: orange pairs prefer the same "
        "tokens, blue pairs avoid each other.",
    )


def _placement(report: Report, images: dict[str, Plot]) -> str:
    placement = report.placement
    if placement is None:
        return ""
    facts = {
        "machine": placement.machine and escape(placement.machine),
        "memory budget": placement.vram_budget is not None and _bytes(placement.vram_budget),
        "context": placement.n_ctx is not None and f"{_count(placement.n_ctx)} tokens",
        "output head": placement.head and escape(placement.head),
        "predicted": placement.predicted_tg_ts is not None and f"{placement.predicted_tg_ts:.1f} tokens/s",
        "proven gap": placement.gap is not None and _percent(placement.gap, 2),
    }
    return _section(
        "What sits where",
        images["placement"],
        "Bars: share of each layer’s units on the device; dots: share of its activations that they meet.",
        f"{_percent(placement.units)} of the units are on the device and meet {_percent(placement.activations)} of the "
        "activations of this text; the rest is computed by the host from RAM.",
        "; ".join(f"{name}: {value}" for name, value in facts.items() if value) or "The sidecar says no more.",
    )


def _cell(share: float | None) -> str:
    return f"<td>{_percent(share)}</td>"


def _bar_cell(share: float | None) -> str:
    return (
        _cell(None) if share is None else f'<td class="bar" style="--share: {100 * share:.1f}%">{_percent(share)}</td>'
    )


def _layer_table(report: Report) -> str:
    """One row per layer, in the order of their numbers, and one for the whole model."""
    heads = ["layer", "units", "active per token", "sparsity", "units for 80 %", "by contri&shy;bution",
             "hottest 20 % carry", "persis&shy;tence", "by chance", "never fired", "always on"]  # fmt: skip
    has_threshold = any(layer.threshold for layer in report.layers)
    heads += ["threshold"] if has_threshold else []
    heads += ["hot shared"] if report.stability else []
    heads += ["units on device", "activa&shy;tions there", "detect", "attention"] if report.placement else []
    rows = []
    for n, units in enumerate([*report.layers, report.model]):
        is_layer = isinstance(units, LayerFigures)
        cells = [f"<td>{units.layer if is_layer else 'all'}</td>", f"<td>{_count(units.n_units)}</td>",
                 f"<td>{_count(units.active)}</td>", _bar_cell(units.sparsity),
                 _bar_cell(units.activations.units_for_80), _cell(units.mass.units_for_80),
                 _bar_cell(units.activations.hottest_fifth), _cell(units.persistence),
                 _cell(units.persistence_by_chance), f"<td>{_count(units.n_dead)}</td>",
                 f"<td>{_count(units.n_always_on)}</td>"]  # fmt: skip
        if has_threshold:
            cells.append(f"<td>{units.threshold:.3g}</td>" if is_layer else "<td>–</td>")
        if report.stability:
            known = [pair.layers[n] if is_layer else pair.overlap for pair in report.stability]
            cells.append(_cell(None if None in known else sum(known) / len(known)))
        if report.placement:
            place = report.placement.layers[n] if is_layer else report.placement
            cells += [_cell(place.units), _cell(place.activations)]
            cells += [f"<td>{escape(getattr(place, name, None) or '–')}</td>" for name in ("detect", "attention")]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f'<th scope="col">{each}</th>' for each in heads)
    return f"""<section>
<h2>All layers</h2>
<div class="scroll"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{chr(10).join(rows[:-1])}
</tbody>
<tfoot>{rows[-1]}</tfoot>
</table></div>
</section>"""


def _heads(*names: str) -> str:
    """Heads of columns; those of texts lean left."""
    lean = {"statistics": ' class="text"', "text": ' class="text"', "SHA-256": ' class="text"'}
    return "".join(f'<th scope="col"{lean.get(name, "")}>{name}</th>' for name in names)


def _sources(report: Report) -> str:
    files = "".join(f'<tr><td class="text">{escape(each.name)}</td><td>{_count(each.n_tokens)}</td>'
                    f"<td>{_percent(each.sparsity)}</td></tr>" for each in report.sources)  # fmt: skip
    texts = "".join(f'<tr><td class="text">{escape(str(each.get("name", "–")))}</td>'
                    f'<td>{escape(str(each.get("n_tokens", "–")))}</td><td class="text">'
                    f'<code>{escape(str(each.get("sha256", "–")))}</code></td></tr>'
                    for each in report.corpora)  # fmt: skip
    return f"""<section>
<h2>What was read</h2>
<div class="scroll"><table>
<thead><tr>{_heads("statistics", "tokens", "sparsity")}</tr></thead>
<tbody>{files}</tbody>
</table></div>
<div class="scroll"><table>
<thead><tr>{_heads("text", "tokens", "SHA-256")}</tr></thead>
<tbody>{texts}</tbody>
</table></div>
<p class="faint">The same figures are in <code>report.json</code>; docs/OFFLINE.md defines them.</p>
</section>"""
