"""Finds model files: on the Hugging Face hub, in its cache, in local folders. huggingface_hub is imported on use.

What a repository has is decided here, how it is fetched in hub_files.py, whether it will run in hub_judge.py.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import Error, error_text
from .hub_files import Repository, announced, check_room, download, download_into, part_bytes

PREFIX = "hf:"

# Types taken without being asked for, best first: the small ones that this version runs.
PREFERRED_TYPES = ("Q4_K_M", "Q4_0", "Q8_0", "BF16", "F16", "F32")

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_NO_MODEL = re.compile(r"(mmproj|mtp)-.*|.*\.hotset\.gguf", re.IGNORECASE)


def resolve(path: str | os.PathLike[str], **options: Any) -> Path:
    """Returns the local file for what `-m` takes: a path, or "hf:owner/repo[@revision][:file-glob]", which is fetched.

    Options are those of `fetch`.
    """
    text = os.fspath(path)
    if not text.startswith(PREFIX):
        return Path(text)
    repo, revision, filename = split_spec(text)
    return fetch(repo, filename, **_one_revision(revision, options))


def resolve_pretrained(
    repo_or_path: str | os.PathLike[str],
    filename: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    activation: str = "",
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
    repo, named, glob = split_spec(text)
    if not _REPO.fullmatch(repo):
        expected = "an existing path or owner/repo"
        raise Error(error_text("from_pretrained", "model", expected, repr(text), "check the name"))
    if glob and filename:
        raise ValueError(f"[from_pretrained] filename: expected one, got {glob!r} and {filename!r}; pass it once")
    return fetch(
        repo,
        filename or glob,
        token=token,
        cache_dir=cache_dir,
        local_dir=local_dir,
        local_files_only=local_files_only,
        activation=activation,
        **_one_revision(named, {"revision": revision}),
    )


def split_spec(spec: str) -> tuple[str, str | None, str | None]:
    """Splits "[hf:]owner/repo[@revision][:file-glob]" into repository, revision and glob."""
    repo, _, glob = spec.removeprefix(PREFIX).partition(":")
    repo, _, revision = repo.partition("@")
    return repo, revision or None, glob or None


def _one_revision(named: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The options with the revision that the name has."""
    if named and options.get("revision"):
        got = f"{named!r} and {options['revision']!r}"
        raise ValueError(error_text("hub", "revision", "one", got, "give it once"))
    return {**options, "revision": named} if named else options


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
    activation: str = "",
    judged: bool = True,
) -> Path:
    """Downloads one model with all its shards and its sidecar, with a progress bar; returns its first file.

    What is in the cache is not downloaded again; without a network the cache alone is searched. Of a model that would
    not load only the header is fetched.

    Args:
        repo: owner/repo.
        filename: see `choose`.
        revision: branch, tag or commit; None = "main".
        token: access token; True or None = the saved one or HF_TOKEN, False = none.
        cache_dir: where downloads are kept; None = where huggingface_hub keeps them.
        local_dir: put the files here instead of the cache.
        local_files_only: ask no server.
        activation: overrides the file's, as for `Model`.
        judged: whether the model must be one that loads.

    Raises:
        ValueError: not exactly one model fits `filename`, or `repo` is no name of a repository.
        ModelFormatError, UnsupportedModelError: the model would not load.
        Error: the repository cannot be read, a shard is missing, the disk is too small, the connection breaks.
    """
    try:
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise Error(error_text("hub", "package huggingface_hub", "it installed", str(error), "install it")) from error
    cache = os.fspath(cache_dir) if cache_dir is not None else None
    target = os.fspath(local_dir) if local_dir is not None else None
    try:
        found = None if local_files_only else _remote(repo, revision, token)
        if found is None:
            folder = Path(target) if target is not None else _cached_folder(repo, revision, cache)
            names = [file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf")]
            return folder / choose(names, filename, f"{repo} in the cache")[0]
        commit, stated = found
        shards = choose(list(stated), filename, repo)
        source = Repository(repo, commit, token, cache)
        wanted = [name for name in [*shards, _sidecar(shards[0])] if name in stated]
        if target is not None:
            missing = [name for name in wanted if not (Path(target) / name).is_file()]
        else:
            missing = [name for name in wanted if source.cached(name) is None]
        # Mirrors may list names alone.
        sizes = {name: _size(source, name, stated[name]) for name in (*shards, *missing)} if missing else {}
        if judged and missing:
            from .hub_judge import judge

            judge(source, [(name, sizes[name]) for name in shards], activation)
        fetched = {name: sizes[name] for name in missing}
        if target is not None:
            return _into_folder(source, wanted, fetched, target)
        return _into_cache(source, revision, wanted, fetched)
    except HFValidationError as error:
        raise ValueError(error_text("hub", "repository", "owner/repo", repr(repo), "check the name")) from error
    except (Error, ValueError):
        raise
    except Exception as error:  # whatever the hub's client raises: HTTP, connection and disk errors
        raise _unreadable(repo, revision, error) from error


def _into_folder(source: Repository, names: Sequence[str], missing: Mapping[str, int], folder: str) -> Path:
    """Fetches files into a folder of the user; those that are there are compared with the hub's."""
    with _progress(missing, Path(folder)) as bar:
        for name in names:
            download_into(source, name, folder, bar)
    return Path(folder) / names[0]


def _progress(missing: Mapping[str, int], folder: Path) -> Any:
    """A bar for what is to be fetched, on a terminal; checks that the disk has room for it."""
    from huggingface_hub.utils import tqdm

    total = sum(missing.values())
    if missing:
        check_room(folder, total - part_bytes(folder))
    description = PurePosixPath(next(iter(missing), "")).name
    if len(missing) > 1:
        description += f" and {len(missing) - 1} more"
    hidden = None if missing else True  # None: where stderr is no terminal
    return tqdm(total=total, desc=description, unit="B", unit_scale=True, unit_divisor=1024, disable=hidden)


def _into_cache(source: Repository, revision: str | None, names: Sequence[str], missing: Mapping[str, int]) -> Path:
    """Fetches what is missing; returns the first file. Then the cache knows which commit the revision is."""
    with _progress(missing, source.folder / "blobs") as bar:
        for name in missing:
            download(source, name, bar)
    name = revision or "main"
    if name != source.commit and ".." not in name:
        reference = source.folder / "refs" / name
        if not reference.is_file() or reference.read_text() != source.commit:
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(source.commit)
    return source.folder / "snapshots" / source.commit / names[0]


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


def _remote(repo: str, revision: str | None, token: str | bool | None) -> tuple[str, dict[str, int | None]] | None:
    """Commit of a revision, and its files with their sizes where they are stated; None when no server answers, so that the cache may."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        info = HfApi().model_info(repo, revision=revision, token=token, files_metadata=True, timeout=30)
    except HFValidationError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status != 429 and status < 500:
            raise _unreadable(repo, revision, error) from error
        logging.getLogger("hotset").warning("[hub] status %d of the hub, looking into the cache", status)
        return None
    except Exception as error:  # the class of connection errors depends on the client's version
        logging.getLogger("hotset").info("hub not reached (%s), looking into the cache", type(error).__name__)
        return None
    if not info.sha or not re.fullmatch(r"[0-9a-f]{7,64}", info.sha):
        raise Error(error_text("hub", f"commit of {repo}", "hexadecimal digits", repr(info.sha), "try again later"))
    return info.sha, {file.rfilename: file.size for file in info.siblings or () if _is_inside(file.rfilename)}


def _size(source: Repository, name: str, stated: int | None) -> int:
    return announced(source, name)[0] if stated is None else stated


def _is_inside(name: str) -> bool:
    """Whether a name from the hub is one of a file inside the repository."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts


def _cached_folder(repo: str, revision: str | None, cache_dir: str | None) -> Path:
    """The folder with the files of a revision that are in the cache."""
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo)
    name = revision or "main"
    cache = Repository(repo, name, cache_dir=cache_dir).folder
    reference = cache / "refs" / name
    folder = cache / "snapshots" / (reference.read_text().strip() if reference.is_file() else name)
    if not folder.is_dir():
        what = f"repository {repo}" + (f" at {revision}" if revision else "")
        raise Error(error_text("hub", what, "the hub, or files in the cache", "no connection and nothing in the cache",
                               "go online (and unset HF_HUB_OFFLINE), or name a local file"))  # fmt: skip
    return folder


def _unreadable(repo: str, revision: str | None, error: Exception) -> Error:
    """What an error of the hub's client means to the user."""
    kinds = {base.__name__ for base in type(error).__mro__}
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0] if lines else 'no details'}"
    remedy = "check the name, the network, and for private models the token (HF_TOKEN)"
    what, expected = f"repository {repo}", "one that can be read"
    if "GatedRepoError" in kinds:
        expected, reason = "access to it", "a gated model"
        remedy = f"accept its conditions at https://huggingface.co/{repo} and pass your token (HF_TOKEN)"
    elif "RevisionNotFoundError" in kinds:
        expected, reason, remedy = f"revision {revision!r}", "none of that name", "check the name"
    elif "RepositoryNotFoundError" in kinds:
        expected, reason = "one that exists", "none of that name, or a private one"
        remedy = "check the name, and for private models the token (HF_TOKEN)"
    elif isinstance(error, OSError) and error.errno and error.filename:  # of the disk
        what, expected, reason = f"file {os.fspath(error.filename)}", "one that can be written", str(error.strerror)
        remedy = "make room, or set HF_HOME or cache_dir to another folder"
    return Error(error_text("hub", what, expected, reason, remedy))
