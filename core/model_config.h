// The numbers that define a model, read from GGUF metadata and checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/architecture.h"

namespace hotset {

class GgufFile;

// Scaling of rotary frequencies that stretches the slow ones alone (arXiv 2309.00071, section 3.2).
struct Yarn {
  float factor = 1;  // 1 = none
  int64_t n_ctx_original = 0;
  float beta_fast = 32, beta_slow = 1;  // rotations over the original context: above all stay, below all are stretched
  float attention_factor = 1;           // of cosines and sines, beside 1 + 0.1 ln(factor)
};

struct ModelConfig {
  const Architecture* arch = nullptr;
  std::string arch_name;  // `general.architecture`
  int64_t n_layer = 0;
  int64_t n_embd = 0;
  int64_t n_ff = 0;
  int64_t n_head = 0;
  int64_t n_head_kv = 0;
  int64_t head_dim = 0;
  int64_t n_rot = 0;  // rotated elements of a head, even, <= head_dim; 0 with learned positions
  int64_t n_vocab = 0;
  int64_t n_ctx_train = 0;
  float norm_eps = 0;
  float rope_freq_base = 10000;
  float rope_scale = 1;  // positions are divided by this (linear scaling); 1 = none
  Yarn yarn;
  float rope_freq_base_local = 0;  // of layers with a window; 0 = as the others
  std::vector<int64_t> windows;    // (n_layer) positions that a layer sees; 0 = all
  float attention_scale = 0;       // of products of queries and keys
  float attention_softcap = 0;     // of these scores; 0 = none
  float logit_softcap = 0;         // 0 = none
  float embedding_scale = 1;
  bool norms_after = false;        // Architecture::may_norm_after, and the file has it so
  Activation activation = Activation::kSilu;
  float activation_threshold = 0;  // of Activation::kFatRelu
  bool activation_stated = false;  // false: the file does not say, the architecture's usual one is taken

  bool has_local_rope() const { return rope_freq_base_local > 0; }
};

// Reads and validates. `activation` overrides the file when not empty. Throws ModelFormatError for missing, mistyped or
// impossible values (zero, negative, beyond sane limits, head counts that do not divide) and UnsupportedModelError for
// architectures, activations and rope scalings that are not built.
ModelConfig read_model_config(const GgufFile& file, const std::string& activation);

}  // namespace hotset
