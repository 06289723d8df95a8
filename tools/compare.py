"""Runs `hotset bench` and other engines side by side on the same weights, interleaved, and writes the table.

    python tools/compare.py MODEL.gguf [HOTSET.gguf=PEER.gguf ...] --llama-cpp FOLDER_OF_BINARIES --threads 1,2
    python tools/compare.py --synth "--arch arcee --shape arcee-4.5b --type q4_0" --sweep 50,70,80,90,95,98 --plot OUT.png

Every round runs each program once on the same file, in turn; medians over the rounds are compared. Ratios are the result;
the absolute figures of a shared machine mean little. The table goes to stdout, into a Markdown file between two markers
(`--section NAME`; what was there is replaced) and, with `--json`, into a JSON file.

A model is a file for all programs or, as HOTSET.gguf=PEER.gguf, one for hotset and one of the same weights for the
others. A recipe is the options of `hotset synth` without -o and --layout; each side gets its layout.

Any engine with a benchmark command can stand beside:
    --peer-cmd 'NAME=CMD {model} {threads} {n_prompt} {n_gen} {n_depth}' --peer-tg NAME=PATTERN [--peer-pp NAME=PATTERN]
PATTERN finds tokens/s in what the command prints: a regular expression with one group (the last match counts), or, from
`$` on, a path into JSON such as `$.0.avg_ts`.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import compare_programs as programs
import compare_report as report
import compare_sweep as sweep


def note(text: str) -> None:
    """One line on stderr."""
    print(f"compare: {text}", file=sys.stderr, flush=True)


def int_list(text: str, low: int = 1) -> list[int]:
    """Integers of at least `low` with commas between."""
    values = [int(word) for word in text.split(",")]
    if min(values) < low:
        raise ValueError(text)
    return values


def depth_list(text: str) -> list[int]:
    """Numbers of tokens, 0 too, with commas between."""
    return int_list(text, low=0)


def named(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def parse_args(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="FILE, or HOTSET_FILE=PEER_FILE of the same weights")
    parser.add_argument("--synth", action="append", default=[], metavar="RECIPE", help="options of 'hotset synth'")
    parser.add_argument("--hotset", default="hotset", help="the hotset command")
    parser.add_argument("--mode", default="dense", help="modes of hotset, a column each (dense), e.g. exact,predict:bit_planes:2")
    parser.add_argument("--llama-cpp", metavar="PATH", help="llama-bench, or a folder that has it")
    parser.add_argument(
        "--llama-args", action="append", metavar="WORDS", help="more options of llama-bench, a column each: '-fa 1'"
    )
    parser.add_argument("--peer-cmd", action="append", default=[], type=named, metavar="NAME=CMD")
    parser.add_argument("--peer-pp", action="append", default=[], type=named, metavar="NAME=PATTERN")
    parser.add_argument("--peer-tg", action="append", default=[], type=named, metavar="NAME=PATTERN")
    parser.add_argument("--peer-version", action="append", default=[], type=named, metavar="NAME=TEXT")
    parser.add_argument("--n-prompt", type=int, default=512, help="0 = no prefill")
    parser.add_argument("--n-gen", type=int, default=32, help="0 = no decode")
    parser.add_argument("--depth", type=depth_list, default=[0], metavar="N,..", help="tokens in the context before (0)")
    parser.add_argument("--kv-type", choices=["f16", "q8_0"], default="f16", help="of hotset and llama.cpp")
    parser.add_argument("--threads", type=int_list, default=[os.cpu_count() or 1], metavar="N,..")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one run of one program")
    parser.add_argument("--sweep", type=int_list, metavar="PERCENT,..", help="sparsities of each --synth recipe")
    parser.add_argument("--plot", metavar="PNG", help="with --sweep: speed against sparsity (needs matplotlib)")
    parser.add_argument("--machine", metavar="FILE", help="machine.json (where 'hotset bench --machine' keeps it)")
    parser.add_argument("--work-dir", metavar="FOLDER", help="where recipes become files (a temporary folder)")
    parser.add_argument("--section", default="compare", help="name in the markers")
    parser.add_argument("--docs", metavar="FILE", help="Markdown file to write the section into")
    parser.add_argument("--json", metavar="FILE", help="write everything measured")
    args = parser.parse_args(words)
    if not args.models and not args.synth:
        parser.error("name a model, or a recipe with --synth")
    if args.sweep and (not args.synth or args.models or max(args.sweep) > 99):
        parser.error("--sweep takes --synth recipes, no files, and percentages below 100")
    if args.plot and not args.sweep:
        parser.error("--plot needs --sweep")
    if args.rounds < 1 or min(args.n_prompt, args.n_gen) < 0 or args.n_prompt + args.n_gen == 0:
        parser.error("--rounds of at least 1, and --n-prompt or --n-gen above 0")
    known = {name for name, _ in args.peer_cmd}
    for name, _ in args.peer_pp + args.peer_tg + args.peer_version:
        if name not in known:
            parser.error(f"--peer-cmd {name}=.. is missing")
    return args


def make_programs(args: argparse.Namespace) -> list[programs.Program]:
    """All columns, peers first: ratios are against each peer."""
    out: list[programs.Program] = []
    if args.llama_cpp:
        binary = programs.find_llama_bench(args.llama_cpp)
        out += [programs.LlamaCpp(binary, words) for words in args.llama_args or [""]]
    rates = {"pp": dict(args.peer_pp), "tg": dict(args.peer_tg)}
    for name, command in args.peer_cmd:
        patterns = {kind: of[name] for kind, of in rates.items() if name in of}
        out.append(programs.Templated(name, command, patterns, dict(args.peer_version).get(name, "unknown")))
    out += [programs.Hotset(shlex.split(args.hotset), mode) for mode in args.mode.split(",")]
    return out


@contextmanager
def only_one() -> Iterator[None]:
    """Waits until no other comparison of this user runs."""
    path = Path(tempfile.gettempdir()) / f"hotset-compare-{os.getuid()}.lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note("waiting for another comparison to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cases_of(args: argparse.Namespace) -> list[programs.Case]:
    """What the command line names, files and recipes."""
    cases = [programs.Case.of_files(text) for text in args.models]
    for recipe in args.synth:
        for percent in args.sweep or [None]:
            cases.append(programs.Case.of_recipe(recipe, percent))
    return cases


def measure(args: argparse.Namespace, columns: list[programs.Program], load: float) -> report.Report:
    """Runs every case; the files of a recipe exist only while it runs, unless a --work-dir was given."""
    out = report.Report(columns, args.rounds, report.describe(args, columns, load))
    rates = sweep.load_rates(args.machine)
    with tempfile.TemporaryDirectory(prefix="hotset-compare-") as temporary:
        for case in cases_of(args):
            note(f"{case.name}")
            with programs.files_of(case, columns, args.work_dir or temporary, keep=bool(args.work_dir)) as made:
                for threads, depth in itertools.product(args.threads, args.depth):
                    out.add(programs.run_rounds(made, columns, programs.Setting.of(args, threads, depth)))
                if rates and case.active_share is not None:
                    out.limits[case.name] = sweep.limits_of(shlex.split(args.hotset), made, rates, args.threads)
    return out


def main(words: list[str] | None = None) -> int:
    args = parse_args(words)
    with only_one():
        load = os.getloadavg()[0]
        if load > 0.5:
            note(f"warning: the load average is {load:.1f}: something else uses this machine")
        out = measure(args, make_programs(args), load)
    print(out.text())
    if args.docs:
        report.replace_section(Path(args.docs), args.section, out.text())
    if args.json:
        Path(args.json).write_text(out.json_text())
    if args.plot:
        sweep.plot(out, Path(args.plot), note)
    return 0 if out.has_hotset() else 1


if __name__ == "__main__":
    sys.exit(main())
