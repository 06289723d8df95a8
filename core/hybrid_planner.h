// Writes plans for two lanes: the host and a device that share a model's units.
#pragma once

#include "core/model_config.h"
#include "core/placed_weights.h"
#include "core/plan.h"
#include "core/planner.h"

namespace hotset {

// The plan that computes a batch of rows on both devices, with one fork and one join per layer that both work on; where
// the host has a layer's attention but the device detects for all, the list of cold units comes back in between. The
// residual changes sides only between layers whose attention is on different sides. A placement without anything on the
// device gives a plan of one lane. Predictors are those of the weights; what observers see is brought to the host, two
// flags more a layer at most, and shown there. Throws Error for weights that do not go with the placement or the
// options.
Plan build_plan(const ModelConfig& config, const PlacedWeights& weights, const PlanOptions& options);

}  // namespace hotset
