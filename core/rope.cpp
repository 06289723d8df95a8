#include "core/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace hotset {
namespace {

std::vector<double> plain_frequencies(double base, int64_t n_rot) {
  std::vector<double> out(static_cast<size_t>(n_rot / 2));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(n_rot));
  return out;
}

// YaRN (arXiv 2309.00071, section 3.2, with whole numbers as borders): pairs that turn often over the original context
// stay, those that turn seldom are slowed by the factor, between them a linear ramp.
void stretch(const Yarn& yarn, double base, int64_t n_rot, std::vector<double>& frequencies) {
  // The pair, as a real number, that makes so many rotations over the original context.
  const auto pair_of = [&](float rotations) {
    const double wavelength = static_cast<double>(yarn.n_ctx_original) / static_cast<double>(rotations);
    return static_cast<double>(n_rot) * std::log(wavelength / (2 * std::numbers::pi)) / (2 * std::log(base));
  };
  const double low = std::max(0.0, std::floor(pair_of(yarn.beta_fast)));
  const double high = std::min(static_cast<double>(n_rot - 1), std::ceil(pair_of(yarn.beta_slow)));
  const double factor = static_cast<double>(yarn.factor);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / std::max(0.001, high - low), 0.0, 1.0);
    frequencies[i] *= 1 - ramp + ramp / factor;
  }
}

}  // namespace

std::vector<double> rope_frequencies(const ModelConfig& config, const NamedTensor& divisors) {
  const double base = static_cast<double>(config.rope_freq_base);
  std::vector<double> out = plain_frequencies(base, config.n_rot);
  if (config.yarn.factor != 1) stretch(config.yarn, base, config.n_rot, out);
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] /= static_cast<double>(config.rope_scale);
    if (divisors) out[i] /= static_cast<double>(reinterpret_cast<const float*>(divisors.view.data)[i]);
  }
  return out;
}

std::vector<double> local_rope_frequencies(const ModelConfig& config) {
  return plain_frequencies(static_cast<double>(config.rope_freq_base_local), config.n_rot);
}

float rope_magnitude(const ModelConfig& config) {
  if (config.yarn.factor == 1) return 1;
  return config.yarn.attention_factor * (1 + 0.1f * std::log(config.yarn.factor));
}

}  // namespace hotset
