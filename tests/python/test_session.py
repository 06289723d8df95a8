"""Reuse of common beginnings, and sessions: going on, cutting, forking, saving, loading."""

from __future__ import annotations

import gc
import threading

import pytest

from hotset import ContextLengthError, Error, Model, ModelFormatError, Session

STORY = "Once upon a time there was a little girl who lived in a big forest. She had a dog and a cat. " * 2
GREEDY = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True}


@pytest.fixture(scope="module")
def model():
    with Model(n_threads=2) as loaded:
        yield loaded


def ids_of(completion) -> list[int]:
    return [token.id for token in completion.tokens]


def plain(model, ids, **options):
    """What follows the tokens when nothing is reused."""
    return ids_of(model.generate(ids, reuse=False, **{**GREEDY, **options}))


def test_prompts_of_a_batch_are_computed_once_where_they_agree(model):
    prompts = [STORY + "One day", STORY + "Her mother", STORY + "The cat"]
    with Model(n_threads=2) as fresh:
        batch = fresh.generate(prompts, **GREEDY)
        n_shared = batch[0].stats.n_prompt_reused
        again = fresh.generate(prompts[1], **GREEDY)
    common = min(len(model.tokenize(prompt)) for prompt in prompts)
    assert n_shared % 32 == 0 and 2 * (common - 40) < n_shared < 2 * common
    assert again.stats.n_prompt_reused == len(model.tokenize(prompts[1])) - 1
    assert [ids_of(each) for each in batch] == [plain(model, model.tokenize(prompt)) for prompt in prompts]
    assert again == batch[1]


def test_reuse_can_be_switched_off(model):
    for _ in range(2):
        assert model.generate(STORY + "Then", reuse=False, **GREEDY).stats.n_prompt_reused == 0
    assert model.generate([STORY] * 3, reuse=False, **GREEDY)[0].stats.n_prompt_reused == 0
    with pytest.raises(TypeError, match="reuse"):
        model.generate("x", reuse=1)


def test_a_session_goes_on_where_it_was(model):
    with model.session() as session:
        assert isinstance(session, Session) and session.tokens == [] and session.n_past == 0
        first = session.generate(STORY, **GREEDY)
        said = model.tokenize(STORY) + ids_of(first)
        assert ids_of(first) == plain(model, model.tokenize(STORY))
        assert session.tokens == said
        assert session.n_past == len(said) - 1  # the token sampled last is not computed yet
        second = session.generate("Then", **GREEDY)
        then = model.tokenize("Then", add_special=False)
        assert ids_of(second) == plain(model, said + then)
        assert second.stats.n_prompt == 1 + len(then)
        assert ids_of(session.generate(**GREEDY)) == plain(model, session.tokens[:-16])
        assert len(session.tokens) == len(said) + len(then) + 32


def test_a_session_can_be_cut_and_forked(model):
    session = model.session()
    session.append(STORY)
    ids = session.tokens
    assert ids == model.tokenize(STORY) and session.n_past == len(ids)
    fork, first, none = session.fork(), session.fork(33), session.fork(0)
    assert (first.tokens, none.tokens) == (ids[:33], [])
    assert ids_of(first.generate([7], **GREEDY)) == plain(model, ids[:33] + [7])
    assert ids_of(none.generate("A dog", **GREEDY)) == plain(model, model.tokenize("A dog"))
    session.truncate(40)
    assert ids_of(session.generate(**GREEDY)) == plain(model, ids[:40])
    assert ids_of(fork.generate(**GREEDY)) == plain(model, ids)
    said = ids + plain(model, ids)
    assert fork.fork().tokens == fork.fork(len(said)).tokens == said
    assert ids_of(fork.fork().generate([7, 8], **GREEDY)) == plain(model, said + [7, 8])
    fork.truncate(len(said) - 1)  # the token that is not computed yet
    assert fork.tokens == said[:-1] and fork.n_past == len(said) - 1
    assert ids_of(fork.generate([7, 8], **GREEDY)) == plain(model, said[:-1] + [7, 8])
    for use in (fork.truncate, fork.fork):
        for wrong in (-1, len(fork.tokens) + 1):
            with pytest.raises(ValueError, match="0 to"):
                use(wrong)
        with pytest.raises(TypeError):
            use(1.5)


def test_a_session_in_a_stream_keeps_what_was_read(model):
    session = model.session()
    stream = session.generate(STORY, stream=True, **GREEDY)
    read = [next(stream) for _ in range(5)]
    for use in (session.fork, lambda: session.tokens, lambda: session.generate("x"), lambda: session.truncate(0)):
        with pytest.raises(ValueError, match="while it generates"):
            use()
    stream.close()
    assert session.tokens == model.tokenize(STORY) + [token.id for token in read]
    stream = session.generate(stream=True, **GREEDY)
    next(stream)
    del stream
    gc.collect()
    assert len(session.tokens) == len(model.tokenize(STORY)) + 6


def test_one_thread_has_a_session_at_a_time(model):
    """The processor runs within generate(): whatever another thread asks of the session then is refused."""
    session = model.session()
    session.append(STORY)
    refused = []

    def ask(use):
        with pytest.raises(ValueError, match="while it generates") as caught:
            use()
        refused.append(caught.value)

    def from_another_thread(tokens, logits):
        for use in (session.fork, lambda: session.append("x"), lambda: session.save("x"), lambda: session.n_past):
            thread = threading.Thread(target=ask, args=(use,))
            thread.start()
            thread.join()

    completion = session.generate(logits_processor=from_another_thread, **{**GREEDY, "max_tokens": 2})
    assert len(refused) == 8 and len(completion.tokens) == 2


def test_closing_the_model_ends_a_stream_and_its_session():
    model = Model(n_threads=1)
    session = model.session()
    stream = session.generate(STORY, stream=True, **{**GREEDY, "max_tokens": 200})
    next(stream)
    model.close()
    assert [token.finish_reason for token in stream] == ["cancelled"]
    with pytest.raises(ValueError, match="closed"):
        _ = session.tokens
    assert "closed" in repr(session)
    with pytest.raises(ValueError, match="closed"):
        model.session()
    with pytest.raises(ValueError, match="closed"):
        model.load_session("story.hseq")


def test_nothing_to_generate_leaves_the_prompt_to_be_added(model):
    session = model.session()
    assert session.generate(STORY, max_tokens=0) == ""
    assert session.tokens == model.tokenize(STORY) and session.n_past == 0
    assert ids_of(session.generate(**GREEDY)) == plain(model, model.tokenize(STORY))
    with pytest.raises(ContextLengthError) as caught:
        session.generate(**{**GREEDY, "max_tokens": -1})
    assert session.tokens[-len(caught.value.partial.tokens) :] == ids_of(caught.value.partial)
    assert session.n_past == model.n_ctx


def test_the_processor_sees_the_whole_session(model):
    session = model.session()
    session.append(STORY)
    seen = []
    session.generate(" The", logits_processor=lambda tokens, logits: seen.append(tokens), **{**GREEDY, "max_tokens": 2})
    assert seen[0] == model.tokenize(STORY) + model.tokenize(" The", add_special=False)
    assert seen[1] == session.tokens[:-1]

    def fail(tokens, logits):
        raise KeyError("mine")

    before = session.tokens
    with pytest.raises(KeyError, match="mine"):
        session.generate("x", logits_processor=fail)
    assert session.tokens == before


def test_a_loaded_session_goes_on_bit_for_bit(model, tmp_path):
    path = tmp_path / "story.hseq"
    session = model.session()
    session.generate(STORY, **GREEDY)
    session.save(path)
    logprobs = [token.logprob for token in session.generate("Then", **GREEDY).tokens]
    with Model(n_threads=1) as other, other.load_session(path) as loaded:
        assert [token.logprob for token in loaded.generate("Then", **GREEDY).tokens] == logprobs
        assert loaded.tokens == session.tokens
    again = model.load_session(str(path))
    ids = again.tokens
    assert again.n_past == len(ids)
    assert ids_of(again.generate(**GREEDY)) == plain(model, ids)


def test_files_that_do_not_fit_are_refused(model, tmp_path):
    path = tmp_path / "story.hseq"
    session = model.session()
    session.append(STORY)
    session.save(path)
    with Model(n_threads=1, kv_type="q8_0") as other, pytest.raises(ModelFormatError, match="KV type"):
        other.load_session(path)
    with Model(n_threads=1, n_ctx=16) as other, pytest.raises(ContextLengthError, match="at most 16"):
        other.load_session(path)
    with pytest.raises(Error, match="No such file"):
        model.load_session(tmp_path / "none")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFormatError, match="cut off"):
        model.load_session(path)
    with pytest.raises(Error):
        session.save(tmp_path / "none" / "story.hseq")


def test_wrong_use_of_sessions(model):
    session = model.session()
    with pytest.raises(ValueError, match="at least one token"):
        session.generate()
    with pytest.raises(TypeError, match="max_tokens"):
        session.generate("x", max_new_tokens=3)
    with pytest.raises(ContextLengthError):
        session.append([5] * (model.n_ctx + 1))
    assert session.tokens == []
    session.append("Once upon")
    before = session.tokens
    for wrong in ({"temperature": -1}, {"top_p": 7}, {"max_tokens": -2}, {"stop": [""]}, {"prompt": [model.n_vocab]}):
        with pytest.raises(ValueError):
            session.generate(**wrong)
    with pytest.raises(ValueError, match="token"):
        session.append([1, model.n_vocab])
    assert session.generate(max_tokens=0) == "" and session.tokens == before
    session.close()
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.append("x")
    with Model(n_threads=1) as other:
        left = other.session()
        left.append("x")
    with pytest.raises(ValueError, match="closed"):
        left.generate("x")
