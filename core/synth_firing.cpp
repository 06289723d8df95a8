#include "core/synth_firing.h"

#include <algorithm>
#include <cmath>

namespace hotset {
namespace {

constexpr int kGrid = 2048;          // quantiles that stand for the units of a layer
constexpr double kMostSpread = 100;  // beyond it units fire always or never

// The quantiles' standard normal values, ascending.
const std::vector<double>& normal_grid() {
  static const std::vector<double> kValues = [] {
    std::vector<double> out(kGrid);
    for (int i = 0; i < kGrid; ++i) out[static_cast<size_t>(i)] = normal_quantile((i + 0.5) / kGrid);
    return out;
  }();
  return kValues;
}

// z normal with this spread and the mean that gives the density: the mean of Phi(m + s N) is Phi(m / sqrt(1 + s^2)).
FiringLaw law_of(double density, double spread) {
  return {normal_quantile(density) * std::sqrt(1 + spread * spread), spread};
}

double activate(Activation activation, double x) {
  if (activation == Activation::kSilu) return x / (1 + std::exp(-x));
  if (!is_sparse(activation)) return x * normal_cdf(x);  // GELU, or its approximation
  const double positive = std::max(x, 0.0);
  return activation == Activation::kRelu2 ? positive * positive : positive;
}

}  // namespace

double normal_cdf(double x) { return 0.5 * std::erfc(-x * std::sqrt(0.5)); }

double normal_quantile(double p) {
  double low = -40, high = 40;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (normal_cdf(middle) < p ? low : high) = middle;
  }
  return (low + high) / 2;
}

double FiringLaw::frequency(double quantile) const { return normal_cdf(mean + spread * normal_quantile(quantile)); }

double FiringLaw::top_share(double top) const {
  double all = 0, above = 0;
  const double border = (1 - top) * kGrid;  // the grid cell it cuts counts in part
  for (int i = 0; i < kGrid; ++i) {
    const double frequency = normal_cdf(mean + spread * normal_grid()[static_cast<size_t>(i)]);
    all += frequency;
    above += frequency * std::clamp(i + 1 - border, 0.0, 1.0);
  }
  return above / all;
}

ShareLimits share_limits(double density, double top) { return {top, std::min(1.0, top / density)}; }

FiringLaw solve_firing(double density, double top, double share) {
  double low = 0, high = kMostSpread;
  for (int i = 0; i < 50; ++i) {
    const double middle = (low + high) / 2;
    (law_of(density, middle).top_share(top) < share ? low : high) = middle;
  }
  return law_of(density, low);
}

double unit_power(const FiringLaw& law, Activation activation, bool gated, double power) {
  constexpr int kStep = 16;  // a coarser grid will do
  double sum = 0;
  for (int unit = kStep / 2; unit < kGrid; unit += kStep)
    for (int noise = kStep / 2; noise < kGrid; noise += kStep) {
      const double z = law.mean + law.spread * normal_grid()[static_cast<size_t>(unit)];
      const double value = activate(activation, std::sqrt(power) * (z + normal_grid()[static_cast<size_t>(noise)]));
      sum += value * value;
    }
  const double detected = sum * kStep * kStep / (double{kGrid} * kGrid);
  if (!gated) return detected;
  return detected * power * (activation == Activation::kDRelu ? 0.5 : 1);  // half of the up values are negative
}

double attention_variance(int64_t layer, int64_t n_layer) {
  // The first layer gives much of it, so that equal tokens differ by what came before them from the start.
  return layer == 0 ? 0.5 : 0.5 / static_cast<double>(n_layer);
}

double ffn_variance(int64_t n_layer) { return 0.1 / static_cast<double>(n_layer); }

std::vector<LayerNoise> layer_noise(int64_t n_layer) {
  std::vector<LayerNoise> out;
  double variance = 1;
  const auto power = [&] { return variance / (kDirection * kDirection + variance); };
  for (int64_t layer = 0; layer < n_layer; ++layer) {
    LayerNoise noise;
    noise.attention_power = power();
    variance += attention_variance(layer, n_layer);
    noise.ffn_power = power();
    noise.ffn_deviation = std::sqrt(variance);
    variance += ffn_variance(n_layer);
    out.push_back(noise);
  }
  return out;
}

}  // namespace hotset
