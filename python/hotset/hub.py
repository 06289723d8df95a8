"""Finds model files: on the Hugging Face hub, in its cache, in local folders. huggingface_hub is imported on use."""

from __future__ import annotations

import fnmatch
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from .errors import Error, error_text

PREFIX = "hf:"

# Types taken without being asked for, best first: the small ones that this version runs.
PREFERRED_TYPES = ("Q4_0", "Q8_0", "BF16", "F16", "F32")

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_NO_MODEL = re.compile(r"(mmproj|mtp)-.*|.*\.hotset\.gguf", re.IGNORECASE)


def resolve(path: str | os.PathLike[str]) -> Path:
    """Returns the local file for what `-m` takes: a path, or "hf:owner/repo[:file-glob]", which is fetched."""
    text = os.fspath(path)
    if not text.startswith(PREFIX):
        return Path(text)
    repo, filename = split_spec(text)
    return fetch(repo, filename)


def resolve_pretrained(
    repo_or_path: str | os.PathLike[str],
    filename: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Returns the local file for what `Model.from_pretrained` takes; what exists locally needs no hub.

    Raises:
        ValueError: no file, or more than one, fits `filename`; the message lists what there is.
        Error: neither a local path nor a repository that can be read.
    """
    text = os.fspath(repo_or_path)
    path = Path(text)
    if path.is_dir():
        names = [file.relative_to(path).as_posix() for file in path.rglob("*.gguf")]
        return path / choose(names, filename, text)[0]
    if path.exists():
        return path
    repo, glob = split_spec(text)
    if not _REPO.fullmatch(repo):
        expected = "an existing path or owner/repo"
        raise Error(error_text("from_pretrained", "model", expected, repr(text), "check the name"))
    if glob and filename:
        raise ValueError(f"[from_pretrained] filename: expected one, got {glob!r} and {filename!r}; pass it once")
    return fetch(
        repo,
        filename or glob,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_dir=local_dir,
        local_files_only=local_files_only,
    )


def split_spec(spec: str) -> tuple[str, str | None]:
    """Splits "[hf:]owner/repo[:file-glob]" into repository and glob."""
    repo, _, glob = spec.removeprefix(PREFIX).partition(":")
    return repo, glob or None


def choose(names: Sequence[str], wanted: str | None, where: str) -> list[str]:
    """Chooses one model among file names; returns all its shards, the first one first.

    `wanted` is a file name, a glob (case does not matter), or a type such as "Q8_0". Without it files that come with a
    hot/cold sidecar (`NAME.hotset.gguf`) go first, then those of `PREFERRED_TYPES`, then the first by name. Projectors
    (`mmproj-*`, `mtp-*`) and sidecars are never chosen unless named exactly.

    Args:
        names: paths inside the repository or folder, with "/".
        wanted: see above.
        where: repository or folder, for messages.

    Raises:
        ValueError: not exactly one model fits; the message lists what there is.
    """
    models = _models(names, wanted)
    fitting = [shards for shards in models.values() if wanted is None or _fits(shards, wanted)]
    if wanted is None and fitting:
        return _complete(min(fitting, key=lambda shards: _rank(shards[0], names)), where)
    if len(fitting) == 1:
        return _complete(fitting[0], where)
    listed = [shards[0] for shards in (fitting or models.values())]
    shown = ", ".join(listed[:20]) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")
    expected = f"one GGUF model that fits {wanted!r}" if wanted else "a GGUF model"
    if fitting:
        got, remedy = f"{len(fitting)} ({shown})", "name one of them"
    elif models:
        got, remedy = f"none among {shown}", "name one of these"
    else:
        got, remedy = f"{len(names)} other files", "convert a checkpoint with `hotset convert`"
    raise ValueError(error_text("hub", f"files of {where}", expected, got, remedy))


def fetch(
    repo: str,
    filename: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Downloads one model with all its shards and its sidecar, with a progress bar; returns its first file.

    What is in the cache is not downloaded again; without a network the cache alone is searched.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise Error(error_text("hub", "package huggingface_hub", "it installed", str(error), "install it")) from error
    cache = os.fspath(cache_dir) if cache_dir is not None else None
    target = os.fspath(local_dir) if local_dir is not None else None
    try:
        names = None if local_files_only else _remote_names(repo, revision, token)
        if names is None:
            folder = _cached_folder(repo, revision, token, cache, target)
            names = [file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf")]
            return folder / choose(names, filename, f"{repo} in the cache")[0]
        shards = choose(names, filename, repo)
        sidecar = _sidecar(shards[0])
        paths = [
            hf_hub_download(repo, name, revision=revision, token=token, cache_dir=cache, local_dir=target)
            for name in [*shards, *([sidecar] if sidecar in names else [])]
        ]
        return Path(paths[0])
    except HFValidationError as error:
        raise ValueError(error_text("hub", "repository", "owner/repo", repr(repo), "check the name")) from error
    except (Error, ValueError):
        raise
    except Exception as error:  # whatever the hub's client raises: HTTP, connection and disk errors
        raise _unreadable(repo, error) from error


def _models(names: Sequence[str], wanted: str | None) -> dict[str, list[str]]:
    """Groups GGUF names by model: shards of one file belong together."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if not name.lower().endswith(".gguf") or (_NO_MODEL.fullmatch(PurePosixPath(name).name) and name != wanted):
            continue
        shard = _SHARD.fullmatch(name)
        models.setdefault(f"{shard[1]}-of-{shard[3]}" if shard else name, []).append(name)
    return models


def _fits(shards: Sequence[str], wanted: str) -> bool:
    if wanted in shards:
        return True
    name = shards[0]
    if any(char in wanted for char in "*?["):
        names = [part.lower() for shard in shards for part in (shard, PurePosixPath(shard).name)]
        return any(fnmatch.fnmatchcase(part, wanted.lower()) for part in names)
    return _has_type(name, wanted)


def _has_type(name: str, type_name: str) -> bool:
    """Whether the name has this type as a word, so that Q4_0 is not found in Q4_0_4_4."""
    return re.search(rf"(^|[-./]){re.escape(type_name)}($|[-./])", name, re.IGNORECASE) is not None


def _rank(name: str, names: Sequence[str]) -> tuple[bool, int, str]:
    types = [i for i, type_name in enumerate(PREFERRED_TYPES) if _has_type(name, type_name)]
    return (_sidecar(name) not in names, min(types, default=len(PREFERRED_TYPES)), name)


def _sidecar(name: str) -> str:
    """`model.hotset.gguf` for `model.gguf`."""
    return f"{name[: -len('.gguf')]}.hotset.gguf"


def _complete(shards: list[str], where: str) -> list[str]:
    """Returns the shards if all are there."""
    match = _SHARD.fullmatch(shards[0])
    n_shards = int(match[3]) if match else 1
    if len(shards) != n_shards:
        what = f"shards of {shards[0]} in {where}"
        raise Error(error_text("hub", what, n_shards, len(shards), "download all of them"))
    return shards


def _remote_names(repo: str, revision: str | None, token: str | bool | None) -> list[str] | None:
    """Lists a repository; None when there is no connection, so that the cache may answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return list(HfApi().list_repo_files(repo, revision=revision, token=token))
    except HFValidationError:
        raise
    except HfHubHTTPError as error:
        raise _unreadable(repo, error) from error
    except Exception as error:  # the class of connection errors depends on the client's version
        logging.getLogger("hotset").info("hub not reached (%s), looking into the cache", type(error).__name__)
        return None


def _cached_folder(
    repo: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | None,
    local_dir: str | None,
) -> Path:
    """The folder with a repository's files that is here already."""
    if local_dir is not None:
        return Path(local_dir)
    from huggingface_hub import snapshot_download

    # No pattern fits any file: only the folder of the revision is looked up.
    return Path(
        snapshot_download(
            repo, revision=revision, token=token, cache_dir=cache_dir, local_files_only=True, allow_patterns=[]
        )
    )


def _unreadable(repo: str, error: Exception) -> Error:
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0] if lines else 'no details'}"
    remedy = "check the name, the network, and for private models the token (HF_TOKEN)"
    return Error(error_text("hub", f"repository {repo}", "one that can be read", reason, remedy))
