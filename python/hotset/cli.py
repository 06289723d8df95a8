"""The command `hotset`: hands native subcommands over to the binary, runs the others in Python.

Starting the binary must cost little, so nothing heavy is imported before it takes over.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any, NoReturn

BINARY = Path(__file__).parent / "bin" / "hotset"

# Subcommands of this half: name -> what it does. They are modules with add_arguments(parser) and main(args).
PYTHON_COMMANDS = {
    "chat": "a conversation with a model, in its own template",
    "convert": "Hugging Face checkpoint or PowerInfer file to GGUF",
    "place": "which parts of a model live on the GPU, from statistics and machine rates",
    "profile": "activation statistics of a model over texts",
    "report": "statistics to plots and one HTML page",
    "train-predictor": "predictors of active units, calibrated and measured on text",
}

# Modules of subcommands that are not called as the command.
_MODULES = {
    "place": "offline.place_command",
    "profile": "offline.profile_command",
    "report": "offline.report_command",
    "train-predictor": "offline.train_predictor_command",
}

# Subcommands of the design that this version does not have.
LATER_COMMANDS = ("serve",)

# Flags whose value is any text, so that `-p -hf` is not taken for a repository.
_TEXT_FLAGS = ("-p", "--prompt")
_REPO_FLAGS = ("-hf", "--hf-repo")
_MODEL_FLAGS = ("-m", "--model")
# Flags of the hub and what `hub.fetch` calls them.
_HUB_FLAGS = {"--revision": "revision", "-hft": "token", "--hf-token": "token"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `hotset` with these arguments (default: those of the process); returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    from .errors import Error

    try:
        return _dispatch(args)
    except KeyboardInterrupt:
        return 130
    except (Error, ValueError, OSError) as error:
        return _fail(str(error), 1)


def _dispatch(args: list[str]) -> int:
    command = args[0] if args else ""
    if command in PYTHON_COMMANDS:
        return _run_python(command, args[1:])
    if command in LATER_COMMANDS:
        return _usage("hotset", "command", "one of hotset --help", command, "choose one: it is not in this version")
    if command and not command.startswith("-"):
        import difflib

        near = difflib.get_close_matches(command, PYTHON_COMMANDS, 1, 0.8)
        if near:
            return _usage("hotset", "command", "a known one", command, f"did you mean {near[0]}?")
    if command in ("", "-h", "--help", "help"):
        return _help(args)
    if command == "quantize":
        args = with_unit_order(args)
    return _run_native(with_local_models(args))


def with_local_models(args: Sequence[str]) -> list[str]:
    """Replaces `-hf owner/repo[:glob]` and `-m hf:owner/repo[:glob]` by `-m FILE`, fetching the file.

    `--revision` and `--hf-token` then belong to the hub; without such a model they stay for the binary to refuse.
    """
    out: list[str] = []
    options: dict[str, Any] = {"judged": args[:1] not in (["tokenize"], ["detokenize"])}
    models: list[int] = []
    of_hub: set[int] = set()
    rest = iter(args)
    for arg in rest:
        flag, equals, value = arg.partition("=") if arg.startswith("--") else (arg, "", "")
        if flag in _TEXT_FLAGS and not equals:
            out += [arg, *_next(rest)]
            continue
        is_model = flag in _REPO_FLAGS or flag in _MODEL_FLAGS
        if not is_model and flag not in _HUB_FLAGS and flag != "--activation":
            out.append(arg)
            continue
        values = [value] if equals else _next(rest)
        if flag in _REPO_FLAGS:
            values = [name if name.startswith("hf:") else f"hf:{name}" for name in values]
        if is_model and values and values[0].startswith("hf:"):
            models.append(len(out) + 1)
        elif not is_model and values:
            options[_HUB_FLAGS.get(flag, "activation")] = values[0]
            if flag in _HUB_FLAGS:
                of_hub |= {len(out), len(out) + 1}
        out += [("-m" if flag in _REPO_FLAGS else flag), *values]
    if not models:
        return out
    from . import hub

    for at in models:
        out[at] = str(hub.resolve(out[at], **options))
    return [word for i, word in enumerate(out) if i not in of_hub]


def with_unit_order(args: Sequence[str]) -> list[str]:
    """Replaces `--order STATS.npz` by a sidecar in memory, which lives as long as the process."""
    out: list[str] = []
    for arg in args:
        flag, equals, value = arg.partition("=")
        if flag == "--order" and equals:
            out += [flag, _sidecar_of(value)]
        else:
            out.append(_sidecar_of(arg) if out[-1:] == ["--order"] else arg)
    return out


def _sidecar_of(path: str) -> str:
    if not path.endswith(".npz"):
        return path
    from .offline.statistics import Statistics
    from .offline.unit_order import sidecar_bytes

    handle = os.memfd_create("unit-order", 0)  # without MFD_CLOEXEC: for the binary
    with os.fdopen(handle, "wb", closefd=False) as file:
        file.write(sidecar_bytes(Statistics.load(path)))
    return f"/proc/self/fd/{handle}"


def _next(rest: object) -> list[str]:
    """The value of a flag as a list; empty at the end of the line, which the binary then complains about."""
    value = next(rest, None)  # type: ignore[call-overload]
    return [] if value is None else [value]


def _run_native(args: Sequence[str]) -> int:
    """Becomes the binary; returns only when that fails."""
    if not BINARY.is_file():
        return _fail(f"[hotset] binary: expected {BINARY}, got no such file; install the package again", 1)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(BINARY, [str(BINARY), *args])


def _help(args: Sequence[str]) -> int:
    """The binary's help, then the commands of this half."""
    import subprocess

    if not BINARY.is_file():
        return _run_native(args)
    code = subprocess.run([BINARY, *args]).returncode
    if code == 0:
        print("\nIn this version of the Python package:")
        for name, summary in PYTHON_COMMANDS.items():
            print(f"  {name:<12} {summary}")
    return code


def _run_python(command: str, args: Sequence[str]) -> int:
    """Parses the arguments of a Python command and runs it."""
    import argparse
    import importlib

    class Parser(argparse.ArgumentParser):
        """Says what is wrong in one line, as the binary does."""

        def error(self, message: str) -> NoReturn:
            expected = f"those of {self.prog} --help"
            raise SystemExit(_usage(self.prog, "arguments", expected, message, _hint(self, message)))

    module = importlib.import_module(f".{_MODULES.get(command, command)}", __package__)
    parser = Parser(prog=f"hotset {command}", description=PYTHON_COMMANDS[command], allow_abbrev=False)
    module.add_arguments(parser)
    run: Callable[[argparse.Namespace], int | None] = module.main
    return run(parser.parse_args(args)) or 0


def _hint(parser: argparse.ArgumentParser, message: str) -> str:
    """What to do about a message of argparse: the right spelling of an unknown flag where there is one."""
    import difflib

    unknown = message.rpartition("unrecognized arguments: ")[2].split()[0].partition("=")[0]
    flags = [flag for action in parser._actions for flag in action.option_strings]
    near = difflib.get_close_matches(unknown, flags, 1, 0.5) if "unrecognized arguments" in message else []
    return f"did you mean {near[0]}?" if near else f"see {parser.prog} --help"


def _usage(where: str, what: str, expected: str, got: str, remedy: str) -> int:
    """Reports wrong usage; returns its exit code."""
    from .errors import error_text

    return _fail(error_text(where, what, expected, got, remedy), 2)


def _fail(message: str, code: int) -> int:
    print(f"hotset: error: {message}", file=sys.stderr)
    return code
