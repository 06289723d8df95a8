// The weights of a model by their GGUF names, each checked against the shape its configuration asks for.
#pragma once

#include <cstdint>
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
  NamedTensor attn_output, attn_output_b;  // (n_head * head_dim, n_embd)
  NamedTensor ffn_norm, ffn_norm_b;        // (n_embd) F32
  NamedTensor ffn_gate, ffn_gate_b;        // (n_embd, n_ff); gated families only
  NamedTensor ffn_up, ffn_up_b;            // (n_embd, n_ff)
  NamedTensor ffn_down;                    // (n_ff, n_embd), or
  NamedTensor ffn_down_t;                  // (n_embd, n_ff): transposed, a unit is one row
  NamedTensor ffn_down_b;                  // (n_embd)
};

struct Weights {
  NamedTensor token_embd;     // (n_embd, n_vocab)
  NamedTensor position_embd;  // (n_embd, n_ctx_train); families with learned positions only
  NamedTensor output_norm;    // (n_embd) F32
  NamedTensor output_norm_b;  // (n_embd) F32, optional
  NamedTensor output;       // (n_embd, n_vocab); equals token_embd when the head is tied
  NamedTensor rope_freqs;   // (n_rot / 2) F32 divisors of the rotary frequencies; optional
  std::vector<LayerWeights> layers;
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
