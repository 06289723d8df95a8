"""Model families as table rows: how a family's checkpoints differ, and where they keep each GGUF tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

kRms, kRms1P, kLayer, kLayer1P = "rms", "rms_1p", "layer", "layer_1p"
kInterleaved, kHalfSplit = "interleaved", "half_split"
# GGUF name -> checkpoint name, both without ".weight" or ".bias"; from attn_norm on, within a layer.
kLlamaTensors = {
    "token_embd": "model.embed_tokens", "blk": "model.layers", "output_norm": "model.norm",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
kQwen3Tensors = {**kLlamaTensors, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
kGemma2Tensors = {
    **kLlamaTensors, "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
kGemma3Tensors = {**kGemma2Tensors, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
kUngatedTensors = {name: source for name, source in kLlamaTensors.items() if name != "ffn_gate"}
kOptTensors = {
    "token_embd": "model.decoder.embed_tokens", "position_embd": "model.decoder.embed_positions",
    "blk": "model.decoder.layers", "output_norm": "model.decoder.final_layer_norm",
    "attn_norm": "self_attn_layer_norm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.out_proj", "ffn_norm": "final_layer_norm",
    "ffn_up": "fc1", "ffn_down": "fc2",
}  # fmt: skip
# What norms after the additions are called in place of those before, and the projections of another width.
kNormsAfter = {"attn_norm": "attn_output_norm", "ffn_norm": "layer_output_norm"}
kProjections = {"token_embd_proj": "model.decoder.project_in", "output_proj": "model.decoder.project_out"}
# attn_norm and attn_norm_2 are those of a layer with two norms; with one, attn_norm is "input_layernorm".
kFalconTensors = {
    "token_embd": "transformer.word_embeddings", "blk": "transformer.h", "output_norm": "transformer.ln_f",
    "attn_norm": "ln_mlp", "attn_norm_2": "ln_attn", "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense", "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h",
}  # fmt: skip
kAllLayers, kChosenLayers = "all", "chosen"
kActivations = {
    "silu": "silu", "swish": "silu", "relu": "relu", "relu2": "relu2", "fatrelu": "fatrelu", "gelu": "gelu",
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
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
    """kRms1P, kLayer1P: checkpoints store the weights of norms less one."""
    norm_eps: float | None = None
    """Where the family has one value for all: that of its code, not of config.json."""
    activation: str = "silu"
    """Where config.json does not say."""
    activations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(kActivations))
    """What config.json may say -> its name here."""
    rope: str | None = kInterleaved
    """How GGUF pairs the rotated rows of a head (checkpoints are half-split); None: positions are learned."""
    rotary_share: float = 1.0
    """Rotated share of a head where config.json does not say; 1: config.json may not say anything else."""
    rope_base: float = 10000.0
    """Where config.json does not say."""
    rope_base_local: float | None = None
    """Where layers with a window rotate by their own base: that base where config.json does not say."""
    windows: str | None = None
    """Which layers see a window of positions alone, where config.json has one: kAllLayers, those that are not every
    n-th (`full_layer_every`), or kChosenLayers where config.json says so; None: windows are unknown to the family."""
    full_layer_every: int = 0
    tied: bool | None = None
    """Whether the head is tied where config.json does not say; None: it is if there is no lm_head.weight."""
    has_biases: bool = False
    """Whether matrices have biases where config.json does not say."""
    has_qkv_biases: bool = False
    """Whether queries, keys and values have biases, and attention's output none, whatever config.json says."""
    may_norm_after: bool = False
    """Whether config.json may ask for norms after the additions, and an embedding of another width."""
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What config.json need not say."""
    renamed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """LLaMA's keys of config.json -> this family's."""
    fixed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Keys of config.json that would change the results -> the only value that is supported, also their default."""

    @property
    def is_gated(self) -> bool:
        return "ffn_gate" in self.tensors

    @property
    def norms_have_biases(self) -> bool:
        return self.norm in (kLayer, kLayer1P)

    @property
    def is_fused(self) -> bool:
        """Whether checkpoints have one matrix of queries, keys and values."""
        return "attn_qkv" in self.tensors


kFamilies = (
    Family("llama", {"LlamaForCausalLM": "llama"}, kLlamaTensors),
    Family("llama", {"MistralForCausalLM": "mistral"}, kLlamaTensors, windows=kAllLayers,
           defaults={"sliding_window": 4096}),
    Family("bamboo", {"BambooForCausalLM": "bamboo"}, kLlamaTensors, activation="relu",
           activations={"relu": "drelu", "drelu": "drelu"}, windows=kAllLayers),
    Family("qwen2", {"Qwen2ForCausalLM": "qwen2"}, kLlamaTensors, rope=kHalfSplit, windows=kChosenLayers,
           has_qkv_biases=True, defaults={"sliding_window": 4096, "max_window_layers": 28}),
    Family("qwen3", {"Qwen3ForCausalLM": "qwen3"}, kQwen3Tensors, rope=kHalfSplit, windows=kChosenLayers,
           defaults={"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28}),
    Family("gemma2", {"Gemma2ForCausalLM": "gemma2"}, kGemma2Tensors, norm=kRms1P, activation="gelu_pytorch_tanh",
           rope=kHalfSplit, tied=True, windows=kAllLayers, full_layer_every=2,
           renamed={"hidden_act": "hidden_activation"}, fixed={"use_bidirectional_attention": False},
           defaults={"head_dim": 256, "sliding_window": 4096, "query_pre_attn_scalar": 256,
                     "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    Family("gemma3", {"Gemma3ForCausalLM": "gemma3_text"}, kGemma3Tensors, norm=kRms1P,
           activation="gelu_pytorch_tanh", rope=kHalfSplit, rope_base=1e6, rope_base_local=10000.0, tied=True,
           windows=kAllLayers, full_layer_every=6,
           renamed={"hidden_act": "hidden_activation"}, fixed={"use_bidirectional_attention": False},
           defaults={"head_dim": 256, "sliding_window": 4096, "query_pre_attn_scalar": 256}),
    Family("arcee", {"ArceeForCausalLM": "arcee"}, kUngatedTensors, activation="relu2"),
    Family("nemotron", {"NemotronForCausalLM": "nemotron"}, kUngatedTensors, norm=kLayer1P, activation="relu2",
           rope=kHalfSplit, rotary_share=0.5, renamed={"rms_norm_eps": "norm_eps"}),
    Family("jais2", {"Jais2ForCausalLM": "jais2"}, kUngatedTensors, norm=kLayer, activation="relu2", rope=kHalfSplit,
           has_biases=True, renamed={"rms_norm_eps": "layer_norm_eps"}),
    Family("falcon", {"FalconForCausalLM": "falcon"}, kFalconTensors, norm=kLayer, activation="gelu", rope=kHalfSplit,
           tied=True,
           renamed={"hidden_act": "activation", "intermediate_size": "ffn_hidden_size", "attention_bias": "bias",
                    "mlp_bias": "bias", "rms_norm_eps": "layer_norm_epsilon"},
           fixed={"alibi": False, "parallel_attn": True}, defaults={"max_position_embeddings": 2048}),
    Family("opt", {"OPTForCausalLM": "opt"}, kOptTensors, norm=kLayer, norm_eps=1e-5, activation="relu", rope=None,
           tied=True, has_biases=True,
           renamed={"hidden_act": "activation_function", "intermediate_size": "ffn_dim",
                    "attention_bias": "enable_bias", "mlp_bias": "enable_bias"},
           fixed={"_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True}, may_norm_after=True),
)  # fmt: skip
