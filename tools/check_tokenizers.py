"""Compares hotset's tokenizers with Hugging Face's `tokenizers`: pieces, token ids and speed.

    python tools/check_tokenizers.py splits -n 100000                # pieces of random texts, every pre-tokenizer
    python tools/check_tokenizers.py ids vocab.gguf -n 20000         # token ids of random texts and of lines of files
    python tools/check_tokenizers.py bench vocab.gguf --text FILE    # MB/s, one thread, interleaved
    python tools/check_tokenizers.py golden tests/cpp/goldens/pre_tokens.txt

Needs the packages `tokenizers`, `gguf` and an installed hotset. The random texts hold bytes that are no UTF-8;
`tokenizers` takes text only, so there a noncharacter stands for them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import statistics
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).resolve().parent))

from pre_token_texts import INVALID, as_bytes, n_bytes, random_text  # noqa: E402
from tokenizers import Tokenizer, pre_tokenizers  # noqa: E402

from hotset import _core  # noqa: E402
from hotset.convert.pre_tokenizers import as_components, kChains  # noqa: E402

GOLDEN_TEXTS = 300
GOLDEN_SEED = 7
BLANK = "\u2581"


def splitter(name: str) -> pre_tokenizers.PreTokenizer:
    """Returns the pre-tokenizer of a GGUF name as `tokenizers` has it."""
    chain = {"type": "Sequence", "pretokenizers": as_components(name)}
    model = {"type": "BPE", "vocab": {}, "merges": []}
    return Tokenizer.from_str(json.dumps({"added_tokens": [], "pre_tokenizer": chain, "model": model})).pre_tokenizer


@functools.cache
def odd_punctuation() -> frozenset[str]:
    """Returns the characters that `tokenizers`' Punctuation, with a table of Unicode 8, takes for something else."""
    punctuation, odd = pre_tokenizers.Punctuation(), set()
    for character in map(chr, range(0x80, sys.maxunicode)):
        kind = unicodedata.category(character)[0]
        if kind in "PSM" and (kind == "P") != (len(punctuation.pre_tokenize_str(f"a{character}")) == 2):
            odd.add(character)
    return frozenset(odd)


def their_lengths(pre_tokenizer: pre_tokenizers.PreTokenizer, text: str) -> list[int]:
    """Returns the bytes of each piece of a text."""
    return [n_bytes(piece) for piece, _ in pre_tokenizer.pre_tokenize_str(text)] if text else []


def check_splits(names: list[str], n_texts: int, seed: int) -> int:
    """Compares the pieces of random texts. Returns how many texts differ, of all names together."""
    odd = odd_punctuation()
    n_wrong = 0
    for name in names:
        rng, pre_tokenizer, n_wrong_here = random.Random(seed), splitter(name), 0
        for _ in range(n_texts):
            text = "".join(character for character in random_text(rng) if character not in odd)
            got, expected = _core.pre_token_lengths(name, as_bytes(text)), their_lengths(pre_tokenizer, text)
            if got == expected:
                continue
            n_wrong_here += 1
            if n_wrong_here <= 3:
                print(f"{name}: {text!a}\n  expected {expected}\n  got      {got}")
        print(f"{name}: {n_texts} texts, {n_wrong_here} differ", flush=True)
        n_wrong += n_wrong_here
    return n_wrong


def hash_of(lengths: list[int]) -> int:
    """Returns FNV-1a of 32 bits over the lengths, each as four bytes."""
    value = 0x811C9DC5
    for byte in b"".join(length.to_bytes(4, "little") for length in lengths):
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def write_golden(path: Path) -> None:
    """Writes random texts and, for every pre-tokenizer, the hash of the pieces that `tokenizers` makes of each."""
    odd, rng = odd_punctuation(), random.Random(GOLDEN_SEED)
    texts = [text for text in (random_text(rng) for _ in range(2 * GOLDEN_TEXTS)) if 0 < len(text) < 100]
    texts = ["".join(c for c in text if c not in odd) or INVALID for text in texts[:GOLDEN_TEXTS]]
    lines = [
        "# By tools/check_tokenizers.py golden: texts in hexadecimal; FNV-1a of the lengths of each text's pieces."
    ]
    lines += [f"text {as_bytes(text).hex()}" for text in texts]
    for name in kChains:
        pre_tokenizer = splitter(name)
        hashes = "".join(f" {hash_of(their_lengths(pre_tokenizer, text)):08x}" for text in texts)
        lines.append(f"pieces {name}{hashes}")
    path.write_text("\n".join(lines) + "\n")


def _tokens(path: str) -> dict[str, Any]:
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    names = ("model", "pre", "tokens", "merges", "scores", "token_type", "add_space_prefix")
    keys = {name: f"tokenizer.ggml.{name}" for name in names}
    return {name: fields[key].contents() for name, key in keys.items() if key in fields}


def _spm_merges(vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Returns the merges that make the choices of SentencePiece's scores, best first."""
    merges = []
    for piece, number in vocab.items():
        for i in range(1, len(piece)):
            if piece[:i] in vocab and piece[i:] in vocab:
                merges.append((-scores[number], vocab[piece[:i]], vocab[piece[i:]], piece[:i], piece[i:]))
    return [(left, right) for *_, left, right in sorted(merges)]


def reference(path: str) -> Tokenizer:
    """Returns a vocabulary file's tokenizer as `tokenizers` has it, without special and user-defined tokens."""
    tokens = _tokens(path)
    kinds = tokens["token_type"]
    usable = {text: i for i, text in enumerate(tokens["tokens"]) if kinds[i] in (1, 5, 6)}
    if tokens["model"] == "gpt2":
        model = {"type": "BPE", "vocab": usable, "merges": [merge.split(" ") for merge in tokens["merges"]],
                 "ignore_merges": "llama-bpe" == tokens["pre"]}  # fmt: skip
        chain = {"type": "Sequence", "pretokenizers": as_components(tokens["pre"])}
        return Tokenizer.from_str(json.dumps({"added_tokens": [], "pre_tokenizer": chain, "model": model}))
    normal = {text: i for text, i in usable.items() if kinds[i] == 1}
    steps = [{"type": "Replace", "pattern": {"String": " "}, "content": BLANK}]
    if tokens.get("add_space_prefix", True):
        steps.insert(0, {"type": "Prepend", "prepend": BLANK})
    model = {"type": "BPE", "vocab": usable, "merges": _spm_merges(normal, tokens["scores"]), "byte_fallback": True}
    normalizer = {"type": "Sequence", "normalizers": steps}
    return Tokenizer.from_str(json.dumps({"added_tokens": [], "normalizer": normalizer, "model": model}))


def check_ids(path: str, n_texts: int, seed: int) -> int:
    """Compares the ids of random texts without invalid bytes. Returns how many differ."""
    ours, theirs, rng, n_wrong = _core.Tokenizer(path), reference(path), random.Random(seed), 0
    odd = {*odd_punctuation(), INVALID, BLANK}
    for _ in range(n_texts):
        text = "".join(character for character in random_text(rng) if character not in odd)
        if not text:
            continue
        got, expected = ours.encode(text.encode(), False, False), theirs.encode(text).ids
        n_wrong += got != expected
        if got != expected and n_wrong <= 3:
            print(f"{text!a}\n  expected {expected}\n  got      {got}")
    print(f"{path}: {n_texts} texts, {n_wrong} differ")
    return n_wrong


def _documents(path: Path, n_bytes_wanted: int) -> list[str]:
    """Returns the start of a text in documents of about 8 KiB that end with lines."""
    documents, current = [], ""
    for line in path.read_bytes()[:n_bytes_wanted].decode(errors="ignore").splitlines(keepends=True):
        current += line
        if len(current) >= 8192:
            documents.append(current)
            current = ""
    return documents


def bench(path: str, text: Path, n_mb: float, n_rounds: int) -> None:
    """Prints the speed of both on the same documents, interleaved; `tokenizers` is slower on one long text."""
    documents = _documents(text, int(n_mb * 1e6))
    encoded, whole = [document.encode() for document in documents], "".join(documents)
    size = sum(map(len, encoded)) / 1e6
    ours, theirs = _core.Tokenizer(path), reference(path)
    calls = {
        "hotset, documents": lambda: [ours.encode(document, False, False) for document in encoded],
        "hotset, one text": lambda: ours.encode(whole.encode(), False, False),
        "tokenizers, documents": lambda: theirs.encode_batch_fast(documents),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(n_rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    print(f"{path}: {size:.1f} MB in {len(documents)} documents, median of {n_rounds} interleaved rounds")
    for name, seconds in times.items():
        rates = sorted(size / second for second in seconds)
        print(f"  {name:24} {statistics.median(rates):8.1f} MB/s [{rates[0]:.1f}-{rates[-1]:.1f}]")


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    splits = commands.add_parser("splits", help="pieces of random texts")
    splits.add_argument("names", nargs="*", help="pre-tokenizers; all without")
    ids = commands.add_parser("ids", help="token ids of random texts")
    speed = commands.add_parser("bench", help="speed on one thread")
    golden = commands.add_parser("golden", help="write the golden file of the C++ tests")
    golden.add_argument("path", type=Path)
    for command in (ids, speed):
        command.add_argument("vocab", help="GGUF file with a vocabulary")
    for command in (splits, ids):
        command.add_argument("-n", type=int, default=20000, help="number of texts")
        command.add_argument("--seed", type=int, default=1)
    speed.add_argument("--text", type=Path, required=True, help="a text file")
    speed.add_argument("--mb", type=float, default=10)
    speed.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.command == "splits":
        return int(check_splits(args.names or list(kChains), args.n, args.seed) > 0)
    if args.command == "ids":
        return int(check_ids(args.vocab, args.n, args.seed) > 0)
    if args.command == "golden":
        write_golden(args.path)
    else:
        bench(args.vocab, args.text, args.mb, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
