"""Files of one repository at one commit: first bytes by range requests, whole files with resume, the cache's layout."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import Error, error_text

# Attempts in a row that bring nothing; the wait before each doubles.
_N_ATTEMPTS = 5
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0
_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 18
_MOST_BYTES = 8 << 30  # of one request: the hub's servers give at most 50 GB at once
_PART = ".hotset.incomplete"
_RETRIED = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Repository:
    """Where files come from and where they go.

    Attributes:
        name: owner/repo.
        commit: 40 hexadecimal digits; all files are of this one state of the repository.
        token: as huggingface_hub takes it.
        cache_dir: None = where huggingface_hub keeps its files.
    """

    name: str
    commit: str
    token: str | bool | None = None
    cache_dir: str | None = None

    @property
    def folder(self) -> Path:
        """The repository's folder in the cache."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        cache = Path(self.cache_dir if self.cache_dir is not None else constants.HF_HUB_CACHE).expanduser()
        return cache / repo_folder_name(repo_id=self.name, repo_type="model")

    def cached(self, file: str) -> Path | None:
        """The file in the cache, where it is there as a whole."""
        path = self.folder / "snapshots" / self.commit / file
        return path if path.is_file() else None

    def url(self, file: str) -> str:
        """Address of a file."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.name, file, revision=self.commit)


class Start:
    """The first bytes of a file of the hub, fetched as far as they are asked for."""

    def __init__(self, repository: Repository, file: str, n_bytes: int) -> None:
        self.file = file
        self.n_bytes = n_bytes
        self.data = b""
        self._repository = repository

    def grow(self, n: int) -> None:
        """Fetches up to n bytes in all."""
        n = min(n, self.n_bytes)
        parts = [self.data]
        n_here = len(self.data)
        if n_here >= n:
            return
        for at, chunk in _chunks(self._repository, self.file, n_here, n):
            parts.append(chunk[max(n_here - at, 0) :])  # a server without ranges begins at 0
            n_here += len(parts[-1])
            if n_here >= n:
                break
        self.data = b"".join(parts)[:n]


def check_room(folder: Path, n_bytes: int) -> None:
    """Raises Error when a disk has less than n_bytes left."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        expected = f"{size_text(n_bytes)} free"
        raise Error(error_text("hub", f"disk of {folder}", expected, size_text(free),
                               "make room, or set HF_HOME or cache_dir to another disk"))  # fmt: skip


def size_text(n_bytes: int) -> str:
    """ "4.1 GiB" """
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def download(repository: Repository, file: str, bar: Any) -> Path:
    """Puts a file into the cache, going on where an earlier call was cut; returns its path there.

    The blob gets its name once all of it is there, so that no partial file is ever taken for a whole one.

    Raises:
        Error: the connection breaks for good, or what comes is not what the hub announced.
    """
    from huggingface_hub import hf_hub_download

    n_bytes, etag = announced(repository, file)
    _put(repository, file, repository.folder / "blobs" / etag, n_bytes, etag, bar)
    # The blob is there; what is left is its name in the snapshot.
    return Path(
        hf_hub_download(
            repository.name,
            file,
            revision=repository.commit,
            token=repository.token,
            cache_dir=repository.cache_dir,
        )
    )


def download_into(repository: Repository, file: str, folder: str, bar: Any) -> Path:
    """The same for a folder of the user, with the notes on it that huggingface_hub keeps there."""
    from huggingface_hub import hf_hub_download

    path = Path(folder) / file
    if not path.exists():
        n_bytes, etag = announced(repository, file)
        _put(repository, file, path, n_bytes, etag, bar)
    # Compares a file that is there already with the hub's, and fetches it when it is another.
    return Path(
        hf_hub_download(
            repository.name, file, revision=repository.commit, token=repository.token, local_dir=folder
        )
    )


def announced(repository: Repository, file: str) -> tuple[int, str]:
    """Size and ETag that the hub states for a file."""
    from huggingface_hub import get_hf_file_metadata

    stated = get_hf_file_metadata(repository.url(file), token=repository.token)
    if stated.etag is None or stated.size is None or not re.fullmatch(r"[\w-][\w.-]*", stated.etag):
        raise Error(error_text("hub", f"file {file}", "its size and hash", "neither", "try again later"))
    return stated.size, stated.etag


def part_bytes(folder: Path) -> int:
    """Bytes of cut downloads in a folder."""
    return sum(path.stat().st_size for path in folder.glob(f"*{_PART}"))


def _put(repository: Repository, file: str, target: Path, n_bytes: int, etag: str, bar: Any) -> None:
    """Fetches a file unless it is there; its name is that of a whole file only."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # With the ETag in its name, a part is never that of another state of the file.
    with _locked(target.with_name(f"{target.name}.{etag[:16]}{_PART}")) as part:
        if not target.exists():  # another process may have finished it meanwhile
            _complete(repository, file, part, n_bytes, bar)
            _check_hash(file, part, etag)
            os.replace(part.name, target)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Any]:
    """Opens a partial file for this process alone; waits while another one has it."""
    with open(path, "a+b") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.getLogger("hotset").warning("another process downloads %s; waiting for it", path.name)
            fcntl.flock(part, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield part
        if path.exists() and path.stat().st_size == 0:
            path.unlink()


def _complete(repository: Repository, file: str, part: Any, n_bytes: int, bar: Any) -> None:
    """Appends to a partial file what it lacks."""
    n_here = os.fstat(part.fileno()).st_size
    if n_here > n_bytes:
        n_here = 0
        part.truncate(0)
    bar.update(n_here)
    if n_here < n_bytes:
        for at, chunk in _chunks(repository, file, n_here, n_bytes):
            if at != n_here:  # a server without ranges begins at 0
                bar.update(at - n_here)
                part.truncate(at)
            part.write(chunk)
            n_here = at + len(chunk)
            bar.update(len(chunk))
            if n_here > n_bytes:
                part.truncate(0)
                raise Error(error_text("hub", f"file {file}", f"{n_bytes} bytes", "more", "try again later"))
    part.flush()
    os.fsync(part.fileno())


def _check_hash(file: str, part: Any, etag: str) -> None:
    """Compares a whole file with the SHA-256 that is the ETag of large files."""
    if not re.fullmatch(r"[0-9a-f]{64}", etag):
        return
    digest = hashlib.sha256()
    part.seek(0)
    while chunk := part.read(_CHUNK_BYTES):
        digest.update(chunk)
    if digest.hexdigest() != etag:
        part.truncate(0)
        raise Error(error_text("hub", f"file {file}", f"SHA-256 {etag[:12]}..", f"{digest.hexdigest()[:12]}..",
                               "download it again"))  # fmt: skip


def _chunks(repository: Repository, file: str, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The bytes [begin, end) of a file as (position, bytes), from 0 where the server knows no ranges.

    Goes on after broken connections and busy servers; gives up after some attempts in a row without a byte.
    """
    n_failed, at, farthest = 0, begin, begin
    while True:
        try:
            request_end = min(end, at + _MOST_BYTES)
            for at_chunk, chunk in _request(repository, file, at, request_end):
                yield at_chunk, chunk
                at = at_chunk + len(chunk)
                if at > farthest:
                    farthest, n_failed = at, 0
            if at >= end:
                return
            if at < request_end:
                raise _Cut("the connection was closed")
        except _Cut as cut:
            n_failed += 1
            if n_failed >= _N_ATTEMPTS:
                raise Error(error_text("hub", f"file {file}", f"{end} bytes", f"{at}, then {cut}",
                                       "run it again: it goes on from there")) from cut  # fmt: skip
            time.sleep(min(cut.wait_s or _FIRST_WAIT_S * 2 ** (n_failed - 1), _LONGEST_WAIT_S))


class _Cut(Exception):
    """A request ended early, for a reason that may pass."""

    def __init__(self, reason: object, wait_s: float = 0) -> None:
        super().__init__(str(reason))
        self.wait_s = wait_s


def _request(repository: Repository, file: str, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = build_hf_headers(token=repository.token)
    headers |= {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
    session: Any = get_session()
    address = repository.url(file)
    try:
        with contextlib.ExitStack() as stack:
            if callable(getattr(session, "stream", None)):  # httpx, since huggingface_hub 1.0; in requests a flag
                call = session.stream("GET", address, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S)
            else:
                call = session.get(address, headers=headers, stream=True, timeout=_TIMEOUT_S)
            response = stack.enter_context(call)
            if response.status_code in _RETRIED:
                raise _Cut(f"status {response.status_code}", _seconds(response.headers.get("Retry-After")))
            hf_raise_for_status(response)
            at = _position(file, response, begin)
            pieces = response.iter_raw if hasattr(response, "iter_raw") else response.iter_content
            for piece in pieces(_CHUNK_BYTES):
                yield at, piece
                at += len(piece)
    except (_Cut, Error, GeneratorExit):
        raise
    except Exception as error:
        if not _is_passing(error):
            raise
        raise _Cut(f"{type(error).__name__}: {error}") from error


def _position(file: str, response: Any, begin: int) -> int:
    """Where the bytes of a response begin."""
    if response.status_code != 206:
        return 0
    stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if not stated or int(stated[1]) != begin:
        got = repr(response.headers.get("Content-Range", "")[:60])
        raise Error(error_text("hub", f"range of {file}", f"bytes from {begin}", got, "try again later"))
    return begin


def _seconds(text: str | None) -> float:
    return float(text) if text and re.fullmatch(r"\d{1,5}", text) else 0


def _is_passing(error: Exception) -> bool:
    """Whether an error is one of the connection; their classes depend on the client that huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, (HfHubHTTPError, OfflineModeIsEnabled)):
        return False
    names = {base.__name__ for base in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "Timeout", "ChunkedEncodingError", "TimeoutError"})
