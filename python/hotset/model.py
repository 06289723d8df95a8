"""`Model`: a loaded model, from file or hub to text."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from . import _core, hub
from .arguments import (
    as_doubles,
    checked_bool,
    checked_int,
    checked_path,
    is_list,
    keywords,
    load_options,
    reject_unknown,
    size_in_bytes,
    split_prompts,
    stop_texts,
    token_ids,
    utf8,
)
from .errors import DeviceError, error_text
from .generation import Completion, Request, Token, TokenStream, collect
from .model_info import KldResult, ModelStats, metadata_value
from .session import Session

if TYPE_CHECKING:
    from typing import Literal

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self, Unpack

    from .chat_prompt import ControlTexts
    from .chat_template import ChatTemplate, Message
    from .generation import ChatOptions, GenerateOptions, LogitsProcessor, TemplateOptions

DEFAULT_MODEL = Path(__file__).parent / "data" / "demo-relu-q8_0.gguf"


class Model:
    """A loaded model. Several threads may use one at the same time; also a context manager.

    Args:
        path: GGUF file (of several shards the first), "hf:owner/repo[@revision][:file-glob]", or None for the small
            model inside the package.
        vram_budget: GPU memory that may be used: bytes, "8GiB", "8000MiB"; None or "auto" = what is free.
        n_ctx: positions a sequence may reach; None or 0 = what the model was trained for.
        n_threads: threads that compute; None = one per physical core.
        pin: "on": each thread on a core of its own; "off"; "auto": off the slower cores of a hybrid CPU.
        n_batch: prompt tokens computed at once.
        mode: "dense" | "exact": skip inactive units, same results | "predict": do not even look at units that a
            predictor rules out, at a measured loss | "auto": exact where the activation makes zeros.
        predictor: with mode "predict", "bit_planes:BITS" or "bit_planes:BITS:Z"; None = that of the sidecar.
        sidecar: file of predictors and placement; None = the one beside the model, "none" = no file.
        device: "auto" | "cpu" | "cuda" | "virtual": a pretend card of vram_budget (None: 8 GiB) on a core of the CPU.
        kv_type: type of the KV cache: "auto" | "f16" | "q8_0" (half the memory) | "f32".
        kv_place: where the KV cache lives: "auto" | "device" | "host".
        adapt: whether hot and cold units change places while generating, in mode "exact" with an accelerator; None =
            yes, but rows of a file whose units lie hottest first already stay in its mapping, and there they cannot.
        activation: "silu" | "relu" | "relu2" | "drelu" | "fatrelu:0.01" (with its threshold) | "gelu" | "gelu_tanh", for
            files that do not say; None = as the file says.
        verbose: print what happens to stderr. Warnings go to the logger "hotset" in any case.

    Raises:
        ModelFormatError: the file is damaged.
        UnsupportedModelError: the file is well formed, but this version cannot run it.
        OutOfMemoryError: there is not enough memory.
        DeviceError: the device that was asked for is missing.
        Error: there is no such file, or it cannot be fetched.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        vram_budget: int | str | None = None,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        pin: str = "auto",
        n_batch: int = 512,
        mode: str = "auto",
        predictor: str | None = None,
        sidecar: str | os.PathLike[str] | None = None,
        device: str = "auto",
        kv_type: str = "auto",
        kv_place: str = "auto",
        adapt: bool | None = None,
        activation: str | None = None,
        verbose: bool = False,
        **unknown: Any,
    ) -> None:
        reject_unknown("Model", unknown, ["path", *keywords(Model.__init__)])
        options = load_options(
            {
                "activation": activation,
                "mode": mode,
                "predictor": predictor,
                "sidecar": sidecar,
                "device": device,
                "kv_type": kv_type,
                "n_ctx": n_ctx,
                "n_threads": n_threads,
                "pin": pin,
                "n_batch": n_batch,
                "kv_place": kv_place,
                "vram_budget": vram_budget,
                "adapt": adapt,
            }
        )
        self._load_options = options
        log = _log_to_stderr if checked_bool("verbose", verbose) else _log_warnings
        file = (
            DEFAULT_MODEL
            if path is None
            else hub.resolve(checked_path("Model", "path", path), activation=options["activation"])
        )
        self.path: str = str(file)
        engine = _core.Engine(self.path, log=log, **options)
        stats = engine.stats()
        if kv_place == "device" and stats["device"] == "cpu":
            raise DeviceError(error_text("Model", "kv_place", "a GPU for the KV cache", "cpu", "use kv_place='auto'"))
        self.name: str = engine.name
        self.n_ctx: int = stats["n_ctx"]
        self.n_vocab: int = engine.n_vocab
        self._metadata: dict[str, str | int | float | bool] | None = None
        self._templates: dict[tuple[str | None, bool], ChatTemplate] = {}
        self._controls: ControlTexts | None = None
        self._engine: _core.Engine | None = engine
        self._streams: weakref.WeakSet[TokenStream] = weakref.WeakSet()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        # Guards the three above against each other: a stream that starts during close() is cancelled too. Reentrant, as
        # a signal handler may call close().
        self._lock = threading.RLock()

    @classmethod
    def from_pretrained(
        cls,
        repo_or_path: str | os.PathLike[str],
        filename: str | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **load: Any,
    ) -> Self:
        """Loads a model from the Hugging Face hub, or from a local file or folder.

        Args:
            repo_or_path: "owner/repo", "hf:owner/repo[@revision][:file-glob]", a GGUF file or a folder with one.
            filename: which file: a name, a glob such as "*Q8_0.gguf", or a type such as "Q8_0". None chooses; see
                `hotset.hub.choose`.
            revision: branch, tag or commit.
            token: access token; True or None = the saved one, False = none.
            cache_dir: where downloads are kept; None = where huggingface_hub keeps them.
            local_dir: put the files here instead of the cache.
            local_files_only: use what is there, ask no server.
            **load: keywords of `Model`.

        Raises:
            ValueError: no file, or more than one, fits; the message lists what there is.
            Error: the repository cannot be reached or does not exist; and what `Model` raises, before more than the
                header of a model that does not load is fetched.
        """
        reject_unknown("from_pretrained", load, keywords(Model.__init__))
        path = hub.resolve_pretrained(
            checked_path("from_pretrained", "repo_or_path", repo_or_path),
            filename,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_dir=local_dir,
            local_files_only=local_files_only,
            activation=load.get("activation") or "",
        )
        return cls(path, **load)

    @overload
    def generate(
        self, prompt: str | Sequence[int], *, stream: Literal[False] = False, **options: Unpack[GenerateOptions]
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompt: list[str] | list[list[int]],
        *,
        stream: Literal[False] = False,
        **options: Unpack[GenerateOptions],
    ) -> list[Completion]: ...
    @overload
    def generate(
        self,
        prompt: str | Sequence[int] | list[str] | list[list[int]],
        *,
        stream: Literal[True],
        **options: Unpack[GenerateOptions],
    ) -> TokenStream: ...
    def generate(
        self,
        prompt: str | Sequence[int] | list[str] | list[list[int]],
        *,
        max_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        repeat_last_n: int = 64,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        context_shift: bool = False,
        reuse: bool = True,
        logits_processor: LogitsProcessor | None = None,
        stream: bool = False,
        **unknown: Any,
    ) -> Completion | list[Completion] | TokenStream:
        """Continues a prompt, or several prompts in one pass.

        Args:
            prompt: text or token ids, or a list of either for a batch. Text never becomes control tokens.
            max_tokens: most tokens to generate; -1 = no limit. The end of the context is an error in any case, unless
                `context_shift` is set.
            temperature: 0 = always the likeliest token.
            top_k: draw from the likeliest k tokens; 0 = off.
            top_p: draw from the likeliest tokens that together have this probability; 1 = off.
            min_p: drop tokens less likely than this share of the likeliest; 0 = off.
            repeat_penalty: > 1 makes recent tokens less likely; 1 = off.
            repeat_last_n: how many recent tokens that means; -1 = all.
            seed: makes the draws repeatable; None = random. Prompt i of a batch uses seed + i.
            stop: text or texts that end the generation; they are not part of the result.
            ignore_eos: go on after end tokens.
            context_shift: at the end of the context forget the older half instead of failing.
            reuse: compute what prompts have in common at their beginnings once, within a batch and across calls; the
                results are the same bits.
            logits_processor: called as `f(tokens, logits)` before each draw with the tokens so far and the logits
                (n_vocab,) of one sequence; changes the logits in place or returns new ones.
            stream: give tokens as they come instead of the whole text.

        Returns:
            A `Completion`, a list of them for a batch, or with `stream` an iterator of `Token`; leaving its loop
            cancels. Tokens of a batch carry the number of their prompt in `sequence`.

        Raises:
            ContextLengthError: the prompt does not fit, or the end of the context was reached; in the second case
                `partial` of the error holds what was generated.
            ValueError: an argument is out of range, or the model is closed.
        """
        options = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repeat_penalty": repeat_penalty,
            "repeat_last_n": repeat_last_n,
            "seed": seed,
            "stop": stop,
            "ignore_eos": ignore_eos,
            "context_shift": context_shift,
            "reuse": reuse,
            "logits_processor": logits_processor,
        }
        checked_bool("stream", stream)
        request, single = self._request("generate", prompt, {**options, **unknown})
        tokens = self._start(request)
        return tokens if stream else collect(tokens, len(request.prompts), single)

    def agenerate(
        self, prompt: str | Sequence[int] | list[str] | list[list[int]], **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[Token]:
        """Generates tokens for `async for`, computing in a worker thread; keywords as `generate`.

        Leaving the loop, `aclose()` and cancelling the task end the generation within a token.
        """
        defaults = keywords(Model.generate)
        del defaults["stream"]
        request, _ = self._request("agenerate", prompt, {**defaults, **options})
        return self._generate_in_threads(request)

    async def _generate_in_threads(self, request: Request) -> AsyncIterator[Token]:
        stream = self._start(request)  # computes nothing yet and waits for no other thread
        del request  # when the model is closed, only the stream keeps the engine
        try:
            while True:
                token = next(stream, None) if stream.ready else await asyncio.to_thread(next, stream, None)
                if token is None:
                    break
                yield token
        finally:
            stream.cancel()  # at once: closing may have to queue for a thread
            # Closing may free the whole engine, which joins its threads; the event loop must not wait for that. It goes
            # on when this task is cancelled meanwhile.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, stream.close))

    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: Literal[False] = False, **options: Unpack[ChatOptions]
    ) -> Completion: ...
    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> TokenStream: ...
    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | os.PathLike[str] | None = None,
        template_options: Mapping[str, Any] | None = None,
        stream: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Completion | TokenStream:
        """Answers a conversation, as the model's chat template writes it down.

        What a conversation has in common with an earlier one is not computed again. Texts of control tokens inside of
        messages stay texts.

        Args:
            messages: each with "role" (system, user, assistant, tool) and "content", a text or a list of text parts.
            tools: what the model may call, each as the JSON object of the OpenAI interface; a call comes as text.
            documents: texts to answer from, for templates that know them.
            chat_template: name of one of the file's templates, "chatml", a path, or a template; None = the file's.
            template_options: more variables of the template, such as {"enable_thinking": False}.
            stream: give tokens as they come instead of the whole answer.
            **options: keywords of `generate`.

        Raises:
            Error: the model has no chat template, or it refuses the messages.
            ContextLengthError: the conversation does not fit the context, or its end was reached: nothing is cut.
            ValueError: an argument is out of range, or the model is closed.
        """
        reject_unknown("chat", options, [name for name in keywords(Model.generate) if name != "stream"])
        ids, stops = self._chat_prompt(
            messages,
            tools=tools,
            documents=documents,
            chat_template=chat_template,
            template_options=template_options,
        )
        if stops:
            options["stop"] = [*stop_texts(options.get("stop", ())), *stops]
        checked_bool("stream", stream)
        return self.generate(ids, stream=True, **options) if stream else self.generate(ids, **options)

    def chat_tokens(self, messages: Sequence[Message], **options: Unpack[TemplateOptions]) -> list[int]:
        """Returns the prompt that `chat` gives to the model, for `generate`, `agenerate` and `Session`."""
        reject_unknown("chat_tokens", options, keywords(Model._chat_prompt))
        return self._chat_prompt(messages, **options)[0]

    def session(self) -> Session:
        """Opens an empty conversation, held in memory: see `Session`."""
        return Session(self, _core.Session.open(self._open_engine()))

    def load_session(self, path: str | os.PathLike[str]) -> Session:
        """Opens a conversation that `Session.save` wrote; what follows is, bit for bit, what would have followed there.

        Raises:
            ModelFormatError: it is damaged, or belongs to another model, KV type or mode.
            ContextLengthError: it is longer than the context.
            Error: it cannot be opened.
        """
        return Session(self, _core.Session.load(self._open_engine(), checked_path("load_session", "path", path)))

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Returns the token ids of a text.

        Args:
            text: any str; lone surrogates made by "surrogateescape" become the bytes they stand for.
            add_special: put begin and end tokens where the vocabulary asks for them.
            parse_special: let text such as "</s>" become the control token; never for text from users.
        """
        data = utf8("tokenize", "text", text, "surrogateescape")
        flags = checked_bool("add_special", add_special), checked_bool("parse_special", parse_special)
        return self._open_engine().tokenize(data, *flags)

    def detokenize(self, ids: Iterable[int], special: bool = False) -> str:
        """Returns the text of token ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: token ids.
            special: show control tokens, which are "" otherwise.
        """
        data = self._open_engine().detokenize(token_ids(ids), checked_bool("special", special))
        return data.decode("utf-8", "replace")

    def logits(self, tokens: Iterable[int]) -> NDArray[np.float32]:
        """Returns the logits (n_tokens, n_vocab), float32, of every position; row i predicts token i + 1.

        Raises:
            ContextLengthError: there are more tokens than the context has positions.
            ValueError: there are no tokens, or the vocabulary has no such id.
        """
        engine = self._open_engine()
        ids = token_ids(tokens)
        if not ids:
            raise ValueError("[logits] tokens: expected at least one, got none; pass ids of tokenize()")
        return engine.logits(ids)

    def kld(self, text: str | Iterable[int], n_ctx: int = 512) -> KldResult:
        """Compares this model's predictions with dense ones on the same weights, as `hotset kld` does.

        Args:
            text: text or token ids, at least 2 * n_ctx tokens.
            n_ctx: tokens read at once; the second half of each such chunk is scored.

        Raises:
            ValueError: the text is too short, or n_ctx is out of range.
        """
        engine = self._open_engine()
        ids = self.tokenize(text) if isinstance(text, str) else token_ids(text)
        return KldResult(**_core.kl_divergence(engine, ids, n_ctx))

    @property
    def metadata(self) -> dict[str, str | int | float | bool]:
        """Keys and values of the file; long texts and arrays are shortened as `hotset inspect` shows them.

        The first use reads the file again, which takes about as long as loading it did.
        """
        engine = self._open_engine()
        if self._metadata is None:
            self._metadata = {key: metadata_value(kind, text) for key, kind, text in engine.metadata()}
        return dict(self._metadata)

    def plan(
        self,
        vram_budget: int | str | None = None,
        *,
        n_ctx: int | None = None,
        frequencies: Sequence[NDArray[np.float64]] = (),
        machine: str | os.PathLike[str] | None = None,
        gpu_gbps: float | None = None,
        pcie_gbps: float | None = None,
        handoff_us: float | None = None,
    ) -> dict[str, Any]:
        """Returns where the model would lie with a budget, what that takes and how fast it would be.

        Args:
            vram_budget: bytes of GPU memory, or a text such as "8GiB"; None or "auto" = what is free: in this version 0.
            n_ctx: positions that the KV memory holds; None = those of this model.
            frequencies: per layer the share of tokens for which a unit is active, descending; empty = not known, then
                every unit counts as active.
            machine: machine.json; None = what `hotset bench --machine` measured here.
            gpu_gbps: read rate of the GPU's memory, in place of the file's; likewise pcie_gbps and handoff_us.

        Returns:
            What `hotset plan --json` prints but for the memory of the process: `components`, `totals`, `layers`, `head`,
            `predicted` and `notes`.

        Raises:
            ValueError: a budget beyond the GPU's memory or below what its buffers take, or rates out of range.
            Error: a budget without rates of a GPU.
        """
        self._open_engine()
        from .offline.placement import default_machine

        file = default_machine() if machine is None else checked_path("plan", "machine", machine)
        return _core.plan(
            self.path,
            load={**self._load_options, "n_ctx": checked_int("plan", "n_ctx", n_ctx or self.n_ctx, 1, 1 << 30)},
            vram_budget=size_in_bytes("plan", "vram_budget", vram_budget) or 0,
            frequencies=[as_doubles("plan", "frequencies", layer) for layer in frequencies],
            machine="" if file is None else str(file),
            gpu_gbps=gpu_gbps,
            pcie_gbps=pcie_gbps,
            handoff_us=handoff_us,
        )

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that all files of this model share, whatever their type and layout, and no other model
        has. Statistics and sidecars name their model by it."""
        return self._open_engine().fingerprint

    @property
    def closed(self) -> bool:
        """Whether the model was closed."""
        return self._engine is None

    def stats(self) -> ModelStats:
        """Returns what the model runs on and what it costs."""
        return ModelStats(**self._open_engine().stats())

    def close(self) -> None:
        """Cancels running generations and frees the memory. May be called again; nothing else may be."""
        with self._lock:
            self._engine = None
            streams, sessions = list(self._streams), list(self._sessions)
        for stream in streams:
            stream.cancel()
        for session in sessions:
            session.close()

    def __enter__(self) -> Self:
        self._open_engine()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<hotset.Model {self.name!r}, n_ctx={self.n_ctx}{', closed' if self.closed else ''}>"

    def _open_engine(self) -> _core.Engine:
        engine = self._engine
        if engine is None:
            raise ValueError(f"[Model] {self.name!r}: expected an open model, got a closed one; load it again")
        return engine

    def _request(self, function: str, prompt: Any, options: dict[str, Any]) -> tuple[Request, bool]:
        """Checks arguments; returns the request and whether it is a single prompt."""
        reject_unknown(function, options, [name for name in keywords(Model.generate) if name != "stream"])
        engine = self._open_engine()
        prompts, single = self._encode(prompt)
        return Request.make(engine, prompts, options), single

    def _encode(self, prompt: Any) -> tuple[list[list[int]], bool]:
        """Turns what `generate` takes into token ids per prompt, and whether it was one prompt."""
        items, single = split_prompts(prompt)
        return [self.tokenize(item) if isinstance(item, str) else item for item in items], single

    def _chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | os.PathLike[str] | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> tuple[list[int], Sequence[str]]:
        """Token ids of a conversation, and texts that end its answer beside the vocabulary's end tokens."""
        from .chat_prompt import ControlTexts, prompt_tokens
        from .chat_template import BUILTIN_STOPS, template_of

        engine = self._open_engine()
        if self._controls is None:
            self._controls = ControlTexts(engine.control_tokens)
        key = (str(chat_template) if chat_template is not None else None, bool(tools))
        template = self._templates.get(key)
        if template is None:
            template = self._templates[key] = template_of(engine, chat_template, has_tools=bool(tools))
        if not is_list(messages):
            raise TypeError(f"messages takes a list of messages, not {type(messages).__name__}")
        ids = prompt_tokens(
            engine,
            self._controls,
            template,
            list(messages),
            tools=tools,
            documents=documents,
            options=template_options,
        )
        stops = BUILTIN_STOPS.get(key[0] or "", ())
        return ids, [text for text in stops if text not in self._controls]

    def _start(self, request: Request) -> TokenStream:
        stream = TokenStream(request)
        with self._lock:
            self._streams.add(stream)
            closed = self.closed
        if closed:  # by another thread, before it could see this stream
            stream.cancel()
        return stream


def _log_to_stderr(is_warning: bool, line: str) -> None:
    print(f"hotset: {'warning: ' if is_warning else ''}{line}", file=sys.stderr)


def _log_warnings(is_warning: bool, line: str) -> None:
    logging.getLogger("hotset").log(logging.WARNING if is_warning else logging.INFO, line)
