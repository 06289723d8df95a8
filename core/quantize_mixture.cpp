#include "core/quantize_mixture.h"

#include <cctype>
#include <cstdlib>
#include <cstring>

namespace hotset {
namespace {

constexpr Mixture kMixtures[] = {
    {"q8_0", DType::kQ8_0, 7},    {"q4_0", DType::kQ4_0, 2},    {"q4_k_s", DType::kQ4_K, 14},
    {"q4_k_m", DType::kQ4_K, 15}, {"q5_k_s", DType::kQ5_K, 16}, {"q5_k_m", DType::kQ5_K, 17},
    {"q6_k", DType::kQ6_K, 18},   {"q2_k", DType::kQ2_K, 10},   {"q3_k_s", DType::kQ3_K, 11},
    {"q3_k_m", DType::kQ3_K, 12}, {"q3_k_l", DType::kQ3_K, 13}, {"q4_1", DType::kQ4_1, 3},
    {"q5_0", DType::kQ5_0, 8},    {"q5_1", DType::kQ5_1, 9},    {"iq4_nl", DType::kIQ4_NL, 25},
    {"iq4_xs", DType::kIQ4_XS, 30}, {"mxfp4", DType::kMXFP4, 38}, {"f16", DType::kF16, 1},
    {"bf16", DType::kBF16, 32},   {"f32", DType::kF32, 0},
};

enum class Role { kOther, kHead, kValue, kOutput, kDown };  // kValue: attn_v, or q, k and v in one

// Layers that a rule speaks of, as a function of layer and n_layer.
enum class Layers { kAll, kFirstTwo, kFirstFour, kFirstEighth, kFirstSixteenth, kSensitive, kAllGrouped, kAllOf70b };

// A type that differs from a mixture's base. The first rule that fits counts; nullptr and "" mean any.
struct Rule {
  const char* mixture;
  const char* architecture;
  Role role;
  Layers layers;
  DType type;
};

// The mixtures of llama.cpp (b-series of 2026, no importance matrix, no experts), as observed in files it wrote. The
// head of every block type but Q8_0 and MXFP4 is Q6_K; falcon's is Q8_0. (Of dense models it stores no MXFP4 at all.)
constexpr Rule kRules[] = {
    {"q4_k_s", "", Role::kValue, Layers::kFirstFour, DType::kQ5_K},
    {"q4_k_s", "llama", Role::kValue, Layers::kAllOf70b, DType::kQ5_K},
    {"q4_k_s", "falcon", Role::kDown, Layers::kAll, DType::kQ4_K},
    {"q4_k_s", "", Role::kDown, Layers::kFirstEighth, DType::kQ5_K},
    {"q4_k_m", "", Role::kValue, Layers::kSensitive, DType::kQ6_K},
    {"q4_k_m", "llama", Role::kValue, Layers::kAllOf70b, DType::kQ5_K},
    {"q4_k_m", "falcon", Role::kDown, Layers::kFirstSixteenth, DType::kQ6_K},
    {"q4_k_m", "falcon", Role::kDown, Layers::kSensitive, DType::kQ5_K},
    {"q4_k_m", "falcon", Role::kDown, Layers::kAll, DType::kQ4_K},
    {"q4_k_m", "", Role::kDown, Layers::kSensitive, DType::kQ6_K},
    {"q5_k_m", "", Role::kValue, Layers::kSensitive, DType::kQ6_K},
    {"q5_k_m", "", Role::kDown, Layers::kSensitive, DType::kQ6_K},
    {"q2_k", "llama", Role::kValue, Layers::kAllOf70b, DType::kQ5_K},
    {"q2_k", "", Role::kValue, Layers::kAllGrouped, DType::kQ4_K},
    {"q2_k", "", Role::kValue, Layers::kAll, DType::kQ3_K},
    {"q2_k", "falcon", Role::kOutput, Layers::kAll, DType::kQ2_K},
    {"q2_k", "", Role::kOutput, Layers::kAll, DType::kQ3_K},
    {"q2_k", "", Role::kDown, Layers::kAll, DType::kQ3_K},
    {"q3_k_s", "llama", Role::kValue, Layers::kAllOf70b, DType::kQ5_K},
    {"q3_k_m", "llama", Role::kValue, Layers::kAllOf70b, DType::kQ5_K},
    {"q3_k_m", "", Role::kValue, Layers::kFirstTwo, DType::kQ5_K},
    {"q3_k_m", "", Role::kValue, Layers::kAll, DType::kQ4_K},
    {"q3_k_m", "falcon", Role::kOutput, Layers::kAll, DType::kQ3_K},
    {"q3_k_m", "", Role::kOutput, Layers::kAll, DType::kQ4_K},
    {"q3_k_m", "", Role::kDown, Layers::kFirstSixteenth, DType::kQ5_K},
    {"q3_k_m", "falcon", Role::kDown, Layers::kSensitive, DType::kQ4_K},
    {"q3_k_m", "falcon", Role::kDown, Layers::kAll, DType::kQ3_K},
    {"q3_k_m", "", Role::kDown, Layers::kAll, DType::kQ4_K},
    {"q3_k_l", "", Role::kValue, Layers::kAll, DType::kQ5_K},
    {"q3_k_l", "falcon", Role::kOutput, Layers::kAll, DType::kQ4_K},
    {"q3_k_l", "", Role::kOutput, Layers::kAll, DType::kQ5_K},
    {"q3_k_l", "falcon", Role::kDown, Layers::kAll, DType::kQ4_K},
    {"q3_k_l", "", Role::kDown, Layers::kAll, DType::kQ5_K},
    {"iq4_nl", "", Role::kValue, Layers::kAllGrouped, DType::kQ5_K},
    {"iq4_nl", "", Role::kDown, Layers::kFirstEighth, DType::kQ5_K},
    {"iq4_xs", "", Role::kValue, Layers::kAllGrouped, DType::kQ5_K},
    {"iq4_xs", "", Role::kDown, Layers::kFirstEighth, DType::kQ5_K},
};

Role role_of(const MixtureModel& model, const std::string& name) {
  if (name == "output.weight" || (model.tied && name == "token_embd.weight")) return Role::kHead;
  if (name.ends_with("attn_v.weight") || name.ends_with("attn_qkv.weight")) return Role::kValue;
  if (name.ends_with("attn_output.weight")) return Role::kOutput;
  return name.find("ffn_down") != std::string::npos ? Role::kDown : Role::kOther;
}

// N of "blk.N.", 0 without it.
int64_t layer_of(const std::string& name) {
  return name.starts_with("blk.") ? std::strtoll(name.c_str() + 4, nullptr, 10) : 0;
}

bool covers(Layers layers, int64_t layer, const MixtureModel& model) {
  const int64_t n = model.n_layer;
  switch (layers) {
    case Layers::kAll: return true;
    case Layers::kFirstTwo: return layer < 2;
    case Layers::kFirstFour: return layer < 4;
    case Layers::kFirstEighth: return layer < n / 8;
    case Layers::kFirstSixteenth: return layer < n / 16;
    // The first and last eighth, and every third layer between.
    case Layers::kSensitive: return layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
    case Layers::kAllGrouped: return model.n_gqa >= 4;
    case Layers::kAllOf70b: return n == 80 && model.n_gqa > 1;
  }
  return false;
}

}  // namespace

const Mixture* find_mixture(const std::string& name) {
  std::string lower = name;
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const Mixture& mixture : kMixtures)
    if (lower == mixture.name) return &mixture;
  return nullptr;
}

std::string known_mixtures() {
  std::string out;
  for (const Mixture& mixture : kMixtures) out += (out.empty() ? "" : ", ") + std::string(mixture.name);
  return out;
}

DType mixture_type(const Mixture& mixture, const MixtureModel& model, const std::string& name) {
  const DType base = mixture.base;
  const bool has_blocks = dtype_info(base).block_size > 1;
  if (model.pure || !has_blocks) return base;
  const Role role = role_of(model, name);
  if (role == Role::kHead) {
    if (base == DType::kQ8_0 || base == DType::kMXFP4 || model.architecture == "falcon") return DType::kQ8_0;
    return DType::kQ6_K;
  }
  for (const Rule& rule : kRules) {
    const bool fits = std::strcmp(rule.mixture, mixture.name) == 0 && rule.role == role &&
                      (*rule.architecture == '\0' || model.architecture == rule.architecture);
    if (fits && covers(rule.layers, layer_of(name), model)) return rule.type;
  }
  return base;
}

}  // namespace hotset
