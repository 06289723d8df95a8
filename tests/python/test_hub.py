"""Choosing and fetching model files: rules on names, local folders, and a hub on this machine."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import hotset
from hotset import cli, hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = [f"big-Q8_0-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    "names, wanted, chosen",
    [
        (["m-Q8_0.gguf", "README.md"], None, ["m-Q8_0.gguf"]),
        (["m-F16.gguf", "m-Q8_0.gguf", "m-Q4_0.gguf", "m-Q2_K.gguf"], None, ["m-Q4_0.gguf"]),
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
    assert hub.split_spec("hf:o/r") == ("o/r", None)
    assert hub.split_spec("o/r:*Q8*") == ("o/r", "*Q8*")


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Answers what the client asks for: the list of a repository's files, and each file with its hash."""

    files: dict[str, bytes] = {}
    requests: list[str] = []

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path} {self.headers.get('authorization', '')}".strip())
        if path.startswith("/api/models/o/r/tree/"):
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{i:040x}"}
                for i, (name, data) in enumerate(self.files.items())
            ]
            return self.send(200, json.dumps(rows).encode(), with_body)
        if path.startswith("/api/models/o/r"):
            rows = [{"rfilename": name} for name in self.files]
            return self.send(200, json.dumps({"id": "o/r", "sha": COMMIT, "siblings": rows}).encode(), with_body)
        name = path.split("/", 5)[-1]
        if path.startswith("/o/r/resolve/") and name in self.files:
            return self.send(200, self.files[name], with_body)
        return self.send(404, b"{}", with_body)

    def send(self, status: int, body: bytes, with_body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hash(body) & 0xFFFFFFFF:08x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub_env(tmp_path: Path):
    """Environment of a process whose hub is a server in this one, with an empty cache."""
    FakeHub.files = {"README.md": b"r", "m-Q8_0.gguf": b"eight" * 100, "m-Q4_0.gguf": b"four" * 100}
    FakeHub.requests = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    env |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    yield env
    server.shutdown()
    server.server_close()


def run_python(code: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


FETCH = "from hotset import hub; print(hub.resolve_pretrained({args}), end='')"


def fetched(args: str, env: dict[str, str]) -> Path:
    result = run_python(FETCH.format(args=args), env)
    assert result.returncode == 0, result.stderr
    return Path(result.stdout)


def test_fetch_then_use_the_cache(hub_env: dict[str, str]) -> None:
    path = fetched("'o/r', '*Q8_0.gguf', token='hf_secret'", hub_env)
    assert path.read_bytes() == FakeHub.files["m-Q8_0.gguf"]
    assert path.name == "m-Q8_0.gguf"
    assert any(line.endswith("Bearer hf_secret") for line in FakeHub.requests)
    FakeHub.requests.clear()
    assert fetched("'o/r', local_files_only=True", hub_env) == path
    assert fetched("'hf:o/r:Q8_0'", hub_env | {"HF_HUB_OFFLINE": "1"}) == path
    assert FakeHub.requests == []
    assert fetched("'o/r'", hub_env | {"HF_ENDPOINT": "http://127.0.0.1:9"}) == path  # nobody listens there


def test_fetch_all_shards_and_the_sidecar(hub_env: dict[str, str], tmp_path: Path) -> None:
    FakeHub.files = {name: name.encode() for name in [*SHARDS, "m-F16.gguf"]}
    path = fetched(f"'o/r', 'Q8_0', local_dir={str(tmp_path / 'here')!r}", hub_env)
    assert path == tmp_path / "here" / SHARDS[0]
    assert sorted(file.name for file in path.parent.glob("*.gguf")) == SHARDS
    FakeHub.files = {name: name.encode() for name in ["m-Q8_0.gguf", "m-Q8_0.hotset.gguf"]}
    assert fetched("'o/r'", hub_env).with_name("m-Q8_0.hotset.gguf").exists()


def test_revision_and_cache_dir_reach_the_hub(hub_env: dict[str, str], tmp_path: Path) -> None:
    path = fetched(f"'o/r', revision='v2', cache_dir={str(tmp_path / 'cache')!r}", hub_env)
    assert path.is_relative_to(tmp_path / "cache")
    assert any("/v2" in line for line in FakeHub.requests)


@pytest.mark.parametrize(
    "args, kind, told",
    [
        ("'o/missing'", "hotset.errors.Error", "[hub] repository o/missing"),
        ("'o/r', 'Q6_K'", "ValueError", "none among m-Q4_0.gguf, m-Q8_0.gguf"),
        ("'o/r', local_files_only=True", "hotset.errors.Error", "[hub] repository o/r"),
        ("'hf:-bad-/r'", "ValueError", "[hub] repository"),
    ],
)
def test_fetch_errors_are_typed(hub_env: dict[str, str], args: str, kind: str, told: str) -> None:
    result = run_python(FETCH.format(args=args), hub_env)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith(kind)]
    assert lines and told in lines[-1], result.stderr


def test_command_line_gets_local_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "fetch", lambda repo, glob: Path(f"/cache/{repo}/{glob}"))
    replaced = cli.with_local_models(["run", "-hf", "o/r:Q8_0", "-p", "-hf", "-n", "3"])
    assert replaced == ["run", "-m", "/cache/o/r/Q8_0", "-p", "-hf", "-n", "3"]
    assert cli.with_local_models(["bench", "-m", "hf:o/r"]) == ["bench", "-m", "/cache/o/r/None"]
    assert cli.with_local_models(["bench", "--model=hf:o/r"]) == ["bench", "--model", "/cache/o/r/None"]
    plain = ["run", "-m", "file.gguf", "--prompt", "hf:x", "-m"]
    assert cli.with_local_models(plain) == plain
