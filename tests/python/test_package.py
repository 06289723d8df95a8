"""The installed package: contents, version, imports, and the command `hotset`."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hotset
from hotset import cli

PACKAGE = Path(hotset.__file__).parent
REPOSITORY = Path(__file__).resolve().parents[2]
ERROR_LINE = re.compile(r"hotset: error: \[[^\n]+\] [^\n]+: expected [^\n]+, got [^\n]+; [^\n]+\n")


def command(*words: str, **options) -> subprocess.CompletedProcess[str]:
    """Runs the command as the console script does."""
    code = "import sys; from hotset.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, **options)


def test_version_is_stated_once():
    declared = re.search(r"\bVERSION\s+(\d+\.\d+\.\d+)", (REPOSITORY / "CMakeLists.txt").read_text())
    assert declared and hotset.__version__ == declared[1] == importlib.metadata.version("hotset")


@pytest.mark.parametrize("name", ["py.typed", "_core.pyi", "bin/hotset", "data/demo-relu-q8_0.gguf"])
def test_package_carries(name):
    assert (PACKAGE / name).is_file()


def test_package_carries_credits_but_no_sources():
    assert list((PACKAGE / "data").glob("CREDITS*"))
    assert [path.name for path in PACKAGE.rglob("*") if path.suffix in (".cpp", ".h", ".a", ".cmake")] == []


def test_metadata_and_console_script():
    metadata = importlib.metadata.metadata("hotset")
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="hotset")
    assert script.value == "hotset.cli:main"


def test_public_names_resolve():
    for name in hotset.__all__:
        assert getattr(hotset, name) is not None
        assert name in dir(hotset)
    with pytest.raises(AttributeError, match="no_such_name"):
        hotset.no_such_name


@pytest.mark.parametrize("module", ["hotset", "hotset.cli"])
def test_import_is_light(module):
    code = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "huggingface_hub", "jinja2", "asyncio", "argparse", "hotset._core"}
    assert heavy.isdisjoint(result.stdout.split())


def test_using_a_model_imports_no_hub():
    code = "import sys, hotset; hotset.Model().generate('x', max_tokens=1); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"huggingface_hub", "jinja2"}.isdisjoint(result.stdout.split())


def test_native_command_gets_all_arguments_and_the_packaged_model():
    result = command("run", "-p", "Once upon a time", "-n", "8", "--temp", "0")
    assert result.returncode == 0, result.stderr
    text = hotset.Model().generate("Once upon a time", max_tokens=8, temperature=0)
    assert str(text).strip() and str(text).strip() in result.stdout


def test_native_command_replaces_the_process(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(os, "execv", lambda path, args: calls.append((str(path), args)))
    cli.main(["bench", "-p", "5", "-m", "x.gguf"])
    assert calls == [(str(cli.BINARY), [str(cli.BINARY), "bench", "-p", "5", "-m", "x.gguf"])]


def test_help_names_the_commands_of_both_halves():
    result = command("--help")
    assert result.returncode == 0
    assert "run" in result.stdout and "convert" in result.stdout


@pytest.mark.parametrize("name", ["serve"])
def test_commands_of_later_versions(name):
    result = command(name, "-m", "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert ERROR_LINE.fullmatch(result.stderr) and "not in this version" in result.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["convret", "x"], "did you mean convert?"),
        (["convert", "x", "-o", "y", "--tpye", "f16"], "did you mean --type?"),
        (["convert", "x"], "-o"),
    ],
)
def test_wrong_usage(words, hint):
    result = command(*words)
    assert (result.returncode, result.stdout) == (2, "")
    assert ERROR_LINE.fullmatch(result.stderr), result.stderr
    assert hint in result.stderr


def test_failures_are_one_line_and_exit_code_1(tmp_path):
    result = command("run", "-m", str(tmp_path / "missing.gguf"), "-p", "x")
    assert (result.returncode, result.stdout) == (1, "")
    assert ERROR_LINE.fullmatch(result.stderr), result.stderr
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = command("run", "-hf", "owner/repo", "-p", "x", env=offline)
    assert (result.returncode, result.stdout) == (1, "")
    assert ERROR_LINE.fullmatch(result.stderr), result.stderr


def test_missing_binary_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli, "BINARY", tmp_path / "hotset")
    assert cli.main(["run"]) == 1
    assert ERROR_LINE.fullmatch(capsys.readouterr().err)


def test_interrupt_is_130(monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    assert cli.main(["convert"]) == 130
