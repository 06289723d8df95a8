"""Damaged, truncated and missing model files: one error line, exit code 1, bounded time and memory."""

from __future__ import annotations

import json
import os
import random
import shutil

import pytest

from conftest import assert_one_error_line


@pytest.mark.parametrize(
    "command", [["run", "-p", "x"], ["inspect"], ["tokenize"], ["bench"], ["logits"], ["perplexity"], ["kld"]]
)
def test_missing_empty_and_wrong_files(hotset, tmp_path, command):
    if command == ["logits"]:
        command = ["logits", "--tokens", "1", "-o", str(tmp_path / "x.npy")]
    if command in (["perplexity"], ["kld"]):
        command = [*command, "-f", __file__]
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "text.gguf").write_bytes(b"hello, this is no model\n" * 10)
    for name in ("absent.gguf", "empty.gguf", "text.gguf", ".", "line\nbreak.gguf"):
        assert_one_error_line(hotset(*command, "-m", str(tmp_path / name), memory=1 << 30), 1)
    assert not (tmp_path / "x.npy").exists()


def test_every_bad_gguf_file_is_one_error_line(hotset, shared):
    paths = sorted((shared / "bad-gguf").iterdir())
    assert len(paths) >= 100
    for path in paths:
        assert_one_error_line(hotset("run", "-m", str(path), "-p", "x", memory=1 << 30, timeout=10), 1)
        inspection = hotset("inspect", "-m", str(path), "--json", memory=1 << 30, timeout=10)
        if inspection.stdout:  # well-formed, but no model that runs
            assert inspection.returncode == 1 and json.loads(inspection.stdout)["runs"] is False
        else:
            assert_one_error_line(inspection, 1)


def test_truncated_models_are_errors(hotset, demo_model, tmp_path):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    source = random.Random(seed)
    path = tmp_path / "cut.gguf"
    shutil.copy(demo_model, path)
    size = path.stat().st_size
    small = [source.randrange(200_000) for _ in range(120)]  # the header and the vocabulary
    points = sorted({source.randrange(size - 64) for _ in range(80)} | set(small), reverse=True)
    for point in points:
        os.truncate(path, point)
        assert_one_error_line(hotset("run", "-m", str(path), "-p", "x", "-n", "1", memory=1 << 30, timeout=10), 1)


def test_unreadable_prompt_files(hotset, demo_model, tmp_path):
    for command in ("run", "perplexity"):
        for name in ("absent.txt", "."):
            assert_one_error_line(hotset(command, "-m", str(demo_model), "-f", str(tmp_path / name)), 1)
