#include "core/placement_choice.h"

#include <algorithm>
#include <numeric>

#include "core/engine_impl.h"
#include "core/engine_plan.h"
#include "core/sidecar.h"

namespace hotset {
namespace {

// The device's buffers depend on the placement, which depends on what they leave. The problem counts the most that they
// take, so the first round should do.
constexpr int kMostRounds = 6;
// Gigabytes a second of a host where nothing is to stay.
constexpr double kCrawl = 1e-6;

// What placement reckons with where nothing was measured: a card of the middle class in a PC with two channels of DDR5.
MachineRates assumed_rates(uint64_t budget) {
  MachineRates out;
  out.read.push_back({"huge", 1, 60, 1, {}});
  out.gpu = GpuRates{"", std::max<uint64_t>(budget, 1), 500, {}};
  out.pcie = PcieRates{25, 25};
  out.handoff_us = 10;
  return out;
}

// Frequencies of the units in slot order where a sidecar has them.
std::vector<std::vector<double>> known_frequencies(const EngineOptions& options, const Model& model) {
  const auto sidecar = open_sidecar(options, model);
  return sidecar ? sidecar_frequencies(*sidecar, model) : std::vector<std::vector<double>>{};
}

Placement of_sidecar(const SidecarPlacement& stored) {
  Placement out;
  for (size_t i = 0; i < stored.n_hot.size(); ++i) {
    const std::string &detect = stored.detect[i], &attention = stored.attention[i];
    out.layers.push_back({stored.n_hot[i],
                          detect == "device" ? DetectPlace::kDevice
                          : detect == "split" ? DetectPlace::kSplit
                                              : DetectPlace::kHost,
                          attention == "device" ? Place::kDevice : Place::kHost,
                          false, attention == "device" && !stored.kv.empty() && stored.kv[i] == "host"});
  }
  out.head = stored.head == "device" ? Place::kDevice : Place::kHost;
  return out;
}

// The number of last layers that -ngl wants wholly on the accelerator.
size_t forced_layers(const EngineOptions& options, size_t n_layer) {
  if (options.n_gpu_layers == "auto" || options.n_gpu_layers == "0") return 0;
  if (options.n_gpu_layers == "all") return n_layer;
  return std::min<size_t>(n_layer, static_cast<size_t>(std::stoul(options.n_gpu_layers)));
}

// Searches the placement for a budget, and how the device's buffers fit beside it.
class PlacementChoice {
 public:
  PlacementChoice(std::shared_ptr<const Model> model, const EngineOptions& options, PlacementProblem problem)
      : model_(std::move(model)), options_(options), budget_(problem.budget), problem_(std::move(problem)) {
    for (PlacementLayer& layer : problem_.layers)
      if (options.kv_place == "host") layer.kv_bytes = budget_ + 1;
    if (const auto sidecar = open_sidecar(options, *model_)) stored_ = sidecar->placement();
  }

  ChosenPlacement choose() {
    for (int round = 0; round < kMostRounds; ++round) {
      ChosenPlacement out{best(), nullptr};
      const uint64_t counted = device_bytes(problem_, out.placement);
      out.outline = outline_with(model_, options_, out.placement);
      out.placement.device_bytes = out.outline->info().device_bytes;
      if (out.placement.device_bytes <= budget_) {
        check(out.placement);
        return out;
      }
      const uint64_t excess = out.placement.device_bytes - budget_;
      if (std::min(problem_.budget, counted) <= problem_.fixed_bytes + excess) break;
      // From what the placement was counted as, which may be less than the budget: else it might come again.
      problem_.budget = std::min(problem_.budget, counted) - excess;
    }
    throw OutOfMemoryError(error_text("engine", "device memory", "a budget that holds the buffers of a step",
                                      cat(budget_, " bytes"), "raise --vram-budget, or lower -b or -c"));
  }

 private:
  void check(const Placement& placement) const {
    const auto on_host = [](const LayerPlacement& layer) { return layer.kv() == Place::kHost; };
    if (options_.kv_place == "device" && std::any_of(placement.layers.begin(), placement.layers.end(), on_host))
      throw OutOfMemoryError(error_text("engine", "kv_place device", "memory for the keys and values of all layers",
                                        cat(budget_, " bytes"), "lower -c, raise --vram-budget, or use kv_place auto"));
  }

  // That of the sidecar is for its own machine, context and budget: it is kept where it is for this context, with fewer
  // hot units for less memory; more memory asks for another.
  Placement best() {
    const size_t n_layer = problem_.layers.size(), n_forced = forced_layers(options_, n_layer);
    if (n_forced > 0) return with_forced(n_layer - n_forced);
    if (stored_ && stored_->vram_budget >= budget_ && options_.kv_place == "auto") {
      Placement out = of_sidecar(*stored_);
      check_placement(problem_, out);
      place_predictors(out);
      out = shorten(problem_, std::move(out));
      out.seconds = predict_seconds(problem_, out);
      return out;
    }
    return place(problem_);
  }

  // A sidecar's placement is made for exact mode; a layer's predictor goes where it costs less time.
  void place_predictors(Placement& placement) const {
    for (size_t i = 0; i < placement.layers.size(); ++i) {
      LayerPlacement& at = placement.layers[i];
      if (at.detect != DetectPlace::kSplit || !problem_.layers[i].predicts()) continue;
      const double beside = predict_seconds(problem_, placement);
      at.device_predicts = true;
      if (predict_seconds(problem_, placement) >= beside) at.device_predicts = false;
    }
  }

  // Layers from `first` on are wholly on the device, what is left of the memory is for the others.
  Placement with_forced(size_t first) {
    PlacementProblem slow = problem_;  // where leaving anything of those layers on the host costs most
    for (size_t i = first; i < slow.layers.size(); ++i) slow.layers[i].host = ReadRate{kCrawl, {}};
    Placement out = place(slow);
    for (size_t i = first; i < slow.layers.size(); ++i)
      if (out.layers[i].n_hot < slow.layers[i].n_units() || out.layers[i].attention != Place::kDevice ||
          (out.layers[i].host_kv && options_.kv_place != "host"))
        throw OutOfMemoryError(error_text("engine", "-ngl " + options_.n_gpu_layers,
                                          cat("memory for the last ", slow.layers.size() - first, " layers"),
                                          cat(budget_, " bytes"), "lower -ngl or raise --vram-budget"));
    if (options_.n_gpu_layers == "all" && out.head != Place::kDevice)
      throw OutOfMemoryError(error_text("engine", "-ngl all", "memory for all layers and the output head",
                                        cat(budget_, " bytes"), "lower -ngl or raise --vram-budget"));
    return out;
  }

  std::shared_ptr<const Model> model_;
  const EngineOptions& options_;
  const uint64_t budget_;
  PlacementProblem problem_;
  std::optional<SidecarPlacement> stored_;
};

}  // namespace

MachineRates complete_rates(const MachineRates* measured, uint64_t budget) {
  const MachineRates assumed = assumed_rates(budget);
  MachineRates out = measured ? *measured : assumed;
  if (!out.gpu) out.gpu = assumed.gpu;
  if (!out.pcie) out.pcie = assumed.pcie;
  if (!out.handoff_us) out.handoff_us = assumed.handoff_us;
  return out;
}

PlanRequest request_for(const Model& model, const EngineOptions& options, uint64_t budget) {
  PlanRequest out;
  out.vram_budget = budget;
  out.rates = complete_rates(options.rates.get(), budget);
  if (options.mode != "dense") out.frequencies = known_frequencies(options, model);
  return out;
}

ChosenPlacement choose_placement(std::shared_ptr<const Model> model, const EngineOptions& options,
                                 PlacementProblem problem) {
  return PlacementChoice(std::move(model), options, std::move(problem)).choose();
}

std::shared_ptr<const EngineImpl> outline_with(std::shared_ptr<const Model> model, const EngineOptions& options,
                                               Placement placement) {
  EngineOptions out = options;
  if (!is_accelerator(out.device)) out.device = "virtual";
  out.placement = std::make_shared<const Placement>(std::move(placement));
  out.log = {};
  return std::make_shared<const EngineImpl>(std::move(model), out, /*is_outline=*/true);
}

std::shared_ptr<const std::vector<std::vector<int32_t>>> units_by_slot(const EngineOptions& options, const Model& model) {
  if (options.units_by_slot) return options.units_by_slot;
  auto out = std::make_shared<std::vector<std::vector<int32_t>>>();
  const auto sidecar = open_sidecar(options, model);
  if (!sidecar) return out;
  for (int64_t layer = 0; layer < model.config().n_layer; ++layer) {
    out->push_back(sidecar->units_by_slot(layer));
    if (out->back().empty()) {
      out->back().resize(static_cast<size_t>(model.config().n_ff));
      std::iota(out->back().begin(), out->back().end(), 0);
    }
  }
  return out;
}

}  // namespace hotset
