"""Hyperparameters of a checkpoint, read from `config.json` and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .config_reader import Reader, unsupported
from .families import Family, kChosenLayers, kFamilies
from .rope import Rope, read_rope

kRemedy = "convert a plain checkpoint of a supported family"
kMostLayers = 1024


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
    activation_threshold: float | None
    """Of "fatrelu"."""
    window: int | None
    """Positions that layers see."""
    windowed_layers: list[bool] | None
    """Which layers have the window; None: as is usual in the family."""
    attention_scale: float | None
    """Of products of queries and keys; None: 1 / sqrt(head_dim)."""
    softcaps: tuple[float | None, float | None]
    """Of scores and of logits."""
    has_two_norms: bool
    """Whether a parallel layer norms its input for attention and for the FFN apart."""
    norms_after: bool
    """Whether x is normed after each addition, and not before attention and FFN."""
    n_embd_in: int
    """Of the embedding and the output head."""
    tied: bool | None
    attention_bias: bool
    mlp_bias: bool
    rope: Rope | None
    """None: positions are learned."""


def _find_family(values: dict[str, Any]) -> Family:
    """Returns the row of the table; refuses every model that no row would compute rightly."""
    known = {kind: family for family in kFamilies for kind in family.classes}
    architectures = values.get("architectures")
    kinds = [architectures] if isinstance(architectures, str) else architectures
    if kinds and isinstance(kinds, list):
        if not isinstance(kinds[0], str) or kinds[0] not in known:
            raise unsupported("architectures", " or ".join(known), kinds[0], kRemedy)
        return known[kinds[0]]
    types = {kind: family for family in kFamilies for kind in family.classes.values()}
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in types:
        raise unsupported("model_type", " or ".join(types), kind, kRemedy)
    return types[kind]


def _check_plain(values: dict[str, Any], family: Family) -> None:
    """Refuses values that change results in a way that is not supported."""
    if values.get("quantization_config"):
        raise unsupported("quantization_config", "none", values["quantization_config"],
                           "convert the original, unquantised checkpoint")  # fmt: skip
    if values.get("num_local_experts") not in (None, 0, 1):
        raise unsupported("num_local_experts", "none", values["num_local_experts"], kRemedy)
    if not family.may_norm_after and values.get("word_embed_proj_dim") not in (None, values.get("hidden_size")):
        raise unsupported("word_embed_proj_dim", f"hidden_size ({values.get('hidden_size')!r:.20})",
                           values["word_embed_proj_dim"], kRemedy)  # fmt: skip
    for key, only in family.fixed.items():
        if values.get(key) not in (None, only):
            raise unsupported(key, str(only).lower(), values[key], kRemedy)


def _read_heads(reader: Reader, n_embd: int, family: Family) -> tuple[int, int, int]:
    """Returns (n_head, n_head_kv, head_dim)."""
    is_rotated = family.rope is not None
    n_head = reader.integer("num_attention_heads")
    n_head_kv = reader.integer("num_key_value_heads", n_head)
    if family.is_fused:  # Falcon: one for all, unless config.json says otherwise in one of two ways
        is_new = reader.boolean("new_decoder_architecture", False)
        is_one = not is_new and reader.boolean("multi_query", True)
        n_head_kv = 1 if is_one else reader.integer("num_kv_heads", n_head)
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
    if not isinstance(activation, str) or activation not in family.activations:
        raise unsupported(key, " or ".join(family.activations), activation, "convert a checkpoint with one of these")
    return family.activations[activation]


def _read_windows(reader: Reader, family: Family, n_layer: int) -> tuple[int | None, list[bool] | None]:
    """Returns the length of the window, None where there is none, and the layers that have it unless all usual ones."""
    values = reader.values_
    is_chosen = family.windows == kChosenLayers
    if family.windows is None or values.get("sliding_window") is None:
        return None, None
    if is_chosen and not reader.boolean("use_sliding_window", False) or values.get("use_sliding_window") is False:
        return None, None
    window = reader.integer("sliding_window")
    every = family.full_layer_every
    if every:
        every = reader.integer("sliding_window_pattern", reader.integer("_sliding_window_pattern", every))
    usual = [not (family.full_layer_every and (i + 1) % family.full_layer_every == 0) for i in range(n_layer)]
    layers = [not (every and (i + 1) % every == 0) for i in range(n_layer)]
    if is_chosen:
        first = reader.integer("max_window_layers")
        layers = [i >= first for i in range(n_layer)]
    if values.get("layer_types") is not None:
        kinds = {"sliding_attention": True, "full_attention": False}
        types = values["layer_types"]
        if not isinstance(types, list) or len(types) != n_layer or any(kind not in kinds for kind in types):
            raise reader.error("layer_types", f"{n_layer} of {' or '.join(kinds)}")
        layers = [kinds[kind] for kind in types]
    return (window, None if layers == usual else layers) if any(layers) else (None, None)


def read_config(values: dict[str, Any]) -> CheckpointConfig:
    """Checks the object of `config.json` and returns what it means.

    Raises:
        ModelFormatError: a needed key is missing or has no usable value.
        UnsupportedModelError: the model differs from its family in a way that would change its results.
    """
    family = _find_family(values)
    _check_plain(values, family)
    values = {**family.defaults, **values}
    reader = Reader(values)

    def key(name: str) -> str:
        return family.renamed.get(name, name)

    n_embd = reader.integer("hidden_size")
    n_head, n_head_kv, head_dim = _read_heads(reader, n_embd, family)
    activation = _read_activation(values, key("hidden_act"), family)
    n_ctx, n_layer = reader.integer("max_position_embeddings"), reader.integer("num_hidden_layers")
    window, windowed_layers = _read_windows(reader, family, min(n_layer, kMostLayers))
    scalar = reader.number("query_pre_attn_scalar", None) if "query_pre_attn_scalar" in family.defaults else None
    has_two_norms = family.is_fused and bool(reader.boolean("new_decoder_architecture", False))
    return CheckpointConfig(
        family=family, n_layer=n_layer, n_embd=n_embd,
        n_ff=reader.integer(key("intermediate_size"), *([4 * n_embd] if family.is_fused else [])),
        n_head=n_head, n_head_kv=n_head_kv, head_dim=head_dim,
        n_vocab=reader.integer("vocab_size"), n_ctx=n_ctx,
        norm_eps=family.norm_eps or reader.number(key("rms_norm_eps")),
        hidden_activation=activation,
        activation_threshold=reader.number("hidden_act_param") if activation == "fatrelu" else None,
        window=window, windowed_layers=windowed_layers, attention_scale=scalar and scalar**-0.5,
        softcaps=(reader.number("attn_logit_softcapping", None), reader.number("final_logit_softcapping", None)),
        has_two_norms=has_two_norms and reader.integer("num_ln_in_parallel_attn", 2) == 2,
        norms_after=family.may_norm_after and not reader.boolean("do_layer_norm_before", True),
        n_embd_in=reader.integer("word_embed_proj_dim", n_embd) if family.may_norm_after else n_embd,
        tied=reader.boolean("tie_word_embeddings", family.tied),
        attention_bias=bool(reader.boolean(key("attention_bias"), family.has_biases)),
        mlp_bias=bool(reader.boolean(key("mlp_bias"), family.has_biases)),
        rope=read_rope(reader, head_dim, n_ctx, family),
    )  # fmt: skip
