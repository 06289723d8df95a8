"""A small GGUF file taken apart and put together again: keys and tensors as they are, byte for byte; needs no `gguf`.

Layout: docs/FORMATS.md, "GGUF models". Every item takes bytes of the file, so counts in a damaged header end at the end
of the file, not in an allocation.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.gguf_file import atomic_path
from ..errors import Error, ModelFormatError, error_text

ALIGNMENT = 32
MAX_DIMS = 4
U32, STRING, ARRAY, U64, F64 = 4, 8, 9, 10, 12
_LAYOUTS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
F32, I32 = 0, 26
# Elements and bytes of a block of the tensor types that sidecars may have (docs/FORMATS.md, "Tensors").
_BLOCKS = {F32: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
           11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136), I32: (1, 4),
           30: (1, 2), 39: (32, 17)}  # fmt: skip


@dataclass(frozen=True)
class RawValue:
    """A key's value: its GGUF type and its bytes in the file."""

    kind: int
    data: bytes

    def decoded(self) -> Any:
        """Returns the value as str, bool, int, float, or a list of these."""
        return _Cursor(self.data, "value").value(self.kind)


@dataclass(frozen=True)
class RawTensor:
    """A tensor: dimensions (the contiguous one first), GGML type number and bytes."""

    shape: tuple[int, ...]
    kind: int
    data: bytes

    @staticmethod
    def of(values: np.ndarray) -> RawTensor:
        """Returns the tensor of a float32 or int32 vector."""
        kind = {"f": F32, "i": I32}[values.dtype.kind]
        return RawTensor(values.shape, kind, values.astype("<f4" if kind == F32 else "<i4").tobytes())

    def vector(self) -> np.ndarray | None:
        """Returns the values of a float32 or int32 vector; None for any other tensor."""
        if len(self.shape) != 1 or self.kind not in (F32, I32):
            return None
        return np.frombuffer(self.data, "<f4" if self.kind == F32 else "<i4")


def raw_value(kind: int, value: Any, element: int | None = None) -> RawValue:
    """Returns a value in its bytes; a list has the type ARRAY and an `element` type."""
    if element is not None:
        items = b"".join(raw_value(element, item).data for item in value)
        return RawValue(ARRAY, struct.pack("<IQ", element, len(value)) + items)
    if kind == STRING:
        text = value.encode()
        return RawValue(STRING, struct.pack("<Q", len(text)) + text)
    return RawValue(kind, struct.pack("<" + _LAYOUTS[kind], value))


def read_parts(path: str | os.PathLike[str]) -> tuple[dict[str, RawValue], dict[str, RawTensor]]:
    """Returns keys and tensors of a file in its order.

    Raises:
        ModelFormatError: the file is truncated, contradicts itself, or has tensors of a type that sidecars do not have.
        Error: it cannot be read.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError:  # an empty file cannot be mapped
        raise ModelFormatError(error_text(name, "file", "a GGUF file", "an empty one", "make it again")) from None
    except OSError as error:
        raise Error(error_text(name, "file", "a readable GGUF file", error.strerror, "check the path")) from None
    cursor = _Cursor(data, name)
    if bytes(cursor.take(4)) != b"GGUF":
        cursor.refuse("magic", "GGUF", "something else")
    if (version := cursor.number("I")) not in (2, 3):
        cursor.refuse("GGUF version", "2 or 3", version)
    n_tensors, n_keys = cursor.number("Q"), cursor.number("Q")
    keys: dict[str, RawValue] = {}
    for _ in range(n_keys):
        key = cursor.text()
        if key in keys:
            cursor.refuse(f"key {key!r}", "once", "twice")
        kind = cursor.number("I")
        begin = cursor.at
        cursor.value(kind)
        keys[key] = RawValue(kind, bytes(data[begin : cursor.at]))
    headers = [_tensor_header(cursor) for _ in range(min(n_tensors, len(data)))]
    alignment = keys["general.alignment"].decoded() if "general.alignment" in keys else ALIGNMENT
    if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        cursor.refuse("general.alignment", "a power of two from 8 to 2^20", alignment)
    base = -(-cursor.at // alignment) * alignment
    tensors: dict[str, RawTensor] = {}
    for key, shape, kind, offset, n_bytes in headers:
        if key in tensors:
            cursor.refuse(f"tensor {key!r}", "once", "twice")
        if base + offset + n_bytes > len(data):
            cursor.refuse(f"tensor {key!r}", "data within the file", "data that ends behind it")
        tensors[key] = RawTensor(shape, kind, bytes(data[base + offset : base + offset + n_bytes]))
    return keys, tensors


def write_parts(path: str | os.PathLike[str], keys: dict[str, RawValue], tensors: dict[str, RawTensor]) -> None:
    """Writes a file, whole or not at all; equal parts give equal bytes. `general.alignment` is not written.

    Raises:
        Error: it cannot be written.
    """
    kept = {key: value for key, value in keys.items() if key != "general.alignment"}
    header = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(kept)))
    for key, value in kept.items():
        header += raw_value(STRING, key).data + struct.pack("<I", value.kind) + value.data
    offset = 0
    for key, tensor in tensors.items():
        header += raw_value(STRING, key).data + struct.pack("<I", len(tensor.shape))
        header += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.kind, offset)
        offset += -(-len(tensor.data) // ALIGNMENT) * ALIGNMENT
    target = Path(path)
    try:
        with atomic_path(target.resolve()) as temporary, open(temporary, "wb") as file:
            for part in (bytes(header), *(tensor.data for tensor in tensors.values())):
                file.write(part + b"\0" * (-len(part) % ALIGNMENT))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Error(error_text(str(target), "file", "a place that can be written", error.strerror,
                               "choose another path")) from None  # fmt: skip


def _tensor_header(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int, int]:
    """Name, shape, type, offset and bytes of the next tensor."""
    name, n_dims = cursor.text(), cursor.number("I")
    if not 1 <= n_dims <= MAX_DIMS:
        cursor.refuse(f"tensor {name!r}", f"1 to {MAX_DIMS} dimensions", n_dims)
    shape = tuple(cursor.number("Q") for _ in range(n_dims))
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind not in _BLOCKS:
        cursor.refuse(f"type of tensor {name!r}", "I32 or a type of weights", f"number {kind}")
    n_elements, n_bytes = _BLOCKS[kind]
    if min(shape) < 1 or shape[0] % n_elements:
        cursor.refuse(f"shape of tensor {name!r}", "rows of whole blocks", shape)
    n = n_bytes
    for length in (shape[0] // n_elements, *shape[1:]):
        n *= length  # integers of Python do not overflow; whether it fits the file is checked with the data
    return name, shape, kind, offset, n


class _Cursor:
    """Takes items from bytes, each checked against their end."""

    def __init__(self, data: memoryview | bytes, name: str) -> None:
        self.at = 0
        self._data = memoryview(data)
        self._name = name

    def take(self, n_bytes: int) -> memoryview:
        if n_bytes > len(self._data) - self.at:
            self.refuse("length", f"at least {self.at + n_bytes} bytes", len(self._data))
        self.at += n_bytes
        return self._data[self.at - n_bytes : self.at]

    def number(self, layout: str) -> Any:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))[0]

    def text(self) -> str:
        try:
            return bytes(self.take(self.number("Q"))).decode()
        except UnicodeDecodeError:
            self.refuse("a text", "UTF-8", "other bytes")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            element, n = self.number("I"), self.number("Q")
            if element == STRING:
                return [self.text() for _ in range(min(n, len(self._data) + 1))]
            layout = self._layout(element)
            size = struct.calcsize(layout)
            return list(struct.unpack(f"<{n}{layout}", self.take(n * size)))
        return self.number(self._layout(kind))

    def refuse(self, what: str, expected: object, got: object) -> Any:
        raise ModelFormatError(error_text(self._name, what, expected, got, "make the file again"))

    def _layout(self, kind: int) -> str:
        if kind not in _LAYOUTS:
            self.refuse("type of a value", "one of the GGUF specification, not nested", kind)
        return _LAYOUTS[kind]
