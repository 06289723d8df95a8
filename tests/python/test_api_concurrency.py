"""The Python API under threads, asyncio, cancelling and signals, on the packaged model."""

from __future__ import annotations

import asyncio
import queue
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hotset import Model, TokenStream

PROMPT = "Once upon a time"
GREEDY = {"temperature": 0.0, "max_tokens": 24}
ENDLESS = {"temperature": 0.0, "max_tokens": -1, "ignore_eos": True, "context_shift": True}


@pytest.fixture(scope="module")
def model():
    with Model(n_threads=2) as loaded:
        yield loaded


# --- threads ----------------------------------------------------------------------------------------------------------


def test_threads_share_a_model(model):
    prompts = [PROMPT, "The dog", "One day", "A girl"] * 3
    expected = [model.generate(prompt, **GREEDY) for prompt in prompts[:4]] * 3
    rows = model.logits([1, 5, 9])
    with ThreadPoolExecutor(8) as pool:
        logits = [pool.submit(model.logits, [1, 5, 9]) for _ in range(4)]
        texts = list(pool.map(lambda prompt: model.generate(prompt, **GREEDY), prompts))
        assert texts == expected
        for future in logits:
            np.testing.assert_array_equal(future.result(), rows)


def test_other_threads_run_while_one_computes(model):
    """While one thread computes without end, this one keeps running Python; with the GIL held it never would."""
    stream = model.generate(PROMPT, stream=True, **ENDLESS)
    started = threading.Event()

    def drain():
        for _ in stream:
            started.set()

    thread = threading.Thread(target=drain)
    thread.start()
    assert started.wait(60)
    assert model.tokenize("x") == [1, *model.tokenize("x", add_special=False)]
    stream.close()
    thread.join(60)
    assert not thread.is_alive()


def test_second_thread_on_a_stream_is_refused(model):
    inside, leave = threading.Event(), threading.Event()

    def wait(tokens, logits):
        inside.set()
        leave.wait(60)

    stream = model.generate(PROMPT, stream=True, logits_processor=wait, max_tokens=2)
    thread = threading.Thread(target=list, args=(stream,))
    thread.start()
    assert inside.wait(60)
    with pytest.raises(ValueError, match="one thread"):
        next(stream)
    leave.set()
    thread.join(60)
    assert not thread.is_alive()


# --- leaving and cancelling -------------------------------------------------------------------------------------------


def test_leaving_the_loop_cancels(model):
    for i, token in enumerate(model.generate(PROMPT, stream=True, **ENDLESS)):
        assert token.index == i
        if i == 3:
            break
    with model.generate(PROMPT, stream=True, **ENDLESS) as stream:
        next(stream)
    assert list(stream) == []
    assert model.generate(PROMPT, **GREEDY).finish_reason == "length"


def test_cancel_from_another_thread(model):
    stream = model.generate([PROMPT, "A"], stream=True, **ENDLESS)
    first = next(stream)
    timer = threading.Thread(target=stream.cancel)
    timer.start()
    tokens = [first, *stream]
    timer.join()
    last = {token.sequence: token.finish_reason for token in tokens}
    assert last == {0: "cancelled", 1: "cancelled"}


def test_close_ends_generations_of_other_threads():
    loaded = Model()
    stream = loaded.generate(PROMPT, stream=True, **ENDLESS)
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, stream)
        loaded.close()
        assert rest.result(60)[-1].finish_reason == "cancelled"


def test_close_while_streams_start():
    """Streams that start during close() are cancelled like the others, and do not disturb it."""
    loaded = Model(n_threads=1)
    kept = [loaded.generate("a", stream=True) for _ in range(2000)]  # so that close() takes a while
    started = queue.SimpleQueue()

    def start_until_closed():
        while True:
            try:
                started.put(loaded.generate("a", stream=True))
            except ValueError:
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            done = [pool.submit(start_until_closed) for _ in range(4)]
            kept += [started.get(timeout=60) for _ in range(100)]
            loaded.close()
            for future in done:
                future.result(60)
    finally:
        sys.setswitchinterval(interval)
    kept += [started.get() for _ in range(started.qsize())]
    assert {next(stream).finish_reason for stream in kept} == {"cancelled"}


# --- asyncio ----------------------------------------------------------------------------------------------------------


def test_agenerate_equals_generate(model):
    async def collect(prompt):
        return [token async for token in model.agenerate(prompt, **GREEDY)]

    async def both():
        return await asyncio.gather(collect(PROMPT), collect(["The dog", "A"]))

    single, batch = asyncio.run(both())
    assert single == model.generate(PROMPT, **GREEDY).tokens
    texts = model.generate(["The dog", "A"], **GREEDY)
    assert [[token for token in batch if token.sequence == i] for i in (0, 1)] == [text.tokens for text in texts]


def test_agenerate_leaves_the_loop_running(model):
    async def count():
        n_ticks = 0

        async def tick():
            nonlocal n_ticks
            while True:
                n_ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        async for _ in model.agenerate(PROMPT, **GREEDY):
            pass
        ticker.cancel()
        return n_ticks

    assert asyncio.run(count()) > 24


def test_agenerate_is_cancelled_by_break_aclose_and_task(model):
    async def leave():
        tokens = model.agenerate(PROMPT, **ENDLESS)
        async for _ in tokens:
            break
        await tokens.aclose()

        async def endless():
            async for _ in model.agenerate(PROMPT, **ENDLESS):
                running.set()

        running = asyncio.Event()
        task = asyncio.create_task(endless())
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(leave(), 60))


def test_agenerate_closes_its_stream_away_from_the_event_loop(model, monkeypatch):
    closed_on = []
    close = TokenStream.close

    def recorded(stream):
        closed_on.append(threading.get_ident())
        close(stream)

    monkeypatch.setattr(TokenStream, "close", recorded)

    async def leave_in_every_way():
        tokens = model.agenerate(PROMPT, **ENDLESS)
        async for _ in tokens:
            break
        await tokens.aclose()
        assert [token async for token in model.agenerate(PROMPT, **GREEDY)]
        computing, leave = threading.Event(), threading.Event()

        def wait(token_ids, logits):
            computing.set()
            leave.wait(60)

        waiting = asyncio.create_task(anext(model.agenerate(PROMPT, logits_processor=wait)))
        await asyncio.to_thread(computing.wait, 60)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):  # while the processor still runs
            await waiting
        leave.set()
        return threading.get_ident()

    loop_thread = asyncio.run(asyncio.wait_for(leave_in_every_way(), 60))
    assert len(closed_on) == 3 and loop_thread not in closed_on


def test_agenerate_checks_arguments_at_once(model):
    with pytest.raises(ValueError):
        model.agenerate(PROMPT, seed=-1)
    with pytest.raises(TypeError):
        model.agenerate(PROMPT, stream=True)


# --- signals ----------------------------------------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, sys, threading
from hotset import Model
model = Model()
signal.signal(signal.SIGINT, signal.default_int_handler)
computing = threading.Event()
threading.Thread(target=lambda: (computing.wait(), os.kill(os.getpid(), signal.SIGINT)), daemon=True).start()
try:
    {call}
except KeyboardInterrupt:
    print(model.generate("Once", max_tokens=3, temperature=0).finish_reason)
"""


@pytest.mark.parametrize(
    "call",
    [
        "[computing.set() for token in model.generate('Once', max_tokens=-1, ignore_eos=True, context_shift=True,"
        " stream=True)]",
        "model.generate('Once', max_tokens=-1, ignore_eos=True, context_shift=True,"
        " logits_processor=lambda tokens, logits: computing.set())",
    ],
)
def test_interrupt_ends_generating_and_the_model_goes_on(call):
    code = INTERRUPTED.format(call=call)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, "length\n"), result.stderr


def test_interrupt_works_within_a_step():
    """A signal that comes while one long native call computes ends it before its time."""

    class Alarm(Exception):
        pass

    def ring(*_):
        raise Alarm

    loaded = Model(n_ctx=4096, n_threads=1)
    ids = np.random.default_rng(5).integers(3, 4096, 4096)
    began = time.monotonic()
    loaded.logits(ids)
    whole = time.monotonic() - began
    before = signal.signal(signal.SIGALRM, ring)
    try:
        shortest = whole
        for _ in range(5):
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, whole / 8)
            with pytest.raises(Alarm):
                loaded.logits(ids)
            shortest = min(shortest, time.monotonic() - began)
            if shortest < whole / 2:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert shortest < whole / 2, (shortest, whole)
    assert loaded.logits([1, 2]).shape == (2, 4096)


# --- exit -------------------------------------------------------------------------------------------------------------

EXIT = """
import threading
from hotset import Model
model = Model()
computing = threading.Event()
def work():
    {call}
threading.Thread(target=work, daemon=True).start()
computing.wait()
"""


@pytest.mark.parametrize(
    "call",
    [
        "[computing.set() for _ in model.generate('Once', max_tokens=-1, context_shift=True, ignore_eos=True,"
        " stream=True)]",
        "model.generate('Once', max_tokens=-1, context_shift=True, ignore_eos=True,"
        " logits_processor=lambda tokens, logits: computing.set())",
        "[(computing.set(), model.logits([1] * 500)) for _ in iter(int, 1)]",
    ],
)
def test_exit_while_a_daemon_thread_computes(call):
    for _ in range(3):  # the crash this guards against came in one exit of six
        code = EXIT.format(call=call)
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
