// The weights of a model by their GGUF names, each checked against the shape its configuration asks for.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace hotset {

class GgufFile;
struct ModelConfig;

// One weight; `name` as in the file. A view without data: the model has no such weight.
struct NamedTensor {
  std::string name;
  TensorView view;
  explicit operator bool() const { return static_cast<bool>(view); }
};

// Shapes are (n_in, n_out); a row is one output. Every `.._b` is the F32 bias of the weight before it, (n_out), and
// optional.
struct LayerWeights {
  NamedTensor attn_norm, attn_norm_b;      // (n_embd) F32
  NamedTensor attn_q, attn_q_b;            // (n_embd, n_head * head_dim)
  NamedTensor attn_k, attn_k_b;            // (n_embd, n_head_kv * head_dim)
  NamedTensor attn_v, attn_v_b;            // (n_embd, n_head_kv * head_dim)
  NamedTensor attn_q_norm, attn_k_norm;    // (head_dim) F32; families with head norms only
  NamedTensor attn_output, attn_output_b;  // (n_head * head_dim, n_embd)
  NamedTensor attn_post_norm;              // (n_embd) F32; families with post-norms only, as ffn_post_norm
  NamedTensor ffn_norm, ffn_norm_b;        // (n_embd) F32; absent where the FFN reads what attention reads
  NamedTensor ffn_post_norm;               // (n_embd) F32
  NamedTensor attn_out_norm, attn_out_norm_b;    // (n_embd) F32; of x after attention, in place of attn_norm
  NamedTensor layer_out_norm, layer_out_norm_b;  // (n_embd) F32; of x after the FFN, in place of ffn_norm
  NamedTensor ffn_gate, ffn_gate_b;        // (n_embd, n_ff); gated families only
  NamedTensor ffn_up, ffn_up_b;            // (n_embd, n_ff)
  NamedTensor ffn_down;                    // (n_ff, n_embd), or
  NamedTensor ffn_down_t;                  // (n_embd, n_ff): transposed, a unit is one row
  NamedTensor ffn_down_b;                  // (n_embd)
};

// What a layer has beside its units' rows: with its attention, wherever that is computed.
inline constexpr NamedTensor LayerWeights::*kBesideUnits[] = {
    &LayerWeights::attn_norm,   &LayerWeights::attn_norm_b,   &LayerWeights::attn_q,
    &LayerWeights::attn_q_b,    &LayerWeights::attn_k,        &LayerWeights::attn_k_b,
    &LayerWeights::attn_v,      &LayerWeights::attn_v_b,      &LayerWeights::attn_q_norm,
    &LayerWeights::attn_k_norm, &LayerWeights::attn_output,   &LayerWeights::attn_output_b,
    &LayerWeights::ffn_norm,    &LayerWeights::ffn_norm_b,    &LayerWeights::attn_post_norm,
    &LayerWeights::ffn_down_b,  &LayerWeights::ffn_post_norm, &LayerWeights::attn_out_norm,
    &LayerWeights::attn_out_norm_b, &LayerWeights::layer_out_norm, &LayerWeights::layer_out_norm_b};

// What makes logits of x.
struct HeadWeights {
  NamedTensor norm, norm_b;  // (n_embd) F32, both optional
  NamedTensor proj;          // (n_embd, n_embd_out), optional
  NamedTensor output;        // (n_embd or n_embd_out, n_vocab)
};

struct Weights {
  NamedTensor token_embd;       // (n_embd, n_vocab), or with token_embd_proj (n_embd_in, n_vocab)
  NamedTensor token_embd_proj;  // (n_embd_in, n_embd), optional
  NamedTensor position_embd;  // (n_embd, n_ctx_train); families with learned positions only
  HeadWeights head;  // its output equals token_embd when the head is tied
  NamedTensor rope_freqs;   // (n_rot / 2) F32 divisors of the rotary frequencies; optional
  std::vector<LayerWeights> layers;
  // Biases of detect rows that no file has: those less the threshold of Activation::kFatRelu.
  std::vector<std::shared_ptr<const std::vector<float>>> made_biases;
  bool tied = false;
  uint64_t n_params = 0;    // elements of all tensors
  uint64_t size_bytes = 0;  // bytes of all tensors
  bool all_f32 = false;     // every weight is F32
};

// Finds and checks every tensor; nothing is copied. Sets config.n_vocab from the embedding table.
// Throws ModelFormatError (missing, wrong shape) and UnsupportedModelError (a type without kernels, an unknown tensor:
// a tensor that would be ignored silently would change the model's output).
Weights read_weights(const GgufFile& file, ModelConfig& config);

}  // namespace hotset
