"""The command `hotset profile -m MODEL -f TEXT.. -o S.npz`: arguments and messages only."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Error, error_text

if TYPE_CHECKING:
    from ..model import Model
    from .profiler import Progress
    from .statistics import Statistics
    from .texts import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `hotset profile`."""
    parser.add_argument("-m", "--model", help="GGUF file or hf:owner/repo[:file-glob] (default: the packaged model)")
    add_text_arguments(parser)
    parser.add_argument("-o", "--output", metavar="S.npz", required=True, help="statistics to write")
    parser.add_argument("-n", "--max-tokens", metavar="N", type=int, help="stop after so many tokens (default: all)")
    parser.add_argument("-c", "--ctx-size", metavar="N", type=int,
                        help="tokens of a sequence (default: 512, or the model's context)")  # fmt: skip
    parser.add_argument("-t", "--threads", metavar="N", type=int, help="threads (default: one per physical core)")
    parser.add_argument("--samples", metavar="N", type=int, default=0,
                        help="keep inputs and active units of N tokens, for training and co-activation")  # fmt: skip
    parser.add_argument("--mass-share", metavar="S", type=float, default=0.01,
                        help="activations without exact zeros: share of the contributions that may lie below the "
                             "threshold (default: %(default)s)")  # fmt: skip
    parser.add_argument("--thresholds", metavar="S.npz", help="take the thresholds of these statistics instead")
    parser.add_argument("--kv-type", default="auto", choices=("auto", "f16", "f32", "q8_0"),
                        help="type of the KV cache")  # fmt: skip
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "virtual"), help="where to compute")
    parser.add_argument("--vram-budget", metavar="SIZE", help="GPU memory to use: 8GiB, 8000MiB, auto")
    parser.add_argument("--activation", metavar="NAME", help="activation of a file that does not say it")
    parser.add_argument("--resume", action="store_true",
                        help="go on where an interrupted run with the same arguments has saved its state, "
                             "if any")  # fmt: skip
    parser.add_argument("--merge", metavar="S.npz", nargs="+",
                        help="instead of running a model: add up statistics of one model")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the figures of the result as a JSON object")


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that name texts."""
    parser.add_argument("-f", "--file", dest="files", metavar="TEXT", nargs="+", default=[], help="texts to run over")
    parser.add_argument("--field", metavar="NAME", help="the texts are JSON lines; the text is in this member")
    parser.add_argument("--chat", action="store_true",
                        help="the texts are JSON lines of conversations, put through the model's "
                             "chat template")  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code 0 or 2 (wrong usage). stdout gets only what --json asks for.

    Raises:
        Error: a file is missing or damaged, or the model cannot be profiled.
    """
    from .statistics import Statistics

    start = time.monotonic()
    wrong = _wrong_usage(args)
    if wrong:
        print(f"hotset: error: {wrong}", file=sys.stderr)
        return 2
    _check_output(args.output)
    if args.merge:
        try:
            statistics = Statistics.merge([Statistics.load(path) for path in args.merge])
        except ValueError as error:
            raise Error(str(error)) from None
        statistics.save(args.output)
    else:
        statistics = _profile(args)
    _tell(args, statistics, time.monotonic() - start)
    return 0


def _wrong_usage(args: argparse.Namespace) -> str:
    """What is wrong with the combination of flags; "" when nothing."""

    def text(what: str, expected: str, got: str) -> str:
        return error_text("hotset profile", what, expected, got, "see hotset profile --help")

    if bool(args.merge) == bool(args.files):
        return text("arguments", "-f TEXT.. or --merge S.npz..", "both" if args.merge else "neither")
    if args.field is not None and args.chat:
        return text("arguments", "--field or --chat", "both")
    lines = next((file for file in args.files if Path(file).suffix in (".jsonl", ".ndjson")), None)
    if lines and args.field is None and not args.chat:
        return text(f"file {lines!r}", "--field NAME or --chat for JSON lines", "neither")
    return ""


def _check_output(path: str) -> None:
    """Raises Error where the result could not be written, before the work is done."""
    folder = Path(path).parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise Error(error_text("hotset profile", f"output {path!r}", "a file in a folder that can be written to",
                               "a folder" if Path(path).is_dir() else "none", "choose another place"))  # fmt: skip


def _profile(args: argparse.Namespace) -> Statistics:
    from ..model import Model
    from .profiler import profile
    from .statistics import Statistics

    checkpoint = Path(f"{args.output}.partial")
    bar = _Bar(sys.stderr.isatty())
    thresholds = Statistics.load(args.thresholds) if args.thresholds else None
    with Model(args.model, mode="dense", n_ctx=args.ctx_size, n_threads=args.threads,
               activation=args.activation) as model:  # fmt: skip
        sources = text_sources(args, model)
        try:
            statistics = profile(model, sources, n_ctx=args.ctx_size, max_tokens=args.max_tokens,
                                 n_samples=args.samples, mass_share=args.mass_share, thresholds=thresholds,
                                 kv_type=args.kv_type, n_threads=args.threads, device=args.device,
                                 vram_budget=args.vram_budget, progress=bar.show,
                                 checkpoint=checkpoint, resume=args.resume)  # fmt: skip
        except KeyboardInterrupt:
            bar.end()
            if checkpoint.exists():
                print("hotset: stopped; the same command with --resume goes on from here", file=sys.stderr)
            raise
        bar.end()
    statistics.save(args.output)
    checkpoint.unlink(missing_ok=True)
    n_left_out = sum(getattr(source, "n_left_out", 0) for source in sources)
    if n_left_out:
        print(f"hotset: warning: {n_left_out} conversations were left out: their messages hold control tokens",
              file=sys.stderr)  # fmt: skip
    return statistics


def text_sources(args: argparse.Namespace, model: Model) -> list[Source]:
    """Returns the texts that -f, --field and --chat name."""
    from .texts import Chat, JsonLines, PlainText

    if args.field is not None:
        return [JsonLines(file, args.field) for file in args.files]
    if not args.chat:
        return [PlainText(file) for file in args.files]
    from ..chat_template import template_of

    template = template_of(model._open_engine())
    return [Chat(file, template) for file in args.files]


def _tell(args: argparse.Namespace, statistics: Statistics, seconds: float) -> None:
    n_active = sum(int(layer.counts.sum()) for layer in statistics.layers)
    share = n_active / statistics.n_tokens / sum(layer.n_ff for layer in statistics.layers)
    print(f"wrote {args.output}: {statistics.n_tokens} tokens, {statistics.n_layer} layers, "
          f"{100 * share:.1f} % of units active, {seconds:.1f} s", file=sys.stderr)  # fmt: skip
    if args.json:
        print(json.dumps({"output": args.output, "model_fingerprint": statistics.model_fingerprint,
                          "n_tokens": statistics.n_tokens, "n_layer": statistics.n_layer, "active_share": share,
                          "seconds": seconds, "corpora": statistics.corpora}))  # fmt: skip


class _Bar:
    """Progress on stderr: a bar on a terminal, else a line every ten seconds."""

    _WIDTH = 30

    def __init__(self, is_terminal: bool) -> None:
        self._is_terminal, self._last, self._is_shown = is_terminal, 0.0, False

    def show(self, progress: Progress) -> None:
        """Shows how far the run is."""
        now = time.monotonic()
        if now - self._last < (0.1 if self._is_terminal else 10) and progress.share < 1:
            return
        self._last = now
        left = "" if progress.seconds_left is None else f", {_time(progress.seconds_left)} left"
        text = f"{100 * progress.share:5.1f} %, {progress.n_tokens} tokens, {_time(progress.seconds)}{left}"
        if not self._is_terminal:
            print(f"hotset: {text.strip()}", file=sys.stderr, flush=True)
            return
        n_full = int(progress.share * self._WIDTH)
        print(f"\r\x1b[K[{'#' * n_full}{'.' * (self._WIDTH - n_full)}] {text}", end="", file=sys.stderr, flush=True)
        self._is_shown = True

    def end(self) -> None:
        """Leaves the line of the bar."""
        if self._is_shown:
            print(file=sys.stderr, flush=True)
            self._is_shown = False


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
