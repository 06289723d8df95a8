"""Cuts GGUF files into shards and puts keys into them, byte by byte, for tests."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _key(name: str, kind: int, form: str, value: int) -> bytes:
    return _text(name) + struct.pack("<I", kind) + struct.pack(form, value)


def shard_names(stem: str, n: int) -> list[str]:
    """Names of the shards of a model."""
    return [f"{stem}-{i + 1:05d}-of-{n:05d}.gguf" for i in range(n)]


def split(path: Path, n: int) -> list[bytes]:
    """The file in n shards: the metadata and the first tensors, then only tensors."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(path)
    data = path.read_bytes()
    tensors = reader.tensors
    n_keys = struct.unpack_from("<Q", data, 16)[0]
    metadata = data[24 : tensors[0].field.offset]
    shards = []
    for i in range(n):
        mine = tensors[i * len(tensors) // n : (i + 1) * len(tensors) // n]
        keys = _key("split.no", 2, "<H", i) + _key("split.count", 2, "<H", n)
        keys += _key("split.tensors.count", 5, "<i", len(tensors))
        align = int(reader.alignment) if i == 0 else 32
        out = b"GGUF" + struct.pack("<IQQ", 3, len(mine), 3 + (n_keys if i == 0 else 0))
        out += (metadata if i == 0 else b"") + keys
        body = b""
        for tensor in mine:
            body += b"\0" * (-len(body) % align)
            shape = [int(size) for size in tensor.shape]
            out += _text(tensor.name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
            out += struct.pack("<IQ", int(tensor.tensor_type), len(body))
            body += data[tensor.data_offset : tensor.data_offset + int(tensor.n_bytes)]
        shards.append(out + b"\0" * (-len(out) % align) + body)
    return shards


def with_texts(path: Path, texts: dict[str, str]) -> bytes:
    """The file with more keys, whose values are texts."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(path)
    data = path.read_bytes()
    first = reader.tensors[0].field.offset
    last = reader.tensors[-1].field
    end = last.offset + sum(part.nbytes for part in last.parts)
    keys = b"".join(_text(key) + struct.pack("<I", 8) + _text(text) for key, text in texts.items())
    n_keys = struct.unpack_from("<Q", data, 16)[0] + len(texts)
    head = data[:16] + struct.pack("<Q", n_keys) + data[24:first] + keys + data[first:end]
    return head + b"\0" * (-len(head) % int(reader.alignment)) + data[int(reader.data_offset) :]
