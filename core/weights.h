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

// Shapes are (n_in, n_out); a row is one output.
struct LayerWeights {
  NamedTensor attn_norm;    // (n_embd) F32
  NamedTensor attn_q;       // (n_embd, n_head * head_dim)
  NamedTensor attn_k;       // (n_embd, n_head_kv * head_dim)
  NamedTensor attn_v;       // (n_embd, n_head_kv * head_dim)
  NamedTensor attn_output;  // (n_head * head_dim, n_embd)
  NamedTensor ffn_norm;     // (n_embd) F32
  NamedTensor ffn_gate;     // (n_embd, n_ff)
  NamedTensor ffn_up;       // (n_embd, n_ff)
  NamedTensor ffn_down;     // (n_ff, n_embd), or
  NamedTensor ffn_down_t;   // (n_embd, n_ff): transposed, a unit is one row
};

struct Weights {
  NamedTensor token_embd;   // (n_embd, n_vocab)
  NamedTensor output_norm;  // (n_embd) F32
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
