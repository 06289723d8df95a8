"""Model families as table rows: how a family's checkpoints differ, and where they keep each GGUF tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

kRms, kLayer, kLayer1P = "rms", "layer", "layer_1p"
kInterleaved, kHalfSplit = "interleaved", "half_split"
# GGUF name -> checkpoint name, both without ".weight" or ".bias"; from attn_norm on, within a layer.
kLlamaTensors = {
    "token_embd": "model.embed_tokens", "blk": "model.layers", "output_norm": "model.norm",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
kUngatedTensors = {name: source for name, source in kLlamaTensors.items() if name != "ffn_gate"}
kOptTensors = {
    "token_embd": "model.decoder.embed_tokens", "position_embd": "model.decoder.embed_positions",
    "blk": "model.decoder.layers", "output_norm": "model.decoder.final_layer_norm",
    "attn_norm": "self_attn_layer_norm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.out_proj", "ffn_norm": "final_layer_norm",
    "ffn_up": "fc1", "ffn_down": "fc2",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One row. The defaults are LLaMA's; `core/architecture.cpp` has the same rows for running the result."""

    name: str
    """`general.architecture` of the GGUF file."""
    classes: Mapping[str, str]
    """`architectures` of config.json -> its `model_type`."""
    tensors: Mapping[str, str]
    """GGUF name -> checkpoint name. Without "ffn_gate" units have no gate."""
    norm: str = kRms
    """kLayer1P: a LayerNorm whose checkpoints store its weights less one."""
    norm_eps: float | None = None
    """Where the family has one value for all: that of its code, not of config.json."""
    activation: str = "silu"
    """Where config.json does not say."""
    rope: str | None = kInterleaved
    """How GGUF pairs the rotated rows of a head (checkpoints are half-split); None: positions are learned."""
    rotary_share: float = 1.0
    """Rotated share of a head where config.json does not say; 1: config.json may not say anything else."""
    tied: bool | None = None
    """Whether the head is tied where config.json does not say; None: it is if there is no lm_head.weight."""
    has_biases: bool = False
    """Whether matrices have biases where config.json does not say."""
    renamed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """LLaMA's keys of config.json -> this family's."""
    fixed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Keys of config.json that would change the results -> the only value that is supported, also their default."""

    @property
    def is_gated(self) -> bool:
        return "ffn_gate" in self.tensors

    @property
    def norms_have_biases(self) -> bool:
        return self.norm != kRms


kFamilies = (
    Family("llama", {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral"}, kLlamaTensors),
    Family("arcee", {"ArceeForCausalLM": "arcee"}, kUngatedTensors, activation="relu2"),
    Family("nemotron", {"NemotronForCausalLM": "nemotron"}, kUngatedTensors, norm=kLayer1P, activation="relu2",
           rope=kHalfSplit, rotary_share=0.5, renamed={"rms_norm_eps": "norm_eps"}),
    Family("opt", {"OPTForCausalLM": "opt"}, kOptTensors, norm=kLayer, norm_eps=1e-5, activation="relu", rope=None,
           tied=True, has_biases=True,
           renamed={"hidden_act": "activation_function", "intermediate_size": "ffn_dim",
                    "attention_bias": "enable_bias", "mlp_bias": "enable_bias"},
           fixed={"do_layer_norm_before": True, "_remove_final_layer_norm": False,
                  "layer_norm_elementwise_affine": True}),
)  # fmt: skip
