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
from reference_model import activate, causal_attention, layer_norm, rms_norm

BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 280, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# What the other families change in BASE; None drops a key.
ARCEE = {"architectures": ["ArceeForCausalLM"], "model_type": "arcee", "hidden_act": "relu2"}
NEMOTRON = {
    "architectures": ["NemotronForCausalLM"], "model_type": "nemotron", "hidden_act": "relu2", "rms_norm_eps": None,
    "norm_eps": 1e-5, "partial_rotary_factor": 0.5,
}  # fmt: skip
OPT = {
    "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_act": None, "activation_function": "relu",
    "intermediate_size": None, "ffn_dim": 96, "num_key_value_heads": None, "rms_norm_eps": None, "rope_theta": None,
    "tie_word_embeddings": None, "do_layer_norm_before": True, "enable_bias": True, "word_embed_proj_dim": 64,
}  # fmt: skip
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
# PowerInfer's, not the one that transformers calls so.
BAMBOO = {"architectures": ["BambooForCausalLM"], "model_type": "bamboo", "hidden_act": "relu"}
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_act": None, "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "sliding_window": 9,
}  # fmt: skip
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_act": None, "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "query_pre_attn_scalar": 16,
    "sliding_window": 9, "rope_theta": None,
}  # fmt: skip
JAIS2 = {
    "architectures": ["Jais2ForCausalLM"], "model_type": "jais2", "hidden_act": "relu2", "rms_norm_eps": None,
    "layer_norm_eps": 1e-5, "attention_bias": True, "mlp_bias": True,
}  # fmt: skip
FALCON = {
    "architectures": ["FalconForCausalLM"], "model_type": "falcon", "hidden_act": None, "activation": "gelu",
    "intermediate_size": None, "ffn_hidden_size": 96, "num_key_value_heads": None, "num_kv_heads": 4,
    "rms_norm_eps": None, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "multi_query": True,
    "parallel_attn": True, "new_decoder_architecture": False, "bias": False, "alibi": False,
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


def names_of(config: dict[str, Any]) -> dict[str, str]:
    """Returns the checkpoint's names of what every family has."""
    if config["model_type"] == "opt":
        return {
            "embd": "model.decoder.embed_tokens", "layers": "model.decoder.layers", "attn_norm": "self_attn_layer_norm",
            "out": "self_attn.out_proj", "ffn_norm": "final_layer_norm", "up": "fc1", "down": "fc2",
            "norm": "model.decoder.final_layer_norm",
        }  # fmt: skip
    if config["model_type"] == "falcon":
        has_two = config["new_decoder_architecture"]
        return {
            "embd": "transformer.word_embeddings", "layers": "transformer.h", "out": "self_attention.dense",
            "attn_norm": "ln_attn" if has_two else "input_layernorm", "ffn_norm": "ln_mlp" if has_two else None,
            "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h", "norm": "transformer.ln_f",
        }  # fmt: skip
    return {
        "embd": "model.embed_tokens", "layers": "model.layers", "attn_norm": "input_layernorm",
        "out": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "up": "mlp.up_proj",
        "down": "mlp.down_proj", "norm": "model.norm",
    }  # fmt: skip


def random_weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Returns float32 weights by Hugging Face name; the seed is printed, so a failure can be repeated."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    kind, names = config["model_type"], names_of(config)
    n_embd, n_head = config["hidden_size"], config["num_attention_heads"]
    n_ff = config[{"opt": "ffn_dim", "falcon": "ffn_hidden_size"}.get(kind, "intermediate_size")]
    head_dim = config.get("head_dim") or n_embd // n_head
    n_head_kv = config.get("num_key_value_heads", n_head)
    if kind == "falcon":
        n_head_kv = config["num_kv_heads"] if config["new_decoder_architecture"] or not config["multi_query"] else 1
    n_q, n_kv = n_head * head_dim, n_head_kv * head_dim
    is_gated = kind in ("llama", "mistral", "bamboo", "qwen2", "qwen3", "gemma2", "gemma3_text")
    has_norm_biases = kind in ("nemotron", "opt", "falcon", "jais2")
    is_less_one = kind in ("nemotron", "gemma2", "gemma3_text")
    weights = {}

    def matrix(name: str, rows: int, columns: int, bias: bool = False) -> None:
        # Few bits, so that storing as BF16 or F16 loses nothing and F32 results can be compared tightly.
        values = rng.integers(-64, 64, (rows, columns)) / (32.0 * math.sqrt(columns))
        weights[f"{name}.weight"] = values.astype(np.float16).astype("f4")
        if bias:
            weights[f"{name}.bias"] = (rng.integers(-64, 64, rows) / 256.0).astype("f4")

    def norm(name: str, size: int = n_embd) -> None:
        weights[f"{name}.weight"] = (rng.integers(64, 192, size) / 128.0 - is_less_one).astype("f4")
        if has_norm_biases:
            weights[f"{name}.bias"] = (rng.integers(-64, 64, size) / 256.0).astype("f4")

    n_embd_in = config.get("word_embed_proj_dim") or n_embd
    matrix(names["embd"], config["vocab_size"], n_embd_in)
    if n_embd_in != n_embd:
        matrix("model.decoder.project_in", n_embd, n_embd_in)
        matrix("model.decoder.project_out", n_embd_in, n_embd)
    if kind == "opt":
        matrix("model.decoder.embed_positions", config["max_position_embeddings"] + 2, n_embd)
    has_biases = config.get("enable_bias", config.get("bias", False))
    has_attention_biases, has_mlp_biases = config.get("attention_bias", has_biases), config.get("mlp_bias", has_biases)
    for layer in range(config["num_hidden_layers"]):
        name = f"{names['layers']}.{layer}."
        if kind == "falcon":
            matrix(f"{name}self_attention.query_key_value", n_q + 2 * n_kv, n_embd, has_attention_biases)
        else:
            for projection, rows in (("q", n_q), ("k", n_kv), ("v", n_kv)):
                matrix(f"{name}self_attn.{projection}_proj", rows, n_embd, has_attention_biases or kind == "qwen2")
        if kind in ("qwen3", "gemma3_text"):
            norm(f"{name}self_attn.q_norm", head_dim)
            norm(f"{name}self_attn.k_norm", head_dim)
        matrix(name + names["out"], n_embd, n_q, has_attention_biases)
        if is_gated:
            matrix(name + "mlp.gate_proj", n_ff, n_embd, has_mlp_biases)
        matrix(name + names["up"], n_ff, n_embd, has_mlp_biases)
        matrix(name + names["down"], n_embd, n_ff, has_mlp_biases)
        norm(name + names["attn_norm"])
        if names["ffn_norm"]:
            norm(name + names["ffn_norm"])
        if kind in ("gemma2", "gemma3_text"):
            norm(name + "pre_feedforward_layernorm")
            norm(name + "post_feedforward_layernorm")
    if config.get("do_layer_norm_before", True):
        norm(names["norm"])
    if config.get("tie_word_embeddings") is False:
        matrix("lm_head", config["vocab_size"], n_embd_in)
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


def rope_frequencies(config: dict[str, Any], n_rot: int) -> np.ndarray:
    """Returns n_rot / 2 frequencies, the definition written out case by case."""
    frequency = [config.get("rope_theta", 10000.0) ** (-2.0 * i / n_rot) for i in range(n_rot // 2)]
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
    kind, names = config["model_type"], names_of(config)
    n_head = config["num_attention_heads"]
    n_head_kv = config.get("num_key_value_heads", n_head)
    head_dim = config.get("head_dim") or config["hidden_size"] // n_head
    n_rot = int(head_dim * config.get("partial_rotary_factor", 0.5 if kind == "nemotron" else 1.0))
    angle = np.arange(len(tokens))[:, None] * rope_frequencies(config, n_rot)
    cos, sin = (np.concatenate([f(angle), f(angle)], axis=-1)[:, None, :] for f in (np.cos, np.sin))

    def rotate(x: np.ndarray) -> np.ndarray:
        if kind == "opt":
            return x
        turned, half = x[..., :n_rot], n_rot // 2
        turned = turned * cos + np.concatenate([-turned[..., half:], turned[..., :half]], axis=-1) * sin
        return np.concatenate([turned, x[..., n_rot:]], axis=-1)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        if kind not in ("nemotron", "opt"):
            return rms_norm(x, w[name + ".weight"], config["rms_norm_eps"])
        weight = w[name + ".weight"] + (kind == "nemotron")
        return layer_norm(x, weight, w[name + ".bias"], config.get("norm_eps", 1e-5))

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    def act(x: np.ndarray) -> np.ndarray:
        return activate(x, config.get("activation_function") or config.get("hidden_act", "silu"))

    x = w[names["embd"] + ".weight"][tokens]
    if kind == "opt":
        x = x + w["model.decoder.embed_positions.weight"][2 : 2 + len(tokens)]
    for layer in range(config["num_hidden_layers"]):
        name = f"{names['layers']}.{layer}."
        a = norm(x, name + names["attn_norm"])
        q, k, v = (
            linear(a, f"{name}self_attn.{p}_proj").reshape(len(tokens), n, head_dim)
            for p, n in (("q", n_head), ("k", n_head_kv), ("v", n_head_kv))
        )
        x = x + linear(causal_attention(rotate(q), rotate(k), v), name + names["out"])
        m = norm(x, name + names["ffn_norm"])
        up = linear(m, name + names["up"])
        gate = name + "mlp.gate_proj"
        hidden = act(linear(m, gate)) * up if gate + ".weight" in w else act(up)
        x = x + linear(hidden, name + names["down"])
    head = w.get("lm_head.weight", w[names["embd"] + ".weight"])
    return norm(x, names["norm"]) @ head.T


def nmse(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sum((got - expected) ** 2) / np.sum(expected**2))


def shaped(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**BASE, **changes}.items() if value is not None or name == "sliding_window"}
