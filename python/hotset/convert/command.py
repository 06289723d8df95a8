"""The command `hotset convert SOURCE -o OUT.gguf`: arguments and messages only."""

from __future__ import annotations

import argparse
import sys

from ..errors import Error
from .converter import convert, kDtypes, kLayouts


def _metadata(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key.startswith("general."):
        raise argparse.ArgumentTypeError(f"expected general.NAME=TEXT, got {text!r}")
    return key, value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `hotset convert`."""
    parser.add_argument("source", metavar="SOURCE",
                        help="folder of a Hugging Face checkpoint, a hub repository owner/name, or a PowerInfer file, "
                             "whose predictor then goes into OUT.hotset.gguf")  # fmt: skip
    parser.add_argument("-o", "--output", metavar="OUT.gguf", required=True, help="file to write")
    parser.add_argument("--type", dest="dtype", choices=kDtypes, type=str.lower,
                        help="type of the matrices (default: q8_0; a PowerInfer file keeps its own)")  # fmt: skip
    parser.add_argument("--layout", choices=kLayouts,
                        help="neuron: down projection transposed, one row per unit; gguf: the standard layout "
                             "(default: neuron)")  # fmt: skip
    parser.add_argument("--metadata", metavar="general.NAME=TEXT", action="append", type=_metadata, default=[],
                        help="one more text key of the file, for example general.license=MIT; repeatable")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace OUT.gguf where it exists")


def main(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code 0, 1 (failed) or 2 (wrong usage). Writes to stderr only."""

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        report = convert(args.source, args.output, dtype=args.dtype, layout=args.layout, log=log, force=args.force,
                         metadata=dict(args.metadata))  # fmt: skip
    except (Error, ValueError) as error:
        log(f"hotset: error: {error}")
        return 2 if isinstance(error, ValueError) else 1
    log(f"wrote {report.out}: {report.n_tensors} tensors, {report.n_params} parameters, {report.n_bytes} bytes")
    return 0
