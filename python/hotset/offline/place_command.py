"""The command `hotset place -m MODEL --stats S.npz --vram-budget SIZE -o SIDECAR`: arguments and messages only."""

from __future__ import annotations

import argparse
import json
import sys
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `hotset place`."""
    parser.add_argument("-m", "--model", help="GGUF file or hf:owner/repo[:file-glob] (default: the packaged model)")
    parser.add_argument("--stats", metavar="S.npz", required=True, help="statistics of `hotset profile`")
    parser.add_argument("--vram-budget", metavar="SIZE", required=True, help="GPU memory to use: 8GiB, 8000MiB, 0")
    parser.add_argument("-o", "--output", metavar="SIDECAR",
                        help="sidecar to write, or to update (default: MODEL.hotset.gguf beside the model)")  # fmt: skip
    parser.add_argument("--machine", metavar="FILE",
                        help="rates of the machine to place for (default: those of `hotset bench --machine` here)")  # fmt: skip
    parser.add_argument("--gpu-gbps", metavar="X", type=float, help="read rate of the GPU, in place of the file's")
    parser.add_argument(
        "--pcie-gbps", metavar="X", type=float, help="copies to and from the GPU, in place of the file's"
    )
    parser.add_argument("--handoff-us", metavar="X", type=float, help="microseconds of a hand-off, likewise")
    parser.add_argument("-c", "--ctx-size", metavar="N", type=int, help="context (default: as the model was trained)")
    parser.add_argument("-t", "--threads", metavar="N", type=int, help="CPU threads (default: one per physical core)")
    parser.add_argument("-b", "--batch-size", metavar="N", type=int, default=512, help="prompt tokens computed at once")
    parser.add_argument("--mode", default="auto", choices=("auto", "exact", "dense"), help="which units are computed")
    parser.add_argument(
        "--kv-type", default="auto", choices=("auto", "f16", "f32", "q8_0"), help="type of the KV cache"
    )
    parser.add_argument("--activation", metavar="NAME", help="activation of a file that does not say it")
    parser.add_argument("--json", action="store_true", help="print the placement as a JSON object")


def main(args: argparse.Namespace) -> int:
    """Runs the command; stdout gets only what --json asks for.

    Raises:
        Error: a file is missing or damaged or of another model, or rates are missing.
        ValueError: a budget or a rate is out of range.
    """
    from .. import hub
    from ..model import DEFAULT_MODEL
    from .placement import RatesByHand, place
    from .sidecar import path_beside
    from .statistics import Statistics

    model = str(DEFAULT_MODEL if args.model is None else hub.resolve(args.model))
    output = args.output or path_beside(model)
    statistics = Statistics.load(args.stats)
    start = time.monotonic()
    placed = place(
        model,
        statistics,
        args.vram_budget,
        machine=args.machine,
        rates=RatesByHand(args.gpu_gbps, args.pcie_gbps, args.handoff_us),
        n_ctx=args.ctx_size,
        n_threads=args.threads,
        n_batch=args.batch_size,
        mode=args.mode,
        kv_type=args.kv_type,
        activation=args.activation,
    )
    placed.save(output)
    if args.json:
        print(json.dumps(placed.plan))
    plan, predicted = placed.plan, placed.plan["predicted"]
    n_hot, n_units = (sum(layer[key] for layer in plan["layers"]) for key in ("n_hot", "n_units"))
    share = plan["gpu_active_share"]
    print(
        f"hotset: {output}: {n_hot} of {n_units} units on the GPU"
        + ("" if share is None else f" with {100 * share:.1f} % of the activations")
        + f", {plan['totals']['vram'] / 2**20:.1f} MiB; {predicted['tg_ts']:.2f} tokens/s predicted, "
        f"proven within {100 * predicted['gap']:.2g} % of the fastest ({time.monotonic() - start:.2f} s)",
        file=sys.stderr,
    )
    for note in plan["notes"]:
        print(f"hotset: note: {note}", file=sys.stderr)
    return 0
