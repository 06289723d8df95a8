"""Arguments of the Python API: wrong types and values give one line that names the argument."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hotset import Model

PROMPT = "Once upon a time"
SHAPE = r"\[.+\] .*{}.*: expected .+, got .+; .+"


@pytest.fixture(scope="module")
def model():
    with Model(n_threads=2) as loaded:
        yield loaded


def assert_one_line(error: BaseException, name: str) -> None:
    """One line about the argument, without names of the native module; a ValueError has the shape of every error."""
    text = str(error)
    assert name in text and "\n" not in text and "_core" not in text and len(text) < 300, text
    if isinstance(error, ValueError):
        assert re.fullmatch(SHAPE.format(name), text), text


WRONG_TYPES = [
    {"max_tokens": 3.5}, {"max_tokens": None}, {"max_tokens": True}, {"max_tokens": "8"}, {"temperature": "0"},
    {"temperature": None}, {"temperature": 1j}, {"temperature": [1]}, {"temperature": True}, {"top_k": 40.0},
    {"top_p": b"1"}, {"min_p": np.zeros(2)}, {"repeat_penalty": {}}, {"repeat_last_n": None}, {"seed": "x"},
    {"seed": 1.0}, {"seed": False}, {"stop": [1]}, {"stop": b"a"}, {"stop": 3}, {"stop": None}, {"ignore_eos": 1},
    {"ignore_eos": None}, {"context_shift": "yes"}, {"stream": "no"}, {"logits_processor": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", WRONG_TYPES, ids=str)
def test_wrong_types_of_options(model, options):
    (name,) = options
    for call in (model.generate, model.agenerate) if name != "stream" else (model.generate,):
        with pytest.raises(TypeError) as caught:
            call(PROMPT, **options)
        assert_one_line(caught.value, name)


OUT_OF_RANGE = [
    {"max_tokens": -2}, {"max_tokens": 2**63}, {"max_tokens": -(2**70)}, {"top_k": 2**40}, {"top_k": -1},
    {"top_k": 10**5000}, {"repeat_last_n": 2**31}, {"repeat_last_n": -2}, {"temperature": 10**400},
    {"temperature": 1e39}, {"temperature": float("inf")}, {"temperature": -0.1}, {"top_p": 0}, {"top_p": 1e-60},
    {"min_p": 1.5}, {"repeat_penalty": 0}, {"repeat_penalty": float("nan")}, {"seed": -1}, {"seed": 2**64},
    {"stop": ["\ud800"]}, {"stop": "\udcff"}, {"stop": ["a", ""]},
]  # fmt: skip


@pytest.mark.parametrize("options", OUT_OF_RANGE, ids=lambda options: next(iter(options)))
def test_values_of_options_out_of_range(model, options):
    with pytest.raises(ValueError) as caught:
        model.generate(PROMPT, **options)
    assert_one_line(caught.value, "stop" if "stop" in options else next(iter(options)))


def test_values_of_numpy_are_fine(model):
    greedy = model.generate(PROMPT, max_tokens=3, temperature=0, top_k=5, ignore_eos=True)
    numpy = {"max_tokens": np.int32(3), "temperature": np.float32(0), "top_k": np.array(5), "ignore_eos": np.True_}
    assert model.generate(PROMPT, **numpy) == greedy
    numpy = {"max_tokens": 3, "temperature": np.float64(0), "top_p": 1, "seed": np.uint64(2**64 - 1)}
    assert model.generate(PROMPT, **numpy) == greedy


@pytest.mark.parametrize(
    "options",
    [{"n_ctx": "4096"}, {"n_ctx": 64.0}, {"n_ctx": False}, {"n_threads": "2"}, {"n_threads": 1.5}, {"n_batch": None},
     {"pin": True}, {"mode": 1}, {"mode": None}, {"device": b"cpu"}, {"kv_type": 16}, {"kv_place": None},
     {"activation": 3}, {"verbose": "yes"}, {"vram_budget": 1.5}, {"vram_budget": b"8GiB"}, {"vram_budget": True}],
    ids=str,
)  # fmt: skip
def test_wrong_types_of_load_options(options):
    (name,) = options
    with pytest.raises(TypeError) as caught:
        Model(**options)
    assert_one_line(caught.value, name)


@pytest.mark.parametrize(
    "options",
    [{"n_threads": 2**40}, {"n_threads": -1}, {"n_ctx": 2**70}, {"n_ctx": -(2**70)}, {"n_batch": 2**31},
     {"n_batch": 0}, {"mode": "\ud800"}, {"device": "tpu\n"}, {"kv_place": "disk"}, {"vram_budget": "9" * 400 + "GiB"},
     {"vram_budget": 2**70}, {"vram_budget": -1}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_load_options_out_of_range(options):
    (name,) = options
    with pytest.raises(ValueError) as caught:
        Model(**options)
    assert_one_line(caught.value, name)


@pytest.mark.parametrize("path", [b"model.gguf", 3, 1.5, ["model.gguf"]])
def test_paths_of_a_wrong_type(path):
    for load in (Model, Model.from_pretrained):
        with pytest.raises(TypeError) as caught:
            load(path)
        assert "\n" not in str(caught.value) and "path" in str(caught.value)


def test_path_that_is_no_text(tmp_path):
    with pytest.raises(ValueError) as caught:
        Model(str(tmp_path) + "/\ud800.gguf")
    assert_one_line(caught.value, "path")


@pytest.mark.parametrize("prompt", [b"abc", bytearray(b"abc"), memoryview(b"abc"), [b"abc"], ["abc", b"abc"], 5, None,
                                    [1.5], [None], [[1], 2], {"role": "user"}], ids=repr)  # fmt: skip
def test_prompts_of_a_wrong_type(model, prompt):
    for call in (model.generate, model.agenerate):
        with pytest.raises(TypeError, match=r"^prompt takes str or token ids, not \w+$"):
            call(prompt)


@pytest.mark.parametrize("tokens", [b"abc", "abc", 5, None, [1.5], ["a"], [[1]], [True]], ids=repr)
def test_token_ids_of_a_wrong_type(model, tokens):
    for call in (model.logits, model.detokenize):
        with pytest.raises(TypeError) as caught:
            call(tokens)
        assert_one_line(caught.value, "token ids")


@pytest.mark.parametrize("text", [b"abc", None, 3, ["a"]], ids=repr)
def test_texts_of_a_wrong_type(model, text):
    with pytest.raises(TypeError, match=r"^text takes str, not \w+$"):
        model.tokenize(text)


def test_flags_of_a_wrong_type(model):
    for call, name in [(lambda: model.tokenize("x", add_special=1), "add_special"),
                       (lambda: model.tokenize("x", parse_special=None), "parse_special"),
                       (lambda: model.detokenize([1], special="yes"), "special")]:  # fmt: skip
        with pytest.raises(TypeError) as caught:
            call()
        assert_one_line(caught.value, name)


def test_text_that_utf8_cannot_hold(model):
    for call in (model.tokenize, model.generate):
        with pytest.raises(ValueError) as caught:
            call("a\ud800b")
        assert_one_line(caught.value, "text")
