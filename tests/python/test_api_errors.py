"""Errors of the Python API: the right class, a message that helps, and nothing lost."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hotset
from hotset import Completion, Model

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def model():
    with Model(n_threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def small():
    """The packaged model with room for 48 positions."""
    with Model(n_ctx=48, n_threads=1) as loaded:
        yield loaded


def test_prompt_beyond_the_context(small):
    with pytest.raises(hotset.ContextLengthError, match="48"):
        small.generate(list(range(3, 60)))
    with pytest.raises(hotset.ContextLengthError):
        small.generate(["a", "b " * 100], stream=True)
    with pytest.raises(hotset.ContextLengthError):
        small.logits(list(range(3, 60)))


def test_end_of_the_context_keeps_what_was_made(small, model):
    with pytest.raises(hotset.ContextLengthError) as caught:
        small.generate(PROMPT, temperature=0, max_tokens=100, ignore_eos=True)
    partial = caught.value.partial
    assert isinstance(partial, Completion) and partial.finish_reason is None
    assert len(partial.tokens) + len(small.tokenize(PROMPT)) in (48, 49)
    assert partial.stats.n_generated == len(partial.tokens)
    assert model.generate(PROMPT, temperature=0, max_tokens=100, ignore_eos=True).startswith(partial)
    with pytest.raises(hotset.ContextLengthError) as caught:
        small.generate([PROMPT, "A"], temperature=0, max_tokens=100, ignore_eos=True)
    assert [len(part.tokens) > 20 for part in caught.value.partial] == [True, True]
    streamed = []
    with pytest.raises(hotset.ContextLengthError):
        streamed.extend(token.text for token in small.generate(PROMPT, temperature=0, stream=True, ignore_eos=True))


TOO_MANY = """
import resource, hotset
model = hotset.Model(n_threads=1)
tokens = [3] * 4_000_000  # their logits would take 65 GB
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), resource.RLIM_INFINITY))
try:
    model.logits(tokens)
except hotset.ContextLengthError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_logits_beyond_the_context_take_no_memory():
    result = subprocess.run([sys.executable, "-c", TOO_MANY], capture_output=True, text=True, timeout=120)
    expected = "[logits] tokens: expected at most 512, got 4000000; use fewer or raise the context (n_ctx)\n"
    assert (result.returncode, result.stdout) == (0, expected), result.stderr


@pytest.mark.parametrize(
    ("foreign", "right"),
    [("max_new_tokens", "max_tokens"), ("repetition_penalty", "repeat_penalty"), ("temp", "temperature"),
     ("temperatur", "temperature"), ("nonsense_", "max_tokens")],
)  # fmt: skip
def test_foreign_spellings_name_the_right_one(model, foreign, right):
    for call in (model.generate, model.agenerate):
        with pytest.raises(TypeError, match=f"{call.__name__}.*{foreign}.*{right}"):
            call(PROMPT, **{foreign: 1})


def test_foreign_spellings_of_load_options(model):
    with pytest.raises(TypeError, match="Model.*'model_path'; use 'path'"):
        Model(model_path="x")
    with pytest.raises(TypeError, match="'n_gpu_layers'; it takes path, vram_budget"):
        Model(n_gpu_layers=3)
    with pytest.raises(TypeError, match="from_pretrained.*'threads'; use 'n_threads'"):
        Model.from_pretrained(model.path, threads=1)


@pytest.mark.parametrize("prompt", [[], [[]], [-1], [4096], [2**40], ["a", []]])
def test_prompts_that_are_none(model, prompt):
    with pytest.raises(ValueError):
        model.generate(prompt)


@pytest.mark.parametrize("tokens", [[], [4096], [-1]])
def test_logits_of_no_tokens(model, tokens):
    with pytest.raises(ValueError):
        model.logits(tokens)


@pytest.mark.parametrize(
    "options",
    [{"n_ctx": -1}, {"n_threads": -1}, {"n_batch": 0}, {"mode": "fast"}, {"device": "tpu"}, {"kv_type": "q3"},
     {"pin": "maybe"}, {"kv_place": "disk"}, {"adapt": "maybe"}, {"vram_budget": "much"}, {"vram_budget": -1},
     {"activation": "gelux"}],
)  # fmt: skip
def test_load_options_out_of_range(options):
    with pytest.raises((ValueError, hotset.UnsupportedModelError), match=next(iter(options))):
        Model(**options)


def test_devices_that_are_not_there():
    if Model().stats().device == "cpu":
        with pytest.raises(hotset.DeviceError):
            Model(kv_place="device")


@pytest.mark.parametrize(("size", "n_bytes"), [("8GiB", 8 << 30), ("8000 MiB", 8000 << 20), ("1.5GB", 1500000000),
                                               ("12", 12), (5, 5), ("auto", None), (None, None)])  # fmt: skip
def test_sizes(size, n_bytes):
    from hotset.arguments import size_in_bytes

    assert size_in_bytes("Model", "vram_budget", size) == n_bytes


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(hotset.Error, match=r"\[.+\] .+: expected .+, got .+; "):
        Model(tmp_path / "missing.gguf")
    with pytest.raises(hotset.Error):
        Model(tmp_path)
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(hotset.Error) as caught:
        Model(bad)
    assert type(caught.value) in (hotset.ModelFormatError, hotset.UnsupportedModelError)
    assert issubclass(hotset.ModelFormatError, hotset.Error) and not issubclass(hotset.Error, ValueError)
