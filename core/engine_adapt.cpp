// Exchange of units between steps, where an engine with an accelerator adapts to its text: core/adaptation.h decides,
// core/unit_exchange.h moves rows, the programs of both lanes count.
#include <algorithm>

#include "core/engine_impl.h"
#include "core/engine_plan.h"

namespace hotset {
namespace {

// Part of a step's time that exchanges may take on average, as predicted.
constexpr double kShareOfStep = 0.05;

// A copy that is started and waited for crosses the bus as a flag does: a hand-off is one there and one back.
double swap_seconds(const SwapCost& cost, const MachineRates& rates) {
  return static_cast<double>(cost.n_copies) * *rates.handoff_us * 1e-6 / 2 +
         static_cast<double>(cost.to_device) / (rates.pcie->h2d_gbps * 1e9) +
         static_cast<double>(cost.to_host) / (rates.pcie->d2h_gbps * 1e9);
}

}  // namespace

// By the cost model, for the layer whose swaps take longest. A step whose time is not predicted, as its placement was
// given, takes at least what reading the device's weights takes.
AdaptationOptions EngineImpl::affordable_swaps(const MachineRates& rates) const {
  double longest = 0;
  for (const PlacedLayer& layer : placed_->weights().layers)
    longest = std::max(longest, swap_seconds(UnitExchange::cost(layer), rates));
  const double reading = static_cast<double>(placed_->device_bytes()) / (rates.gpu->dense_gbps * 1e9);
  const double step = placement_.seconds > 0 ? placement_.seconds : reading;
  AdaptationOptions out;
  out.swaps_per_step = longest > 0 ? std::min(kShareOfStep * step / longest, static_cast<double>(out.max_swaps)) : 0;
  return out;
}

void EngineImpl::start_adaptation(const EngineOptions& options, const PlanRequest& request) {
  const std::vector<PlacedLayer>& placed = placed_->weights().layers;
  std::vector<AdaptiveLayer> layers;
  int64_t most_units = 0;
  for (size_t i = 0; i < placed.size(); ++i) {
    AdaptiveLayer layer{placed[i].n_units, placed[i].place.n_hot, !placed_->can_exchange(i)};
    if (!options.units_by_slot->empty()) layer.units_by_slot = (*options.units_by_slot)[i];
    if (!request.frequencies.empty()) layer.frequencies = request.frequencies[i];
    most_units = std::max(most_units, layer.n_units);
    layers.push_back(std::move(layer));
  }
  const AdaptationOptions pace = options.adaptation ? *options.adaptation : affordable_swaps(*request.rates);
  adaptation_ = std::make_unique<Adaptation>(std::move(layers), pace);
  exchange_ = std::make_unique<UnitExchange>(placed_->weights(), *accelerator_, pace.max_swaps);
  tallies_.resize(static_cast<size_t>(most_units));
}

void EngineImpl::begin_adaptive_step() {
  if (exchange_failed_)
    throw DeviceError(error_text("engine", "exchange of units", "all rows where they belong",
                                 "an error of the device while they were moved, in an earlier step",
                                 "start again, or use --adapt off"));
  if (adaptation_) adaptation_->begin_step(std::ssize(params_.rows));
}

// What the layer's slots were active for; valid until the next call.
std::span<const uint32_t> EngineImpl::tallies(size_t layer) {
  int64_t first = 0;
  for (size_t i = 0; i < layer; ++i) first += adaptation_->n_units(i);
  const std::span<uint32_t> out = std::span(tallies_).first(static_cast<size_t>(adaptation_->n_units(layer)));
  std::fill(out.begin(), out.end(), 0);
  executor_->add_tallies(first, out);
  if (stream_executor_) stream_executor_->add_tallies(first, out);
  return out;
}

// After a step, when its results have been taken and nothing runs.
void EngineImpl::adapt() {
  if (!adaptation_) return;
  for (const size_t layer : adaptation_->end_step()) {
    adaptation_->count(layer, tallies(layer));
    const std::span<const SlotSwap> swaps = adaptation_->choose(layer);
    if (swaps.empty()) continue;
    exchange_failed_ = true;  // unless it comes back
    exchange_->exchange(layer, swaps);
    exchange_failed_ = false;
    adaptation_->swapped(layer, swaps);
    n_swaps_ = adaptation_->n_swaps();
  }
}

ActivityCounts EngineImpl::activity() {
  const std::lock_guard<FairMutex> lock(compute_);
  ActivityCounts out;
  if (!adaptation_) return out;
  out.n_tokens = static_cast<uint64_t>(adaptation_->n_rows());
  for (size_t layer = 0; layer < adaptation_->n_layers(); ++layer) {
    adaptation_->count(layer, tallies(layer));
    out.layers.push_back(adaptation_->counts_by_unit(layer));
  }
  return out;
}

}  // namespace hotset
