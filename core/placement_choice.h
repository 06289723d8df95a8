// The placement that an engine with an accelerator takes: the sidecar's, made to fit, or the best for its budget.
#pragma once

#include <memory>

#include "core/engine.h"
#include "core/engine_plan.h"
#include "core/placement.h"

namespace hotset {

struct ChosenPlacement {
  Placement placement;
  double gpu_active_share = 0;  // of the active units, those that are hot
  EngineOptions options;        // of an engine with this placement
};

// A placement whose weights, keys and values and buffers fit request.vram_budget to the byte, with -ngl and kv_place as
// the options say. Throws OutOfMemoryError when there is none, and what placement_problem throws.
ChosenPlacement choose_placement(std::shared_ptr<const Model> model, const EngineOptions& options,
                                 const PlanRequest& request);

}  // namespace hotset
