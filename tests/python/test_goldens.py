"""Converted checkpoints of every family, run by the native binary, against Hugging Face transformers.

The logits in goldens/ were computed by transformers from weights that NumPy draws again here.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("gguf")

REPO = Path(__file__).resolve().parents[2]
if importlib.util.find_spec("hotset") is None:  # not installed: converting needs no native module
    sys.path.insert(0, str(REPO / "python"))
sys.path[:0] = [str(Path(__file__).resolve().parent), str(REPO / "tools")]

from golden_models import FOLDER, GOLDENS, TOKENS, fingerprint, golden_weights  # noqa: E402
from hf_checkpoint import nmse, write_checkpoint  # noqa: E402

from hotset.convert import convert  # noqa: E402

# The engine computes in float32: relative errors of sums of some hundred products, 1e-6, squared, over some layers.
kMaxNmse = 1e-11
# Rows per step: as decode has them, and as a prompt has them.
kOneByOne, kAllAtOnce = "1", "512"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns the path of a golden model as GGUF: converted("arcee", dtype="f32", layout="neuron"), made once each."""
    folder = tmp_path_factory.mktemp("goldens")

    def make(name: str, dtype: str, layout: str) -> Path:
        out = folder / f"{name}-{dtype}-{layout}.gguf"
        if not out.exists():
            source = folder / name
            if not source.exists():
                write_checkpoint(source, GOLDENS[name], golden_weights(name))
            convert(source, out, dtype=dtype, layout=layout)
        return out

    return make


@pytest.fixture
def logits(hotset, tmp_path: Path) -> Callable[..., np.ndarray]:
    """Returns `hotset logits` of TOKENS: logits(path, mode, n_threads, n_batch, more flags)."""

    def call(path: Path, mode: str, n_threads: int, n_batch: str, *flags: str) -> np.ndarray:
        out = tmp_path / "logits.npy"
        tokens = ",".join(str(token) for token in TOKENS)
        result = hotset("logits", "-m", str(path), "--tokens", tokens, "-o", str(out), "--mode", mode,
                        "-t", str(n_threads), "-b", n_batch, *flags)  # fmt: skip
        assert result.returncode == 0, result.stderr
        return np.load(out)

    return call


def golden(name: str) -> np.ndarray:
    """Returns what transformers computed, after checking that it was for these tokens and weights."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as stored:
        assert stored["tokens"].tolist() == TOKENS, "run tools/make_goldens.py again"
        assert stored["fingerprint"] == fingerprint(golden_weights(name)), "other weights: run tools/make_goldens.py"
        return stored["logits"]


def is_sparse(name: str) -> bool:
    config = GOLDENS[name]
    activation = config.get("hidden_act") or config.get("hidden_activation") or config.get("activation")
    return activation not in ("silu", "gelu", "gelu_pytorch_tanh")


@pytest.mark.parametrize("layout", ["neuron", "gguf"])
@pytest.mark.parametrize("name", GOLDENS)
def test_every_mode_gives_the_logits_of_transformers(converted, logits, name: str, layout: str) -> None:
    """Dense and exact, by one to three threads, token by token and all at once: the same bits, and the right ones."""
    path = converted(name, "f32", layout)
    dense = logits(path, "dense", 1, kAllAtOnce)
    assert nmse(dense.astype(np.float64), golden(name)) <= kMaxNmse
    assert np.array_equal(logits(path, "dense", 3, kOneByOne), dense)
    if not is_sparse(name):
        return
    if layout == "gguf":
        # Dense, ffn_down is a plain product, which sums in another order; exact mode lays it out as ffn_down_t at load,
        # and then gives the bits of the neuron-major file.
        dense = logits(converted(name, "f32", "neuron"), "dense", 1, kAllAtOnce)
    for n_threads in (1, 2, 3):
        assert np.array_equal(logits(path, "exact", n_threads, kOneByOne), dense)
    assert np.array_equal(logits(path, "exact", 2, kAllAtOnce), dense)


@pytest.mark.parametrize("name", GOLDENS)
def test_f16_files_stay_within_their_rounding(converted, logits, name: str) -> None:
    """The weights are exact in F16; what is lost is in the keys and values, which are F16 too."""
    # FATReLU jumps at its threshold, so that a rounding there changes much; with exact keys and values none does.
    kv_type = "f32" if GOLDENS[name].get("hidden_act") == "fatrelu" else "f16"
    got = logits(converted(name, "f16", "neuron"), "auto", 2, kAllAtOnce, "--kv-type", kv_type)
    assert nmse(got.astype(np.float64), golden(name)) <= 1e-5


def test_an_activation_that_is_not_stated_is_the_usual_one_or_the_chosen_one(converted, hotset, tmp_path: Path) -> None:
    """A file of llama.cpp does not say that it is a ReLU model."""
    gguf_file = converted("llama-relu", "f32", "gguf").read_bytes()
    silent = tmp_path / "silent.gguf"
    silent.write_bytes(gguf_file.replace(b"llama.hidden_activation", b"llama.hidden_activatioM"))
    out = tmp_path / "logits.npy"
    tokens = ",".join(map(str, TOKENS))
    arguments = ["logits", "-m", str(silent), "--tokens", tokens, "-o", str(out), "--kv-type", "f32"]
    guessed = hotset(*arguments, "-v")
    assert guessed.returncode == 0
    assert b"does not say its activation; taking silu, the usual one of llama (--activation" in guessed.stderr
    assert nmse(np.load(out).astype(np.float64), golden("llama-relu")) > 1e-3
    chosen = hotset(*arguments, "--activation", "relu")
    assert chosen.returncode == 0 and b"activation" not in chosen.stderr
    assert nmse(np.load(out).astype(np.float64), golden("llama-relu")) <= kMaxNmse
    for wrong in ("fatrelu", "fatrelu:x", "swish"):
        assert hotset(*arguments, "--activation", wrong).returncode != 0


@pytest.mark.parametrize(
    "old, new, expected",
    [
        (b"yarn", b"warp", b'key "qwen2.rope.scaling.type": expected none, linear or yarn'),
        (b"silu", b"mish", b'key "qwen2.hidden_activation": expected silu, relu'),
        (b"qwen2", b"qwen9", b'architecture: expected llama, bamboo, qwen2'),
    ],
)
def test_what_is_not_supported_is_named_when_inspected_and_loaded(
    converted, hotset, tmp_path: Path, old: bytes, new: bytes, expected: bytes
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(converted("qwen2", "f32", "gguf").read_bytes().replace(old, new))
    inspected = hotset("inspect", "-m", str(other))
    assert inspected.returncode == 1 and expected in inspected.stdout and new in inspected.stdout
    loaded = hotset("run", "-m", str(other), "-p", "a")
    assert loaded.returncode == 1 and expected in loaded.stderr


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["arcee", "nemotron", "opt", "qwen3-relu"])
def test_exact_equals_dense_for_every_type(converted, logits, name: str, dtype: str) -> None:
    path = converted(name, dtype, "neuron")
    dense = logits(path, "dense", 1, kOneByOne)
    # Far above the rounding of weights and activations, far below the 2 of unrelated logits.
    assert nmse(dense.astype(np.float64), golden(name)) <= {"f16": 1e-4, "bf16": 1e-3, "q8_0": 1e-2, "q4_0": 0.5}[dtype]
    assert np.array_equal(logits(path, "exact", 2, kOneByOne), dense)


def test_prompts_of_opt_begin_with_its_start_token(hotset, tmp_path: Path) -> None:
    """A tokenizer as OPT publishes it: GPT-2's two files, and an end token that starts every text."""
    config = GOLDENS["opt"]
    source = write_checkpoint(tmp_path / "hf", config, golden_weights("opt"))
    (source / "tokenizer.model").unlink()
    texts = ["<s>", "<pad>", "</s>", "<unk>", "h", "e", "l", "o", "\u0120", "he", "ll", "hell"]
    (source / "vocab.json").write_text(json.dumps({text: i for i, text in enumerate(texts)}))
    (source / "merges.txt").write_text("#version: 0.2\nh e\nl l\nhe ll\n")
    roles = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    (source / "tokenizer_config.json").write_text(json.dumps({**roles, "add_bos_token": True}))
    convert(source, tmp_path / "m.gguf", dtype="f32")
    result = hotset("tokenize", "-m", str(tmp_path / "m.gguf"), stdin=b"hello hell")
    assert json.loads(result.stdout) == [2, 11, 7, 8, 11], result.stderr


def test_live_transformers_agrees_with_the_goldens() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from make_goldens import transformers_logits

    for name, config in GOLDENS.items():
        # Stored as float32.
        assert nmse(transformers_logits(config, golden_weights(name), TOKENS), golden(name)) <= 1e-13
