"""Rotary position encoding as `config.json` describes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .config_reader import Reader, kMaxFloat, kMinFloat, unsupported
from .families import Family

kYarnDefaults = {"beta_fast": 32.0, "beta_slow": 1.0}


@dataclass(frozen=True)
class Rope:
    """Rotary position encoding."""

    n_rot: int
    """Rotated elements of a head, even."""
    freq_base: float
    freqs: np.ndarray | None = None
    """(n_rot / 2,) float32: each base frequency is divided by its factor; None where all are 1."""
    keys: dict[str, Any] = field(default_factory=dict)
    """GGUF's other keys below `<arch>.rope.`."""


def llama3_rope_factors(n_rot: int, base: float, scaling: dict[str, Any]) -> np.ndarray:
    """Returns the (n_rot / 2,) float32 divisors of the rotary frequencies of Llama 3.1.

    Short waves stay (1), long ones are stretched by `factor`, those between are interpolated in frequency. Source: the
    definition of `rope_type` "llama3" in Hugging Face transformers (modeling_rope_utils).
    """
    reader = Reader(scaling, "config.json rope_scaling")
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


def _yarn_keys(scaling: Reader, n_ctx: int) -> dict[str, Any]:
    """Returns GGUF's keys of YaRN (arXiv 2309.00071); the run time computes the frequencies."""
    for key, only in (("mscale", None), ("mscale_all_dim", None), ("truncate", True)):
        if scaling.values_.get(key) not in (None, only):
            raise unsupported(f"rope_scaling {key}", "none" if only is None else "true", scaling.values_[key],
                              "convert a checkpoint with plain YaRN")  # fmt: skip
    factor = scaling.number("factor")
    if factor < 1.0:
        raise scaling.error("factor", "a number of at least 1")
    keys: dict[str, Any] = {
        "scaling.type": "yarn", "scaling.factor": factor,
        "scaling.original_context_length": scaling.integer("original_max_position_embeddings", n_ctx),
    }  # fmt: skip
    for name, usual in kYarnDefaults.items():
        value = scaling.number(name, usual)
        if value != usual:
            keys[f"scaling.yarn_{name}"] = value
    correction = 1.0 + 0.1 * math.log(factor)
    attention_factor = scaling.number("attention_factor", correction)
    if attention_factor != correction:
        keys["scaling.attn_factor"] = attention_factor / correction
    return keys


def _rotated(reader: Reader, scaling: Reader, head_dim: int, family: Family) -> int:
    """Returns how many elements of a head are rotated."""
    key = "partial_rotary_factor"
    share = scaling.number(key, reader.number(key, family.rotary_share))
    if family.rotary_share == 1.0 and share != 1.0:
        raise unsupported(key, "1", share, "convert a plain checkpoint of a supported family")
    n_rot = int(head_dim * share)
    if n_rot % 2 or not 2 <= n_rot <= head_dim:
        raise (scaling if key in scaling.values_ else reader).error(
            key, f"a share that gives an even number of elements of a head of {head_dim}")  # fmt: skip
    return n_rot


def _local_base(reader: Reader, parameters: dict[str, Any], family: Family) -> float:
    """Returns the base of layers with a window, which nothing scales."""
    values = parameters.get("sliding_attention") or {}
    if not isinstance(values, dict):
        raise reader.error("rope_parameters", "an object for each kind of layer")
    kind = values.get("rope_type", "default")
    if kind != "default":
        raise unsupported("rope_parameters sliding_attention type", "default", kind, "convert another checkpoint")
    return Reader(values, "config.json rope_parameters").number(
        "rope_theta", reader.number("rope_local_base_freq", family.rope_base_local)
    )


def read_rope(reader: Reader, head_dim: int, n_ctx: int, family: Family) -> Rope | None:
    """Returns what `config.json` says of a family's rotation; None where positions are learned."""
    if family.rope is None:
        return None
    # transformers 5 writes base, share and scaling into one object, rope_parameters; before, they were several keys.
    key = "rope_parameters" if reader.values_.get("rope_parameters") is not None else "rope_scaling"
    values = reader.values_.get(key) or {}
    if not isinstance(values, dict):
        raise reader.error(key, "an object or null")
    keys: dict[str, Any] = {}
    if family.rope_base_local is not None:
        keys["freq_base_swa"] = _local_base(reader, values, family)
        if "full_attention" in values or "sliding_attention" in values:
            values = values.get("full_attention") or {}
            if not isinstance(values, dict):
                raise reader.error(key, "an object for each kind of layer")
    scaling = Reader(values, f"config.json {key}")
    n_rot = _rotated(reader, scaling, head_dim, family)
    base = scaling.number("rope_theta", reader.number("rope_theta", family.rope_base))
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "default":
        return Rope(n_rot, base, keys=keys)
    if kind == "linear":
        return Rope(n_rot, base, keys={**keys, "scaling.type": "linear", "scaling.factor": scaling.number("factor")})
    if kind == "yarn":
        return Rope(n_rot, base, keys={**keys, **_yarn_keys(scaling, n_ctx)})
    if kind == "llama3":
        return Rope(n_rot, base, llama3_rope_factors(n_rot, base, values), keys)
    raise unsupported(f"{key} type", "default, linear, yarn or llama3", kind, "convert a checkpoint with one of these")
