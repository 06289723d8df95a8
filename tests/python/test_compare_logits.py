"""tools/compare_logits.py: the file of log probabilities, the figures, and what fails, with made-up programs."""

from __future__ import annotations

import json
import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

TOOLS = REPOSITORY / "tools"
sys.path.insert(0, str(TOOLS))
import compare_logits
from compare_programs import Failure

N_VOCAB, N_CTX, N_CHUNKS = 7, 8, 2
N_SCORED = N_CTX - 1 - N_CTX // 2

# Logits are a fixed function of token and position; "far" gives hotset others, "other" another text.
SHARED = """#!{python}
import json, struct, sys
from pathlib import Path
import numpy as np
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1]
N_VOCAB = {n_vocab}
def tokens_of(n, text):
    return [1] + [2 + (text[i % len(text)] + i) % (N_VOCAB - 2) for i in range(n - 1)]
def logits_of(tokens, scale=1.0):
    rows = [np.random.default_rng(17 * token + i).normal(size=N_VOCAB) for i, token in enumerate(tokens)]
    return (6 * scale * np.array(rows)).astype(np.float32)  # some are more than 16 below the largest
"""
FAKE_HOTSET = (
    SHARED
    + """
model = Path(value("-m")).read_text() if "-m" in words else ""
if words[0] == "doctor":
    print(json.dumps({{"cpu": "Fake CPU", "n_cores": 2, "memory_bytes": 1, "isa": "fake"}}))
elif words[0] == "tokenize":
    text = sys.stdin.buffer.read()
    tokens = tokens_of(100, text) if text else [1]
    print([token if i != 9 or model != "other" else 2 for i, token in enumerate(tokens)])
elif words[0] == "logits":
    assert value("--mode") == "dense" and value("--kv-type") == "f16"
    tokens = [int(word) for word in value("--tokens").split(",")]
    assert tokens[0] == 1 and len(tokens) == int(value("-c"))
    np.save(value("-o"), logits_of(tokens, 1.2 if model == "far" else 1.0))
"""
)
FAKE_PEER = (
    SHARED
    + """
model = Path(value("-m")).read_text()
if model == "broken":
    sys.exit("error: no such architecture")
n_ctx, n_chunks = int(value("-c")), int(value("--chunks"))
tokens = np.array(tokens_of(n_ctx * n_chunks, Path(value("-f")).read_bytes()), "<i4").reshape(n_chunks, n_ctx)
out = bytearray(b"_logits_" + struct.pack("<3i", n_ctx, N_VOCAB, n_chunks) + tokens.tobytes())
losses = []
for chunk in tokens:
    logits = logits_of([1, *chunk[1:]])
    for i in range(n_ctx // 2, n_ctx - 1):
        row = logits[i].astype(np.float64)
        probabilities = row - row.max() - np.log(np.exp(row - row.max()).sum())
        low = max(row.min(), row.max() - 16)
        scale = np.float32((row.max() - low) / 65535)
        steps = np.rint((np.maximum(row, low) - low) / scale).astype("<u2")
        out += struct.pack("<2f", scale, low - row.max() + probabilities.max()) + steps.tobytes()
        out += bytes(2 * (N_VOCAB % 2))
        losses.append(-probabilities[chunk[i + 1]])
Path(value("--kl-divergence-base")).write_bytes(out[:-3] if model == "cut" else out)
print(f"Final estimate: PPL = {{np.exp(np.mean(losses)):.4f}} +/- 0.1")
"""
)


@pytest.fixture
def compare(tmp_path, capsys):
    """Runs the tool on models of these contents; gives exit code, output and JSON."""
    for name, text in (("hotset", FAKE_HOTSET), ("llama-perplexity", FAKE_PEER)):
        (tmp_path / name).write_text(text.format(python=sys.executable, n_vocab=N_VOCAB))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "text").write_bytes(b"some text that is predicted")

    def call(*contents: str, more: tuple[str, ...] = ()) -> tuple[int, str, dict]:
        models = [tmp_path / f"{content}.gguf" for content in contents]
        for model in models:
            model.write_text(model.stem)
        words = [*map(str, models), "-f", str(tmp_path / "text"), "--llama-cpp", str(tmp_path), "-c", str(N_CTX)]
        words += ["--hotset", str(tmp_path / "hotset"), "-n", str(N_SCORED * N_CHUNKS), "--json", str(tmp_path / "out")]
        code = compare_logits.main([*words, *more])
        return code, capsys.readouterr().out, json.loads((tmp_path / "out").read_text())

    return call


def test_equal_logits_differ_by_the_rounding_of_the_file_alone(compare):
    code, text, document = compare("near")
    row = document["rows"][0]
    assert (code, row["n_positions"], row["same_top"]) == (0, N_SCORED * N_CHUNKS, 1.0)
    assert 0 <= row["mean_kld"] < 1e-8 and row["kld_p999"] < 1e-7
    assert row["ppl"] == pytest.approx(row["ppl_peer"], rel=1e-4)
    assert "| near.gguf | 6 | 100.00 |" in text and text.count("met |") == 1


def test_a_miss_and_failures_are_said_and_end_with_1(compare, tmp_path):
    docs = tmp_path / "docs.md"
    docs.write_text("# Title\n")
    code, text, document = compare("near", "far", "broken", "cut", "other", more=("--docs", str(docs)))
    assert code == 1
    far = document["rows"][1]
    assert far["mean_kld"] > 1e-3 and abs(far["ppl"] / far["ppl_peer"] - 1) > 0.003
    assert "| far.gguf |" in text and "missed |" in text
    failures = document["failures"]
    assert failures["broken.gguf"] == "llama-perplexity, exit 1: error: no such architecture"
    assert "expected" in failures["cut.gguf"] and "bytes" in failures["cut.gguf"]
    assert failures["other.gguf"] == "hotset makes other tokens of the text, from token 9 on"
    written = docs.read_text()
    assert written.startswith("# Title") and "<!-- compare:logits begin -->" in written and "Fake CPU" in written
    assert str(tmp_path) not in written


def test_figures_are_what_their_names_say():
    base = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    ours = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]))
    sums = compare_logits.Comparison()
    sums.add(base, ours, np.array([0, 1]))
    figures = sums.figures("m", 2.0)
    first = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert (figures.n_positions, figures.same_top) == (2, 0.5)
    assert figures.mean_kld == pytest.approx(first / 2) and figures.max_kld == pytest.approx(first)
    assert figures.ppl == pytest.approx(math.sqrt(4 * 1.25))
    assert not figures.meets_the_bar()


@pytest.mark.parametrize("content", [b"", b"_logits", b"_logits_", b"_logits_" + struct.pack("<3i", -1, 7, 1),
                                     b"_logits_" + struct.pack("<3i", 8, 7, 1 << 30), b"GGUF" + bytes(40)])  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "base"
    path.write_bytes(content)
    with pytest.raises(Failure, match="log probabilities"):
        compare_logits.read_base(path)
    with pytest.raises(Failure, match="log probabilities"):
        compare_logits.read_base(tmp_path / "none")
