"""Hyperparameters of a LLaMA checkpoint, read from `config.json` and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError, error_text

kArchitectures = ("LlamaForCausalLM", "MistralForCausalLM")
kActivations = {"silu": "silu", "swish": "silu", "relu": "relu"}
kMistralDefaultWindow = 4096
kMaxCount = (1 << 31) - 1
kMinFloat, kMaxFloat = 1.0e-37, 3.0e38
_kRequired = object()


@dataclass(frozen=True)
class LlamaConfig:
    """What `config.json` says, in GGUF's terms. `tied` is None where the file leaves it open."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx: int
    rms_norm_eps: float
    rope_freq_base: float
    hidden_activation: str
    tied: bool | None
    rope_linear_factor: float | None
    rope_freqs: np.ndarray | None
    """(head_dim / 2,) float32: each base frequency is divided by its factor; None where all are 1."""


class _Reader:
    """Typed access to one JSON object."""

    def __init__(self, values: dict[str, Any], where: str = "config.json") -> None:
        self.values_ = values
        self.where_ = where

    def error(self, key: str, expected: str) -> ModelFormatError:
        got = repr(self.values_[key])[:80] if key in self.values_ else "no such key"
        return ModelFormatError(error_text(self.where_, key, expected, got, "check the checkpoint's config.json"))

    def integer(self, key: str, default: Any = _kRequired) -> Any:
        value = self.values_.get(key)
        if value is None and default is not _kRequired:
            return default
        if type(value) is not int or not 0 < value <= kMaxCount:
            raise self.error(key, f"an integer from 1 to {kMaxCount}")
        return value

    def number(self, key: str, default: Any = _kRequired) -> Any:
        value = self.values_.get(key)
        if value is None and default is not _kRequired:
            return default
        # The comparison is false for NaN, and right for integers of any length. GGUF keeps these values in float32.
        if type(value) not in (int, float) or not kMinFloat <= value <= kMaxFloat:
            raise self.error(key, "a positive number")
        return float(value)

    def boolean(self, key: str, default: bool | None) -> bool | None:
        value = self.values_.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value


def _unsupported(what: str, expected: str, got: object, remedy: str) -> UnsupportedModelError:
    return UnsupportedModelError(error_text("config.json", what, expected, repr(got)[:80], remedy))


def _check_kind(values: dict[str, Any]) -> None:
    """Refuses every model that the `llama` architecture would compute wrongly."""
    remedy = "convert a plain LLaMA checkpoint"
    architectures = values.get("architectures")
    kinds = [architectures] if isinstance(architectures, str) else architectures
    if kinds and isinstance(kinds, list):
        if kinds[0] not in kArchitectures:
            raise _unsupported("architectures", " or ".join(kArchitectures), kinds[0], remedy)
    elif values.get("model_type") not in ("llama", "mistral"):
        raise _unsupported("model_type", "llama or mistral", values.get("model_type"), remedy)
    for key in ("attention_bias", "mlp_bias"):
        if values.get(key):
            raise _unsupported(key, "false", values[key], "convert a checkpoint without biases")
    if values.get("quantization_config"):
        raise _unsupported("quantization_config", "none", values["quantization_config"],
                           "convert the original, unquantised checkpoint")  # fmt: skip
    if values.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise _unsupported("partial_rotary_factor", "1", values["partial_rotary_factor"], remedy)
    if values.get("num_local_experts") not in (None, 0, 1):
        raise _unsupported("num_local_experts", "none", values["num_local_experts"], remedy)


def _check_window(reader: _Reader, n_ctx: int) -> None:
    values = reader.values_
    mistral = values.get("model_type") == "mistral" or values.get("architectures") == ["MistralForCausalLM"]
    window = values.get("sliding_window", kMistralDefaultWindow if mistral else None)
    if mistral and window is not None and values.get("use_sliding_window") is not False:
        if type(window) is not int or window < n_ctx:
            raise _unsupported("sliding_window", "null, or at least the context length", window,
                               "convert a checkpoint with full attention")  # fmt: skip


def llama3_rope_factors(head_dim: int, base: float, scaling: dict[str, Any]) -> np.ndarray:
    """Returns the (head_dim / 2,) float32 divisors of the rotary frequencies of Llama 3.1.

    Short waves stay (1), long ones are stretched by `factor`, those between are interpolated in frequency. Source: the
    definition of `rope_type` "llama3" in Hugging Face transformers (modeling_rope_utils).
    """
    reader = _Reader(scaling, "config.json rope_scaling")
    factor, low, high = (reader.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    old_ctx = reader.integer("original_max_position_embeddings")
    if low >= high:
        raise reader.error("high_freq_factor", f"more than low_freq_factor ({low:g})")
    frequency = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    wavelength = 2.0 * math.pi / frequency
    smooth = np.clip((old_ctx / wavelength - low) / (high - low), 0.0, 1.0)
    factors = 1.0 / ((1.0 - smooth) / factor + smooth)
    if not np.all((factors >= kMinFloat) & (factors <= kMaxFloat)):
        raise reader.error("factor", "a factor that float32 can hold")
    return factors.astype(np.float32)


def _read_rope(reader: _Reader, head_dim: int) -> tuple[float, float | None, np.ndarray | None]:
    """Returns (frequency base, linear factor or None, per-frequency factors or None)."""
    # transformers 5 writes base and scaling into one object, rope_parameters; before, they were two keys.
    key = "rope_parameters" if reader.values_.get("rope_parameters") is not None else "rope_scaling"
    scaling = reader.values_.get(key) or {}
    if not isinstance(scaling, dict):
        raise reader.error(key, "an object or null")
    base = _Reader(scaling, f"config.json {key}").number("rope_theta", reader.number("rope_theta", 10000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return base, None, None
    if kind == "linear":
        return base, _Reader(scaling, f"config.json {key}").number("factor"), None
    if kind == "llama3":
        return base, None, llama3_rope_factors(head_dim, base, scaling)
    raise _unsupported(f"{key} type", "default, linear or llama3", kind, "convert a checkpoint with one of these")


def read_config(values: dict[str, Any]) -> LlamaConfig:
    """Checks the object of `config.json` and returns what it means.

    Raises:
        ModelFormatError: a needed key is missing or has no usable value.
        UnsupportedModelError: the model differs from LLaMA in a way that would change its results.
    """
    _check_kind(values)
    reader = _Reader(values)
    n_embd, n_head = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    n_head_kv = reader.integer("num_key_value_heads", n_head)
    if n_head % n_head_kv:
        raise reader.error("num_key_value_heads", f"a divisor of num_attention_heads ({n_head})")
    if values.get("head_dim") is None and n_embd % n_head:
        raise reader.error("num_attention_heads", f"a divisor of hidden_size ({n_embd})")
    head_dim = reader.integer("head_dim", n_embd // n_head)
    if head_dim % 2 or head_dim > 1 << 16:
        raise reader.error("head_dim", "an even number of at most 65536")
    activation = values.get("hidden_act", "silu")
    if not isinstance(activation, str) or activation not in kActivations:
        raise _unsupported("hidden_act", "silu or relu", activation, "convert a checkpoint with one of these")
    n_ctx = reader.integer("max_position_embeddings")
    _check_window(reader, n_ctx)
    base, linear, factors = _read_rope(reader, head_dim)
    return LlamaConfig(
        n_layer=reader.integer("num_hidden_layers"), n_embd=n_embd, n_ff=reader.integer("intermediate_size"),
        n_head=n_head, n_head_kv=n_head_kv, head_dim=head_dim, n_vocab=reader.integer("vocab_size"), n_ctx=n_ctx,
        rms_norm_eps=reader.number("rms_norm_eps"), rope_freq_base=base, hidden_activation=kActivations[activation],
        tied=reader.boolean("tie_word_embeddings", None), rope_linear_factor=linear, rope_freqs=factors,
    )  # fmt: skip
