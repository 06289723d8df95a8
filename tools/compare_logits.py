"""Compares hotset's predictions with llama.cpp's on the same quantised file, token by token, and writes the table.

    python tools/compare_logits.py MODEL.gguf [HOTSET.gguf=PEER.gguf ...] -f wiki.test.raw --llama-cpp FOLDER

llama-perplexity cuts the text into chunks of -c tokens and writes its log probabilities for the second half of each
(`--kl-divergence-base`); hotset must make the same tokens of the text, and computes them. Of every position: is the
most likely token the same, the KL divergence of hotset's distribution from llama.cpp's, and the loss of the token that
comes. Exit code 1 when a model misses the bar: the same top token at 99 % of the positions, a mean KL divergence of at
most 0.001, perplexities within 0.3 %. For the divergence, both raise logits to at least 16 below the largest.

A model is one file for both (`hotset quantize --layout gguf` writes it) or, as HOTSET.gguf=PEER.gguf, two of the same
weights. llama.cpp knows no `hidden_activation`: give hotset llama.cpp's with `--hotset-args '--activation silu'`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import struct
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import compare_programs as programs
import compare_report as report
import numpy as np

MAGIC = b"_logits_"
SPAN = 16  # llama-perplexity raises logits that are further below the largest one to there
BAR = {"same_top": 0.99, "mean_kld": 1e-3, "ppl_ratio": 0.003}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of probabilities, float64, over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@dataclass
class Base:
    """What llama-perplexity wrote.

    Attributes:
        n_vocab: tokens of the vocabulary. tokens: int32 (n_chunks, n_ctx).
        rows: (n_chunks, n_ctx - 1 - n_ctx / 2), of the positions from n_ctx / 2 on.
    """

    n_vocab: int
    tokens: np.ndarray
    rows: np.ndarray

    def log_probs(self, chunk: int) -> np.ndarray:
        """Natural logarithms of probabilities, float64 (n_ctx - 1 - n_ctx / 2, n_vocab), made to add up to 1."""
        rows = self.rows[chunk]
        scale, low = (rows[name].astype(np.float64)[:, None] for name in ("scale", "low"))
        return log_softmax((low + scale * rows["steps"])[:, : self.n_vocab])


def read_base(path: Path) -> Base:
    """Reads a file of `--kl-divergence-base`. Raises Failure when it is not one, or not whole.

    Magic, then int32: n_ctx, n_vocab, n_chunks and the tokens; then of each scored position a float32 scale, a float32
    smallest log probability, and for each token uint16 steps above that, padded to an even number.
    """
    n_bytes = path.stat().st_size if path.exists() else 0
    data = np.memmap(path, np.uint8, "r") if n_bytes >= 20 else np.zeros(20, np.uint8)
    if bytes(data[:8]) != MAGIC:
        raise programs.Failure("llama-perplexity wrote no log probabilities")
    n_ctx, n_vocab, n_chunks = struct.unpack("<3i", bytes(data[8:20]))
    n_scored, n_steps = n_ctx - 1 - n_ctx // 2, 2 * ((n_vocab + 1) // 2)
    begin = 20 + 4 * n_ctx * n_chunks
    n_rows, row_bytes = n_chunks * n_scored, 8 + 2 * n_steps
    if min(n_ctx, n_vocab, n_chunks) < 1 or n_bytes != begin + n_rows * row_bytes:
        raise programs.Failure(f"log probabilities: expected {begin + n_rows * row_bytes} bytes, got {n_bytes}")
    tokens = np.frombuffer(data, "<i4", n_ctx * n_chunks, 20).reshape(n_chunks, n_ctx)
    row = np.dtype([("scale", "<f4"), ("low", "<f4"), ("steps", "<u2", n_steps)])
    return Base(n_vocab, tokens, np.frombuffer(data, row, n_rows, begin).reshape(n_chunks, n_scored))


@dataclass
class Figures:
    """One model's row. ppl_peer: as llama-perplexity prints it."""

    model: str
    n_positions: int
    same_top: float
    mean_kld: float
    kld_p999: float
    max_kld: float
    ppl: float
    ppl_peer: float

    def meets_the_bar(self) -> bool:
        is_near = abs(self.ppl / self.ppl_peer - 1) <= BAR["ppl_ratio"]
        return self.same_top >= BAR["same_top"] and self.mean_kld <= BAR["mean_kld"] and is_near


class Comparison:
    """Sums over the scored positions."""

    def __init__(self) -> None:
        self.same_top: list[np.ndarray] = []
        self.klds: list[np.ndarray] = []
        self.losses: list[np.ndarray] = []

    def add(self, base: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> None:
        """Adds positions: llama.cpp's log probabilities (n, n_vocab), hotset's logits, tokens that come (n)."""
        # Hundreds of tokens at exp(-16) in place of less are a divergence of 0.0001 by themselves.
        ours = log_softmax(np.maximum(logits, logits.max(-1, keepdims=True) - SPAN))
        self.same_top.append(base.argmax(-1) == ours.argmax(-1))
        self.klds.append((np.exp(base) * (base - ours)).sum(-1))
        self.losses.append(-log_softmax(logits)[np.arange(len(targets)), targets])

    def figures(self, model: str, ppl_peer: float) -> Figures:
        klds, losses = np.concatenate(self.klds), np.concatenate(self.losses)
        same = float(np.concatenate(self.same_top).mean())
        return Figures(model, len(klds), same, float(klds.mean()), float(np.quantile(klds, 0.999)), float(klds.max()),
                       math.exp(losses.mean()), ppl_peer)  # fmt: skip


def find_binary(path: str, name: str = "llama-perplexity") -> str:
    """The binary itself, or in the usual places of a folder; the path as it is when there is none."""
    places = [Path(path), *(Path(path) / folder / name for folder in ("", "bin", "build/bin"))]
    return next((str(place) for place in places if place.is_file()), path)


def run_peer(args: argparse.Namespace, model: str, base: Path) -> float:
    """Lets llama-perplexity write its log probabilities; returns the perplexity that it prints. Raises Failure."""
    binary = find_binary(args.llama_cpp)
    n_chunks = -(-args.n_tokens // (args.n_ctx - 1 - args.n_ctx // 2))
    words = ["-m", model, "-f", args.file, "-c", str(args.n_ctx), "--chunks", str(n_chunks), "-t", str(args.threads)]
    words += ["-ctk", args.kv_type, "-ctv", args.kv_type, "--kl-divergence-base", str(base)]
    command = [binary, *words, *shlex.split(args.llama_args)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(Path(binary).resolve().parent)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=args.timeout,
                              check=False, env=environment)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise programs.Failure(f"llama-perplexity gave no result within {args.timeout:g} s") from None
    except OSError as error:
        raise programs.Failure(f"cannot start llama-perplexity: {error.strerror}") from None
    if done.returncode != 0:
        raise programs.Failure("llama-perplexity, " + programs.failure_text(done))
    found = re.findall(r"PPL = ([\d.]+)", done.stdout + done.stderr)
    if not found:
        raise programs.Failure("llama-perplexity printed no perplexity")
    return float(found[-1])


def tokenized(args: argparse.Namespace, model: str, text: bytes) -> list[int]:
    """hotset's tokens of a text, BOS before it where the vocabulary has that. Raises Failure."""
    command = [*shlex.split(args.hotset), "tokenize", "-m", model]
    try:
        done = subprocess.run(command, input=text, capture_output=True, timeout=args.timeout, check=True)
        return json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise programs.Failure(programs.shortened(f"hotset tokenize: {error}")) from None


def check_tokens(args: argparse.Namespace, model: str, expected: np.ndarray) -> None:
    """Raises Failure where the two programs make different tokens of the text."""
    ours = np.array(tokenized(args, model, Path(args.file).read_bytes())[: len(expected)])
    if len(ours) == len(expected) and (ours == expected).all():
        return
    n_same = min(len(ours), len(expected))
    at = int(np.argmax(ours[:n_same] != expected[:n_same])) if (ours[:n_same] != expected[:n_same]).any() else n_same
    raise programs.Failure(f"hotset makes other tokens of the text, from token {at} on")


def logits_of(args: argparse.Namespace, model: str, tokens: list[int], folder: str) -> np.ndarray:
    """hotset's logits of one chunk (n_ctx, n_vocab). Raises Failure."""
    path = Path(folder) / "chunk.npy"
    words = ["logits", "-m", model, "--tokens", ",".join(map(str, tokens)), "-o", str(path), "-c", str(len(tokens)),
             "-t", str(args.threads), "--mode", args.mode, "--kv-type", args.kv_type]  # fmt: skip
    programs.run([*shlex.split(args.hotset), *words, *shlex.split(args.hotset_args)], args.timeout)
    return np.load(path)


def compare(args: argparse.Namespace, case: programs.Case, name: str) -> Figures:
    """Runs both programs on one model. Raises Failure."""
    with tempfile.TemporaryDirectory(prefix="hotset-compare-") as folder:
        ppl_peer = run_peer(args, case.peer_file, base_file := Path(folder) / "base.bin")
        base = read_base(base_file)
        base_file.unlink()
        check_tokens(args, case.hotset_file, base.tokens.ravel())
        bos = tokenized(args, case.hotset_file, b"")  # in place of the first token of every chunk
        sums, half = Comparison(), args.n_ctx // 2
        for chunk, tokens in enumerate(base.tokens):
            logits = logits_of(args, case.hotset_file, [*bos, *tokens[len(bos) :].tolist()], folder)
            if logits.shape != (len(tokens), base.n_vocab):
                raise programs.Failure(f"expected logits {(len(tokens), base.n_vocab)} of hotset, got {logits.shape}")
            sums.add(base.log_probs(chunk), logits[half:-1], tokens[half + 1 :])
        return sums.figures(name, ppl_peer)


def table(rows: list[Figures], failures: dict[str, str], about: dict) -> str:
    """The section: what was run where, the table, what failed."""
    machine = about["machine"]
    lines = [
        (f"{machine['cpu'] or 'unknown processor'}, {machine['isa'] or 'unknown kernels'}; commit {about['commit']}, "
         f"{about['date']}. Perplexities are of the same tokens, ratios hotset / llama.cpp."),
        "",
        "| model | positions | same top % | mean KLD | 99.9 % KLD | hotset PPL | llama.cpp PPL | ratio | bar |",
        "|---|" + "---:|" * 7 + "---|",
    ]  # fmt: skip
    for each in rows:
        cells = [each.model, each.n_positions, f"{100 * each.same_top:.2f}", f"{each.mean_kld:.2e}",
                 f"{each.kld_p999:.2e}", f"{each.ppl:.4f}", f"{each.ppl_peer:.4f}", f"{each.ppl / each.ppl_peer:.5f}",
                 "met" if each.meets_the_bar() else "missed"]  # fmt: skip
        lines.append("| " + " | ".join(report.cell_text(str(cell)) for cell in cells) + " |")
    lines += ["", *(f"- {name} failed: {why}" for name, why in failures.items())] if failures else []
    return "\n".join([*lines, "", "```sh", about["command"], "```"])


def parse_args(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare_logits.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="FILE, or HOTSET_FILE=PEER_FILE of the same weights")
    parser.add_argument("-f", "--file", required=True, metavar="TEXT", help="what is predicted, such as wiki.test.raw")
    parser.add_argument("--llama-cpp", required=True, metavar="PATH", help="llama-perplexity, or a folder that has it")
    parser.add_argument("--hotset", default="hotset", help="the hotset command")
    parser.add_argument("--mode", default="dense", help="of hotset (dense)")
    parser.add_argument("--kv-type", choices=["f16", "f32", "q8_0"], default="f16", help="of both (f16)")
    parser.add_argument("--hotset-args", default="", metavar="WORDS", help="more of hotset: '--activation silu'")
    parser.add_argument("--llama-args", default="", metavar="WORDS", help="more options of llama-perplexity")
    parser.add_argument("-n", "--n-tokens", type=int, default=2000, help="positions to compare, at least (2000)")
    parser.add_argument("-c", "--n-ctx", type=int, default=512, help="tokens of a chunk (512)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one run of one program")
    parser.add_argument("--section", default="logits", help="name in the markers")
    parser.add_argument("--docs", metavar="FILE", help="Markdown file to write the section into")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    args = parser.parse_args(words)
    if args.n_tokens < 1 or args.n_ctx < 4 or args.threads < 1:
        parser.error("expected --n-tokens and --threads of at least 1, --n-ctx of at least 4")
    return args


def main(words: list[str] | None = None) -> int:
    args = parse_args(words)
    rows: list[Figures] = []
    failures: dict[str, str] = {}
    about = report.describe(args, [], os.getloadavg()[0])
    about["command"] = about["command"].replace("tools/compare.py", "tools/compare_logits.py")
    for case in map(programs.Case.of_files, args.models):
        both = {Path(file).name: None for file in (case.hotset_file, case.peer_file)}
        name = " / ".join(both)
        print(f"compare_logits: {name}", file=sys.stderr, flush=True)
        try:
            rows.append(compare(args, case, name))
        except programs.Failure as error:
            failures[name] = str(error)
    text = table(rows, failures, about)
    print(text)
    if args.docs:
        report.replace_section(Path(args.docs), args.section, text)
    if args.json:
        document = {**about, "bar": BAR, "rows": [asdict(row) for row in rows], "failures": failures}
        Path(args.json).write_text(json.dumps(document, indent=1) + "\n")
    return 0 if rows and not failures and all(row.meets_the_bar() for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
