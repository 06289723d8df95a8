#include "core/architecture.h"

#include <cstring>

namespace hotset {
namespace {

constexpr Architecture kTable[] = {
    {.name = "llama", .rope = RopeLayout::kInterleaved},
    {.name = "bamboo", .usual_activation = Activation::kDRelu, .rope = RopeLayout::kInterleaved},
    {.name = "qwen2"},
    {.name = "qwen3", .has_head_norms = true},
    {.name = "gemma2",
     .usual_activation = Activation::kGeluTanh,
     .has_post_norms = true,
     .scales_embedding = true,
     .full_layer_every = 2,
     .n_layer_scaled_by_width = 46},
    {.name = "gemma3",
     .usual_activation = Activation::kGeluTanh,
     .has_head_norms = true,
     .has_post_norms = true,
     .scales_embedding = true,
     .full_layer_every = 6,
     .rope_base_local = 10000,
     .n_layer_scaled_by_width = 62},
    {.name = "arcee", .usual_activation = Activation::kRelu2, .gated = false, .rope = RopeLayout::kInterleaved},
    {.name = "nemotron", .norm = NormKind::kLayer, .usual_activation = Activation::kRelu2, .gated = false},
    {.name = "jais2", .norm = NormKind::kLayer, .usual_activation = Activation::kRelu2, .gated = false},
    {.name = "falcon",
     .norm = NormKind::kLayer,
     .usual_activation = Activation::kGelu,
     .gated = false,
     .is_parallel = true,
     .has_fused_qkv = true},
    {.name = "opt",
     .norm = NormKind::kLayer,
     .usual_activation = Activation::kRelu,
     .gated = false,
     .positions = Positions::kLearned,
     .may_norm_after = true},
};

constexpr Activation kActivations[] = {Activation::kSilu,   Activation::kRelu,    Activation::kRelu2,
                                       Activation::kDRelu,  Activation::kFatRelu, Activation::kGelu,
                                       Activation::kGeluTanh};

}  // namespace

const char* activation_name(Activation activation) {
  switch (activation) {
    case Activation::kSilu: return "silu";
    case Activation::kRelu: return "relu";
    case Activation::kRelu2: return "relu2";
    case Activation::kDRelu: return "drelu";
    case Activation::kFatRelu: return "fatrelu";
    case Activation::kGelu: return "gelu";
    case Activation::kGeluTanh: return "gelu_tanh";
  }
  return "?";
}

std::optional<Activation> parse_activation(const std::string& name) {
  for (const Activation activation : kActivations)
    if (name == activation_name(activation)) return activation;
  return std::nullopt;
}

std::string known_activations() {
  std::string out;
  for (const Activation activation : kActivations) out += (out.empty() ? "" : ", ") + std::string(activation_name(activation));
  return out;
}

bool is_plain(const Architecture& arch) {
  return !arch.is_parallel && !arch.has_fused_qkv && !arch.has_head_norms && !arch.has_post_norms;
}

const Architecture* find_architecture(const std::string& name) {
  for (const Architecture& row : kTable)
    if (name == row.name) return &row;
  return nullptr;
}

std::string known_architectures(bool (*is_wanted)(const Architecture&)) {
  std::string out;
  for (const Architecture& row : kTable)
    if (!is_wanted || is_wanted(row)) out += (out.empty() ? "" : ", ") + std::string(row.name);
  return out;
}

}  // namespace hotset
