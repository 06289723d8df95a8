// How random weights are made to fire as often as asked.
//
// Every hidden state is x = A d + n: d the direction (+1, -1, +1, ..), whose mean is zero so that LayerNorm keeps it, A
// a constant that comes from the embedding, n noise that tokens, positions and layers give, about normal with a known
// variance s^2 per element. A detect row is w = g + beta d with g random and orthogonal to d, so
//
//   w . x = g . n + beta A n_embd > 0   happens with probability Phi(z),   z = beta A n_embd / (|g| s):
//
// beta = z |g| s / (A n_embd) gives the unit any frequency, and norms, which scale x as a whole, do not matter. Values
// are orthogonal to d, so that attention adds noise only; queries and keys are large, so that a head attends to few
// positions and adds a variance that hardly depends on their number. The FFN adds little, because what units with a
// steady output add is the same for all tokens and no noise.
#pragma once

#include <cstdint>
#include <vector>

#include "core/kinds.h"

namespace hotset {

// Standard normal distribution function and its inverse (0 < p < 1; absolute error 1e-12).
double normal_cdf(double x);
double normal_quantile(double p);

// How often the units of a layer fire: z is normal over the units, so that most fire rarely and some nearly always.
struct FiringLaw {
  double mean = 0, spread = 0;              // of z
  double frequency(double quantile) const;  // of the unit at this quantile of all
  double top_share(double top) const;       // part of all firings that the `top` most frequent units have
};

// Least and most that the `top` share of units can have of all firings when the mean frequency is `density`.
struct ShareLimits {
  double low, high;
};
ShareLimits share_limits(double density, double top);

// The law with mean frequency `density` in which the `top` share of units has `share` of all firings. `share` lies
// within the limits, both ends excluded.
FiringLaw solve_firing(double density, double top, double share);

// Mean square of what units pass to the down projection, h = act(gate) * up or act(up), when detect values are
// sqrt(power) * (z + standard normal) and up values have mean square `power`.
double unit_power(const FiringLaw& law, Activation activation, bool gated, double power);

// Noise in the residual stream, and the scales of weights that follow from it.
struct LayerNoise {
  double attention_power;  // mean square of the noise after the norm before attention
  double ffn_power;        // of that before the feed-forward network
  double ffn_deviation;    // s: of the residual's noise where units detect; A is kDirection
};

constexpr double kDirection = 1;         // A
constexpr double kPositionNoise = 0.4;   // variance from learned positions; that of the embedding makes it 1 together
constexpr double kLogitDeviation = 16;   // of attention scores
constexpr double kAttentionFocus = 0.8;  // mean sum of squared attention weights of such scores, some hundred positions

// Variances that a layer's attention and feed-forward network add to the residual.
double attention_variance(int64_t layer, int64_t n_layer);
double ffn_variance(int64_t n_layer);

std::vector<LayerNoise> layer_noise(int64_t n_layer);

}  // namespace hotset
