"""What generating gives: tokens, completions, figures, and the stream that produces them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from . import _core
from .arguments import INT32_MAX, INT64_MAX, checked_bool, checked_float, checked_int, stop_texts
from .errors import ContextLengthError

if TYPE_CHECKING:
    from typing import Literal

    import numpy as np
    from numpy.typing import NDArray

    FinishReason = Literal["stop", "length", "cancelled"]
    LogitsProcessor = Callable[[list[int], NDArray[np.float32]], "NDArray[np.floating[Any]] | None"]


class GenerateOptions(TypedDict, total=False):
    """Keywords of `Model.generate` and `Model.agenerate`; `Model.generate` explains them."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    seed: int | None
    stop: str | Sequence[str]
    ignore_eos: bool
    context_shift: bool
    reuse: bool
    logits_processor: LogitsProcessor | None


class TemplateOptions(TypedDict, total=False):
    """Keywords of `Model.chat_tokens`; `Model.chat` explains them."""

    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None
    chat_template: str | os.PathLike[str] | None
    template_options: Mapping[str, Any] | None


class ChatOptions(GenerateOptions, TemplateOptions, total=False):
    """Keywords of `Model.chat`."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        id: number in the vocabulary; -1 for text that was held back and has no new token.
        text: text that became certain with this token; "" inside a character or a possible stop text.
        logprob: natural log of its probability over the whole vocabulary, before penalties and cuts.
        index: 0 for the first generated token of its sequence.
        sequence: number of the prompt it belongs to.
        finish_reason: None, or on the last token of a sequence why it ended: "stop", "length" or "cancelled".
    """

    id: int
    text: str
    logprob: float
    index: int
    sequence: int = 0
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class GenerateStats:
    """Figures of one pass; with several prompts they count all of them.

    Attributes:
        n_prompt: prompt tokens.
        n_prompt_reused: those of them that were not computed anew, because prompts begin alike.
        n_generated: tokens sampled.
        prompt_ms: time spent on the prompts.
        generate_ms: time of decode and sampling after the first token.
        first_token_ms: time to the first token.
    """

    n_prompt: int = 0
    n_prompt_reused: int = 0
    n_generated: int = 0
    prompt_ms: float = 0.0
    generate_ms: float = 0.0
    first_token_ms: float = 0.0


class Completion(str):
    """The generated text, a str, with what is known about it.

    Attributes:
        tokens: the tokens, whose texts joined are this text.
        finish_reason: "stop", "length" or "cancelled"; None when an error ended it.
        stats: figures of the pass that made it.
    """

    tokens: list[Token]
    finish_reason: FinishReason | None
    stats: GenerateStats

    def __new__(
        cls,
        text: str = "",
        tokens: Sequence[Token] = (),
        finish_reason: FinishReason | None = None,
        stats: GenerateStats = GenerateStats(),
    ) -> Completion:
        self = super().__new__(cls, text)
        self.tokens = list(tokens)
        self.finish_reason = finish_reason
        self.stats = stats
        return self

    @classmethod
    def of(cls, tokens: Sequence[Token], stats: GenerateStats) -> Completion:
        """Joins the tokens of one sequence."""
        reason = tokens[-1].finish_reason if tokens else None
        return cls("".join(token.text for token in tokens), tokens, reason, stats)


# Bounds of the options that are integers.
_INTEGERS = {"max_tokens": (-1, INT64_MAX), "top_k": (0, INT32_MAX), "repeat_last_n": (-1, INT32_MAX)}


@dataclass(frozen=True, slots=True)
class Request:
    """Checked arguments of one generation: everything needed to start it, on whatever thread.

    Attributes:
        engine: the engine to run on.
        prompts: token ids of each prompt.
        options: keywords of the native generation.
        processor: the user's logits processor.
        session: what the only prompt goes on with; None = nothing.
    """

    engine: _core.Engine
    prompts: list[list[int]]
    options: dict[str, Any]
    processor: LogitsProcessor | None
    session: _core.Session | None = None

    @classmethod
    def make(
        cls,
        engine: _core.Engine,
        prompts: list[list[int]],
        options: dict[str, Any],
        session: _core.Session | None = None,
    ) -> Request:
        """Checks what the native side cannot; `options` holds every keyword of `GenerateOptions`."""
        native: dict[str, Any] = dict(options)
        processor = native.pop("logits_processor")
        if processor is not None and not callable(processor):
            raise TypeError(f"logits_processor takes a function, not {type(processor).__name__}")
        for name, (low, high) in _INTEGERS.items():
            native[name] = checked_int("generate", name, native[name], low, high)
        for name in ("temperature", "top_p", "min_p", "repeat_penalty"):
            native[name] = checked_float("generate", name, native[name])
        for name in ("ignore_eos", "context_shift", "reuse"):
            native[name] = checked_bool(name, native[name])
        if native["seed"] is not None:
            native["seed"] = checked_int("generate", "seed", native["seed"], 0, 2**64 - 1)
        native["stop"] = stop_texts(native["stop"])
        return cls(engine, prompts, native, processor, session)


class TokenStream(Iterator[Token]):
    """Tokens as they are generated. Nothing is computed ahead: each token is computed when it is asked for.

    Dropping the stream (leaving the loop), `close()` or leaving its `with` block cancels the generation. One thread at
    a time may ask for tokens; `close()` may come from any thread and takes effect within a token.
    """

    def __init__(self, request: Request) -> None:
        processor, session = request.processor, request.session
        before = session.tokens() if session and processor else []
        self._histories = [before + list(prompt) for prompt in request.prompts] if processor else []
        self._native: _core.Generation | None = _core.Generation(
            request.engine, request.prompts, use_processor=processor is not None, session=session, **request.options
        )
        self._callback = _processor_callback(processor, self._histories) if processor else None
        self._ready: deque[Token] = deque()
        self._advancing = threading.Lock()
        self._stats = GenerateStats()

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> Token:
        while True:
            try:
                return self._ready.popleft()
            except IndexError:
                if not self._advance():
                    raise StopIteration from None

    @property
    def ready(self) -> bool:
        """Whether the next token is there already."""
        return bool(self._ready)

    @property
    def stats(self) -> GenerateStats:
        """Figures up to the latest token."""
        return self._stats

    def cancel(self) -> None:
        """Ends all sequences with finish reason "cancelled" within a token; those last tokens can still be read."""
        native = self._native
        if native is not None:
            native.cancel()

    def close(self) -> None:
        """Cancels and frees the memory of the generation. May be called again."""
        native, self._native = self._native, None
        if native is not None:
            native.cancel()
        self._ready.clear()

    def __enter__(self) -> TokenStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _advance(self) -> bool:
        """Computes the next token of every sequence; False when there are none."""
        if not self._advancing.acquire(blocking=False):
            raise ValueError("[stream] next token: expected one thread, got a second one; give each its own stream")
        try:
            native = self._native
            rows = native.next(self._callback) if native else None
            if native:
                self._stats = GenerateStats(**native.stats())
            if rows is None:
                self._native = None
                return False
        except BaseException:
            self._native = None  # after an error there is no way on
            raise
        finally:
            self._advancing.release()
        for token_id, text, logprob, index, sequence, reason in rows:
            if self._histories and token_id >= 0:
                self._histories[sequence].append(token_id)
            finish: Any = reason or None
            self._ready.append(Token(token_id, text, logprob, index, sequence, finish))
        return True


def collect(stream: TokenStream, n_prompts: int, single: bool) -> Completion | list[Completion]:
    """Reads a stream to its end; an error about the context takes along what came before it."""
    tokens: list[list[Token]] = [[] for _ in range(n_prompts)]

    def completions() -> Completion | list[Completion]:
        done = [Completion.of(sequence, stream.stats) for sequence in tokens]
        return done[0] if single else done

    try:
        for token in stream:
            tokens[token.sequence].append(token)
    except ContextLengthError as error:
        error.partial = completions()
        raise
    return completions()


def _processor_callback(
    processor: LogitsProcessor, histories: list[list[int]]
) -> Callable[[int, NDArray[np.float32]], None]:
    """Wraps the user's function for the native side: hands it a list of its own and takes an array it may return."""

    def call(sequence: int, logits: NDArray[np.float32]) -> None:
        changed = processor(list(histories[sequence]), logits)
        if changed is None or changed is logits:
            return
        shape = getattr(changed, "shape", None)
        if shape != logits.shape:
            raise ValueError(
                f"[generate] result of logits_processor: expected None or an array of shape {logits.shape}, "
                f"got {shape or type(changed).__name__}; change the logits in place or return all of them"
            )
        logits[:] = changed

    return call
