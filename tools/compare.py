"""Runs `hotset bench` and llama.cpp's `llama-bench` side by side on the same files, interleaved.

    python tools/compare.py --peer path/to/llama-bench MODEL.gguf [MODEL.gguf ...]

Prints a Markdown table: medians over the rounds, their range, and the ratio of medians. Ratios are the result; the
absolute figures of a shared machine mean little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path


def rates(command: list[str], model: str, args: argparse.Namespace) -> dict[str, float]:
    """Runs one benchmark command once; tokens/s by test name, e.g. {"pp512": 260.1, "tg32": 68.9}."""
    sizes = ["-p", str(args.n_prompt), "-n", str(args.n_gen), "-r", "1", "-t", str(args.threads), "-o", "json"]
    done = subprocess.run([*command, "-m", model, *sizes], capture_output=True, text=True, check=True)
    return {
        f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}": row["avg_ts"]
        for row in json.loads(done.stdout)
    }


def text(samples: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(samples):.1f} [{min(samples):.1f}-{max(samples):.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--peer", required=True, help="llama-bench of a llama.cpp built with native flags")
    parser.add_argument("--hotset", default="hotset", help="the hotset command")
    parser.add_argument("--n-prompt", type=int, default=512)
    parser.add_argument("--n-gen", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print("| file | test | hotset t/s | peer t/s | ratio |")
    print("|---|---|---|---|---|")
    for model in args.models:
        samples: dict[str, dict[str, list[float]]] = {}
        for _ in range(args.rounds):
            for name, command in (("peer", [args.peer]), ("hotset", [args.hotset, "bench"])):
                for test, rate in rates(command, model, args).items():
                    samples.setdefault(test, {}).setdefault(name, []).append(rate)
        for test, of in sorted(samples.items(), reverse=True):
            ratio = statistics.median(of["hotset"]) / statistics.median(of["peer"])
            print(f"| {Path(model).name} | {test} | {text(of['hotset'])} | {text(of['peer'])} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
