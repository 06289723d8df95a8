"""The programs that `compare.py` runs: what each is called with, how its output is read, and the rounds."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Failure(Exception):
    """A program did not give a result; the text says why, in one line."""


def shortened(text: str) -> str:
    """The text with folders cut from absolute paths, so that nothing written names this machine's folders."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/'\":=,]+/)+", "", text)


def failure_text(done: subprocess.CompletedProcess) -> str:
    """Exit code and the line of stderr that says most: the last with "error", else the last."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines or ["no message"]
    return shortened(f"exit {done.returncode}: {telling[-1]}")[:300]


def run(command: list[str], timeout: float) -> str:
    """stdout of a command. Raises Failure."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise Failure(f"no result within {timeout:g} s") from None
    except OSError as error:
        raise Failure(shortened(f"cannot start {command[0]}: {error.strerror}")) from None
    if done.returncode != 0:
        raise Failure(failure_text(done))
    return done.stdout


@dataclass(frozen=True)
class Result:
    """One run of one test."""

    tokens_per_s: float
    bytes_per_token: float | None = None
    bandwidth_share: float | None = None
    active_share: float | None = None


@dataclass(frozen=True)
class Setting:
    """What every program is asked for."""

    n_prompt: int
    n_gen: int
    threads: int
    rounds: int
    timeout: float
    depth: int = 0  # tokens in the context before the test
    kv_type: str = "f16"

    @staticmethod
    def of(args: argparse.Namespace, threads: int, depth: int) -> Setting:
        return Setting(args.n_prompt, args.n_gen, threads, args.rounds, args.timeout, depth, args.kv_type)

    def bench_words(self, model: str) -> list[str]:
        """The options that llama-bench and `hotset bench` share."""
        sizes = ["-p", str(self.n_prompt), "-n", str(self.n_gen), "-t", str(self.threads)]
        depth = ["-d", str(self.depth)] if self.depth else []
        return ["-m", model, *sizes, *depth, "-r", "1", "-o", "json"]


@dataclass(frozen=True)
class Case:
    """The same weights for all programs. Files of a recipe are made when its turn comes."""

    name: str
    hotset_file: str = ""
    peer_file: str = ""
    recipe: tuple[str, ...] = ()
    active_share: float | None = None  # of a sweep
    errors: dict[bool, str] = field(default_factory=dict)  # why there is no file for hotset (True), for peers (False)

    @staticmethod
    def of_files(text: str) -> Case:
        ours, _, theirs = text.partition("=")
        return Case(Path(ours).name, ours, theirs or ours)

    @staticmethod
    def of_recipe(recipe: str, percent: int | None) -> Case:
        words = shlex.split(recipe)
        if percent is None:
            return Case("synth " + recipe, recipe=tuple(words))
        words += ["--sparsity", f"{percent / 100:g}"]
        return Case(f"{percent} % sparse: {recipe}", recipe=tuple(words), active_share=1 - percent / 100)


class Program:
    """A column of the table."""

    name: str
    is_hotset = False
    version = "unknown"

    def command(self, case: Case, setting: Setting) -> list[str]:
        raise NotImplementedError

    def read(self, stdout: str, setting: Setting) -> dict[str, Result]:
        """Results by test ("pp512", "tg32"). Raises Failure."""
        raise NotImplementedError


def bench_rows(stdout: str, name: str) -> list[dict[str, Any]]:
    """The JSON rows of llama-bench or `hotset bench`. Raises Failure."""
    try:
        rows = json.loads(stdout)
        return [row for row in rows if row["avg_ts"] > 0 and (row["n_prompt"] > 0) != (row["n_gen"] > 0)]
    except (ValueError, KeyError, TypeError):
        raise Failure(f"{name} printed no benchmark rows") from None


def test_name(n_prompt: int, n_gen: int, depth: int) -> str:
    """As both programs name a test of which one size is 0."""
    return (f"pp{n_prompt}" if n_prompt else f"tg{n_gen}") + (f" @ d{depth}" if depth else "")


def test_of(row: dict[str, Any]) -> str:
    return test_name(row["n_prompt"], row["n_gen"], row.get("n_depth", 0))


class Hotset(Program):
    """`hotset bench` in one mode; "predict:bit_planes:2" names the predictor too."""

    is_hotset = True

    def __init__(self, command: list[str], mode: str) -> None:
        self.words = command
        self.mode, _, self.predictor = mode.partition(":")
        self.name = f"hotset {mode}"
        try:
            self.version = run([*command, "--version"], 60).strip().removeprefix("hotset ")
        except Failure as error:
            self.version = str(error)

    def command(self, case: Case, setting: Setting) -> list[str]:
        words = ["--mode", self.mode, *(["--predictor", self.predictor] if self.predictor else [])]
        words += ["--kv-type", setting.kv_type] if setting.kv_type != "f16" else []
        return [*self.words, "bench", *setting.bench_words(case.hotset_file), *words]

    def read(self, stdout: str, setting: Setting) -> dict[str, Result]:
        keys = ("bytes_per_token", "bandwidth_share", "active_share")
        rows = bench_rows(stdout, "hotset")
        return {test_of(row): Result(row["avg_ts"], *(row.get(key) for key in keys)) for row in rows}


class LlamaCpp(Program):
    """llama-bench, with options of its own in `words`; its rows say which build it is."""

    def __init__(self, binary: str, words: str = "") -> None:
        self.binary = binary
        self.words = shlex.split(words)
        self.name = f"llama.cpp {words}".strip()

    def command(self, case: Case, setting: Setting) -> list[str]:
        kind = ["-ctk", setting.kv_type, "-ctv", setting.kv_type] if setting.kv_type != "f16" else []
        return [self.binary, *setting.bench_words(case.peer_file), *kind, *self.words]

    def read(self, stdout: str, setting: Setting) -> dict[str, Result]:
        rows = bench_rows(stdout, "llama-bench")
        for row in rows:
            self.version = f"build {row.get('build_number', '?')} ({row.get('build_commit', '?')})"
        return {test_of(row): Result(row["avg_ts"]) for row in rows}


def found_number(pattern: str, text: str) -> float:
    """The number that a pattern of --peer-pp or --peer-tg finds. Raises Failure."""
    try:
        if pattern.startswith("$"):
            value = json.loads(text)
            for key in pattern.lstrip("$").strip(".").split("."):
                value = value[int(key)] if isinstance(value, list) else value[key]
        else:
            value = re.findall(pattern, text)[-1]
        number = float(value)
    except (ValueError, KeyError, IndexError, TypeError, re.error):
        raise Failure(f"nothing like {pattern} in its output") from None
    if not 0 < number < 1e12:
        raise Failure(f"{pattern} found {number:g}")
    return number


class Templated(Program):
    """Any engine with a benchmark command."""

    def __init__(self, name: str, template: str, patterns: dict[str, str], version: str) -> None:
        self.name = name
        self.template = template
        self.patterns = patterns  # by "pp", "tg"
        self.version = version

    def command(self, case: Case, setting: Setting) -> list[str]:
        values = {
            "model": case.peer_file, "threads": setting.threads, "n_prompt": setting.n_prompt, "n_gen": setting.n_gen,
            "n_depth": setting.depth,
        }  # fmt: skip
        try:
            return [word.format(**values) for word in shlex.split(self.template)]
        except (KeyError, ValueError, IndexError):
            names = " ".join(f"{{{name}}}" for name in values)
            raise Failure(f"bad template: use {names}, and {{{{ }}}} for braces") from None

    def read(self, stdout: str, setting: Setting) -> dict[str, Result]:
        sizes = {"pp": (setting.n_prompt, 0), "tg": (0, setting.n_gen)}
        return {
            test_name(*sizes[kind], setting.depth): Result(found_number(pattern, stdout))
            for kind, pattern in self.patterns.items()
            if max(sizes[kind]) > 0
        }


def find_llama_bench(path: str) -> str:
    """The binary itself, or in the usual places of a folder; the path as it is when there is none."""
    places = [Path(path), *(Path(path) / name for name in ("llama-bench", "bin/llama-bench", "build/bin/llama-bench"))]
    return next((str(place) for place in places if place.is_file()), path)


@contextmanager
def files_of(case: Case, columns: list[Program], folder: str, keep: bool) -> Iterator[Case]:
    """The case with its files there: those of a recipe are made in `folder`, and removed unless `keep`."""
    if not case.recipe:
        yield case
        return
    hotset = next(column for column in columns if isinstance(column, Hotset))
    stem = re.sub(r"[^\w.]+", "-", " ".join(case.recipe)).strip("-")[:120]
    files: dict[bool, Path] = {}
    errors: dict[bool, str] = {}
    for is_hotset in sorted({column.is_hotset for column in columns}):
        layout = "neuron" if is_hotset else "gguf"
        path = files[is_hotset] = Path(folder) / f"{stem}-{layout}.gguf"
        if path.exists():
            continue
        part = path.with_suffix(".part")
        try:
            run([*hotset.words, "synth", *case.recipe, "--layout", layout, "-o", str(part)], 3600)
            part.rename(path)
        except (Failure, OSError) as error:
            errors[is_hotset] = shortened(f"the recipe gave no file: {error}")
            part.unlink(missing_ok=True)
    ours, theirs = str(files.get(True, "")), str(files.get(False, ""))
    try:
        yield Case(case.name, ours, theirs, case.recipe, case.active_share, errors)
    finally:
        for path in files.values():
            if not keep:
                path.unlink(missing_ok=True)


@dataclass
class Rounds:
    """Everything measured on one case with one number of threads after one depth."""

    case: Case
    threads: int
    depth: int = 0
    samples: dict[tuple[str, str], list[Result]] = field(default_factory=dict)  # by (program, test)
    failures: dict[str, str] = field(default_factory=dict)  # by program


def run_rounds(case: Case, columns: list[Program], setting: Setting) -> Rounds:
    """Each round runs every program once; who begins changes. A program that fails is not asked again."""
    out = Rounds(case, setting.threads, setting.depth)
    for turn in range(setting.rounds):
        first = turn % len(columns)
        for program in columns[first:] + columns[:first]:
            if program.name in out.failures:
                continue
            try:
                if program.is_hotset in case.errors:
                    raise Failure(case.errors[program.is_hotset])
                results = program.read(run(program.command(case, setting), setting.timeout), setting)
            except Failure as error:
                out.failures[program.name] = str(error)
                continue
            for test, result in results.items():
                out.samples.setdefault((program.name, test), []).append(result)
    return out
