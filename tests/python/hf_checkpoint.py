"""Makes tiny Hugging Face checkpoints byte by byte and computes their logits in their own layout: a converter's oracle.

Nothing here uses hotset. The forward pass rotates half-split and takes every tensor as the checkpoint stores it.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from reference_llama import activate, causal_attention, rms_norm

BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 280, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3_SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


# --- writing of checkpoints -------------------------------------------------------------------------------------------


def safetensors_bytes(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """Returns a safetensors file of name -> (dtype, shape, data)."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return with_header(header, data)


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def stored(array: np.ndarray, dtype: str) -> tuple[str, tuple[int, ...], bytes]:
    if dtype == "BF16":
        return dtype, array.shape, (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return dtype, array.shape, array.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def random_weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Returns float32 weights by Hugging Face name; the seed is printed, so a failure can be repeated."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    n_embd, n_ff, n_head = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or n_embd // n_head
    n_kv = config.get("num_key_value_heads", n_head) * head_dim

    def matrix(rows: int, columns: int) -> np.ndarray:
        # Few bits, so that storing as BF16 or F16 loses nothing and F32 results can be compared tightly.
        return (rng.integers(-64, 64, (rows, columns)) / (32.0 * math.sqrt(columns))).astype(np.float16).astype("f4")

    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], n_embd)}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        weights[name + "self_attn.q_proj.weight"] = matrix(n_head * head_dim, n_embd)
        weights[name + "self_attn.k_proj.weight"] = matrix(n_kv, n_embd)
        weights[name + "self_attn.v_proj.weight"] = matrix(n_kv, n_embd)
        weights[name + "self_attn.o_proj.weight"] = matrix(n_embd, n_head * head_dim)
        weights[name + "mlp.gate_proj.weight"] = matrix(n_ff, n_embd)
        weights[name + "mlp.up_proj.weight"] = matrix(n_ff, n_embd)
        weights[name + "mlp.down_proj.weight"] = matrix(n_embd, n_ff)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{name}{norm}.weight"] = (rng.integers(64, 192, n_embd) / 128.0).astype("f4")
    weights["model.norm.weight"] = (rng.integers(64, 192, n_embd) / 128.0).astype("f4")
    if config.get("tie_word_embeddings") is False:
        weights["lm_head.weight"] = matrix(config["vocab_size"], n_embd)
    return weights


def varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def message(*fields: tuple[int, Any]) -> bytes:
    """Returns a protobuf message of (number, int | float | str | bytes) fields."""
    out = b""
    for number, value in fields:
        if isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            raw = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(raw)) + raw
    return out


def sentencepiece_bytes(
    extra: tuple[str, ...] = ("\u2581", "a", "b", "ab"), model_type: int = 2, **flags: int
) -> bytes:
    """Returns a tokenizer.model of three special pieces, 256 byte pieces and `extra`, best first."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(text, -float(i), 1) for i, text in enumerate(extra)]
    out = b"".join(message((1, message((1, text), (2, score), (3, kind)))) for text, score, kind in pieces)
    trainer = [(3, model_type), (40, 0), (41, 1), (42, 2), (43, -1), (99, "unknown fields are skipped")]
    numbers = {"add_dummy_prefix": 3, "remove_extra_whitespaces": 4, "escape_whitespaces": 5}
    normalizer = [(1, "identity")] + [(numbers[name], value) for name, value in flags.items()]
    return out + message((2, message(*trainer)), (3, message(*normalizer)))


def write_checkpoint(
    folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray], dtype: str = "F32", n_files: int = 1
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes(remove_extra_whitespaces=0))
    names = list(weights)
    if n_files == 1:
        tensors = {name: stored(weights[name], dtype) for name in names}
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return folder
    weight_map = {}
    for i in range(n_files):
        file = f"model-{i + 1:05d}-of-{n_files:05d}.safetensors"
        weight_map.update((name, file) for name in names[i::n_files])
        tensors = {name: stored(weights[name], dtype) for name in names[i::n_files]}
        (folder / file).write_bytes(safetensors_bytes(tensors))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


# --- the oracle: Hugging Face's layout --------------------------------------------------------------------------------


def rope_frequencies(config: dict[str, Any], head_dim: int) -> np.ndarray:
    """Returns head_dim / 2 frequencies, the definition written out case by case."""
    frequency = [config.get("rope_theta", 10000.0) ** (-2.0 * i / head_dim) for i in range(head_dim // 2)]
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        frequency = [f / scaling["factor"] for f in frequency]
    if kind == "llama3":
        old = scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        for i, f in enumerate(frequency):
            wavelength = 2 * math.pi / f
            if wavelength > old / low:
                frequency[i] = f / scaling["factor"]
            elif wavelength > old / high:
                smooth = (old / wavelength - low) / (high - low)
                frequency[i] = (1 - smooth) * f / scaling["factor"] + smooth * f
    return np.array(frequency)


def hugging_face_logits(config: dict[str, Any], weights: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """Returns float64 logits (n_tokens, n_vocab) computed from the checkpoint's own tensors."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    n_head, eps = config["num_attention_heads"], config["rms_norm_eps"]
    n_head_kv = config.get("num_key_value_heads", n_head)
    head_dim = config.get("head_dim") or config["hidden_size"] // n_head
    angle = np.arange(len(tokens))[:, None] * rope_frequencies(config, head_dim)
    cos, sin = (np.concatenate([f(angle), f(angle)], axis=-1)[:, None, :] for f in (np.cos, np.sin))

    def rotate(x: np.ndarray) -> np.ndarray:
        half = head_dim // 2
        return x * cos + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin

    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        a = rms_norm(x, w[name + "input_layernorm.weight"], eps)
        q, k, v = (
            (a @ w[f"{name}self_attn.{p}_proj.weight"].T).reshape(len(tokens), n, head_dim)
            for p, n in (("q", n_head), ("k", n_head_kv), ("v", n_head_kv))
        )
        x = x + causal_attention(rotate(q), rotate(k), v) @ w[name + "self_attn.o_proj.weight"].T
        m = rms_norm(x, w[name + "post_attention_layernorm.weight"], eps)
        gate = activate(m @ w[name + "mlp.gate_proj.weight"].T, config.get("hidden_act", "silu"))
        x = x + (gate * (m @ w[name + "mlp.up_proj.weight"].T)) @ w[name + "mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return rms_norm(x, w["model.norm.weight"], eps) @ head.T


def nmse(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sum((got - expected) ** 2) / np.sum(expected**2))


def shaped(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**BASE, **changes}.items() if value is not None or name == "sliding_window"}
