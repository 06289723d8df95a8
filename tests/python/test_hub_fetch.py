"""Fetching models from a hub on this machine: what is asked for, what lands in the cache, what every fault ends in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import REPOSITORY
from gguf_bytes import shard_names, split
from hub_server import COMMIT, Hub

DEMO = REPOSITORY / "python" / "hotset" / "data" / "demo-relu-q8_0.gguf"
OTHER = "f" * 40

# Runs one call after another of a process with the hub's environment, so that its imports are paid for once.
WORKER = """
import json, sys
from hotset import hub, hub_files
hub_files._FIRST_WAIT_S = 0.01
for line in sys.stdin:
    args, options = json.loads(line)
    try:
        answer = ["", str(hub.resolve_pretrained(*args, **options))]
    except Exception as error:
        answer = [type(error).__name__, str(error)]
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Hub, Any]]:
    """The hub and a function that calls `resolve_pretrained` in a process that knows it: (kind of error, text)."""
    with Hub({}) as hub:
        with subprocess.Popen(
            [sys.executable, "-c", WORKER], env=hub.env(Path("/nonexistent")), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        ) as worker:  # fmt: skip

            def call(*args: object, **options: object) -> tuple[str, str]:
                assert worker.stdin and worker.stdout
                worker.stdin.write(json.dumps([args, options]) + "\n")
                worker.stdin.flush()
                kind, text = json.loads(worker.stdout.readline())
                return kind, text

            yield hub, call
            assert worker.stdin
            worker.stdin.close()


@pytest.fixture(scope="module")
def model() -> bytes:
    return DEMO.read_bytes()


@pytest.fixture(scope="module")
def three(model: bytes) -> dict[str, bytes]:
    """The packaged model in three shards."""
    return dict(zip(shard_names("big-Q8_0", 3), split(DEMO, 3)))


@pytest.fixture
def hub(served: tuple[Hub, Any], model: bytes) -> Hub:
    """The hub, well behaved, with the packaged model."""
    served[0].__init__({"README.md": b"r", "m-Q8_0.gguf": model})  # type: ignore[misc]
    return served[0]


@pytest.fixture
def fetch(served: tuple[Hub, Any], tmp_path: Path) -> Any:
    """Fetches from "o/r" into a cache of the test's own; fails on errors."""

    def call(filename: str | None = None, **options: object) -> Path:
        options.setdefault("cache_dir", str(tmp_path))
        kind, text = served[1]("o/r", filename, **options)
        assert not kind, text
        return Path(text)

    return call


@pytest.fixture
def failing(served: tuple[Hub, Any], tmp_path: Path) -> Any:
    """Fetches and fails: (kind of error, message). No whole file may be left."""

    def call(filename: str | None = None, **options: object) -> tuple[str, str]:
        kind, text = served[1]("o/r", filename, cache_dir=str(tmp_path), **options)
        assert kind, text
        assert "\n" not in text
        assert [file for file in tmp_path.rglob("*.gguf") if file.is_file()] == []
        return kind, text

    return call


def blobs(cache: Path) -> dict[str, int]:
    """Names and sizes of the data in the cache."""
    return {file.name: file.stat().st_size for file in cache.rglob("blobs/*")}


def test_whole_file_then_the_cache(hub: Hub, fetch: Any, model: bytes, tmp_path: Path) -> None:
    path = fetch("*q8_0.gguf", token="hf_secret")
    assert path.name == "m-Q8_0.gguf" and path.read_bytes() == model
    assert blobs(tmp_path) == {hub.etag_of("m-Q8_0.gguf"): len(model)}
    tokens = {line.partition(" /")[2].split("/")[0]: line.rpartition(" ")[2] for line in hub.requests}
    assert tokens["api"] == tokens["o"] == "hf_secret"
    assert "secret" not in "".join(line for line in hub.requests if "/cdn/" in line)  # another host
    hub.requests.clear()
    assert fetch(revision="main") == path
    assert hub.requests == ["GET /api/models/o/r/revision/main"]
    hub.requests.clear()
    assert fetch(local_files_only=True) == path
    assert hub.requests == []


def test_offline(hub: Hub, fetch: Any, tmp_path: Path) -> None:
    path = fetch()
    code = (
        "from hotset import hub\n"
        f"print(hub.fetch('o/r', cache_dir={str(tmp_path)!r}))\n"
        f"hub.fetch('o/r', revision='v2', cache_dir={str(tmp_path)!r})\n"
    )
    for change in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):  # nobody listens there
        env = hub.env(tmp_path) | change
        result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert result.stdout.strip() == str(path)
        assert "repository o/r at v2: expected the hub, or files in the cache" in result.stderr


def test_busy_hub_leaves_the_cache(hub: Hub, fetch: Any, failing: Any, tmp_path: Path) -> None:
    for status in (429, 500, 503):
        hub.list_status = status
        assert "nothing in the cache" in failing()[1]
    hub.list_status = 200
    path = fetch()
    hub.list_status = 503
    assert fetch() == path


def test_shards_and_the_sidecar(hub: Hub, fetch: Any, three: dict[str, bytes], tmp_path: Path) -> None:
    hub.files = {**three, "m-F16.gguf": b"other", "big-Q8_0-00001-of-00003.hotset.gguf": b"sidecar"}
    path = fetch("Q8_0")
    assert path.name == "big-Q8_0-00001-of-00003.gguf"
    for name, data in three.items():
        assert (path.parent / name).read_bytes() == data
    assert (path.parent / "big-Q8_0-00001-of-00003.hotset.gguf").read_bytes() == b"sidecar"
    assert not (path.parent / "m-F16.gguf").exists()
    folder = tmp_path / "here"
    assert fetch("Q8_0", local_dir=str(folder), cache_dir=None) == folder / path.name
    assert {file.name for file in folder.glob("*.gguf")} == {*three, "big-Q8_0-00001-of-00003.hotset.gguf"}


def test_shards_missing_or_mixed_fetch_headers_alone(hub: Hub, failing: Any, three: dict[str, bytes]) -> None:
    first, second, third = three
    hub.files = {first: three[first], third: three[third]}
    told = "[hub] shards of big-Q8_0-00001-of-00003.gguf in o/r: expected 3, got 2; download all of them"
    assert failing() == ("Error", told)
    assert hub.sent == 0
    hub.files = {first: three[first], second: three[third], third: three[second]}
    kind, text = failing()
    assert kind == "ModelFormatError" and "split.no: expected 1, got 2" in text
    hub.files = {name: (three[first] if name == second else data) for name, data in three.items()}
    assert "split.no" in failing()[1]
    assert hub.sent < 4 << 20


def test_cut_download_goes_on_within_a_call(hub: Hub, fetch: Any, model: bytes) -> None:
    hub.cuts = [None, 3_000_000, 100, 2_000_000]  # the first is the header's
    hub.statuses = [503, 429]
    assert fetch().read_bytes() == model
    assert hub.sent < len(model) + (2 << 20)


def test_cut_download_goes_on_in_the_next_call(
    hub: Hub, fetch: Any, failing: Any, model: bytes, tmp_path: Path
) -> None:
    hub.cuts = [None, 3_000_000, 0, 0, 0, 0, 0]
    kind, text = failing()
    assert kind == "Error" and f"expected {len(model)} bytes" in text and "goes on from there" in text
    assert [name.rpartition(".")[2] for name in blobs(tmp_path)] == ["incomplete"]
    sent, hub.sent, hub.cuts = hub.sent, 0, []
    assert 2_500_000 < sum(blobs(tmp_path).values()) <= 3_000_000 < sent
    assert fetch().read_bytes() == model
    assert hub.sent < len(model) - 2_000_000
    assert blobs(tmp_path) == {hub.etag_of("m-Q8_0.gguf"): len(model)}


def test_cut_download_into_a_folder(hub: Hub, served: tuple[Hub, Any], model: bytes, tmp_path: Path) -> None:
    def call() -> tuple[str, str]:
        return served[1]("o/r", local_dir=str(tmp_path / "here"), cache_dir=str(tmp_path / "cache"))

    hub.cuts = [None, 3_000_000, 0, 0, 0, 0, 0]
    assert call()[0] == "Error"
    (part,) = (path for path in (tmp_path / "here").iterdir() if path.is_file())
    assert part.name.endswith(".incomplete") and part.stat().st_size > 2_500_000
    hub.cuts, hub.sent = [], 0
    path = tmp_path / "here" / "m-Q8_0.gguf"
    assert call() == ("", str(path)) and path.read_bytes() == model
    assert hub.sent < len(model) - 2_000_000
    hub.sent = 0
    assert call() == ("", str(path)) and hub.sent == 0
    hub.commit, hub.files = OTHER, {"m-Q8_0.gguf": model[:-1] + b"\0"}
    assert call() == ("", str(path)) and path.read_bytes() == hub.files["m-Q8_0.gguf"]
    assert [path.name for path in (tmp_path / "here").iterdir() if path.is_file()] == ["m-Q8_0.gguf"]


def test_mirror_that_lists_names_alone(hub: Hub, fetch: Any, model: bytes) -> None:
    hub.lists_sizes = False
    assert fetch().read_bytes() == model


def test_server_without_ranges(hub: Hub, fetch: Any, failing: Any, model: bytes) -> None:
    hub.ranges = False
    hub.cuts = [None, 3_000_000, None]
    assert fetch().read_bytes() == model


def test_changed_files(hub: Hub, fetch: Any, failing: Any, model: bytes, tmp_path: Path) -> None:
    hub.cuts = [None, 3_000_000, 0, 0, 0, 0, 0]
    failing()
    hub.cuts = []
    hub.commit, hub.files = OTHER, {"m-Q8_0.gguf": model[:-1] + b"\0"}  # a part of the old one is here
    path = fetch()
    assert path.read_bytes() == hub.files["m-Q8_0.gguf"]
    assert path.parent.name == OTHER
    hub.commit, hub.files = COMMIT, {"m-Q8_0.gguf": model}
    assert fetch().read_bytes() == model
    assert fetch(revision=OTHER).read_bytes() != model


def test_wrong_sizes_and_hashes(hub: Hub, failing: Any, model: bytes, tmp_path: Path) -> None:
    hub.etag = "0" * 64
    assert "SHA-256" in failing()[1]
    hub.etag, hub.announced_size = None, len(model) + 1
    assert f"expected {len(model) + 1} bytes, got" in failing()[1]
    hub.announced_size = len(model) - 1
    assert "SHA-256" in failing()[1]
    assert all(name.endswith(".incomplete") for name in blobs(tmp_path))


UNSUPPORTED = [
    (b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", '[config] architecture: expected llama, .*, got "mamba"'),
    (b"tokenizer.ggml.model\x08\0\0\0\x05\0\0\0\0\0\0\0llama", b"tokenizer.ggml.model\x08\0\0\0\x05\0\0\0\0\0\0\0bertt",
     "tokenizer.ggml.model"),
]  # fmt: skip


@pytest.mark.parametrize("old, new, told", UNSUPPORTED)
def test_unsupported_models_cost_a_header(
    hub: Hub, failing: Any, model: bytes, tmp_path: Path, old: bytes, new: bytes, told: str
) -> None:
    import hotset

    assert old in model
    bad = model.replace(old, new, 1)
    (tmp_path / "bad.bin").write_bytes(bad)
    with pytest.raises(hotset.Error, match=told.replace("[", r"\[")) as caught:
        hotset.Model(tmp_path / "bad.bin")
    (tmp_path / "bad.bin").unlink()
    hub.files = {"bad.gguf": bad}
    assert failing() == (type(caught.value).__name__, str(caught.value))
    assert hub.sent < 1 << 20 < len(bad)


def test_tensor_types_are_judged_by_the_header(hub: Hub, failing: Any, model: bytes) -> None:
    name = b"blk.0.ffn_up.weight"
    at = model.index(name) + len(name) + 4 + 16
    hub.files = {"bad.gguf": model[:at] + b"\x10" + model[at + 1 :]}  # IQ2_XXS
    kind, text = failing()
    assert kind == "UnsupportedModelError" and "blk.0.ffn_up.weight" in text
    assert hub.sent < 1 << 20


def test_hostile_headers(hub: Hub, failing: Any, model: bytes) -> None:
    huge = model[:16] + b"\xff" * 7 + b"\0" + model[24:]
    hub.files = {"bad.gguf": huge}
    assert "key count" in failing()[1]
    hub.files = {"bad.gguf": b"<html>no model</html>" * 1000}
    assert failing()[0] == "ModelFormatError"
    hub.files = {"bad.gguf": b""}
    assert failing()[0] == "ModelFormatError"
    assert hub.sent < 2 << 20


@pytest.mark.parametrize(
    "fault, told",
    [
        ({"token": "right"}, "none of that name, or a private one"),
        ({"gated": True}, "accept its conditions at https://huggingface.co/o/r"),
        ({"unknown": ("v9",)}, "revision 'v9'"),
        ({"commit": "../../x"}, "hexadecimal"),
        ({"statuses": [500] * 9}, "status 500"),
        ({"statuses": [404]}, "repository o/r"),
    ],
)
def test_refusals(hub: Hub, failing: Any, fault: dict[str, Any], told: str) -> None:
    for name, value in fault.items():
        setattr(hub, name, value)
    kind, text = failing(revision="v9" if "unknown" in fault else None, token="wrong")
    assert kind == "Error" and told in text


def test_cache_that_cannot_be_written(hub: Hub, served: tuple[Hub, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    kind, text = served[1]("o/r", cache_dir=str(tmp_path / "file"))
    assert kind == "Error" and str(tmp_path / "file") in text and "set HF_HOME or cache_dir" in text


def test_names_that_leave_the_repository_are_no_files(hub: Hub, failing: Any, model: bytes) -> None:
    hub.files = {"../../evil-Q8_0.gguf": model, "/etc/evil-Q4_0.gguf": model}
    assert "expected a GGUF model" in failing()[1]


def test_globs(hub: Hub, failing: Any, model: bytes) -> None:
    hub.files = {"a-Q8_0.gguf": model, "b-Q8_0.gguf": model}
    assert failing("*Q8_0*") == ("ValueError", "[hub] files of o/r: expected one GGUF model that fits '*Q8_0*', got 2 "
                                 "(a-Q8_0.gguf, b-Q8_0.gguf); name one of them")  # fmt: skip
    assert "none among a-Q8_0.gguf, b-Q8_0.gguf" in failing("Q6_K")[1]
    assert hub.sent == 0


def test_too_small_a_disk(hub: Hub, served: tuple[Hub, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hotset import hub_files

    with pytest.raises(hub_files.Error, match="expected 1048576.0 GiB free"):
        hub_files.check_room(tmp_path / "not" / "yet", 1 << 50)
    hub_files.check_room(tmp_path / "not" / "yet", 1)


def test_model_of_the_hub_runs(hub: Hub, three: dict[str, bytes], tmp_path: Path) -> None:
    hub.files = three
    code = (
        "import hotset, sys\n"
        "model = hotset.Model.from_pretrained('o/r', n_threads=1)\n"
        "print(model.generate('Once upon', max_tokens=8, temperature=0) == "
        "hotset.Model(n_threads=1).generate('Once upon', max_tokens=8, temperature=0))\n"
        "from hotset import cli\n"
        "sys.exit(cli.main(['run', '-hf', 'o/r', '-p', 'Once upon', '-n', '4', '--temp', '0']))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], env=hub.env(tmp_path), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("True")


def test_what_a_judge_asks_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from hotset import hub_judge
    from hotset.hub_files import Repository

    asked: list[int] = []
    needs = [5_000_000, 5_000_001, 0]

    class Start:
        def __init__(self, repository: Repository, file: str, n_bytes: int) -> None:
            self.file, self.n_bytes, self.data = file, n_bytes, b""

        def grow(self, n: int) -> None:
            asked.append(n)
            self.data = bytes(max(len(self.data), n))

    class Core:
        @staticmethod
        def judge_starts(starts: Any, activation: str) -> dict[str, Any]:
            assert activation == "relu"
            return {"n_needed": [needs.pop(0)], "type": "llama 70B", "size_bytes": 40 << 30, "memory_bytes": 16 << 30}

    monkeypatch.setattr(hub_judge, "Start", Start)
    monkeypatch.setattr(hub_judge, "_core", Core)
    hub_judge.judge(Repository("o/r", COMMIT), [("m.gguf", 40 << 30)], "relu")
    assert asked == [1 << 19, 5_000_000, 20_000_000]
    assert "llama 70B: 40.0 GiB of weights and 16.0 GiB of memory here" in caplog.text
    asked.clear()
    needs[:] = [300 << 20]  # more than is looked at: no reason to refuse it
    hub_judge.judge(Repository("o/r", COMMIT), [("m.gguf", 40 << 30)], "relu")
    assert asked == [1 << 19]
