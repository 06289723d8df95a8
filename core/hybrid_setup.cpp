// What an engine with an accelerator is made of: weights brought to both sides, KV memory taken.
#include <algorithm>
#include <cmath>

#include "core/devices.h"
#include "core/engine_impl.h"
#include "core/engine_plan.h"
#include "core/placement_choice.h"
#include "core/stream_choice.h"

namespace hotset {
namespace {

std::string load_line(const EngineInfo& info, const Placement& placement, uint64_t budget, double seconds) {
  const auto mib = [](uint64_t n) { return cat((n + (1 << 19)) >> 20, " MiB"); };
  int64_t n_attention = 0, n_host_kv = 0;
  for (const LayerPlacement& each : placement.layers)
    n_attention += each.attention == Place::kDevice, n_host_kv += each.host_kv;
  std::string out = cat("[engine] ", info.device, ": ", mib(info.device_bytes), " of ", mib(budget), " taken (weights ",
                        mib(info.device_weight_bytes), ", kv ", mib(info.device_kv_bytes), "): attention of ", n_attention,
                        " of ", placement.layers.size(), " layers, ", std::lround(100 * info.gpu_active_share),
                        " % of the active units", placement.head == Place::kDevice ? ", head" : "");
  if (n_host_kv > 0) out += cat(", keys and values of ", n_host_kv, " of those layers on the host");
  out += cat("; host: ", mib(info.arena_bytes), " of cold units copied in ", std::lround(1000 * seconds), " ms");
  return info.predicted_tg_ts > 0 ? out + cat("; about ", std::lround(info.predicted_tg_ts), " tokens/s expected") : out;
}

// In outline the host stands for the card: the same program, which never runs, and no memory that addresses must lie
// in.
std::unique_ptr<Device> make_accelerator(const EngineOptions& options, const std::string& isa, uint64_t budget,
                                         bool is_outline) {
  VirtualDeviceOptions card = options.virtual_device ? *options.virtual_device : VirtualDeviceOptions{};
  const bool has_cuda_kernels = options.device == "cuda" || card.runs_cuda_kernels;
  if (is_outline) return has_cuda_kernels ? make_cuda_stand_in({}) : make_cpu_device({.n_threads = 1, .isa = isa});
  if (options.device == "cuda") return make_cuda_device({.memory_bytes = budget});
  card.isa = isa;
  card.memory_bytes = budget;
  return has_cuda_kernels ? make_cuda_stand_in(card) : make_virtual_device(card);
}

// Without one that is asked for, what is free on the card.
uint64_t accelerator_budget(const EngineOptions& options, bool is_outline) {
  if (options.vram_budget || options.device != "cuda" || is_outline) return options.vram_budget.value_or(kVirtualBytes);
  return cuda_state().free_bytes;
}

// The same engine on the CPU alone, of which the placement's problem is made.
EngineOptions on_cpu(const EngineOptions& options) {
  EngineOptions out = options;
  out.device = "cpu";
  // Outlines with a part on the card still take the memory that it takes.
  if (options.device == "cuda")
    out.virtual_device = std::make_shared<const VirtualDeviceOptions>(VirtualDeviceOptions{.runs_cuda_kernels = true});
  out.log = {};
  return out;
}

}  // namespace

void EngineImpl::add_accelerator(const EngineOptions& given, bool is_outline) {
  EngineOptions options = given;
  const uint64_t budget = accelerator_budget(options, is_outline);
  accelerator_name_ = options.device;
  options.opened_sidecar = open_sidecar(given, *model);
  options.units_by_slot = units_by_slot_ = units_by_slot(options, *model);
  accelerator_ = make_accelerator(options, device_->info().detail, budget, is_outline);
  const PlanRequest request = request_for(*model, options, budget);
  if (options.placement) {
    placement_ = *options.placement;
    if (placement_.layers.size() != model->weights().layers.size())
      throw std::invalid_argument(error_text("engine", "placement", cat(model->weights().layers.size(), " layers"),
                                             cat(placement_.layers.size()), "make one for this model"));
  } else {
    const PlacementProblem problem = placement_problem(model, on_cpu(options), request);
    placement_ = choose_placement(model, options, problem).placement;
    gpu_active_share_ = hot_share(problem, placement_).value_or(0);
  }
  // Without detection a side computes all of its own units.
  for (LayerPlacement& layer : placement_.layers)
    if (!exact_) {
      layer.detect = layer.n_hot > 0 ? DetectPlace::kSplit : DetectPlace::kHost;
      layer.device_predicts = false;
    }
  // Rows of predictors do not move.
  adapts_ = exact_ && options.mode != "predict" && options.adapt != "off";
  if (options.adaptation) max_swaps_ = options.adaptation->max_swaps;
  // Where no order is given nobody knows which units are hot, and rows that lie in the file as they are cannot move.
  const bool copies_cold = adapts_ && (options.adapt == "on" || units_by_slot_->empty());
  const int32_t n_threads = std::max(device_->info().n_threads, 1);
  if (!is_outline) check_host_memory(options, copies_cold);
  relayout_ = choose_weights(options, is_outline);
  if (options.mode == "predict") predictor_ = make_predictor(options, is_outline);
  placed_ = std::make_unique<const WeightPlacer>(
      *model, relayout_, placement_, *units_by_slot_, *accelerator_,
      WeightPlacer::Options{n_threads, is_outline, copies_cold, options.log, predictor_.get()});
  for (size_t i = 0; predictor_ && !is_outline && !options.observer && i < placement_.layers.size(); ++i)
    predictor_->drop_rows(i, placed_->weights().layers[i].device_predictor.n_units());
  make_executors(options, *request.rates, request.frequencies, budget, is_outline);
  take_device_kv(options, is_outline);
  if (adapts_ && !is_outline) start_adaptation(options, request);
  const uint64_t free_bytes = accelerator_->free_bytes();
  HS_CHECK(is_outline || free_bytes == UINT64_MAX || budget - free_bytes == info().device_bytes, "engine");
  if (!is_outline) log_to(options.log, LogLevel::kInfo, load_line(info(), placement_, budget, placed_->seconds()));
}

// One for all steps, or one for few rows and one for many.
void EngineImpl::make_executors(const EngineOptions& options, const MachineRates& rates,
                                const std::vector<std::vector<double>>& frequencies, uint64_t budget, bool is_outline) {
  Plan plan = make_plan(options);
  StreamChoice choice = choose_stream(placed_->weights(), {rates, device_->info().n_threads,
                                                           budget, exact_, frequencies});
  if (options.stream_from_rows >= 0 && choice.place_bytes > 0) choice.from_rows = options.stream_from_rows;
  // The device would compute units that a predictor rules out, and an observer is on the host.
  if (predictor_ || options.observer) choice.from_rows = 0;
  ring_.place_bytes = choice.place_bytes;
  if (options.stream_bytes > 0) ring_.place_bytes = stream_place_bytes(placed_->weights(), options.stream_bytes);
  if (choice.from_rows > 1 && choice.from_rows <= plan.max_rows && placement_.uses_device()) {
    // In outline, addresses that tell nothing but that there is something, and not where the weights are.
    ring_.data = reinterpret_cast<std::byte*>(StreamRing::kAlignment + placed_->device_bytes());
    if (!is_outline) ring_memory_ = accelerator_->alloc(ring_.size_bytes()), ring_.data = ring_memory_->data();
    Plan streamed = make_plan(options, &ring_);
    plan.max_rows = choice.from_rows - 1;
    plan.max_output_rows = std::min(plan.max_output_rows, plan.max_rows);
    stream_executor_ = std::make_unique<Executor>(
        std::vector<Device*>{device_.get(), accelerator_.get(), accelerator_.get()}, std::move(streamed));
    stream_from_rows_ = choice.from_rows;
  }
  executor_ = std::make_unique<Executor>(std::vector<Device*>{device_.get(), accelerator_.get()}, std::move(plan));
}

// A model that is too large for both memories is refused before anything of it is copied.
void EngineImpl::check_host_memory(const EngineOptions& options, bool copies_cold) const {
  const WeightPlacer outline(*model, Relayout::outline(*model), placement_, *units_by_slot_, *accelerator_,
                             {.is_outline = true, .copies_cold = copies_cold});
  const uint64_t needed = host_bytes(outline.weights());
  if (memory_limit_ == 0 || needed <= memory_limit_) return;
  throw OutOfMemoryError(error_text(
      "engine", "memory of the host", cat(needed, " bytes, beside ", outline.device_bytes(), " on the device, for the weights"),
      cat(memory_limit_), options.vram_budget ? "raise --vram-budget, or use a smaller model or weight type"
                                              : "name a larger --vram-budget, or use a smaller model or weight type"));
}

// All blocks at once, so that what is taken is what was planned.
void EngineImpl::take_device_kv(const EngineOptions& options, bool is_outline) {
  const size_t block_bytes = executor_->plan().kv_of(kDeviceLane).block_bytes();
  if (block_bytes == 0) return;
  const int64_t n_blocks = blocks_per_sequence() * std::max(options.n_sequences, 1);
  pool_ = std::make_unique<KvBlockPool>(n_blocks);
  device_kv_bytes_ = static_cast<uint64_t>(n_blocks) * block_bytes;
  if (!is_outline) device_kv_ = accelerator_->alloc(device_kv_bytes_);
}

void EngineImpl::fill_info(EngineInfo& info) const {
  info.device = accelerator_name_;
  info.device_weight_bytes = placed_->device_bytes();
  info.device_kv_bytes = device_kv_bytes_;
  info.device_bytes = info.device_weight_bytes + device_kv_bytes_ + executor_->buffer_bytes(kDeviceLane);
  if (stream_executor_) {
    info.device_bytes += ring_.size_bytes();
    for (const int32_t lane : {kDeviceLane, kCopyLane}) info.device_bytes += stream_executor_->buffer_bytes(lane);
  }
  info.arena_bytes = placed_->arena_bytes();
  info.shared_bytes = executor_->shared_bytes() + (stream_executor_ ? stream_executor_->shared_bytes() : 0);
  if (adapts_) info.shared_bytes += UnitExchange::staging_bytes(placed_->weights(), max_swaps_);
  info.adapts = adapts_;
  info.n_swaps = n_swaps_;
  info.gpu_active_share = gpu_active_share_;
  info.predicted_tg_ts = placement_.seconds > 0 ? 1 / placement_.seconds : 0;
}

}  // namespace hotset
