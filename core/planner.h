// Writes plans: the one place where models and devices meet.
#pragma once

#include <cstdint>

#include "core/model_config.h"
#include "core/plan.h"
#include "core/predictor.h"
#include "core/streamed_units.h"
#include "core/weights.h"

namespace hotset {

struct PlanOptions {
  int64_t max_rows = 512;
  int64_t max_output_rows = 512;
  int64_t max_positions = 0;
  DType kv_type = DType::kF16;  // kF16, kF32, or kQ8_0 (head_dim a multiple of 32)
  bool exact = false;           // compute only active units; needs ffn_down_t in every layer and a sparse activation
  bool observe = false;  // compute all units of every layer and Observe them; not with `exact`
  // With `exact` it proposes the units that are looked at, with `observe` its margins are shown too. Outlives the plan.
  const Predictor* predictor = nullptr;
  // With an accelerator: it computes the cold units too, whose rows come to it through this ring; not with a predictor or
  // `observe`. Memory of the device that outlives the plan.
  const StreamRing* stream = nullptr;
  bool tally = false;  // of two devices: count the rows that list each unit, by layer and slot (op::SelectUnits::tally)
};

// The plan that computes a batch of rows of a model on one device. The plan's weights view the model's memory.
Plan build_plan(const ModelConfig& config, const Weights& weights, const PlanOptions& options);

}  // namespace hotset
