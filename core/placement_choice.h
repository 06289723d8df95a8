// The placement that an engine with an accelerator takes: the sidecar's, made to fit, or the best for its budget.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/engine.h"
#include "core/placement.h"

namespace hotset {

struct ChosenPlacement {
  Placement placement;
  std::shared_ptr<const EngineImpl> outline;  // an engine with it
};

// A placement whose weights, keys and values and buffers fit the problem's budget to the byte, with -ngl and kv_place as
// the options say. Throws OutOfMemoryError when there is none.
ChosenPlacement choose_placement(std::shared_ptr<const Model> model, const EngineOptions& options,
                                 PlacementProblem problem);

// An engine of these options with an accelerator and this placement, in outline.
std::shared_ptr<const EngineImpl> outline_with(std::shared_ptr<const Model> model, const EngineOptions& options,
                                               Placement placement);

// (n_layer) the unit of each slot: as the options say, else the sidecar; empty where slots are units.
std::shared_ptr<const std::vector<std::vector<int32_t>>> units_by_slot(const EngineOptions& options, const Model& model);

}  // namespace hotset
