"""Choosing model files: rules on names, local folders, the words of the command line. Fetching: test_hub_fetch.py."""

from __future__ import annotations

from pathlib import Path

import pytest

import hotset
from hotset import cli, hub

SHARDS = [f"big-Q8_0-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    "names, wanted, chosen",
    [
        (["m-Q8_0.gguf", "README.md"], None, ["m-Q8_0.gguf"]),
        (["m-F16.gguf", "m-Q8_0.gguf", "m-Q4_0.gguf", "m-Q2_K.gguf"], None, ["m-Q4_0.gguf"]),
        (["m-Q4_0.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf"], None, ["m-Q4_K_M.gguf"]),
        (["m.Q2_K.gguf", "m.q8_0.gguf"], None, ["m.q8_0.gguf"]),
        (["m-Q3_K_S.gguf", "m-Q2_K.gguf"], None, ["m-Q2_K.gguf"]),
        (["m-Q4_0.gguf", "m-Q8_0.gguf", "m-Q8_0.hotset.gguf"], None, ["m-Q8_0.gguf"]),
        (["mmproj-m-Q4_0.gguf", "mtp-m.gguf", "m-F16.gguf"], None, ["m-F16.gguf"]),
        (["mmproj-m.gguf", "m-F16.gguf"], "mmproj-m.gguf", ["mmproj-m.gguf"]),
        (["m-Q4_0_4_4.gguf", "m-Q4_0.gguf"], "q4_0", ["m-Q4_0.gguf"]),
        (["m-Q8_0.gguf", "m-Q4_0.gguf"], "*Q8_0*", ["m-Q8_0.gguf"]),
        (["sub/m-Q8_0.gguf", "m-Q4_0.gguf"], "m-q8_0.*", ["sub/m-Q8_0.gguf"]),
        ([*reversed(SHARDS), "m-F16.gguf"], None, SHARDS),
        ([*SHARDS, "m-F16.gguf"], "*00002-of*", SHARDS),
        ([*SHARDS, "m-F16.gguf"], SHARDS[1], SHARDS),
    ],
)
def test_choice(names: list[str], wanted: str | None, chosen: list[str]) -> None:
    assert hub.choose(names, wanted, "o/r") == chosen


@pytest.mark.parametrize(
    "names, wanted, told",
    [
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], "*Q8_0*", ["o/r", "2 (a-Q8_0.gguf, b-Q8_0.gguf)"]),
        (["a-Q8_0.gguf"], "*Q4*", ["none among a-Q8_0.gguf"]),
        (["model.safetensors", "config.json"], None, ["2 other files", "hotset convert"]),
        ([f"m{i:02d}.gguf" for i in range(30)], "x", ["m19.gguf and 10 more"]),
    ],
)
def test_choice_that_is_not_one_lists_the_files(names: list[str], wanted: str | None, told: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        hub.choose(names, wanted, "o/r")
    for part in told:
        assert part in str(caught.value)


def test_missing_shard_is_an_error() -> None:
    with pytest.raises(hotset.Error, match="expected 3, got 2"):
        hub.choose(SHARDS[:2], None, "o/r")


def test_local_paths_need_no_hub(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "m-Q8_0.gguf"
    file.write_bytes(b"x")
    assert hub.resolve(file) == file
    assert hub.resolve_pretrained(file) == file
    assert hub.resolve_pretrained(tmp_path) == file
    assert hub.resolve_pretrained(str(tmp_path), "*q8*") == file
    with pytest.raises(hotset.Error, match="existing path or owner/repo"):
        hub.resolve_pretrained(tmp_path / "missing.gguf")


def test_spec_is_split() -> None:
    assert hub.split_spec("hf:o/r") == ("o/r", None, None)
    assert hub.split_spec("o/r:*Q8*") == ("o/r", None, "*Q8*")
    assert hub.split_spec("hf:o/r@v1.0:Q8_0") == ("o/r", "v1.0", "Q8_0")


def test_command_line_gets_local_files(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def fetch(repo: str, glob: str | None, **options: object) -> Path:
        asked.update(options)
        return Path(f"/cache/{repo}/{glob}")

    monkeypatch.setattr(hub, "fetch", fetch)
    replaced = cli.with_local_models(["run", "-hf", "o/r:Q8_0", "-p", "-hf", "-n", "3"])
    assert replaced == ["run", "-m", "/cache/o/r/Q8_0", "-p", "-hf", "-n", "3"]
    assert asked == {"judged": True}
    assert cli.with_local_models(["bench", "-m", "hf:o/r"]) == ["bench", "-m", "/cache/o/r/None"]
    assert cli.with_local_models(["bench", "--model=hf:o/r"]) == ["bench", "--model", "/cache/o/r/None"]
    plain = ["run", "-m", "file.gguf", "--prompt", "hf:x", "-m"]
    assert cli.with_local_models(plain) == plain


def test_command_line_options_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr(hub, "fetch", lambda repo, glob, **options: asked.update(options) or Path("/f"))
    words = ["tokenize", "--revision", "v2", "-m", "hf:o/r", "-p", "--revision", "--hf-token=secret"]
    words += ["--activation", "relu"]
    assert cli.with_local_models(words) == ["tokenize", "-m", "/f", "-p", "--revision", "--activation", "relu"]
    assert asked == {"judged": False, "revision": "v2", "token": "secret", "activation": "relu"}
    cli.with_local_models(["run", "-hf", "o/r@v3:Q8_0"])
    assert asked["revision"] == "v3"
    with pytest.raises(ValueError, match="revision: expected one"):
        cli.with_local_models(["run", "-hf", "o/r@v3:Q8_0", "--revision", "v4"])
    plain = ["run", "-m", "file.gguf", "--revision", "v2"]  # for the binary to refuse
    assert cli.with_local_models(plain) == plain
