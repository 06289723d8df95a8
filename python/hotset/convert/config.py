"""Hyperparameters of a checkpoint, read from `config.json` and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError, error_text
from .families import Family, kFamilies

kActivations = {"silu": "silu", "swish": "silu", "relu": "relu", "relu2": "relu2"}
kMistralDefaultWindow = 4096
kMaxCount = (1 << 31) - 1
kMinFloat, kMaxFloat = 1.0e-37, 3.0e38
kRemedy = "convert a plain checkpoint of a supported family"
_kRequired = object()


@dataclass(frozen=True)
class Rope:
    """Rotary position encoding."""

    n_rot: int
    """Rotated elements of a head, even."""
    freq_base: float
    linear_factor: float | None
    freqs: np.ndarray | None
    """(n_rot / 2,) float32: each base frequency is divided by its factor; None where all are 1."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What `config.json` says, in GGUF's terms. `tied` is None where the file leaves it open."""

    family: Family
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx: int
    norm_eps: float
    hidden_activation: str
    tied: bool | None
    attention_bias: bool
    mlp_bias: bool
    rope: Rope | None
    """None: positions are learned."""


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


def _find_family(values: dict[str, Any]) -> Family:
    """Returns the row of the table; refuses every model that no row would compute rightly."""
    known = {kind: family for family in kFamilies for kind in family.classes}
    architectures = values.get("architectures")
    kinds = [architectures] if isinstance(architectures, str) else architectures
    if kinds and isinstance(kinds, list):
        if not isinstance(kinds[0], str) or kinds[0] not in known:
            raise _unsupported("architectures", " or ".join(known), kinds[0], kRemedy)
        return known[kinds[0]]
    types = {kind: family for family in kFamilies for kind in family.classes.values()}
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in types:
        raise _unsupported("model_type", " or ".join(types), kind, kRemedy)
    return types[kind]


def _check_plain(values: dict[str, Any], family: Family) -> None:
    """Refuses values that change results in a way that is not supported."""
    if values.get("quantization_config"):
        raise _unsupported("quantization_config", "none", values["quantization_config"],
                           "convert the original, unquantised checkpoint")  # fmt: skip
    if values.get("num_local_experts") not in (None, 0, 1):
        raise _unsupported("num_local_experts", "none", values["num_local_experts"], kRemedy)
    if values.get("word_embed_proj_dim") not in (None, values.get("hidden_size")):
        raise _unsupported("word_embed_proj_dim", f"hidden_size ({values.get('hidden_size')!r:.20})",
                           values["word_embed_proj_dim"], kRemedy)  # fmt: skip
    for key, only in family.fixed.items():
        if values.get(key, only) is not only:
            raise _unsupported(key, str(only).lower(), values[key], kRemedy)


def _check_window(reader: _Reader, n_ctx: int) -> None:
    values = reader.values_
    mistral = values.get("model_type") == "mistral" or values.get("architectures") == ["MistralForCausalLM"]
    window = values.get("sliding_window", kMistralDefaultWindow if mistral else None)
    if mistral and window is not None and values.get("use_sliding_window") is not False:
        if type(window) is not int or window < n_ctx:
            raise _unsupported("sliding_window", "null, or at least the context length", window,
                               "convert a checkpoint with full attention")  # fmt: skip


def llama3_rope_factors(n_rot: int, base: float, scaling: dict[str, Any]) -> np.ndarray:
    """Returns the (n_rot / 2,) float32 divisors of the rotary frequencies of Llama 3.1.

    Short waves stay (1), long ones are stretched by `factor`, those between are interpolated in frequency. Source: the
    definition of `rope_type` "llama3" in Hugging Face transformers (modeling_rope_utils).
    """
    reader = _Reader(scaling, "config.json rope_scaling")
    factor, low, high = (reader.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    old_ctx = reader.integer("original_max_position_embeddings")
    if low >= high:
        raise reader.error("high_freq_factor", f"more than low_freq_factor ({low:g})")
    frequency = base ** (-np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)
    wavelength = 2.0 * math.pi / frequency
    smooth = np.clip((old_ctx / wavelength - low) / (high - low), 0.0, 1.0)
    factors = 1.0 / ((1.0 - smooth) / factor + smooth)
    if not np.all((factors >= kMinFloat) & (factors <= kMaxFloat)):
        raise reader.error("factor", "a factor that float32 can hold")
    return factors.astype(np.float32)


def _rotated(reader: _Reader, scaling: _Reader, head_dim: int, family: Family) -> int:
    """Returns how many elements of a head are rotated."""
    key = "partial_rotary_factor"
    share = scaling.number(key, reader.number(key, family.rotary_share))
    if family.rotary_share == 1.0 and share != 1.0:
        raise _unsupported(key, "1", share, kRemedy)
    n_rot = int(head_dim * share)
    if n_rot % 2 or not 2 <= n_rot <= head_dim:
        raise (scaling if key in scaling.values_ else reader).error(
            key, f"a share that gives an even number of elements of a head of {head_dim}")  # fmt: skip
    return n_rot


def _read_rope(reader: _Reader, head_dim: int, family: Family) -> Rope | None:
    if family.rope is None:
        return None
    # transformers 5 writes base, share and scaling into one object, rope_parameters; before, they were several keys.
    key = "rope_parameters" if reader.values_.get("rope_parameters") is not None else "rope_scaling"
    values = reader.values_.get(key) or {}
    if not isinstance(values, dict):
        raise reader.error(key, "an object or null")
    scaling = _Reader(values, f"config.json {key}")
    n_rot = _rotated(reader, scaling, head_dim, family)
    base = scaling.number("rope_theta", reader.number("rope_theta", 10000.0))
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "default":
        return Rope(n_rot, base, None, None)
    if kind == "linear":
        return Rope(n_rot, base, scaling.number("factor"), None)
    if kind == "llama3":
        return Rope(n_rot, base, None, llama3_rope_factors(n_rot, base, values))
    raise _unsupported(f"{key} type", "default, linear or llama3", kind, "convert a checkpoint with one of these")


def _read_heads(reader: _Reader, n_embd: int, is_rotated: bool) -> tuple[int, int, int]:
    """Returns (n_head, n_head_kv, head_dim)."""
    n_head = reader.integer("num_attention_heads")
    n_head_kv = reader.integer("num_key_value_heads", n_head)
    if n_head % n_head_kv:
        raise reader.error("num_key_value_heads", f"a divisor of num_attention_heads ({n_head})")
    if reader.values_.get("head_dim") is None and n_embd % n_head:
        raise reader.error("num_attention_heads", f"a divisor of hidden_size ({n_embd})")
    head_dim = reader.integer("head_dim", n_embd // n_head)
    if (is_rotated and head_dim % 2) or head_dim > 1 << 16:
        raise reader.error("head_dim", f"an {'even number' if is_rotated else 'integer'} of at most 65536")
    return n_head, n_head_kv, head_dim


def _read_activation(values: dict[str, Any], key: str, family: Family) -> str:
    activation = values.get(key, family.activation)
    if not isinstance(activation, str) or activation not in kActivations:
        raise _unsupported(key, "silu, relu or relu2", activation, "convert a checkpoint with one of these")
    return kActivations[activation]


def read_config(values: dict[str, Any]) -> CheckpointConfig:
    """Checks the object of `config.json` and returns what it means.

    Raises:
        ModelFormatError: a needed key is missing or has no usable value.
        UnsupportedModelError: the model differs from its family in a way that would change its results.
    """
    family = _find_family(values)
    _check_plain(values, family)
    reader = _Reader(values)

    def key(name: str) -> str:
        return family.renamed.get(name, name)

    n_embd = reader.integer("hidden_size")
    n_head, n_head_kv, head_dim = _read_heads(reader, n_embd, family.rope is not None)
    activation = _read_activation(values, key("hidden_act"), family)
    n_ctx = reader.integer("max_position_embeddings")
    _check_window(reader, n_ctx)
    return CheckpointConfig(
        family=family, n_layer=reader.integer("num_hidden_layers"), n_embd=n_embd,
        n_ff=reader.integer(key("intermediate_size")), n_head=n_head, n_head_kv=n_head_kv, head_dim=head_dim,
        n_vocab=reader.integer("vocab_size"), n_ctx=n_ctx,
        norm_eps=family.norm_eps or reader.number(key("rms_norm_eps")),
        hidden_activation=activation, tied=reader.boolean("tie_word_embeddings", family.tied),
        attention_bias=bool(reader.boolean(key("attention_bias"), family.has_biases)),
        mlp_bias=bool(reader.boolean(key("mlp_bias"), family.has_biases)),
        rope=_read_rope(reader, head_dim, family),
    )  # fmt: skip
