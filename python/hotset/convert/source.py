"""Finds the checkpoint's folder: a local one, or a download from the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import Error, ModelFormatError, error_text

kWanted = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]
# Sub-folders hold other formats of the same weights (onnx/, original/), and so does Mistral's consolidated file.
kUnwanted = ["*/*", "consolidated*.safetensors"]


def is_powerinfer(source: str | Path) -> bool:
    """Whether this is a file with PowerInfer's magic."""
    if not Path(source).is_file():
        return False
    with open(source, "rb") as file:
        return file.read(4) == b"PWRI"


def checkpoint_folder(source: str | Path) -> tuple[Path, str]:
    """Returns (folder, name of the model) for a folder or a hub repository `owner/name` (also `hf:owner/name`).

    Raises:
        ModelFormatError: `source` exists but is no folder.
        Error: there is no such folder or repository, or the hub cannot be reached.
    """
    path = Path(source)
    if path.is_dir():
        return path, path.resolve().name
    if path.exists():
        expected, got = "a checkpoint folder or a PowerInfer file", f"the file {path.name!r}"
        raise ModelFormatError(error_text("convert", "source", expected, got, "name the folder that holds config.json"))
    repo = str(source).removeprefix("hf:")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        raise Error(error_text("convert", "source", "a folder or a hub repository owner/name", repr(str(source)),
                               "check the path"))  # fmt: skip
    return _download(repo), repo.split("/")[1]


def _download(repo: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise Error(error_text("convert", "package huggingface_hub", "installed", "not installed",
                               "run: pip install huggingface_hub")) from None  # fmt: skip
    try:
        return Path(snapshot_download(repo, allow_patterns=kWanted, ignore_patterns=kUnwanted))
    except Exception as error:  # the hub raises a dozen kinds, of its own and of its transport
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise Error(error_text("convert", f"repository {repo}", "a download", reason,
                               "check the name, the network and your access token")) from error  # fmt: skip
