#include "core/architecture.h"

#include <cstring>

namespace hotset {
namespace {

constexpr Architecture kTable[] = {
    {"llama", NormKind::kRms, Activation::kSilu, true, RopeLayout::kInterleaved},
};

}  // namespace

const char* activation_name(Activation activation) {
  switch (activation) {
    case Activation::kSilu: return "silu";
    case Activation::kRelu: return "relu";
  }
  return "?";
}

std::optional<Activation> parse_activation(const std::string& name) {
  for (const Activation activation : {Activation::kSilu, Activation::kRelu})
    if (name == activation_name(activation)) return activation;
  return std::nullopt;
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
