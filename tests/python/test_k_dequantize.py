"""The hashes in tests/cpp/test_k_dequantize.cpp are those of the gguf package's decoding."""

import re
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
GOLDEN = Path(__file__).resolve().parents[1] / "cpp" / "test_k_dequantize.cpp"
N_GROUPS = 64  # blocks or super-blocks
HALVES = {  # where the f16 numbers of a block are
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "IQ4_XS": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "IQ4_NL": (0,),
    "MXFP4": (),
}


def some_blocks(n_bytes, halves):
    """Bytes of a linear congruential generator; the f16 numbers among them are made finite."""
    out, state = bytearray(), 1
    for _ in range(N_GROUPS * n_bytes):
        state = (state * 1664525 + 1013904223) % 2**32
        out.append(state >> 24)
    for at in range(0, len(out), n_bytes):
        for half in halves:
            out[at + half + 1] &= 0xBF
    return np.frombuffer(bytes(out), np.uint8)


def fnv1a(data):
    """64-bit FNV-1a."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


@pytest.mark.parametrize(("name", "halves"), HALVES.items())
def test_golden_hash(name, halves):
    kind = gguf.GGMLQuantizationType[name]
    blocks = some_blocks(gguf.GGML_QUANT_SIZES[kind][1], halves)
    values = gguf.quants.dequantize(blocks.reshape(1, -1), kind).astype("<f4")
    stored = re.search(rf"kWeight{name}, 0x([0-9a-f]+)", GOLDEN.read_text())
    assert stored, f"no hash of {name}"
    assert f"{fnv1a(values.tobytes()):016x}" == stored[1]
