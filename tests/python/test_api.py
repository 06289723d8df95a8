"""The Python API on the packaged model: text, tokens, logits, options, errors."""

from __future__ import annotations

import dataclasses
import gc
import os
import pickle
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from hotset import Completion, Model, Token

PROMPT = "Once upon a time"
GREEDY = {"temperature": 0.0, "max_tokens": 24}
PROMPTS = [PROMPT, "The dog", "One day, a girl", "Tom and Sue", "A", "In the big forest", "It was cold.", "Lily"]


@pytest.fixture(scope="module")
def model():
    with Model(n_threads=2) as loaded:
        yield loaded


def ids_of(completion: Completion) -> list[int]:
    return [token.id for token in completion.tokens]


# --- generate -------------------------------------------------------------------------------------------------------


def test_greedy_text_is_a_str_with_tokens(model):
    text = model.generate(PROMPT, **GREEDY)
    assert isinstance(text, str) and isinstance(text, Completion)
    assert text == "".join(token.text for token in text.tokens)
    assert len(text.tokens) == 24 and text.finish_reason == "length"
    assert [token.index for token in text.tokens] == list(range(24))
    assert {token.sequence for token in text.tokens} == {0}
    assert [token.finish_reason for token in text.tokens] == [None] * 23 + ["length"]
    assert text == model.generate(PROMPT, **GREEDY)
    assert text == model.detokenize(model.tokenize(PROMPT) + ids_of(text))[len(PROMPT) :]


def test_greedy_follows_the_logits(model):
    ids = model.tokenize(PROMPT)
    text = model.generate(ids, **GREEDY)
    rows = model.logits(ids + ids_of(text))[len(ids) - 1 : -1].astype(np.float64)
    assert ids_of(text) == rows.argmax(axis=1).tolist()
    log_total = np.log(np.exp(rows - rows.max(axis=1, keepdims=True)).sum(axis=1)) + rows.max(axis=1)
    expected = rows[np.arange(len(rows)), ids_of(text)] - log_total
    np.testing.assert_allclose([token.logprob for token in text.tokens], expected, rtol=0, atol=1e-5)


def test_stream_equals_the_whole(model):
    whole = model.generate(PROMPT, seed=7, max_tokens=40)
    stream = model.generate(PROMPT, seed=7, max_tokens=40, stream=True)
    tokens = list(stream)
    assert tokens == whole.tokens
    assert list(stream) == []
    assert stream.stats.n_generated == whole.stats.n_generated == 40


def test_token_is_frozen_and_small(model):
    token = next(model.generate(PROMPT, stream=True))
    assert isinstance(token, Token) and not hasattr(token, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        token.text = "x"
    assert isinstance(token.id, int) and isinstance(token.text, str) and isinstance(token.logprob, float)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 11}])
def test_batch_equals_the_single_runs(model, options):
    batch = model.generate(PROMPTS, max_tokens=20, **options)
    for i, (prompt, completion) in enumerate(zip(PROMPTS, batch, strict=True)):
        seeded = {**options, "seed": options["seed"] + i} if "seed" in options else options
        single = model.generate(prompt, max_tokens=20, **seeded)
        assert completion == single
        assert [dataclasses.replace(token, sequence=0) for token in completion.tokens] == single.tokens
        assert {token.sequence for token in completion.tokens} == {i}
    assert batch[0].stats.n_prompt == sum(len(model.tokenize(prompt)) for prompt in PROMPTS)


def test_a_prompt_seen_before_is_not_computed_again(model):
    prompt = PROMPT * 6
    first, second = (model.generate(prompt, max_tokens=8, temperature=0) for _ in range(2))
    assert second == first
    assert second.stats.n_prompt_reused == len(model.tokenize(prompt)) - 1


def test_stream_of_a_batch_names_the_sequence(model):
    texts = ["", ""]
    for token in model.generate(PROMPTS[:2], stream=True, **GREEDY):
        texts[token.sequence] += token.text
    assert texts == model.generate(PROMPTS[:2], **GREEDY)


def test_kinds_of_prompts(model):
    ids = model.tokenize(PROMPT)
    text = model.generate(PROMPT, **GREEDY)
    assert model.generate(ids, **GREEDY) == text
    assert model.generate(tuple(ids), **GREEDY) == text
    assert model.generate(np.array(ids), **GREEDY) == text
    assert model.generate([ids], **GREEDY) == [text]
    assert model.generate(np.array([ids, ids]), **GREEDY) == [text, text]
    assert model.generate([PROMPT, ids], **GREEDY) == [text, text]


def test_seed_decides(model):
    texts = {str(model.generate(PROMPT, seed=seed, temperature=1.5, max_tokens=20)) for seed in (1, 2, 3, 1, 2, 3)}
    assert len(texts) == 3
    assert model.generate(PROMPT, seed=np.int64(5)) == model.generate(PROMPT, seed=5)
    assert len({str(model.generate(PROMPT, temperature=1.5)) for _ in range(3)}) > 1


def test_sampler_options_reach_the_sampler(model):
    greedy = model.generate(PROMPT, **GREEDY)
    assert model.generate(PROMPT, temperature=2.0, top_k=1, max_tokens=24) == greedy
    assert model.generate(PROMPT, temperature=2.0, top_k=0, top_p=1e-6, min_p=0, max_tokens=24) == greedy
    assert model.generate(PROMPT, temperature=1.0, top_k=0, top_p=1, min_p=1.0, max_tokens=24) == greedy
    assert model.generate(PROMPT, repeat_penalty=2.0, **GREEDY) != greedy
    assert model.generate(PROMPT, repeat_penalty=2.0, repeat_last_n=0, **GREEDY) == greedy


def test_stop_texts_end_it(model):
    whole = str(model.generate(PROMPT, **GREEDY))
    stop = whole[10:14]
    for given in (stop, [stop], ["never in it", stop]):
        cut = model.generate(PROMPT, stop=given, **GREEDY)
        assert cut == whole[: whole.index(stop)] and cut.finish_reason == "stop"
    tokens = list(model.generate(PROMPT, stop=stop, stream=True, **GREEDY))
    assert "".join(token.text for token in tokens) == whole[: whole.index(stop)]
    assert tokens[-1].finish_reason == "stop"


def test_logits_processor_in_place_and_returned(model):
    ids = model.tokenize(PROMPT)
    seen = []

    def force(tokens, logits):
        assert isinstance(logits, np.ndarray) and logits.dtype == np.float32 and logits.shape == (model.n_vocab,)
        seen.append(tokens)
        logits[:] = -100
        logits[300 + len(seen)] = 0

    text = model.generate(PROMPT, logits_processor=force, max_tokens=4)
    assert ids_of(text) == [301, 302, 303, 304]
    assert seen == [ids + [301, 302, 303][:i] for i in range(4)]

    def returned(tokens, logits):
        return np.where(np.arange(logits.size) == 400, 0.0, -np.inf)

    assert ids_of(model.generate([PROMPT, "A"], logits_processor=returned, max_tokens=2)[1]) == [400, 400]


def test_logits_processor_errors_come_through(model):
    def broken(tokens, logits):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        model.generate(PROMPT, logits_processor=broken)
    with pytest.raises(ValueError, match=r"shape \(4096,\), got \(3,\)"):
        model.generate(PROMPT, logits_processor=lambda tokens, logits: np.zeros(3))
    kept = []
    model.generate(PROMPT, logits_processor=lambda tokens, logits: kept.append(logits), max_tokens=3)
    gc.collect()
    assert len(kept) == 3 and all(np.isfinite(row).all() for row in kept)  # arrays of their own, not views


def test_text_of_partial_characters_is_whole(model):
    """Bytes of a character arrive as several tokens; the text holds the character once, and never half of it."""
    ids = [model.tokenize("é", add_special=False)[-2:], model.tokenize("\U0001f98a", add_special=False)[-4:]]
    script = [*ids[0], *ids[1][:2], *model.tokenize("x", add_special=False)]

    def forced(tokens, logits):
        logits[:] = -100
        logits[script[len(tokens) - 1]] = 0

    tokens = list(model.generate([1], logits_processor=forced, max_tokens=len(script), temperature=0, stream=True))
    text = "".join(token.text for token in tokens)
    assert text.count("é") == 1 and "\ufffd" in text and text.endswith("x")
    assert text.encode() == text.encode("utf-8", "strict")
    assert tokens[0].text == ""


def test_control_tokens_in_prompts_stay_text(model):
    assert 2 not in model.tokenize("</s>")
    assert model.tokenize("</s>", parse_special=True)[-1] == 2


def test_unlimited_tokens_and_context_shift(model):
    with Model(n_ctx=48) as small:
        shifted = small.generate(PROMPT, temperature=0, max_tokens=100, ignore_eos=True, context_shift=True)
    assert len(shifted.tokens) == 100 and shifted.finish_reason == "length"
    stopped = model.generate([1], logits_processor=lambda tokens, logits: one_hot(logits, 2), max_tokens=-1)
    assert stopped == "" and stopped.finish_reason == "stop"


def one_hot(logits: np.ndarray, token_id: int) -> np.ndarray:
    return np.where(np.arange(logits.size) == token_id, np.float32(0), np.float32(-100))


def test_completion_survives_pickling(model):
    text = model.generate(PROMPT, **GREEDY)
    again = pickle.loads(pickle.dumps(text))
    assert (again, again.tokens, again.stats, again.finish_reason) == (text, text.tokens, text.stats, "length")


# --- figures ----------------------------------------------------------------------------------------------------------


def test_stats(model):
    text = model.generate(PROMPT, **GREEDY)
    assert (text.stats.n_prompt, text.stats.n_generated) == (len(model.tokenize(PROMPT)), 24)
    assert 0 < text.stats.prompt_ms <= text.stats.first_token_ms
    assert text.stats.generate_ms > 0
    stats = model.stats()
    assert (stats.device, stats.n_threads, stats.n_ctx) == ("cpu", 2, 512)
    assert stats.weight_bytes >= stats.model_size > stats.model_n_params
    assert stats.weight_bytes_per_token > 0 and stats.kv_bytes_per_position > 0
    assert stats.mode == "exact" and 0 < stats.active_share < 0.5  # the packaged model is sparse
    assert 0 < stats.skippable_bytes_per_token < stats.weight_bytes_per_token and stats.relayout_bytes == 0
    assert "Q8_0" in stats.model


def threads_on_one_core() -> int:
    """Threads of this process that may run on a single processor."""
    return sum(len(os.sched_getaffinity(int(task))) == 1 for task in os.listdir("/proc/self/task"))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor: nothing to choose")
def test_pin_puts_a_thread_on_a_core_of_its_own():
    texts, before = set(), threads_on_one_core()
    for pin, n_pinned in (("off", 0), ("on", 1)):
        with Model(n_threads=2, pin=pin) as loaded:
            deadline = time.monotonic() + 60  # a thread pins itself when it first runs
            while True:
                texts.add(str(loaded.generate(PROMPT, max_tokens=8, temperature=0)))
                if threads_on_one_core() - before == n_pinned or time.monotonic() > deadline:
                    break
            assert threads_on_one_core() - before == n_pinned
    assert len(texts) == 1


def test_properties(model):
    assert (model.n_ctx, model.n_vocab, model.closed) == (512, 4096, False)
    assert model.name == "hotset demo-relu" and model.name in repr(model)
    assert model.metadata["general.architecture"] == "llama"
    assert model.metadata["llama.context_length"] == 512
    assert model.metadata["llama.rope.freq_base"] == 10000.0
    assert model.metadata["tokenizer.ggml.add_bos_token"] is True
    assert model.metadata["tokenizer.ggml.tokens"].startswith("[")
    assert model.metadata["general.description"].endswith("...")


def test_metadata_is_read_once(tmp_path, model):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(Path(model.path).read_bytes())
    with Model(copy) as loaded:
        first = loaded.metadata
        assert first == model.metadata
        copy.unlink()
        first.clear()  # the caller's own
        assert loaded.metadata == model.metadata
    with pytest.raises(ValueError, match="closed"):
        loaded.metadata


# --- tokens and logits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "Hello", "  two  spaces", "naïve 🦊\n\t", "x\0y", "a" * 3000])
def test_tokenize_there_and_back(model, text):
    ids = model.tokenize(text)
    assert ids[0] == 1 and all(type(token) is int for token in ids)
    assert model.detokenize(ids) == text
    assert model.tokenize(text, add_special=False) == ids[1:]
    assert model.detokenize(np.array(ids, dtype=np.int64)) == text


def test_detokenize_of_anything(model):
    assert model.detokenize([]) == ""
    assert model.detokenize([1, 2]) == "" and "</s>" in model.detokenize([1, 2], special=True)
    assert "\ufffd" in model.detokenize([3 + 0xC3])
    assert model.tokenize("\udcff", add_special=False)[-1] == 3 + 0xFF  # a byte that "surrogateescape" carried


def test_logits_are_a_fresh_array(model):
    ids = model.tokenize(PROMPT)
    logits = model.logits(ids)
    assert logits.shape == (len(ids), 4096) and logits.dtype == np.float32 and logits.flags.c_contiguous
    assert logits.flags.writeable and np.isfinite(logits).all()
    np.testing.assert_array_equal(model.logits(np.array(ids)), logits)
    np.testing.assert_array_equal(model.logits(ids[:3]), logits[:3])


def test_logits_of_a_full_context(model):
    rng = np.random.default_rng(3)
    assert model.logits(rng.integers(3, 4096, 512)).shape == (512, 4096)


def test_from_pretrained_takes_local_files(model, tmp_path):
    (tmp_path / "one-Q8_0.gguf").symlink_to(model.path)
    with Model.from_pretrained(tmp_path, "*Q8_0.gguf", n_ctx=64) as loaded:
        assert loaded.n_ctx == 64
        assert loaded.generate(PROMPT, **GREEDY) == model.generate(PROMPT, **GREEDY)


# --- life time --------------------------------------------------------------------------------------------------------


def test_nothing_works_after_close():
    with Model() as loaded:
        assert not loaded.closed
        stream = loaded.generate(PROMPT, stream=True)
        next(stream)
    assert loaded.closed and "closed" in repr(loaded)
    loaded.close()
    calls = [(loaded.generate, "x"), (loaded.agenerate, "x"), (loaded.tokenize, "x"), (loaded.detokenize, [1]),
             (loaded.logits, [1]), (loaded.stats,), (loaded.__enter__,)]  # fmt: skip
    for call, *arguments in calls:
        with pytest.raises(ValueError, match="closed"):
            call(*arguments)
    assert [token.finish_reason for token in stream] in ([], ["cancelled"])


def test_verbose_goes_to_stderr_only(capfd):
    Model(verbose=True).close()
    Model().close()
    assert capfd.readouterr().out == ""


def test_dropping_frees_the_engine():
    loaded = Model()
    stream = loaded.generate(PROMPT, stream=True, logits_processor=lambda tokens, logits: None)
    next(stream)
    gone = weakref.ref(stream)
    del stream
    assert gone() is None, "a reference cycle keeps the stream"
    model_gone = weakref.ref(loaded)
    del loaded
    assert model_gone() is None


def test_kld_compares_a_mode_with_dense():
    text = "Once upon a time there was a little boat. It was blue. " * 30
    with Model(mode="exact", n_threads=1) as model:
        result = model.kld(text, n_ctx=32)
        assert (result.mean_kld, result.kld_max, result.same_top) == (0, 0, 1)
        assert result.ppl == result.ppl_base > 1 and result.n_tokens >= 2 * 15
        with pytest.raises(ValueError, match="at least 1024 tokens"):
            model.kld(text[:40])
    with Model(mode="dense", kv_type="q8_0", n_threads=1) as model:
        assert model.kld(model.tokenize(text), n_ctx=32).mean_kld == 0  # the dense side has the same cache
