"""`make_report()`: statistics become figures, plots, one HTML page and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ..convert.gguf_file import atomic_path
from ..errors import Error, error_text
from .figures import Report, compute_report
from .report_page import render_page
from .report_plots import draw_plots, import_matplotlib, kDrawers
from .sidecar_reader import Placement
from .statistics import Statistics


def make_report(statistics: Statistics | Sequence[Statistics], out_dir: str | Path, placement: Placement | None = None,
                *, names: Sequence[str] | None = None, heatmap_layer: int | None = None) -> Report:  # fmt: skip
    """Writes report.html (self-contained), report.json and the plots as PNG into a folder, all of them or none.

    Args:
        statistics: of one model; several of them are also compared with each other.
        out_dir: the folder; made where it is missing. An earlier report in it is replaced.
        placement: what sits where, from `read_placement(sidecar)`.
        names: what the statistics are called on the page (default: the names of their texts).
        heatmap_layer: layer whose co-activation is drawn (default: the middle one of those with samples).

    Returns:
        The figures, as in report.json.

    Raises:
        Error: matplotlib is not installed, there are no tokens, models differ, or the folder cannot be written.
        ValueError: `heatmap_layer` has no samples.
    """
    import_matplotlib()
    parts = [statistics] if isinstance(statistics, Statistics) else list(statistics)
    names = _distinct(names if names is not None else [_text_names(part) for part in parts])
    report = compute_report(parts, names, placement, heatmap_layer)
    plots = draw_plots(report)
    files = {f"{plot.name}.png": plot.png["light"] for plot in plots}
    files["report.json"] = (report.to_json() + "\n").encode()
    files["report.html"] = render_page(report, plots).encode("utf-8", "replace")
    _write_all(Path(out_dir), files)
    return report


def _text_names(statistics: Statistics) -> str:
    return " + ".join(str(each.get("name", "?")) for each in statistics.corpora) or "unnamed text"


def _distinct(names: Sequence[str]) -> list[str]:
    """Numbers names that occur again."""
    return [name if names.index(name) == n else f"{name} ({n + 1})" for n, name in enumerate(names)]


def _write_all(folder: Path, files: dict[str, bytes]) -> None:
    """Writes all files beside their names first and renames them together, so that a full disk leaves none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        had_report = (folder / "report.json").is_file()
        with ExitStack() as renames:
            for name, data in files.items():
                renames.enter_context(atomic_path(folder / name)).write_bytes(data)
        stale = {f"{name}.png" for name in kDrawers} - files.keys() if had_report else ()
        for name in stale:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise Error(error_text("report", f"folder {folder}", "one that can be written", error.strerror or error,
                               "choose another with -o"))  from None  # fmt: skip
