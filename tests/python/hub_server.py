"""A server on this machine that behaves like the Hugging Face hub: one repository and the faults one asks for."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The repository "o/r" and how the server treats it.

    Attributes:
        files: name -> bytes.
        commit: of every revision but those of `unknown`.
        token: what requests must bear, "" = anyone may read.
        gated: whether the conditions of the model are to be accepted first.
        ranges: whether parts of files can be had.
        cuts: of the next requests for data: bytes after which the connection is closed, None = whole.
        statuses: of the next requests for data: status in place of an answer.
        list_status: of the list of files.
        lists_sizes: whether that states sizes.
        announced_size: in place of the true size of files.
        etag: in place of the hash of files.
        requests: "METHOD path" of all, with the token.
        sent: bytes of files that were sent.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.commit = COMMIT
        self.token = ""
        self.gated = False
        self.ranges = True
        self.unknown: tuple[str, ...] = ()
        self.cuts: list[int | None] = []
        self.statuses: list[int] = []
        self.list_status = 200
        self.lists_sizes = True
        self.announced_size: int | None = None
        self.etag: str | None = None
        self.requests: list[str] = []
        self.ranges_asked: list[str] = []
        self.sent = 0

    def env(self, cache: Path) -> dict[str, str]:
        """Environment of a process that knows this hub only, with its cache."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        return env | {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def etag_of(self, name: str) -> str:
        return self.etag or hashlib.sha256(self.files[name]).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        bearer = self.headers.get("authorization", "")
        hub.requests.append(f"{self.command} {path} {bearer}".strip())
        if path.startswith("/cdn/"):
            return self.data(path.removeprefix("/cdn/"))
        if not re.match(r"/(api/models/)?o/r(/|$)", path):
            return self.send(404, error="RepoNotFound")
        if hub.token and bearer != f"Bearer {hub.token}":
            return self.send(401, error="RepoNotFound")
        if hub.gated and "/resolve/" in path:
            return self.send(403, error="GatedRepo", message="Access to model o/r is restricted.")
        if any(f"/{revision}" in path for revision in hub.unknown):
            return self.send(404, error="RevisionNotFound")
        if path.startswith("/api/models/"):
            if hub.list_status != 200:
                return self.send(hub.list_status)
            rows = [
                {"rfilename": name, **({"size": len(data), "blobId": "0" * 40} if hub.lists_sizes else {})}
                for name, data in hub.files.items()
            ]
            asked = path.rpartition("/")[2]
            commit = asked if re.fullmatch("[0-9a-f]{40}", asked) else hub.commit
            return self.send(200, json.dumps({"id": "o/r", "sha": commit, "siblings": rows}).encode())
        name = path.split("/", 5)[-1]
        if name not in hub.files:
            return self.send(404, error="EntryNotFound")
        size = len(hub.files[name]) if hub.announced_size is None else hub.announced_size
        headers = {
            "Location": f"http://localhost:{hub.port}/cdn/{name}",
            "X-Repo-Commit": hub.commit,
            "X-Linked-Size": str(size),
            "X-Linked-ETag": f'"{hub.etag_of(name)}"',
        }
        return self.send(302, headers=headers)

    def data(self, name: str) -> None:
        """Bytes of a file, from another host than the list."""
        hub = self.hub
        if hub.statuses:
            return self.send(hub.statuses.pop(0), headers={"Retry-After": "0"})
        body = hub.files[name]
        asked = self.headers.get("range", "")
        hub.ranges_asked.append(asked)
        status, headers = 200, {"ETag": f'"{hub.etag_of(name)}"'}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        if match and hub.ranges:
            begin, end = int(match[1]), min(int(match[2] or len(body)) + 1, len(body))
            status, headers["Content-Range"] = 206, f"bytes {begin}-{end - 1}/{len(body)}"
            body = body[begin:end]
        cut = hub.cuts.pop(0) if hub.cuts else None
        return self.send(status, body, headers, cut=cut, is_data=True)

    def send(
        self,
        status: int,
        body: bytes = b"{}",
        headers: dict[str, str] | None = None,
        *,
        cut: int | None = None,
        is_data: bool = False,
        error: str = "",
        message: str = "",
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", message or error)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        part = body if cut is None else body[:cut]
        try:
            for begin in range(0, len(part), 1 << 16):
                self.wfile.write(part[begin : begin + (1 << 16)])
                if is_data:
                    self.hub.sent += len(part[begin : begin + (1 << 16)])
        except OSError:  # the client has enough
            self.close_connection = True
        if cut is not None:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass
