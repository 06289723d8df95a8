"""The command `hotset report --stats S.npz [S2.npz ..] -o DIR`: arguments and messages only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .report import make_report
from .report_plots import import_matplotlib
from .sidecar_reader import read_placement
from .statistics import Statistics


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `hotset report`."""
    parser.add_argument("--stats", metavar="S.npz", nargs="+", required=True,
                        help="statistics of hotset profile; several of one model are compared")  # fmt: skip
    parser.add_argument("--sidecar", metavar="M.hotset.gguf", help="also show the placement of hotset place")
    parser.add_argument("--layer", metavar="N", type=int,
                        help="layer whose co-activation is drawn, where the statistics have samples "
                             "(default: the middle one)")  # fmt: skip
    parser.add_argument("-o", "--output", metavar="DIR", required=True,
                        help="folder for report.html, report.json and the plots")  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code 0 or 2 (wrong usage). Writes to stderr only.

    Raises:
        Error: a file or package is missing or wrong, as `make_report` says.
    """
    import_matplotlib()
    placement = read_placement(args.sidecar) if args.sidecar else None
    parts = [Statistics.load(path) for path in args.stats]
    names = [Path(path).stem for path in args.stats]
    try:
        report = make_report(parts, args.output, placement, names=names, heatmap_layer=args.layer)
    except ValueError as error:
        print(f"hotset: error: {error}", file=sys.stderr)
        return 2
    units = report.model.activations.units_for_80
    carried = "" if units is None else f"; {100 * units:.1f} % of units carry 80 % of activations"
    print(f"wrote {Path(args.output) / 'report.html'}: {report.n_tokens} tokens, {len(report.layers)} layers, "
          f"{100 * report.model.sparsity:.1f} % sparse{carried}", file=sys.stderr)  # fmt: skip
    return 0
