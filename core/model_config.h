// The numbers that define a model, read from GGUF metadata and checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/architecture.h"

namespace hotset {

class GgufFile;

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
  Activation activation = Activation::kSilu;
  bool activation_stated = false;  // false: the file does not say, the architecture's usual one is taken
};

// Reads and validates. `activation` overrides the file when not empty. Throws ModelFormatError for missing, mistyped or
// impossible values (zero, negative, beyond sane limits, head counts that do not divide) and UnsupportedModelError for
// architectures, activations and rope scalings that are not built.
ModelConfig read_model_config(const GgufFile& file, const std::string& activation);

}  // namespace hotset
