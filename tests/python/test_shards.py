"""Every command takes the first of a model's shards for the whole model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conftest import assert_one_error_line
from gguf_bytes import shard_names, split


@pytest.fixture(scope="module")
def shards(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The packaged model in three files."""
    folder = tmp_path_factory.mktemp("shards")
    paths = [folder / name for name in shard_names("demo", 3)]
    for path, data in zip(paths, split(demo_model, 3)):
        path.write_bytes(data)
    return paths


TEXT = "Once upon a time there was a little girl who lived near the sea. " * 30


@pytest.mark.parametrize(
    "words",
    [
        ["run", "-p", "Once upon a time", "-n", "8", "--temp", "0"],
        ["tokenize"],
        ["logits", "--tokens", "1,5,9,70", "-o", "OUT"],
        ["perplexity", "-f", "TEXT", "-c", "64", "--chunks", "2"],
    ],
)
def test_commands_give_the_same(hotset, demo_model: Path, shards: list[Path], tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    results = []
    for model in (demo_model, shards[0]):
        out = tmp_path / f"{model.stem}.npy"
        places = {"OUT": str(out), "TEXT": str(tmp_path / "text.txt")}
        result = hotset(*(places.get(word, word) for word in words), "-m", str(model), stdin=TEXT.encode())
        assert result.returncode == 0, result.stderr
        results.append((result.stdout.replace(bytes(model), b"MODEL"), out.read_bytes() if out.exists() else b""))
    assert results[0] == results[1]
    assert results[0] != (b"", b"")


def test_plan(hotset, demo_model: Path, shards: list[Path]) -> None:
    models = (demo_model, shards[0])
    plans = [json.loads(hotset("plan", "--json", "-c", "128", "-m", str(path)).stdout) for path in models]
    assert plans[0]["layers"] == plans[1]["layers"] and plans[0]["predicted"] == plans[1]["predicted"]
    components = [[each for each in plan["components"] if each["name"] != "process"] for plan in plans]
    assert components[0] == components[1]  # the process is what it happens to be


def test_inspect_and_quantize(hotset, demo_model: Path, shards: list[Path], tmp_path: Path) -> None:
    reports = [json.loads(hotset("inspect", "--json", "-m", str(path)).stdout) for path in (demo_model, shards[0])]
    for key in ("tensors", "n_params", "types", "verdict", "fingerprint", "runs"):
        assert reports[0][key] == reports[1][key]
    assert reports[1]["file_bytes"] == sum(path.stat().st_size for path in shards)
    for path in (demo_model, shards[0]):
        assert hotset("quantize", str(path), str(tmp_path / f"{path.stem}-q4.gguf"), "q4_0").returncode == 0
    whole, joined = ((tmp_path / f"{path.stem}-q4.gguf").read_bytes() for path in (demo_model, shards[0]))
    assert whole == joined
    for path in shards[1:]:
        assert_one_error_line(hotset("quantize", str(shards[0]), str(path), "q4_0"), 2)


def test_other_shards_and_missing_ones(hotset, shards: list[Path], tmp_path: Path) -> None:
    for command in (["run", "-p", "x"], ["inspect"]):
        result = hotset(*command, "-m", str(shards[1]))
        assert_one_error_line(result, 1)
        assert b"the first of 3, got number 2; name " in result.stderr and bytes(shards[0]) in result.stderr
    copies = [Path(shutil.copy(path, tmp_path)) for path in shards]
    copies[2].unlink()
    result = hotset("inspect", "-m", str(copies[0]))
    assert_one_error_line(result, 1)
    assert b"shard 3 of 3: expected" in result.stderr and bytes(copies[2]) in result.stderr
