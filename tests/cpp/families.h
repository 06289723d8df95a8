// Small models of several families, shared by tests of exact and predict.
#pragma once

#include <algorithm>
#include <numeric>

#include "tests/cpp/sanitizers.h"
#include "tests/cpp/util.h"

namespace hotset::test {

using Ids = std::vector<int32_t>;
using Logits = std::vector<float>;

// Families differ in no kernel of a weight type: under a sanitizer all types are for the first family, and two for the
// others, one of odd sizes.
constexpr bool skips_type(bool is_first, DType dtype) {
  if (kThreadsOnly) return dtype != DType::kQ4_0;
  return kFewCases && !is_first && dtype != DType::kQ4_0 && dtype != DType::kF32;
}

struct Family {
  const char* arch;
  Activation activation;
  bool is_other = false;  // of falcon two norms, of opt norms after
};

inline TinySpec spec_of(const Family& family, DType dtype) {
  TinySpec spec{.arch = family.arch, .n_ctx = 96, .dtype = dtype, .activation = family.activation, .biases = true};
  widen_for(dtype, spec);
  if (!is_block_type(dtype)) spec.n_embd = 50, spec.n_ff = 101, spec.head_dim = 14;
  if (spec.arch != "opt") spec.n_rot = 6;
  if (spec.activation == Activation::kFatRelu) spec.threshold = 0.2f;
  if (spec.arch.starts_with("gemma")) spec.window = 5, spec.softcap = 4;  // what they have beside plain layers
  if (spec.arch == "bamboo") spec.window = 6;
  spec.own_ffn_norm = family.is_other && spec.arch == "falcon";
  spec.norms_after = family.is_other && spec.arch == "opt";
  return spec;
}

// For each layer a random order of its units.
inline std::vector<std::vector<int32_t>> random_unit_order(std::mt19937_64& random, const TinySpec& spec) {
  std::vector<std::vector<int32_t>> out(static_cast<size_t>(spec.n_layer));
  for (auto& layer : out) {
    layer.resize(static_cast<size_t>(spec.n_ff));
    std::iota(layer.begin(), layer.end(), 0);
    std::shuffle(layer.begin(), layer.end(), random);
  }
  return out;
}

}  // namespace hotset::test
