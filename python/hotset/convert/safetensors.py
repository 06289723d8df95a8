"""Reader of safetensors files: little-endian u64 header length, JSON header, then the tensors' bytes, mapped.

Format: https://github.com/huggingface/safetensors (README, "Format"). Every length, offset, shape and dtype is checked
when the file is opened, so that reading a tensor cannot leave the file. Nothing is executed.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError, error_text
from .json_file import parse_object, read_object

kMaxHeaderBytes = 100_000_000
kMaxDims = 8
kRemedy = "download the checkpoint again"
# Element sizes by dtype name. Only the floating types below kFloatTypes can become weights; the others may lie beside.
kElementBytes = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I64": 8, "I32": 4, "I16": 2,
    "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}  # fmt: skip
kFloatTypes = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the header; `begin` and `end` are byte positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A mapped safetensors file; a context manager. Arrays handed out are views that keep the mapping alive."""

    def __init__(self, path: Path) -> None:
        """Maps the file and checks its header.

        Raises:
            ModelFormatError: the file is truncated or contradicts itself.
        """
        self.path_ = path
        try:
            if path.exists() and not path.is_file():
                raise self._error("file", "a regular file", "something else")
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                if size < 8:
                    raise self._error("file size", "at least 8 bytes", f"{size} bytes")
                self.map_ = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise self._error("file", "a readable file", error.strerror or type(error).__name__) from None
        try:
            self.entries = self._read_header()
        except BaseException:
            self.map_.close()
            raise

    def _error(self, what: str, expected: object, got: object) -> ModelFormatError:
        return ModelFormatError(error_text(self.path_.name, what, expected, got, kRemedy))

    def _read_header(self) -> dict[str, TensorEntry]:
        (length,) = struct.unpack_from("<Q", self.map_, 0)
        limit = min(kMaxHeaderBytes, len(self.map_) - 8)
        if length > limit:
            raise self._error("header length", f"at most {limit} bytes", length)
        header = parse_object(self.map_[8 : 8 + length], f"{self.path_.name} header")
        header.pop("__metadata__", None)
        entries = {name: self._check_entry(name, value, 8 + length) for name, value in header.items()}
        self._check_cover(entries, 8 + length)
        return entries

    def _check_entry(self, name: str, value: Any, data_begin: int) -> TensorEntry:
        if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
            raise self._error(f"tensor {name!r:.80}", "dtype, shape and data_offsets", repr(value)[:80])
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in kElementBytes:
            raise self._error(f"tensor {name!r:.80} dtype", "one of " + " ".join(kElementBytes), repr(dtype)[:80])
        if not _is_counts(shape) or len(shape) > kMaxDims:
            raise self._error(f"tensor {name!r:.80} shape", f"at most {kMaxDims} counts", repr(shape)[:80])
        if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._error(f"tensor {name!r:.80} data_offsets", "[begin, end]", repr(offsets)[:80])
        n_bytes = kElementBytes[dtype]
        for count in shape:
            n_bytes *= count
        if offsets[1] - offsets[0] != n_bytes:
            raise self._error(f"tensor {name!r:.80} size", f"{n_bytes} bytes", offsets[1] - offsets[0])
        if data_begin + offsets[1] > len(self.map_):
            got = f"{len(self.map_) - data_begin} bytes of data"
            raise self._error(f"tensor {name!r:.80} end", f"{offsets[1]} bytes of data", got)
        return TensorEntry(dtype, tuple(shape), data_begin + offsets[0], data_begin + offsets[1])

    def _check_cover(self, entries: dict[str, TensorEntry], data_begin: int) -> None:
        """Checks that the tensors cover the data without holes and overlaps, as the format demands."""
        position = data_begin
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != position:
                problem = "overlap with another tensor" if entry.begin < position else "hole before it"
                raise self._error(f"tensor {name!r:.80} begin", position - data_begin,
                                  f"{entry.begin - data_begin} ({problem})")  # fmt: skip
            position = entry.end
        if position != len(self.map_):
            raise self._error("end of data", f"{position} bytes of file", f"{len(self.map_)} bytes")

    def raw(self, name: str) -> np.ndarray:
        """Returns the tensor as a read-only view; BF16 comes as uint16 bit patterns.

        Raises:
            UnsupportedModelError: the dtype is no floating type that can become a weight.
        """
        entry = self.entries[name]
        if entry.dtype not in kFloatTypes:
            expected, remedy = "F32, F16, BF16 or F64", "convert the original, unquantised checkpoint"
            raise UnsupportedModelError(error_text(self.path_.name, f"dtype of {name}", expected, entry.dtype, remedy))
        n_elements = (entry.end - entry.begin) // kElementBytes[entry.dtype]
        flat = np.frombuffer(self.map_, dtype=kFloatTypes[entry.dtype], count=n_elements, offset=entry.begin)
        return flat.reshape(entry.shape)

    def release_pages(self) -> None:
        """Lets go of the pages read so far, so that resident memory stays small; they can be read again."""
        if hasattr(self.map_, "madvise"):
            self.map_.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmaps the file, or leaves that to the last array that still looks into it."""
        try:
            self.map_.close()
        except BufferError:
            pass


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def to_float32(raw: np.ndarray) -> np.ndarray:
    """Returns float32 values of an array from `SafetensorsFile.raw` (uint16 means BF16 bits)."""
    if raw.dtype == np.uint16:
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.astype(np.float32)


class Checkpoint:
    """The tensors of a checkpoint folder, in one safetensors file or several; a context manager."""

    def __init__(self, folder: Path) -> None:
        """Opens `model.safetensors`, the files of `model.safetensors.index.json`, or the only safetensors file.

        Raises:
            ModelFormatError: a file is damaged, or the index and the files disagree.
            UnsupportedModelError: the folder holds weights in pickle files only.
        """
        self.files_: dict[str, SafetensorsFile] = {}
        self.file_of_: dict[str, SafetensorsFile] = {}
        try:
            index = folder / "model.safetensors.index.json"
            if index.exists() and not (folder / "model.safetensors").exists():
                self._open_index(folder, index)
            else:
                file = self._open(_single_file(folder))
                self.file_of_ = {name: file for name in file.entries}
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> SafetensorsFile:
        if path.name not in self.files_:
            self.files_[path.name] = SafetensorsFile(path)
        return self.files_[path.name]

    def _open_index(self, folder: Path, index: Path) -> None:
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            got = type(weight_map).__name__
            raise ModelFormatError(error_text(index.name, "weight_map", "names and files", got, kRemedy))
        for name, file_name in weight_map.items():
            plain = isinstance(file_name, str) and file_name.endswith(".safetensors")
            if not plain or "/" in file_name or "\\" in file_name or "\0" in file_name:
                expected = "a .safetensors file in the same folder"
                raise ModelFormatError(error_text(index.name, f"file of {name!r:.80}", expected,
                                                  repr(file_name)[:80], kRemedy))  # fmt: skip
            file = self._open(folder / file_name)
            if name not in file.entries:
                raise ModelFormatError(error_text(file_name, f"tensor {name!r:.80}", "present as the index says",
                                                  "absent", kRemedy))  # fmt: skip
            self.file_of_[name] = file

    def __contains__(self, name: str) -> bool:
        return name in self.file_of_

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def names(self) -> list[str]:
        """Returns the names of all tensors."""
        return list(self.file_of_)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, slowest dimension first."""
        return self.file_of_[name].entries[name].shape

    def raw(self, name: str) -> np.ndarray:
        """Returns a view of a tensor; see `SafetensorsFile.raw`."""
        return self.file_of_[name].raw(name)

    def release_pages(self) -> None:
        """Lets go of the mapped pages of all files; see `SafetensorsFile.release_pages`."""
        for file in self.files_.values():
            file.release_pages()

    def close(self) -> None:
        """Closes all files."""
        for file in self.files_.values():
            file.close()


def _single_file(folder: Path) -> Path:
    if (folder / "model.safetensors").exists():
        return folder / "model.safetensors"
    names = sorted(path.name for path in folder.iterdir())
    found = [name for name in names if name.endswith(".safetensors") and not name.startswith("consolidated")]
    if len(found) == 1:
        return folder / found[0]
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]
    if not found and pickled:
        remedy = "save the model with safe_serialization=True (pickle files can run code and are never read)"
        raise UnsupportedModelError(error_text("convert", "weights", "safetensors files", pickled[0], remedy))
    got = ", ".join(found[:3]) + " without an index" if found else "none"
    expected = "model.safetensors or model.safetensors.index.json"
    raise ModelFormatError(error_text("convert", "weights", expected, got, "name a complete checkpoint folder"))
