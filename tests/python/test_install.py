"""`cmake --install` gives a package that a program of another project can use."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installs the build folder named by HOTSET_BUILD_DIR."""
    build = os.environ.get("HOTSET_BUILD_DIR")
    if not build or not shutil.which("cmake"):
        pytest.skip("needs cmake and HOTSET_BUILD_DIR, a folder in which hotset was built (tests/run.sh sets both)")
    out = tmp_path_factory.mktemp("prefix")
    subprocess.run(["cmake", "--install", build, "--prefix", str(out)], check=True, capture_output=True)
    return out


def test_installed_command_finds_the_packaged_model(prefix: Path) -> None:
    command = [str(prefix / "bin" / "hotset"), "run", "-p", "Once upon a time", "-n", "4", "--temp", "0"]
    environment = {key: value for key, value in os.environ.items() if key != "HOTSET_MODEL"}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert out.stdout.startswith(", there was")


def test_example_builds_against_the_package(prefix: Path, tmp_path: Path) -> None:
    example, build = ROOT / "tools" / "example", tmp_path / "build"
    subprocess.run(
        ["cmake", "-S", str(example), "-B", str(build), f"-DCMAKE_PREFIX_PATH={prefix}"], check=True, capture_output=True
    )
    subprocess.run(["cmake", "--build", str(build)], check=True, capture_output=True)
    model = next((prefix / "share" / "hotset").glob("*.gguf"))
    out = subprocess.run([str(build / "story"), str(model)], check=True, capture_output=True, text=True)
    assert out.stdout.startswith(", there was a little girl named Lily")


def test_no_private_header_is_installed(prefix: Path) -> None:
    names = {path.name for path in (prefix / "include").rglob("*.h")}
    assert "engine.h" in names
    assert not names & {"engine_impl.h", "kernels.h", "gguf_parser.h", "device.h"}
