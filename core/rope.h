// Rotary frequencies of a model, its scaling applied.
#pragma once

#include <vector>

#include "core/model_config.h"
#include "core/weights.h"

namespace hotset {

// Radians per position of each of the n_rot / 2 rotated pairs: base^(-2i / n_rot), scaled as the model asks, divided by
// `divisors` where there are some.
std::vector<double> rope_frequencies(const ModelConfig& config, const NamedTensor& divisors);

// Those of layers with a window where the model has has_local_rope(): of their own base, and not scaled.
std::vector<double> local_rope_frequencies(const ModelConfig& config);

// What cosines and sines are multiplied by: 1 but for YaRN, whose entropy correction goes through queries and keys.
float rope_magnitude(const ModelConfig& config);

}  // namespace hotset
