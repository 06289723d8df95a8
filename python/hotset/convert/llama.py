"""Which tensor of a Hugging Face LLaMA checkpoint becomes which GGUF tensor, and how its rows are laid out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError, error_text
from .config import LlamaConfig
from .safetensors import Checkpoint


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to write. `shape` is NumPy's order, slowest first: (rows, row length), or (length,)."""

    name: str
    source: str
    shape: tuple[int, ...]
    transpose: bool = False
    n_rope_heads: int = 0
    """Heads whose rows are reordered from half-split to interleaved pairs; 0 for none."""


def _layer_plans(config: LlamaConfig, layer: int, neuron_major: bool) -> Iterator[TensorPlan]:
    source, name = f"model.layers.{layer}.", f"blk.{layer}."
    n_embd, n_ff = config.n_embd, config.n_ff
    n_q, n_kv = config.n_head * config.head_dim, config.n_head_kv * config.head_dim
    attention, mlp = source + "self_attn.", source + "mlp."
    yield TensorPlan(name + "attn_norm.weight", source + "input_layernorm.weight", (n_embd,))
    yield TensorPlan(name + "attn_q.weight", attention + "q_proj.weight", (n_q, n_embd), n_rope_heads=config.n_head)
    yield TensorPlan(name + "attn_k.weight", attention + "k_proj.weight", (n_kv, n_embd), n_rope_heads=config.n_head_kv)
    yield TensorPlan(name + "attn_v.weight", attention + "v_proj.weight", (n_kv, n_embd))
    yield TensorPlan(name + "attn_output.weight", attention + "o_proj.weight", (n_embd, n_q))
    yield TensorPlan(name + "ffn_norm.weight", source + "post_attention_layernorm.weight", (n_embd,))
    yield TensorPlan(name + "ffn_gate.weight", mlp + "gate_proj.weight", (n_ff, n_embd))
    yield TensorPlan(name + "ffn_up.weight", mlp + "up_proj.weight", (n_ff, n_embd))
    if neuron_major:
        yield TensorPlan(name + "ffn_down_t.weight", mlp + "down_proj.weight", (n_ff, n_embd), transpose=True)
    else:
        yield TensorPlan(name + "ffn_down.weight", mlp + "down_proj.weight", (n_embd, n_ff))


def _is_tied(config: LlamaConfig, checkpoint: Checkpoint) -> bool:
    if config.tied is None:
        return "lm_head.weight" not in checkpoint
    return config.tied


def plan_tensors(config: LlamaConfig, checkpoint: Checkpoint, neuron_major: bool) -> list[TensorPlan]:
    """Returns what to write, in file order, after checking every name and shape of the checkpoint.

    Raises:
        ModelFormatError: a tensor is missing or has another shape than `config.json` implies.
        UnsupportedModelError: the checkpoint holds a tensor that this architecture does not use.
    """
    # A missing tensor ends the loop, so a config with 2^31 layers costs nothing.
    head = (config.n_vocab, config.n_embd)
    plans: list[TensorPlan] = []

    def add(plan: TensorPlan) -> None:
        _check_source(plan, checkpoint)
        plans.append(plan)

    add(TensorPlan("token_embd.weight", "model.embed_tokens.weight", head))
    for layer in range(config.n_layer):
        for plan in _layer_plans(config, layer, neuron_major):
            add(plan)
    add(TensorPlan("output_norm.weight", "model.norm.weight", (config.n_embd,)))
    if not _is_tied(config, checkpoint):
        add(TensorPlan("output.weight", "lm_head.weight", head))
    _check_unused(plans, checkpoint)
    return plans


def _check_source(plan: TensorPlan, checkpoint: Checkpoint) -> None:
    expected = plan.shape[::-1] if plan.transpose else plan.shape
    got = checkpoint.shape(plan.source) if plan.source in checkpoint else "no such tensor"
    if got != expected:
        remedy = "check that config.json belongs to these weights"
        raise ModelFormatError(error_text("convert", f"tensor {plan.source}", expected, got, remedy))


def _check_unused(plans: list[TensorPlan], checkpoint: Checkpoint) -> None:
    used = {plan.source for plan in plans} | {"lm_head.weight"}
    for name in checkpoint.names():
        # Old checkpoints carry the rotary frequencies, which follow from config.json.
        if name not in used and not name.endswith(".rotary_emb.inv_freq"):
            remedy = "convert a plain LLaMA checkpoint without adapters or extra layers"
            raise UnsupportedModelError(error_text("convert", "tensors", "those of LLaMA only", name[:80], remedy))


def interleave_heads(rows: np.ndarray, n_head: int) -> np.ndarray:
    """Reorders the rows (n_head * head_dim, n) of Q or K from half-split to interleaved rotary pairs.

    Hugging Face rotates row i of a head with row i + head_dim / 2; GGUF's `llama` rotates row 2 i with row 2 i + 1.
    """
    halves = rows.reshape(n_head, 2, -1, rows.shape[-1])
    return np.ascontiguousarray(halves.transpose(0, 2, 1, 3)).reshape(rows.shape)


def arrange(plan: TensorPlan, raw: np.ndarray) -> np.ndarray:
    """Returns the source's values, of unchanged dtype, in the order in which the GGUF tensor stores them.

    The transposed one is a view: its rows are gathered only when they are read.
    """
    if plan.transpose:
        return raw.T
    return interleave_heads(raw, plan.n_rope_heads) if plan.n_rope_heads else raw
