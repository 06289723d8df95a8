#include "core/architecture.h"

#include <cstring>

namespace hotset {
namespace {

constexpr Architecture kTable[] = {
    {"llama", NormKind::kRms, Activation::kSilu, true, Positions::kRope, RopeLayout::kInterleaved},
    {"arcee", NormKind::kRms, Activation::kRelu2, false, Positions::kRope, RopeLayout::kInterleaved},
    {"nemotron", NormKind::kLayer, Activation::kRelu2, false, Positions::kRope, RopeLayout::kHalfSplit},
    {"opt", NormKind::kLayer, Activation::kRelu, false, Positions::kLearned, {}},
};

constexpr Activation kActivations[] = {Activation::kSilu, Activation::kRelu, Activation::kRelu2, Activation::kDRelu};

}  // namespace

const char* activation_name(Activation activation) {
  switch (activation) {
    case Activation::kSilu: return "silu";
    case Activation::kRelu: return "relu";
    case Activation::kRelu2: return "relu2";
    case Activation::kDRelu: return "drelu";
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

const Architecture* find_architecture(const std::string& name) {
  for (const Architecture& row : kTable)
    if (name == row.name) return &row;
  return nullptr;
}

std::string known_architectures() {
  std::string out;
  for (const Architecture& row : kTable) out += (out.empty() ? "" : ", ") + std::string(row.name);
  return out;
}

}  // namespace hotset
