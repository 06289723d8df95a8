"""Which tensor of a Hugging Face checkpoint becomes which GGUF tensor, and how its rows are laid out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError, error_text
from .config import CheckpointConfig
from .families import kInterleaved, kLayer1P, kNormsAfter, kProjections, kRms1P
from .safetensors import Checkpoint, to_float32

kHead = "lm_head.weight"
# Checkpoints of OPT keep two rows before that of position 0, which padding once used.
kUnusedPositions = 2
# A parallel layer with one norm of its input.
kOneNorm = "input_layernorm"


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to write. `shape` is NumPy's order, slowest first: (rows, row length), or (length,)."""

    name: str
    source: str
    shape: tuple[int, ...]
    transpose: bool = False
    n_rope_heads: int = 0
    """Heads whose rows are reordered from half-split to interleaved pairs; 0 for none."""
    fused_heads: tuple[int, int] | None = None
    """Heads and KV heads of a matrix of both, in groups in the checkpoint."""
    offset: float = 0.0
    """Added to every value."""
    n_skipped: int = 0
    """Leading rows of the source that are left out."""
    dtype: str | None = None
    """The type to store it in, whatever is asked for."""


def _norm_plans(config: CheckpointConfig, name: str, source: str, size: int | None = None) -> Iterator[TensorPlan]:
    shape, offset = (size or config.n_embd,), 1.0 if config.family.norm in (kRms1P, kLayer1P) else 0.0
    yield TensorPlan(f"{name}.weight", f"{source}.weight", shape, offset=offset)
    if config.family.norms_have_biases:
        yield TensorPlan(f"{name}.bias", f"{source}.bias", shape)


def _layer_plans(config: CheckpointConfig, layer: int, neuron_major: bool) -> Iterator[TensorPlan]:
    names = config.family.tensors
    n_embd, n_ff = config.n_embd, config.n_ff
    n_q, n_kv = config.n_head * config.head_dim, config.n_head_kv * config.head_dim
    is_permuted = config.family.rope == kInterleaved

    def norm(stem: str, size: int | None = None, source: str | None = None) -> Iterator[TensorPlan]:
        if stem in names:
            at = f"{names['blk']}.{layer}.{source or names[stem]}"
            name = kNormsAfter[stem] if config.norms_after else stem
            yield from _norm_plans(config, f"blk.{layer}.{name}", at, size)

    def matrix(stem: str, n_out: int, n_in: int, has_bias: bool, n_rope_heads: int = 0) -> Iterator[TensorPlan]:
        name, source = f"blk.{layer}.{stem}", f"{names['blk']}.{layer}.{names[stem]}"
        if stem == "ffn_down" and neuron_major:
            yield TensorPlan(f"{name}_t.weight", f"{source}.weight", (n_in, n_out), transpose=True)
        else:
            yield TensorPlan(f"{name}.weight", f"{source}.weight", (n_out, n_in), n_rope_heads=n_rope_heads)
        if has_bias:
            yield TensorPlan(f"{name}.bias", f"{source}.bias", (n_out,), n_rope_heads=n_rope_heads)

    if config.family.is_fused:
        yield from norm("attn_norm", source=None if config.has_two_norms else kOneNorm)
        if config.has_two_norms:
            yield from norm("attn_norm_2")
        heads = (config.n_head, config.n_head_kv)
        for plan in matrix("attn_qkv", n_q + 2 * n_kv, n_embd, config.attention_bias):
            yield replace(plan, fused_heads=heads)
    else:
        has_biases = config.attention_bias or config.family.has_qkv_biases
        yield from norm("attn_norm")
        yield from matrix("attn_q", n_q, n_embd, has_biases, config.n_head if is_permuted else 0)
        yield from matrix("attn_k", n_kv, n_embd, has_biases, config.n_head_kv if is_permuted else 0)
        yield from matrix("attn_v", n_kv, n_embd, has_biases)
    yield from norm("attn_q_norm", config.head_dim)
    yield from norm("attn_k_norm", config.head_dim)
    yield from matrix("attn_output", n_embd, n_q, config.attention_bias)
    yield from norm("post_attention_norm")
    yield from norm("ffn_norm")
    if config.family.is_gated:
        yield from matrix("ffn_gate", n_ff, n_embd, config.mlp_bias)
    yield from matrix("ffn_up", n_ff, n_embd, config.mlp_bias)
    yield from matrix("ffn_down", n_embd, n_ff, config.mlp_bias)
    yield from norm("post_ffw_norm")


def _plans(config: CheckpointConfig, is_tied: bool, neuron_major: bool) -> Iterator[TensorPlan]:
    names = config.family.tensors
    head = (config.n_vocab, config.n_embd_in)
    yield TensorPlan("token_embd.weight", f"{names['token_embd']}.weight", head)
    if config.n_embd_in != config.n_embd:
        into = (config.n_embd, config.n_embd_in)
        for name, shape in (("token_embd_proj", into), ("output_proj", into[::-1])):
            yield TensorPlan(f"{name}.weight", f"{kProjections[name]}.weight", shape)
    if "position_embd" in names:
        # A token reads one row of it, so that smaller types would save nothing.
        yield TensorPlan("position_embd.weight", f"{names['position_embd']}.weight", (config.n_ctx, config.n_embd),
                         n_skipped=kUnusedPositions, dtype="f32")  # fmt: skip
    for layer in range(config.n_layer):
        yield from _layer_plans(config, layer, neuron_major)
    if not config.norms_after:
        yield from _norm_plans(config, "output_norm", names["output_norm"])
    if not is_tied:
        yield TensorPlan("output.weight", kHead, head)


def plan_tensors(config: CheckpointConfig, checkpoint: Checkpoint, neuron_major: bool) -> list[TensorPlan]:
    """Returns what to write, in file order, after checking every name and shape of the checkpoint.

    Raises:
        ModelFormatError: a tensor is missing or has another shape than `config.json` implies.
        UnsupportedModelError: the checkpoint holds a tensor that this architecture does not use.
    """
    is_tied = kHead not in checkpoint if config.tied is None else config.tied
    plans: list[TensorPlan] = []
    # A missing tensor ends the loop, so a config with 2^31 layers costs nothing.
    for plan in _plans(config, is_tied, neuron_major):
        _check_source(plan, checkpoint)
        plans.append(plan)
    _check_unused(config.family.name, plans, checkpoint)
    return plans


def _check_source(plan: TensorPlan, checkpoint: Checkpoint) -> None:
    expected = plan.shape[::-1] if plan.transpose else (plan.shape[0] + plan.n_skipped, *plan.shape[1:])
    got = checkpoint.shape(plan.source) if plan.source in checkpoint else "no such tensor"
    if got != expected:
        remedy = "check that config.json belongs to these weights"
        raise ModelFormatError(error_text("convert", f"tensor {plan.source}", expected, got, remedy))


def _check_unused(family: str, plans: list[TensorPlan], checkpoint: Checkpoint) -> None:
    used = {plan.source for plan in plans} | {kHead}
    for name in checkpoint.names():
        # Old checkpoints carry the rotary frequencies, which follow from config.json.
        if name not in used and not name.endswith(".rotary_emb.inv_freq"):
            remedy = "convert a plain checkpoint without adapters or extra layers"
            raise UnsupportedModelError(error_text("convert", "tensors", f"those of {family} only", name[:80], remedy))


def interleave_heads(rows: np.ndarray, n_head: int) -> np.ndarray:
    """Reorders the rows (n_head * head_dim, ..) of Q or K from half-split to interleaved rotary pairs.

    Hugging Face rotates row i of a head with row i + head_dim / 2; GGUF's `llama` rotates row 2 i with row 2 i + 1.
    """
    halves = rows.reshape(n_head, 2, rows.shape[0] // n_head // 2, -1)
    return np.ascontiguousarray(halves.transpose(0, 2, 1, 3)).reshape(rows.shape)


def split_groups(rows: np.ndarray, n_head: int, n_head_kv: int) -> np.ndarray:
    """Returns all rows of queries, then of keys, then of values.

    A checkpoint has them by KV head: its queries, its key, its value.
    """
    group = n_head // n_head_kv
    groups = rows.reshape(n_head_kv, group + 2, rows.shape[0] // (n_head + 2 * n_head_kv), *rows.shape[1:])
    parts = (groups[:, :group], groups[:, group : group + 1], groups[:, group + 1 :])
    return np.concatenate([part.reshape(-1, *rows.shape[1:]) for part in parts])


def arrange(plan: TensorPlan, raw: np.ndarray) -> np.ndarray:
    """Returns the source's values, of unchanged dtype (float32 with an offset), as the GGUF tensor stores them.

    The transposed one is a view: its rows are gathered only when they are read.
    """
    if plan.transpose:
        return raw.T
    if plan.fused_heads:
        return split_groups(raw, *plan.fused_heads)
    if plan.offset:
        return to_float32(raw) + np.float32(plan.offset)
    return interleave_heads(raw, plan.n_rope_heads) if plan.n_rope_heads else raw[plan.n_skipped :]
