"""Fixtures of the Python tests: the native command, the packaged model, the shared test data."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ERROR_LINE = re.compile(rb"hotset: error: \[[^\n]+\] [^\n]+: expected [^\n]+, got [^\n]+; [^\n]+\n")


def limit_memory(n_bytes: int) -> None:
    """Caps the address space of this process; for use in a child before it starts."""
    resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))


def assert_one_error_line(result: subprocess.CompletedProcess, exit_code: int) -> None:
    """Checks that a command failed as the contract says: exit code, no output, one shaped line after any warnings."""
    context = (result.args, result.returncode, result.stderr)
    assert result.returncode == exit_code, context
    lines = result.stderr.splitlines(keepends=True)
    while lines and lines[0].startswith(b"hotset: warning: ["):
        del lines[0]
    assert ERROR_LINE.fullmatch(b"".join(lines)), context
    assert result.stdout == b"", context


@pytest.fixture(scope="session")
def hotset_bin() -> str:
    """Path of the native binary: $HOTSET_BIN, else the installed package's, else `hotset` on the path."""
    candidates = [os.environ.get("HOTSET_BIN")]
    spec = importlib.util.find_spec("hotset")
    if spec is not None and spec.submodule_search_locations:
        candidates += [str(Path(folder) / "bin" / "hotset") for folder in spec.submodule_search_locations]
    candidates.append(shutil.which("hotset"))
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            return str(Path(candidate).resolve())
    pytest.fail("no hotset binary: set HOTSET_BIN, or install the package")


@pytest.fixture(scope="session")
def hotset(hotset_bin):
    """Runs the binary with pipes: hotset("run", "-p", "x", stdin=b"", env={}, memory=None) -> CompletedProcess.

    `memory` caps its address space in bytes; $HOTSET_SANITIZED lifts the cap, as sanitizers reserve terabytes.
    """

    def call(*words, stdin=b"", env=None, memory=None, timeout=120, **options):
        is_capped = memory is not None and "HOTSET_SANITIZED" not in os.environ
        before = (lambda: limit_memory(memory)) if is_capped else None
        if "stdout" not in options:
            options["stdout"] = subprocess.PIPE
        return subprocess.run(
            [hotset_bin, *words],
            input=stdin,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            preexec_fn=before,
            timeout=timeout,
            check=False,
            **options,
        )

    return call


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The packaged model, as it lies in the repository."""
    return REPOSITORY / "python" / "hotset" / "data" / "demo-relu-q8_0.gguf"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared test data; the test is skipped without it."""
    root = Path(os.environ.get("HOTSET_SHARED") or REPOSITORY.parent / "shared")
    if not (root / "data").is_dir():
        pytest.skip("shared test data is absent")
    return root / "data"


@pytest.fixture(scope="session")
def stories(shared) -> Path:
    """The stories260K model in float32."""
    return shared / "models" / "stories260K" / "stories260K-f32.gguf"


@pytest.fixture(scope="session")
def golden(shared) -> dict:
    """Reference results of stories260K, computed in float64."""
    return json.loads((shared / "models" / "stories260K" / "golden.json").read_text())
