"""The tiny models of which `goldens/` holds logits that Hugging Face transformers computed (tools/make_goldens.py)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from hf_checkpoint import (
    ARCEE,
    BAMBOO,
    FALCON,
    GEMMA2,
    GEMMA3,
    JAIS2,
    LLAMA3_SCALING,
    MISTRAL,
    NEMOTRON,
    OPT,
    QWEN2,
    QWEN3,
    random_weights,
    shaped,
)

FOLDER = Path(__file__).resolve().parent / "goldens"
# More than the 32 positions of one KV block.
TOKENS = [1, *((7 * i * i + 3 * i) % 277 for i in range(1, 37))]
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
ODD = {"vocab_size": 277, "num_hidden_layers": 3}
GOLDENS: dict[str, dict[str, Any]] = {
    "llama-silu": shaped(**ODD, rope_scaling=LLAMA3_SCALING),
    "llama-relu": shaped(**ODD, hidden_act="relu", intermediate_size=77, head_dim=24, tie_word_embeddings=True,
                         attention_bias=True, mlp_bias=True),
    "arcee": shaped(**{**ODD, "num_hidden_layers": 11}, **ARCEE, rope_scaling=LLAMA3_SCALING),
    "arcee-tied": shaped(**ODD, **ARCEE, rope_scaling=LINEAR, hidden_size=60, num_attention_heads=6, head_dim=10,
                         num_key_value_heads=3, intermediate_size=77, tie_word_embeddings=True),
    "arcee-biases": shaped(**ODD, **ARCEE, attention_bias=True, mlp_bias=True, intermediate_size=161),
    "nemotron": shaped(**ODD, **NEMOTRON, num_key_value_heads=1, intermediate_size=161),
    "nemotron-biases": shaped(**ODD, **{**NEMOTRON, "partial_rotary_factor": 0.44}, attention_bias=True, mlp_bias=True,
                              hidden_size=60, num_attention_heads=6, head_dim=14, num_key_value_heads=3,
                              intermediate_size=77, rope_scaling=LINEAR, tie_word_embeddings=True),
    "opt": shaped(**ODD, **{**OPT, "ffn_dim": 77}),
    "opt-untied": shaped(**ODD, **{**OPT, "enable_bias": False, "tie_word_embeddings": False, "hidden_size": 60,
                                   "word_embed_proj_dim": 60}),
    # Windows of odd lengths that many of the tokens do not see the beginning through.
    "mistral": shaped(**ODD, **MISTRAL, sliding_window=11, intermediate_size=77, num_key_value_heads=1),
    "llama-fatrelu": shaped(**ODD, hidden_act="fatrelu", hidden_act_param=0.25, intermediate_size=161),
    "bamboo": shaped(**ODD, **BAMBOO, intermediate_size=161),
    "qwen2": shaped(**ODD, **QWEN2, intermediate_size=77, tie_word_embeddings=True, rope_scaling=YARN),
    "qwen2-window": shaped(**ODD, **QWEN2, hidden_act="relu", num_key_value_heads=1, use_sliding_window=True,
                           max_window_layers=1, sliding_window=7),
    "qwen3": shaped(**ODD, **{**QWEN3, "head_dim": 24}, num_attention_heads=6, num_key_value_heads=3, hidden_size=60),
    "qwen3-relu": shaped(**ODD, **QWEN3, hidden_act="relu", intermediate_size=77, attention_bias=True,
                         tie_word_embeddings=True),
    "falcon": shaped(**ODD, **FALCON),
    "falcon-relu": shaped(**ODD, **{**FALCON, "activation": "relu", "ffn_hidden_size": 77, "num_kv_heads": 2,
                                    "new_decoder_architecture": True, "tie_word_embeddings": False, "bias": True}),
    "gemma2": shaped(**ODD, **GEMMA2, intermediate_size=77),
    "gemma3": shaped(**{**ODD, "num_hidden_layers": 7}, **GEMMA3, rope_parameters=TWO_ROPES),
    "gemma3-relu": shaped(**ODD, **{**GEMMA3, "hidden_activation": "relu"}, sliding_window_pattern=2,
                          num_key_value_heads=1),
    "jais2": shaped(**ODD, **JAIS2, intermediate_size=161),
    "opt-norms-after": shaped(**ODD, **{**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 44,
                                        "ffn_dim": 77}),
}  # fmt: skip


def golden_weights(name: str) -> dict[str, np.ndarray]:
    """Returns the float32 weights of a model by Hugging Face name; the same ones everywhere."""
    return random_weights(GOLDENS[name], seed=list(GOLDENS).index(name))


def fingerprint(weights: dict[str, np.ndarray]) -> str:
    """Returns a hash of names, shapes and values."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(f"{name} {value.shape}".encode())
        digest.update(value.astype("<f4").tobytes())
    return digest.hexdigest()
