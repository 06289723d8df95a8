"""The command `hotset train-predictor -m MODEL -f TEXT.. -o SIDECAR`: arguments and messages only."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Error, error_text
from .profile_command import add_text_arguments, text_sources

if TYPE_CHECKING:
    from .training import PredictorReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `hotset train-predictor`."""
    parser.add_argument("-m", "--model", help="GGUF file or hf:owner/repo[:file-glob] (default: the packaged model)")
    add_text_arguments(parser)
    parser.add_argument("-o", "--output", metavar="SIDECAR",
                        help="sidecar to write, or to update (default: MODEL.hotset.gguf beside the model)")  # fmt: skip
    parser.add_argument("--kind", default="bit_planes", choices=("bit_planes", "low_rank", "mlp"),
                        help="bit_planes and low_rank need no training; mlp is trained with torch "
                             "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--bits", type=int, default=3, choices=(1, 2, 3), help="of bit planes (default: %(default)s)")
    parser.add_argument("--max-kld", metavar="X", type=float, default=0.0014,
                        help="largest mean KL divergence from exact execution (default: %(default)s)")  # fmt: skip
    parser.add_argument("--type", dest="dtype", default="q8_0", choices=("q8_0", "q4_0", "f16"),
                        help="type in which low-rank and trained predictors are stored (default: %(default)s)")  # fmt: skip
    parser.add_argument("--max-share", metavar="S", type=float, default=None,
                        help="largest share of the model's parameters that they may have (default: 0.07)")  # fmt: skip
    parser.add_argument("-c", "--ctx-size", metavar="N", type=int, default=256,
                        help="tokens of a sequence (default: %(default)s)")  # fmt: skip
    parser.add_argument("-n", "--train-tokens", metavar="N", type=int, default=32768,
                        help="tokens of text to learn from (default: %(default)s)")  # fmt: skip
    parser.add_argument("--torch-device", metavar="NAME", default="cpu", help="where mlp is trained: cpu, cuda")
    parser.add_argument("--seed", type=int, default=0, help="of training (default: %(default)s)")
    parser.add_argument("-t", "--threads", metavar="N", type=int, help="threads (default: one per physical core)")
    parser.add_argument("--activation", metavar="NAME", help="activation of a file that does not say it")
    parser.add_argument("--json", action="store_true", help="print what was found out as a JSON object")


def main(args: argparse.Namespace) -> int:
    """Runs the command; returns 0, 1 (the quality was not reached: nothing is written) or 2 (wrong usage).

    Raises:
        Error: a file is missing or damaged, or the model cannot be predicted.
    """
    if not args.files:
        text = error_text("hotset train-predictor", "arguments", "-f TEXT..", "none", "see hotset train-predictor --help")
        print(f"hotset: error: {text}", file=sys.stderr)
        return 2
    from .. import hub
    from ..model import DEFAULT_MODEL, Model
    from .profiler import token_sequences
    from .sidecar import Sidecar, path_beside
    from .training import PAPER_SHARE, PredictorOptions, train_predictor
    from .two_layer import TrainOptions

    path = str(DEFAULT_MODEL if args.model is None else hub.resolve(args.model))
    output = Path(args.output) if args.output else path_beside(path)
    options = PredictorOptions(
        args.kind, args.bits, args.max_kld, args.dtype, PAPER_SHARE if args.max_share is None else args.max_share,
        args.ctx_size, args.train_tokens, train=TrainOptions(device=args.torch_device, seed=args.seed),
    )  # fmt: skip
    with Model(path, mode="exact", n_threads=args.threads, activation=args.activation, sidecar="none") as model:
        old = Sidecar.load(output, model.fingerprint) if output.exists() else None
        sequences = token_sequences(model, text_sources(args, model), args.ctx_size)
        sidecar, report = train_predictor(model, sequences, options, old, log=_say)
    _tell(report, args.json)
    if not report.is_good:
        raise Error(error_text("train-predictor", "quality", f"a KL divergence of at most {report.max_kld:g}",
                               f"{report.kld:.3g} at best",
                               "nothing was written; take more bits, a larger --max-share, or raise --max-kld"))  # fmt: skip
    sidecar.save(output)
    _say(f"wrote {output}")
    return 0


def _say(line: str) -> None:
    print(f"hotset: {line}", file=sys.stderr, flush=True)


def _tell(report: PredictorReport, as_json: bool) -> None:
    for layer in report.layers:
        t = layer.threshold
        if t is None:
            _say(f"layer {layer.layer:3}: no predictor, runs exactly")
            continue
        size = f"{report.bits} bits" if report.bits else f"rank {layer.rank}"
        ratio = t.n_candidates / t.n_active if t.n_active else float("nan")
        _say(f"layer {layer.layer:3}: {size}, {layer.n_bytes / 1024:.0f} KiB, "
             f"{100 * t.n_active / max(1.0, t.n_units):5.1f} % active, recall {t.n_found / max(1.0, t.n_active):.4f}, "
             f"{ratio:.2f} candidates per active unit, missed mass {t.missed / t.mass if t.mass else 0:.2g}")  # fmt: skip
    totals = report.totals
    _say(f"{report.kind}: {report.n_bytes / 2**20:.2f} MiB read per token in place of {report.detect_bytes / 2**20:.2f}, "
         f"{100 * report.share:.1f} % of the model; recall {totals.recall:.4f}, over-selection "
         f"{totals.over_selection:.2f}, missed mass {totals.missed_mass:.2g}")  # fmt: skip
    _say(f"against exact: KLD {report.kld:.2g}, same top token {100 * report.same_top:.2f} %, "
         f"perplexity ratio {report.ppl_ratio:.5f}")  # fmt: skip
    if as_json:
        print(json.dumps({**asdict(report), "is_good": report.is_good}))
