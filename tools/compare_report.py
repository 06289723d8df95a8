"""What `compare.py` writes: the Markdown table, the section of a document, the JSON file."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from compare_programs import Failure, Program, Result, Rounds, run, shortened


def describe(args: argparse.Namespace, columns: list[Program], load: float) -> dict[str, Any]:
    """Where, when and with what: machine, commit, date, command line. Versions are known when programs have run."""
    try:
        doctor = json.loads(run([*shlex.split(args.hotset), "doctor", "--json"], 120))
    except (Failure, ValueError):
        doctor = {}
    folder = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "machine": {key: doctor.get(key) for key in ("cpu", "n_cores", "memory_bytes", "isa")},
        "commit": done.stdout.strip() or "unknown",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shortened("python tools/compare.py " + shlex.join(sys.argv[1:])),
        "load_average": round(load, 2),
        "n_processors": os.cpu_count(),
    }


def median_of(results: list[Result], key: str) -> float | None:
    """Median of one figure over the runs that have it."""
    values = [value for result in results if (value := getattr(result, key)) is not None]
    return statistics.median(values) if values else None


def speed_text(results: list[Result]) -> str:
    """Median and range of tokens/s."""
    speeds = [result.tokens_per_s for result in results]
    return f"{statistics.median(speeds):.1f} [{min(speeds):.1f}-{max(speeds):.1f}]"


def depth_text(each: Rounds) -> str:
    """How a failure names its depth."""
    return f", depth {each.depth}" if each.depth else ""


def cell_text(text: str) -> str:
    """Text that cannot end a table cell or a line."""
    return text.replace("|", "\\|").replace("\n", " ")


@dataclass
class Report:
    """Everything measured, and how it is shown."""

    columns: list[Program]
    n_rounds: int
    about: dict[str, Any]
    rounds: list[Rounds] = field(default_factory=list)
    limits: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)  # case name -> threads -> t/s

    def add(self, rounds: Rounds) -> None:
        self.rounds.append(rounds)

    def has_hotset(self) -> bool:
        """Whether any run of hotset gave a result."""
        ours = {column.name for column in self.columns if column.is_hotset}
        return any(name in ours for each in self.rounds for name, _ in each.samples)

    def ratio(self, each: Rounds, test: str, name: str, peer: str) -> float | None:
        """Median of `name` over median of `peer`."""
        pair = [median_of(each.samples.get((who, test), []), "tokens_per_s") for who in (name, peer)]
        return pair[0] / pair[1] if pair[0] and pair[1] else None

    def tests_of(self, each: Rounds) -> list[str]:
        """Decode first; "all" stands for a case that gave nothing."""
        return sorted({test for _, test in each.samples}, reverse=True) or ["all"]

    def header(self) -> list[str]:
        peers = [column.name for column in self.columns if not column.is_hotset]
        out = ["model", "test", "threads", *(f"{name} t/s" for name in peers)]
        for column in self.columns:
            if column.is_hotset:
                out += [f"{column.name} t/s", *(f"/ {name}" for name in peers), "MB/token", "active %", "bw %"]
        return out + (["byte limit t/s"] if self.limits else [])

    def row(self, each: Rounds, test: str) -> list[str]:
        peers = [column.name for column in self.columns if not column.is_hotset]
        out = [each.case.name, test, str(each.threads)]

        def scaled(results: list[Result], key: str, factor: float) -> str:
            value = median_of(results, key)
            return "" if value is None else f"{value * factor:.1f}"

        def speed(name: str) -> str:
            results = each.samples.get((name, test))
            return speed_text(results) if results else "failed" if name in each.failures else "-"

        out += [speed(name) for name in peers]
        for column in self.columns:
            if not column.is_hotset:
                continue
            results = each.samples.get((column.name, test), [])
            ratios = [self.ratio(each, test, column.name, peer) for peer in peers]
            out += [speed(column.name), *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)]
            out += [scaled(results, "bytes_per_token", 1e-6), scaled(results, "active_share", 100)]
            out.append(scaled(results, "bandwidth_share", 100))
        if self.limits:
            limit = self.limits.get(each.case.name, {}).get(each.threads, {}).get("gathered_ts")
            out.append(f"{limit:.1f}" if limit and test.startswith("tg") else "")
        return [cell_text(cell) for cell in out]

    def text(self) -> str:
        """The section: what was run where, the table, what failed."""
        machine = self.about["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in self.versions().items())
        header = self.header()
        about = (
            f"{machine['cpu'] or 'unknown processor'}, {machine['n_cores'] or self.about['n_processors']} cores, "
            f"{machine['isa'] or 'unknown kernels'}; commit {self.about['commit']}, {self.about['date']}; {versions}. "
            f"Load average before: {self.about['load_average']}. Medians of {self.n_rounds} interleaved rounds, "
            "range in brackets; ratios are of medians."
        )
        lines = [about, "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(self.row(each, test)) + " |" for each in self.rounds for test in self.tests_of(each)]
        failures = [
            f"- {name} failed on {each.case.name}, {each.threads} threads{depth_text(each)}: {why}"
            for each in self.rounds
            for name, why in each.failures.items()
        ]
        lines += ["", *failures] if failures else []
        return "\n".join([*lines, "", "```sh", self.about["command"], "```"])

    def versions(self) -> dict[str, str]:
        """Version by program; the modes of hotset are one program."""
        return {column.name.split(" ")[0] if column.is_hotset else column.name: column.version for column in self.columns}

    def json_text(self) -> str:
        """Every sample, and what the table says about them."""
        peers = [column.name for column in self.columns if not column.is_hotset]
        rows: list[dict[str, Any]] = []
        for each in self.rounds:
            for (name, test), results in each.samples.items():
                row = {"model": each.case.name, "test": test, "threads": each.threads, "depth": each.depth}
                row["program"] = name
                row["samples_ts"] = [result.tokens_per_s for result in results]
                row["median_ts"] = median_of(results, "tokens_per_s")
                row["ratio"] = {peer: self.ratio(each, test, name, peer) for peer in peers if peer != name}
                for key in ("bytes_per_token", "bandwidth_share", "active_share"):
                    row[key] = median_of(results, key)
                rows.append(row)
            for name, why in each.failures.items():
                place = {"model": each.case.name, "threads": each.threads, "depth": each.depth}
                rows.append({**place, "program": name, "error": why})
        document = {**self.about, "versions": self.versions(), "n_rounds": self.n_rounds, "rows": rows}
        return json.dumps({**document, "limits": self.limits}, indent=1) + "\n"


def replace_section(path: Path, name: str, text: str) -> None:
    """Puts the text between the markers of `name`, in place of what was there; at the end when there are none.

    Raises ValueError when only one of the two markers is there, or in the wrong order: nothing is written then.
    """
    begin, end = f"<!-- compare:{name} begin -->", f"<!-- compare:{name} end -->"
    old = path.read_text() if path.exists() else ""
    section = f"{begin}\n{text}\n{end}"
    places = old.find(begin), old.find(end)
    if places == (-1, -1):
        new = (old.rstrip("\n") + "\n\n" if old.strip() else "") + section + "\n"
    elif 0 <= places[0] < places[1] and old.count(begin) == old.count(end) == 1:
        new = old[: places[0]] + section + old[places[1] + len(end) :]
    else:
        raise ValueError(f"{path}: expected one pair of markers {begin} .. {end}")
    part = path.with_name(path.name + ".part")
    part.write_text(new)
    part.replace(path)
