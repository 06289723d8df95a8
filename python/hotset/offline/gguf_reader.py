"""Reader of a GGUF file's keys and plain tensors, for sidecars: bounds-checked, needs no `gguf` package.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. Every item takes
bytes from the file, so that counts in a damaged header end at the end of the file instead of in an allocation.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np

from ..errors import ModelFormatError, error_text

kMaxDims = 4
kString, kBool, kArray = 8, 7, 9
kNumbers = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", kBool: "<u1", 10: "<u8", 11: "<i8",
            12: "<f8"}  # fmt: skip
kTensorTypes = {0: "<f4", 26: "<i4"}  # GGML's F32 and I32


class GgufReader:
    """Keys and tensor descriptions of a file, read when it is made.

    Attributes:
        keys: values as str, bool, int, float, list of str, or a NumPy array.
    """

    def __init__(self, path: Path) -> None:
        """Maps and reads the file.

        Raises:
            ModelFormatError: the file cannot be read, is truncated or contradicts itself.
        """
        self.path_ = path
        try:
            with open(path, "rb") as file:
                self.bytes_ = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise self.error("file", "a readable GGUF file", str(error)) from None
        self.at_ = 0
        if bytes(self._take(4)) != b"GGUF":
            raise self.error("magic", "GGUF", "something else")
        version = self._number("<I")
        if version not in (2, 3):
            raise self.error("GGUF version", "2 or 3", version)
        n_tensors, n_keys = self._number("<Q"), self._number("<Q")
        self.keys: dict[str, object] = {}
        for _ in range(n_keys):
            name = self._string()
            if name in self.keys:
                raise self.error(f"key {name}", "once", "twice")
            self.keys[name] = self._value(self._number("<I"))
        self.tensors_: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(n_tensors):
            self._describe_tensor()
        alignment = self.keys.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
            raise self.error("general.alignment", "a power of two from 8 on", alignment)
        self.data_ = -(-self.at_ // alignment) * alignment

    def tensor(self, name: str) -> np.ndarray:
        """Returns a copy of a 1-dimensional F32 or I32 tensor.

        Raises:
            ModelFormatError: it is missing, of another kind, or leaves the file.
        """
        if name not in self.tensors_:
            raise self.error(f"tensor {name}", "present", "missing")
        shape, kind, offset = self.tensors_[name]
        if len(shape) != 1 or kind not in kTensorTypes:
            raise self.error(f"tensor {name}", "a vector of F32 or I32", f"{len(shape)} dimensions of type {kind}")
        begin, n_bytes = self.data_ + offset, 4 * shape[0]
        if begin + n_bytes > len(self.bytes_):
            raise self.error(f"tensor {name}", "data inside the file", "data that ends behind it")
        return np.frombuffer(self.bytes_[begin : begin + n_bytes], kTensorTypes[kind]).copy()

    def error(self, what: str, expected: str, got: object) -> ModelFormatError:
        """Returns the error that something in this file is wrong."""
        return ModelFormatError(error_text(str(self.path_), what, expected, got, "write the file again"))

    def _take(self, n_bytes: int) -> memoryview:
        if n_bytes > len(self.bytes_) - self.at_:
            raise self.error("file size", f"at least {self.at_ + n_bytes} bytes", len(self.bytes_))
        self.at_ += n_bytes
        return self.bytes_[self.at_ - n_bytes : self.at_]

    def _number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return value

    def _string(self) -> str:
        return bytes(self._take(self._number("<Q"))).decode("utf-8", "replace")

    def _value(self, kind: int) -> object:
        if kind == kString:
            return self._string()
        if kind == kArray:
            kind, count = self._number("<I"), self._number("<Q")
            return [self._string() for _ in range(count)] if kind == kString else self._numbers(kind, count).copy()
        value = self._numbers(kind, 1)[0]
        return bool(value) if kind == kBool else value.item()

    def _numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in kNumbers:
            raise self.error("type of a value", "one of the GGUF specification, not nested", kind)
        return np.frombuffer(self._take(count * np.dtype(kNumbers[kind]).itemsize), kNumbers[kind])

    def _describe_tensor(self) -> None:
        name, n_dims = self._string(), self._number("<I")
        if n_dims > kMaxDims or name in self.tensors_:
            raise self.error(f"tensor {name}", f"once, with at most {kMaxDims} dimensions", f"{n_dims} or twice")
        shape = tuple(self._number("<Q") for _ in range(n_dims))
        self.tensors_[name] = (shape, self._number("<I"), self._number("<Q"))
