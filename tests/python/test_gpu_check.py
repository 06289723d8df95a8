"""tools/gpu_check.py: parts pass, fail, run out of time and are taken up again. No card is needed."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "gpu_check.py"


@pytest.fixture
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(text):
    return [sys.executable, "-c", text]


def test_parts_are_recorded_and_those_that_passed_are_not_run_again(gpu_check, tmp_path, monkeypatch, capsys):
    count = tmp_path / "count"
    counted = f"import os, pathlib; pathlib.Path({str(count)!r}).open('a').write(os.environ['SIGN']); print('seen')"
    parts = {
        "good": (60, [python(counted), python("print('after')")], {"SIGN": "x"}),
        "bad": (60, [python("import sys; print('why'); sys.exit(3)"), python(counted)], {"SIGN": "y"}),
        "slow": (1, [python("import time; time.sleep(60)")], {}),
        "absent": (60, [["/no/such/program"]], {}),
    }
    monkeypatch.setattr(gpu_check, "parts_of", lambda build, out: parts)
    out = tmp_path / "out"
    assert gpu_check.main(["--out", str(out)]) == 1
    records = {each["part"]: each for each in json.loads((out / "gpu_check.json").read_text())}
    assert {name: each["state"].split(" ")[0] for name, each in records.items()} == {
        "good": "passed", "bad": "failed", "slow": "did", "absent": "did",
    }  # fmt: skip
    assert records["good"]["end_of_log"] == ["seen", "after"]
    assert records["bad"]["end_of_log"] == ["why"]
    assert "| bad | failed with exit code 3 |" in (out / "gpu_check.md").read_text()
    assert count.read_text() == "x"
    assert gpu_check.main(["--out", str(out), "--parts", "good"]) == 0
    assert count.read_text() == "x"
    assert gpu_check.main(["--out", str(out), "--parts", "good", "--again"]) == 0
    assert count.read_text() == "xx"
    assert gpu_check.main(["--out", str(out), "--parts", "good", "--again", "--budget", "0"]) == 1
    assert count.read_text() == "xx"
    with pytest.raises(SystemExit):
        gpu_check.main(["--out", str(out), "--parts", "other"])
    assert "expected some of good, bad, slow, absent, got other" in capsys.readouterr().err


def test_parts_name_what_the_build_makes(gpu_check, tmp_path):
    parts = gpu_check.parts_of("b", tmp_path)
    made = {"b/tests/hotset_tests", "b/bin/hotset", "b/gpu_probe"}
    words = {word for _, commands, _ in parts.values() for command in commands for word in command}
    run = {word for word in words if word.startswith("b/")}
    assert run == made
