// What `hotset plan` tells: where a model would lie, what that takes and how fast it would be, before anything is
// loaded.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/engine.h"
#include "core/machine_rates.h"
#include "core/memory_plan.h"
#include "core/placement.h"
#include "core/simulate.h"

namespace hotset {

// A trained predictor that a plan takes for granted in mode exact: on the device for all units, detect rows beside
// theirs. For figures only: there is none to run.
struct AssumedPredictor {
  uint64_t n_bytes = 0;       // of all layers, read for every token; above 0
  double over_selection = 1;  // candidates per active unit
};

struct PlanRequest {
  uint64_t vram_budget = 0;           // bytes of GPU memory; 0 = everything on the CPU
  std::optional<MachineRates> rates;  // without them nothing can be predicted, and only a budget of 0 be planned
  // (n_layer, n_ff) share of tokens for which a unit is active, descending; empty = not known: every unit counts as
  // active. Only exact mode asks.
  std::vector<std::vector<double>> frequencies;
  std::optional<AssumedPredictor> predictor;  // only with mode exact and a budget
  bool simulate = false;                      // let the plan run on a simulated clock
  double step_us = 0;                         // there, of every operation of the GPU beside its reads
};

// A decode step in a half-filled context by the clock of core/simulate.h.
struct SimulatedStep {
  Simulation expected;     // with lists of expected length
  SimulatedSpread firing;  // with lists as tokens have them
};

struct EnginePlan {
  EngineInfo engine;
  MemoryPlan memory;
  Placement placement;
  int64_t n_units = 0;                     // of each layer
  std::optional<double> tg_ts;             // predicted tokens per second of decoding in half-filled contexts
  std::string tg_reason;                   // why there is no prediction
  std::optional<double> gpu_active_share;  // share of the active units that are hot
  std::optional<SimulatedStep> simulated;
  std::string pp_reason;                   // why there is none of prompts
  std::vector<std::string> notes;
  std::string steps;  // of the plan, one a line: the CPU's, or with a GPU budget and no assumed predictor both lanes'
};

// Rates given by hand in place of those of a file: GPU and bus both ways in GB/s, the hand-off in microseconds; nothing
// = as in the file.
struct RatesByHand {
  std::optional<double> gpu_gbps, pcie_gbps, handoff_us;
};
void apply(const RatesByHand& by_hand, MachineRates& rates);

// Plans an engine of these options. The compute buffers are those that the CPU's program takes, which is compiled for
// it but neither run nor touched. Throws what Engine::create throws, std::invalid_argument for frequencies or a budget
// that make no sense, and Error for a positive budget without rates of a GPU, its bus and the hand-off.
EnginePlan plan_engine(std::shared_ptr<const Model> model, const EngineOptions& options, const PlanRequest& request);

// The rates, and where those of a GPU were not measured those of a card of the middle class; without any also those of
// a common PC. `budget` is the card's memory.
MachineRates complete_rates(const MachineRates* measured, uint64_t budget);

// What an engine with an accelerator plans with: the options' rates, completed, and the sidecar's frequencies.
PlanRequest request_for(const Model& model, const EngineOptions& options, uint64_t budget);

// The file that --sidecar means: a path, "none", or "auto", the one beside the model if there is one; "" for none.
std::string find_sidecar(const std::string& asked, const std::string& model_path);

// The frequencies of a sidecar's units in slot order, as PlanRequest wants them; empty where it has none. Throws Error
// (cannot be read) and ModelFormatError (no sidecar, damaged, of a model of another shape).
std::vector<std::vector<double>> sidecar_frequencies(const std::string& path, const Model& model);
std::vector<std::vector<double>> sidecar_frequencies(const Sidecar& sidecar, const Model& model);

// The problem that plan_engine solves; for tools that compare placements.
PlacementProblem placement_problem(std::shared_ptr<const Model> model, const EngineOptions& options,
                                   const PlanRequest& request);

}  // namespace hotset
