"""Writing of one GGUF file, tensor by tensor, through the `gguf` package; all or nothing."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import Error, ModelFormatError, error_text
from .safetensors import to_float32

kAlignment = 64
kBlock = 32
# general.file_type as the GGUF specification numbers it.
kFileTypes = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}
kChunkElements = 1 << 22


def import_gguf() -> ModuleType:
    """Returns the `gguf` package, or explains how to install it."""
    try:
        import gguf
        import gguf.quants
    except ImportError:
        remedy = 'run: pip install "hotset[convert]"'
        raise Error(error_text("convert", "package gguf", "installed", "not installed", remedy)) from None
    return gguf


def stored_type(shape: tuple[int, ...], dtype: str) -> str:
    """Returns the type in which a tensor is stored: f32 for vectors, f16 where rows do not fill whole blocks."""
    if len(shape) == 1:
        return "f32"
    return "f16" if dtype in ("q8_0", "q4_0") and shape[-1] % kBlock else dtype


def encode(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Returns the bytes (rows, row bytes) of a matrix in `dtype`, or float32 values of a vector.

    Works through a few rows at a time, so that besides the result only some tens of MB are in use.

    Raises:
        ModelFormatError: a value is not finite, or does not fit into f16.
    """
    gguf = import_gguf()
    qtype = gguf.GGMLQuantizationType[dtype.upper()]
    matrix = values if values.ndim == 2 else values.reshape(1, -1)
    block, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    out = np.empty((matrix.shape[0], matrix.shape[1] // block * block_bytes), dtype=np.uint8)
    n_rows = max(1, kChunkElements // matrix.shape[1])
    for begin in range(0, matrix.shape[0], n_rows):
        rows = np.ascontiguousarray(to_float32(matrix[begin : begin + n_rows]))
        if not np.isfinite(rows).all():
            raise ModelFormatError(error_text("convert", f"tensor {name}", "finite values", "NaN or infinity",
                                              "download the checkpoint again"))  # fmt: skip
        # Scales of blocks are f16 as well, but 1/127 or 1/8 of the largest value.
        limit = {"f16": 65504.0, "q8_0": 65504.0 * 127, "q4_0": 65504.0 * 8}.get(dtype, np.inf)
        largest = float(np.abs(rows).max())
        if largest > limit:
            raise ModelFormatError(error_text("convert", f"tensor {name}", f"values within {limit:g} for {dtype}",
                                              f"{largest:g}", "choose --type bf16 or f32"))  # fmt: skip
        out[begin : begin + n_rows] = gguf.quants.quantize(rows, qtype).view(np.uint8)
    return out if values.ndim == 2 else out.view(np.float32).reshape(values.shape)


@contextmanager
def atomic_path(out: Path) -> Iterator[Path]:
    """Yields the path of a new, empty file beside `out`; renames it to `out` at the end, removes it on any failure."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


class GgufFile:
    """A GGUF file being written: first keys and tensor descriptions, then, after `start`, the data in that order."""

    def __init__(self, path: Path, architecture: str) -> None:
        """Prepares the file; nothing is written before `start`."""
        self.gguf_ = import_gguf()
        self.writer_ = self.gguf_.GGUFWriter(path, architecture)
        self.writer_.add_custom_alignment(kAlignment)

    def add_keys(self, keys: dict[str, Any]) -> None:
        """Adds string, bool, int (uint32), float (float32) and list keys; lists are of str, int (int32) or float."""
        add_by_type = {
            str: self.writer_.add_string, bool: self.writer_.add_bool, int: self.writer_.add_uint32,
            float: self.writer_.add_float32, list: self.writer_.add_array,
        }  # fmt: skip
        for key, value in keys.items():
            add_by_type[type(value)](key, value)

    def describe_tensor(self, name: str, shape: tuple[int, ...], dtype: str) -> int:
        """Announces a tensor and returns its size in bytes."""
        qtype = self.gguf_.GGMLQuantizationType[dtype.upper()]
        block, block_bytes = self.gguf_.GGML_QUANT_SIZES[qtype]
        n_bytes = int(np.prod(shape, dtype=np.int64)) // block * block_bytes
        self.writer_.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, raw_dtype=qtype)
        return n_bytes

    def start(self) -> None:
        """Writes the header, the keys and the tensor descriptions."""
        self.writer_.write_header_to_file()
        self.writer_.write_kv_data_to_file()
        self.writer_.write_ti_data_to_file()

    def write_tensor(self, data: np.ndarray) -> None:
        """Writes the data of the next described tensor."""
        self.writer_.write_tensor_data(data)

    def close(self) -> None:
        """Closes the file."""
        self.writer_.close()
