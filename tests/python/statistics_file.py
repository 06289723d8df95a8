"""Small statistics files and sidecars for tests, written by their formats and not by the package's writers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FINGERPRINT = "00112233445566778899aabbccddeeff"


def layer_of(active: np.ndarray) -> dict[str, Any]:
    """Statistics of a layer from its active units, bool (n_tokens, n_ff), in one text; the mass is made up."""
    counts = active.sum(axis=0)
    return {
        "counts": counts.astype(np.uint64),
        "mass": counts / max(1, len(active)) * (1 + np.arange(counts.size) % 3),
        "overlap": int((active[1:] & active[:-1]).sum()),
    }


def write_statistics(path: Path, layers: list[dict[str, Any]], n_tokens: int, **more: Any) -> Path:
    """Writes `hotset-statistics`: layers with counts, mass, overlap, and where wanted threshold and bool samples."""
    corpora = [{"name": more.pop("name", "a text"), "sha256": "0" * 64, "n_tokens": n_tokens, "n_bytes": 4 * n_tokens}]
    arrays: dict[str, Any] = {
        "format": "hotset-statistics",
        "version": 1,
        "model_fingerprint": FINGERPRINT,
        "n_layer": len(layers),
        "n_tokens": np.int64(n_tokens),
        "corpora": json.dumps(corpora),
        **more,
    }
    # As text, "10" comes before "2": the order of the keys must not matter.
    for number in sorted(range(len(layers)), key=str):
        layer, prefix = layers[number], f"blk.{number}"
        arrays[f"{prefix}.counts"] = np.asarray(layer["counts"], np.uint64)
        arrays[f"{prefix}.mass"] = np.asarray(layer.get("mass", layer["counts"]), np.float64)
        arrays[f"{prefix}.overlap"] = np.uint64(layer.get("overlap", 0))
        arrays[f"{prefix}.threshold"] = np.float32(layer.get("threshold", 0))
        if "samples" in layer:
            rows = layer["samples"]
            arrays[f"{prefix}.samples.mask"] = np.packbits(rows, axis=1, bitorder="little")
            arrays[f"{prefix}.samples.input"] = np.zeros((len(rows), 2), np.float32)
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    return path


def write_sidecar(path: Path, n_hot: list[int], orders: list[Any], **changes: Any) -> Path:
    """Writes a sidecar with a placement; `changes` replace keys by their last word, None leaves a key out."""
    import gguf

    n_layer = len(n_hot)
    writer = gguf.GGUFWriter(path, changes.pop("architecture", "hotset-sidecar"))
    add = {"version": 1, "model_fingerprint": FINGERPRINT, "unit_kind": "ffn", "n_layer": n_layer,
           "placement.vram_budget": 8 << 30, "placement.n_ctx": 4096, "placement.machine": "card & <host>",
           "placement.detect": ["device"] * n_layer, "placement.attention": ["host"] * n_layer,
           "placement.head": "device", "placement.predicted_tg_ts": 31.25, "placement.gap": 0.0}  # fmt: skip
    for name, value in {**add, **{key.replace("__", "."): value for key, value in changes.items()}}.items():
        key = f"hotset.{name}"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            (writer.add_uint64 if name.endswith("budget") else writer.add_uint32)(key, value)
    if n_hot:
        writer.add_key_value("hotset.placement.n_hot", n_hot, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
    writer.add_key_value("other.flags", [True, False], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.BOOL)
    for layer, order in enumerate(orders):
        writer.add_tensor(f"blk.{layer}.unit_freq", np.linspace(1, 0, len(order), dtype=np.float32))
        writer.add_tensor(f"blk.{layer}.unit_of_slot", np.asarray(order, np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
