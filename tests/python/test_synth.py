"""`hotset synth` and `bench --synth`: flags, errors, determinism, and files that run."""

from __future__ import annotations

import json
import random

import pytest

from conftest import assert_one_error_line

SHAPE = "n_layer=2,n_embd=128,n_ff=256,n_head=4,n_head_kv=2,n_vocab=1024,n_ctx=256"
FAMILIES = ["llama", "arcee", "nemotron", "opt"]


@pytest.fixture
def synth(hotset, tmp_path):
    """Writes a small model: synth("--arch", ..) -> path."""

    def make(*words, name="model.gguf"):
        path = tmp_path / name
        result = hotset("synth", "--shape", SHAPE, *words, "-o", str(path))
        assert result.returncode == 0, result.stderr
        assert result.stdout == b""
        return path

    return make


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("layout", ["neuron", "gguf"])
def test_files_run_and_say_what_they_are(hotset, synth, arch, layout):
    path = synth("--arch", arch, "--layout", layout, "--type", "q8_0")
    inspected = hotset("inspect", "-m", str(path)).stdout.decode()
    assert arch in inspected
    assert ("ffn_down_t.weight" in inspected) == (layout == "neuron")
    result = hotset("run", "-m", str(path), "-p", "Hello", "-n", "8", "--temp", "0", "--ignore-eos")
    assert result.returncode == 0, result.stderr
    assert b"8 tokens" in result.stderr


def test_the_bytes_depend_on_the_flags_only(synth):
    first = synth("--arch", "llama", "--seed", "3").read_bytes()
    assert synth("--arch", "llama", "--seed", "3", "-t", "5", name="b.gguf").read_bytes() == first
    assert synth("--arch", "llama", "--seed", "4", name="c.gguf").read_bytes() != first


def test_text_survives_the_made_up_vocabulary(hotset, synth):
    path = synth("--arch", "llama", "--type", "f16")
    text = "The old fisherman \u2615 rowed.\n".encode()
    ids = hotset("tokenize", "-m", str(path), "--no-bos", stdin=text).stdout
    assert hotset("detokenize", "-m", str(path), stdin=ids).stdout == text


@pytest.mark.parametrize(
    "recipe", [f"arcee shape={SHAPE} type=q4_0 pure seed=2", f"--arch arcee --shape {SHAPE} --pure"]
)
def test_bench_makes_a_model_in_memory(hotset, tmp_path, recipe):
    result = hotset("bench", "--synth", recipe, "-p", "16", "-n", "8", "-r", "1", "-o", "json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [row["test"] for row in rows] == ["pp16", "tg8"]
    assert all(row["arch"] == "arcee" and row["mode"] == "exact" for row in rows)
    assert all(row["model"] == f"synth {recipe}" for row in rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--shape", "lama-7b"], b"did you mean llama-7b?"),
        (["--arch", "nemotrn", "--shape", "tiny"], b"did you mean nemotron?"),
        (["--arch", "llama"], b"no shape"),
        (["--shape", SHAPE], b"no model family"),
        (["--shape", "n_layers=2"], b"did you mean n_layer?"),
        (["--shape", "tiny,n_ff"], b"bad value of --shape n_ff"),
        (["--shape", "tiny,n_ff=-1"], b"bad value of --shape n_ff"),
        (["--shape", ""], b"no shape"),
        (["--shape", ","], b"unknown shape"),
        (["--shape", "tiny", "--type", "q3"], b"expected q8_0, q4_0"),
        (["--shape", "tiny", "--activation", "gleu"], b"expected silu, relu"),
        (["--shape", "tiny", "--arch", "opt", "--activation", "drelu"], b"units without a gate"),
        (["--shape", "tiny", "--sparsity", "1"], b"bad value of --sparsity"),
        (["--shape", "tiny", "--skew", "0.26"], b"bad value of --skew"),
        (["--shape", "tiny", "--skew", "0.26:x"], b"bad value of --skew"),
        (["--shape", "tiny", "--sparsity", "0.5", "--skew", "0.26:0.8"], b"expected 0.27 to 0.51 of all firings"),
        (["--shape", "tiny,n_embd=272", "--type", "q4_0"], b"a multiple of 32"),
        (["--shape", "tiny,n_layer=1000000"], b"expected an integer from 1 to 1024"),
        (["--shape", "tiny", "--sprasity", "0.9"], b"did you mean --sparsity?"),
    ],
)
def test_wrong_usage(hotset, tmp_path, words, hint):
    result = hotset("synth", *words, "-o", str(tmp_path / "x.gguf"))
    assert_one_error_line(result, 2)
    assert hint in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_file_to_write_is_wrong_usage(hotset):
    result = hotset("synth", "--shape", "tiny")
    assert_one_error_line(result, 2)
    assert b"no file to write" in result.stderr


def test_a_folder_that_is_not_there_is_an_error(hotset, tmp_path):
    assert_one_error_line(hotset("synth", "--shape", "tiny", "-o", str(tmp_path / "none" / "x.gguf")), 1)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--synth", "x"], b"no shape"),
        (["--synth", ""], b"no shape"),
        (["--synth", "shape=tny"], b"did you mean tiny?"),
        (["--synth", "shape=tiny --help"], b"see 'hotset synth --help'"),
        (["--synth", "shape=tiny", "-m", "x.gguf"], b"two models"),
    ],
)
def test_wrong_recipes(hotset, words, hint):
    result = hotset("bench", *words)
    assert_one_error_line(result, 2)
    assert hint in result.stderr


def test_a_recipe_larger_than_the_memory_is_an_error(hotset):
    result = hotset("bench", "--synth", "shape=opt-175b,n_layer=1024 type=f32")
    assert_one_error_line(result, 1)
    assert b"that are free" in result.stderr


def test_garbage_is_refused_in_one_line(hotset):
    words = ["shape=", "tiny", "n_layer", "=", ",", ":", "0.26", "--", "-", "pure", " ", "type=q4_0", "sparsity", "skew=",
             "999999999999999999999", "nan", "arcee", "seed=", "\u20ac", "--pure=", "--help", "shape=tiny,n_ff="]  # fmt: skip
    rng = random.Random(5)
    for _ in range(150):
        recipe = "".join(rng.choices(words, k=rng.randrange(1, 7))) + " sparsity=2"  # never a whole recipe
        result = hotset("bench", "--synth", recipe, memory=1 << 30)
        assert_one_error_line(result, 2)
