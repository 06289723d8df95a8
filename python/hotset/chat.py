"""`hotset chat`: a conversation in the terminal, or line by line through a pipe. Only answers go to stdout."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ContextLengthError, Error, error_text
from .generation import Completion, GenerateStats, Token, TokenStream
from .model import DEFAULT_MODEL, Model

HELP = """/reset forgets the conversation, /stats shows figures, /save FILE writes it as JSON, /exit leaves.
Ctrl-C stops an answer; at the prompt it leaves. A line that ends in \\ goes on in the next one."""

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags; names as those of `hotset run`."""
    add = parser.add_argument
    add("-m", "--model", metavar="FILE", help="GGUF file or hf:owner/repo[:file-glob] (default: the packaged model)")
    add("-hf", "--hf-repo", metavar="REPO", help="owner/repo[@revision][:file-glob] of the Hugging Face hub")
    add("--revision", help="branch, tag or commit of the repository")
    add("-hft", "--hf-token", metavar="TOKEN", help="access token of the hub (default: HF_TOKEN)")
    add("-sys", "--system", metavar="TEXT", help="system message")
    add("-p", "--prompt", metavar="TEXT", help="first message")
    add("-st", "--single-turn", action="store_true", help="leave after the first answer")
    add("--chat-template", metavar="NAME|FILE",
        help="in place of the file's: one of its names, chatml, or a Jinja file")  # fmt: skip
    add("--chat-template-kwargs", metavar="JSON", default="{}",
        help='variables of the template, such as \'{"enable_thinking": false}\'')  # fmt: skip
    add("-n", "--predict", metavar="N", type=int, default=-1, help="tokens of an answer; -1 = no limit (default)")
    add("-c", "--ctx-size", metavar="N", type=int, default=0,
        help="context size; 0 = as the model was trained (default)")  # fmt: skip
    add("-t", "--threads", metavar="N", type=int, default=0, help="CPU threads; 0 = one per core (default)")
    add("-b", "--batch-size", metavar="N", type=int, default=512, help="prompt tokens computed at once (512)")
    add("--temp", metavar="X", type=float, default=0.8, help="temperature (0.8); 0 = always the likeliest token")
    add("--top-k", metavar="K", type=int, default=40, help="draw from the K likeliest (40); 0 = off")
    add("--top-p", metavar="X", type=float, default=0.95, help="draw from this share of probability (0.95); 1 = off")
    add("--min-p", metavar="X", type=float, default=0.05, help="least probability relative to the likeliest (0.05)")
    add("--repeat-penalty", metavar="X", type=float, default=1.0, help="make recent tokens less likely (1.0 = off)")
    add("--repeat-last-n", metavar="N", type=int, default=64, help="how many tokens are recent (64); -1 = all")
    add("-s", "--seed", metavar="N", type=int, default=-1, help="seed of the draws; -1 = random (default)")
    add("--mode", default="auto", help="exact|predict|dense|auto: which FFN units are computed")
    add("--predictor", metavar="SPEC", help="for --mode predict without a sidecar")
    add("--sidecar", metavar="FILE", help="what the offline phase found out (default: MODEL.hotset.gguf; none)")
    add("--device", default="auto", help="auto|cpu|cuda|virtual: where to compute")
    add("-ngl", "--gpu-layers", "--n-gpu-layers", metavar="0|all|auto", choices=("0", "all", "auto"), default="auto",
        help="layers on the GPU; 0 = CPU only, all = --device cuda; for a part of them see --vram-budget")  # fmt: skip
    add("--vram-budget", metavar="SIZE", help="GPU memory to use: 8GiB, 8000MiB, auto")
    add("--adapt", choices=("on", "off"), help="let hot and cold units change places while generating")
    add("--kv-type", default="auto", help="auto|f16|f32|q8_0: number format of the KV cache")
    add("--activation", help="FFN activation, for files that do not say")
    add("-v", "--verbose", action="store_true", help="show what the library reports")


def main(args: argparse.Namespace) -> int:
    """Runs the conversation; returns the exit code."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    options = _template_options(args.chat_template_kwargs)
    with _model(args) as model:
        chat = Chat(model, args, options)
        chat.check_template()
        try:
            return chat.run()
        except BrokenPipeError:  # the reader has what it wanted
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


class Chat:
    """One conversation with its figures."""

    def __init__(self, model: Model, args: argparse.Namespace, template_options: dict[str, Any]) -> None:
        self.model = model
        self.template = {"chat_template": args.chat_template, "template_options": template_options}
        self.generate = {
            "max_tokens": args.predict,
            "temperature": args.temp,
            "top_k": args.top_k,
            "top_p": args.top_p,
            "min_p": args.min_p,
            "repeat_penalty": args.repeat_penalty,
            "repeat_last_n": args.repeat_last_n,
            "seed": None if args.seed < 0 else args.seed,
        }
        self.system, self.first, self.is_single = args.system, args.prompt, args.single_turn
        self.is_terminal = sys.stdin.isatty()
        self.stats: GenerateStats | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets all but the system message."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def check_template(self) -> None:
        """Raises Error when the model has no template, or one that takes no system message."""
        self.model.chat_tokens([*self.messages, {"role": "user", "content": "x"}], **self.template)

    def run(self) -> int:
        """Reads messages and answers them until the input ends."""
        if self.is_terminal:
            _note(f"{self.model.name}, context {self.model.n_ctx}; /help lists the commands")
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (input() then has a history)
        for text in self._inputs():
            command = _COMMAND.fullmatch(text)
            if command:
                if command[1] in ("exit", "quit"):
                    break
                self._obey(command[1], (command[2] or "").strip())
            elif text.strip():
                self._answer(text)
                if self.is_single:
                    break
        return 0

    def _inputs(self) -> Iterator[str]:
        if self.first is not None:
            yield self.first
        while True:
            line = self._line("> ")
            while line is not None and self.is_terminal and line.endswith("\\"):
                more = self._line(". ")
                line = line[:-1] + "\n" + (more or "")
            if line is None:
                if self.is_terminal:
                    _write(sys.stderr, "\n")
                return
            yield line

    def _line(self, prompt: str) -> str | None:
        """The next line of input; None at its end."""
        if self.is_terminal and sys.stdout.isatty():
            try:
                return input(prompt)
            except EOFError:
                return None
            except KeyboardInterrupt:
                _write(sys.stderr, "\n")  # behind "^C"
                raise
        if self.is_terminal:
            _write(sys.stderr, prompt)
        line = sys.stdin.readline()
        return line.removesuffix("\n").removesuffix("\r") if line else None

    def _obey(self, command: str, argument: str) -> None:
        try:
            if command == "reset":
                self.reset()
            elif command == "stats":
                _note(self._figures())
            elif command == "save":
                self._save(argument)
            elif command == "help":
                _note(HELP)
            else:
                raise Error(error_text("chat", "command", "/reset, /stats, /save FILE, /help or /exit", f"/{command}",
                                       "begin with a space what is no command"))  # fmt: skip
        except Error as error:
            self._fail(error)

    def _answer(self, text: str) -> None:
        """Streams the answer to a message; without one the message is forgotten."""
        messages = [*self.messages, {"role": "user", "content": text}]
        tokens: list[Token] = []
        stream = None
        try:
            stream = self.model.chat(messages, stream=True, **self.template, **self.generate)
            with _interruptible(stream):
                for token in stream:
                    tokens.append(token)
                    if token.text:
                        _write(sys.stdout, token.text)
        except ContextLengthError as error:
            self._end_line(tokens)
            self._fail(Error(f"{error}; /reset forgets the conversation" if self.is_terminal else str(error)))
        except (Error, ValueError) as error:
            self._end_line(tokens)
            self._fail(error)
        else:
            self._end_line(tokens)
        if stream is not None:
            self.stats = stream.stats
        answer = Completion.of(tokens, self.stats or GenerateStats())
        if answer:
            self.messages = [*messages, {"role": "assistant", "content": str(answer)}]

    def _end_line(self, tokens: list[Token]) -> None:
        if tokens and not next((token.text for token in reversed(tokens) if token.text), "").endswith("\n"):
            _write(sys.stdout, "\n")

    def _fail(self, error: Exception) -> None:
        """Reports an error to a person, who goes on; ends a script."""
        if not self.is_terminal:
            raise error
        _note(f"error: {error}")

    def _figures(self) -> str:
        if self.stats is None:
            return f"nothing answered yet; context {self.model.n_ctx}"
        stats = self.stats
        n_new = stats.n_prompt - stats.n_prompt_reused
        return (
            f"[ Prompt: {_rate(n_new, stats.prompt_ms)} t/s | "
            f"Generation: {_rate(max(stats.n_generated - 1, 0), stats.generate_ms)} t/s | "
            f"{stats.n_prompt} + {stats.n_generated} tokens of {self.model.n_ctx}, {stats.n_prompt_reused} reused | "
            f"{len(self.messages)} messages ]"
        )

    def _save(self, name: str) -> None:
        if not name:
            raise Error(error_text("chat", "/save", "a file name", "none", "write /save FILE"))
        from .offline.npz import whole_file

        path = Path(name).expanduser()
        with whole_file(path) as file:
            file.write((json.dumps(self.messages, ensure_ascii=False, indent=1) + "\n").encode())
        _note(f"{len(self.messages)} messages in {path}")


@contextlib.contextmanager
def _interruptible(stream: TokenStream) -> Iterator[None]:
    """The first Ctrl-C ends the stream, the second the program."""
    pressed = False

    def handler(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        stream.cancel()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _model(args: argparse.Namespace) -> Model:
    """Loads what the flags name."""
    from . import hub

    path = args.model if args.model is not None else os.environ.get("HOTSET_MODEL") or DEFAULT_MODEL
    if args.hf_repo is not None:
        path = args.hf_repo if args.hf_repo.startswith(hub.PREFIX) else hub.PREFIX + args.hf_repo
    activation = args.activation or ""
    file = hub.resolve(path, revision=args.revision, token=args.hf_token, activation=activation)
    return Model(
        file,
        n_ctx=args.ctx_size,
        n_threads=args.threads,
        n_batch=args.batch_size,
        mode=args.mode,
        predictor=args.predictor,
        sidecar=args.sidecar,
        device={"0": "cpu", "all": "cuda"}.get(args.gpu_layers, args.device),
        vram_budget=args.vram_budget,
        adapt={"on": True, "off": False, None: None}[args.adapt],
        kv_type=args.kv_type,
        activation=args.activation,
        verbose=args.verbose,
    )


def _template_options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise Error(error_text("chat", "--chat-template-kwargs", "a JSON object", repr(text[:60]), "correct it"))
    return options


def _rate(n: int, ms: float) -> str:
    return f"{1000 * n / ms:.1f}" if n > 0 and ms > 0 else "0.0"


def _note(text: str) -> None:
    _write(sys.stderr, f"hotset: {text}\n")


def _write(stream: Any, text: str) -> None:
    stream.write(text)
    stream.flush()
