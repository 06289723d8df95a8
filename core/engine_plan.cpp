#include "core/engine_plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "core/engine_impl.h"
#include "core/placement_choice.h"
#include "core/predictor.h"
#include "core/relayout.h"
#include "core/sidecar.h"
#include "core/weight_placer.h"
#include "core/weights.h"

namespace hotset {
namespace {

// Bytes that alignment may cost a layer in device memory: a layer has at most 24 tensors.
constexpr uint64_t kPaddingPerLayer = WeightPlacer::kAlignment * 24;
constexpr double kOverSelection = 1.5;  // candidates per active unit that a prediction of mode predict takes for granted
constexpr int64_t kSimulatedTokens = 400;
constexpr uint64_t kMaxBudget = uint64_t{1} << 44;  // 16 TiB

[[noreturn]] void fail(const std::string& what, const std::string& expected, const std::string& got,
                       const std::string& remedy) {
  throw std::invalid_argument(error_text("plan", what, expected, got, remedy));
}

ReadRate host_rate(const MachineRates& rates, int32_t n_threads, double row_bytes) {
  ReadRate out{rates.dense_gbps(n_threads), {}};
  for (const double density : rates.densities(n_threads))
    if (density < 1) out.gathered.push_back({density, rates.gathered_gbps(n_threads, row_bytes, density)});
  return out;
}

ReadRate device_rate(const GpuRates& gpu, double row_bytes) {
  ReadRate out{gpu.dense_gbps, {}};
  std::set<double> densities;
  for (const GatheredRate& each : gpu.gathered) densities.insert(each.density);
  for (const double density : densities)
    if (density < 1) out.gathered.push_back({density, gpu.gathered_gbps(row_bytes, density)});
  return out;
}

// Of a lane's buffers with a row for each row of logits, all but those that generation asks for, one a sequence. Memory
// that is never touched is never committed.
uint64_t unasked_logits_bytes(const Plan& plan, uint64_t n_sequences, int32_t lane) {
  const uint64_t n_rows = static_cast<uint64_t>(plan.max_output_rows);
  uint64_t row = 0;
  for (const BufferDesc& buffer : plan.buffers)
    if (buffer.rows == BufferRows::kOutput && buffer.lane == lane)
      row += static_cast<uint64_t>(buffer.n_cols) * sizeof(float);
  return (n_rows - std::min(n_rows, n_sequences)) * row;
}

struct ListBytes {
  uint64_t host = 0, shared = 0;
};

// What is never touched of buffers by position in the host's lists of active units, of n_listed units a row: the lists
// themselves, and of the listed units h and, with a gate, the products. Rows begin where the one before ends, so a
// piece of a page at both ends is touched.
ListBytes untouched_list_bytes(const Plan& plan, double n_listed, bool gated) {
  constexpr double kPage = 4096;
  const auto untouched = [&](double all, double listed) {
    const double touched = std::min(all, std::ceil(listed / kPage) * kPage);
    return static_cast<uint64_t>((all - touched) * static_cast<double>(plan.max_rows));
  };
  ListBytes out;
  int64_t most_units = 0;
  std::set<int32_t> lists;
  for (const Step& step : plan.steps) {
    const auto* const ffn = std::get_if<op::SparseFfn>(&step.op);
    if (ffn == nullptr || step.lane != kHostLane || !ffn->units) continue;
    most_units = std::max(most_units, plan.weight(ffn->down_t).n_rows);
    if (!lists.insert(ffn->units.index).second) continue;
    const BufferDesc& list = plan.buffer(ffn->units);
    const double row = 4.0 * static_cast<double>(plan.row_words(ffn->units));
    const double each = list.kind == BufferKind::kActive ? 8 : 4;
    (list.lane == kHostLane ? out.host : out.shared) += untouched(row, each * n_listed);
  }
  out.host += (gated ? 2 : 1) * untouched(4.0 * static_cast<double>(most_units), 4 * n_listed);
  return out;
}

// An engine in outline with what the placement asks of it.
class Outline {
 public:
  Outline(std::shared_ptr<const Model> model, const EngineOptions& options, const PlanRequest& request)
      : request_(request), impl_(std::move(model), options, /*is_outline=*/true), info_(impl_.info()) {
    n_sequences_ = static_cast<uint64_t>(std::max(options.n_sequences, 1));
    // Units can be split between devices only where each is a row.
    if (request.vram_budget > 0) {
      rows_ = Relayout::outline(*impl_.model);
      device_compute_ = most_device_compute(options);
    }
    check();
  }

  bool exact() const { return info_.mode != "dense"; }  // only active units are read
  const EngineInfo& info() const { return info_; }
  const Plan& plan() const { return impl_.plan(); }
  const ModelConfig& config() const { return impl_.model->config(); }
  uint64_t n_sequences() const { return n_sequences_; }
  const std::shared_ptr<const Model>& model() const { return impl_.model; }
  const Weights& weights() const { return rows_ ? rows_->weights() : impl_.weights(); }

  // Units that the host lists for a row, as is expected of the layer with the most: of those that `placement` leaves
  // cold, or of all. Nothing where that is not known.
  std::optional<double> most_listed(const Placement* placement) const {
    if (!exact() || request_.frequencies.empty()) return {};
    double most = 0;
    for (size_t i = 0; i < request_.frequencies.size(); ++i) {
      const auto& units = request_.frequencies[i];
      const auto first = units.begin() + (placement != nullptr ? placement->layers[i].n_hot : 0);
      most = std::max(most, std::accumulate(first, units.end(), 0.0));
    }
    return most;
  }

  EngineBytes bytes() const {
    const Plan& p = plan();
    EngineBytes out;
    out.embeddings = embedding_bytes(weights(), n_sequences_ * static_cast<uint64_t>(info_.n_ctx));
    const uint64_t n_blocks =
        static_cast<uint64_t>((info_.n_ctx + KvLayout::kBlockPositions - 1) / KvLayout::kBlockPositions);
    out.kv_per_layer = n_sequences_ * n_blocks * p.kv.block_bytes() / static_cast<uint64_t>(p.kv.n_layer);
    out.compute = info_.buffer_bytes - unasked_logits_bytes(p, n_sequences_, kHostLane);
    if (const auto n = most_listed(nullptr)) out.compute -= untouched_list_bytes(p, *n, config().arch->gated).host;
    out.logits = 2 * n_sequences_ * static_cast<uint64_t>(p.n_vocab) * sizeof(float);
    out.predictor = info_.predictor_bytes;
    out.predictors = predictors();
    out.relayout = info_.relayout_bytes;
    out.device_compute = device_compute_;
    return out;
  }

  PlacementProblem problem() const {
    PlacementProblem out;
    out.budget = request_.vram_budget;
    out.head_bytes = head_bytes(weights());
    const bool uses_gpu = request_.vram_budget > 0;
    const EngineBytes engine = bytes();
    if (uses_gpu) {
      out.fixed_bytes = engine.device_compute;
      const double vector_bytes = 4.0 * static_cast<double>(config().n_embd);  // x goes one way, y the other
      out.handoff_seconds = *request_.rates->handoff_us * 1e-6 + vector_bytes / (request_.rates->pcie->d2h_gbps * 1e9) +
                            vector_bytes / (request_.rates->pcie->h2d_gbps * 1e9);
    }
    for (size_t i = 0; i < weights().layers.size(); ++i) {
      const LayerBytes bytes = layer_bytes(weights(), i, exact());
      PlacementLayer layer;
      layer.frequency.assign(static_cast<size_t>(config().n_ff), 1.0);
      if (exact() && !request_.frequencies.empty()) layer.frequency = request_.frequencies[i];
      layer.detect_bytes = bytes.detect_row;
      if (!engine.predictors.empty()) {
        layer.predictor_bytes = engine.predictors[i].shared;
        layer.predictor_unit_bytes = engine.predictors[i].unit;
        layer.only_device_predicts = request_.predictor.has_value();
        layer.over_selection = request_.predictor ? request_.predictor->over_selection : kOverSelection;
      }
      layer.unit_bytes = bytes.unit_rows;
      layer.attention_bytes = bytes.attention;
      layer.kv_bytes = engine.kv_per_layer;
      layer.kv_read_bytes = engine.kv_per_layer / n_sequences_ / 2;
      const double row_bytes = static_cast<double>(bytes.shortest_row);
      if (request_.rates) layer.host = host_rate(*request_.rates, info_.n_threads, row_bytes);
      if (uses_gpu) layer.device = device_rate(*request_.rates->gpu, row_bytes);
      out.layers.push_back(std::move(layer));
    }
    return out;
  }

 private:
  // What a device takes beside weights, keys and values when it has a part in everything, which is the most it takes.
  uint64_t most_device_compute(const EngineOptions& options) const {
    Placement all;
    const LayerPlacement nearly{config().n_ff - 1, exact() ? DetectPlace::kDevice : DetectPlace::kSplit, Place::kDevice};
    all.layers.assign(weights().layers.size(), nearly);
    all.head = Place::kDevice;
    const EngineInfo info = outline_with(impl_.model, options, std::move(all))->info();
    return info.device_bytes - info.device_kv_bytes - info.device_weight_bytes +
           kPaddingPerLayer * (weights().layers.size() + 1);
  }

  // Of every layer; an assumed predictor is cut evenly.
  std::vector<PredictorBytes> predictors() const {
    std::vector<PredictorBytes> out;
    if (request_.predictor) {
      const uint64_t n = static_cast<uint64_t>(config().n_ff),
                     bytes = request_.predictor->n_bytes / weights().layers.size();
      out.assign(weights().layers.size(), {bytes % n, bytes / n});
    } else if (impl_.predictor()) {
      for (const Predictor::Layer& layer : impl_.predictor()->layers())
        out.push_back({layer.shared_bytes(), layer.unit_bytes()});
    }
    return out;
  }

  void check() const {
    const PlanRequest& r = request_;
    const uint64_t most =
        r.rates && r.rates->gpu && r.rates->gpu->memory_bytes > 0 ? r.rates->gpu->memory_bytes : kMaxBudget;
    if (r.vram_budget > most)
      fail("vram budget", cat("at most ", most, " bytes"), cat(r.vram_budget), "ask for what the GPU has");
    if (!r.frequencies.empty() && r.frequencies.size() != weights().layers.size())
      fail("layers of the frequencies", cat(weights().layers.size()), cat(r.frequencies.size()),
           "use statistics of this model");
    for (const auto& layer : r.frequencies)
      if (static_cast<int64_t>(layer.size()) != config().n_ff)
        fail("units of a layer's frequencies", cat(config().n_ff), cat(layer.size()), "use statistics of this model");
    if (r.predictor && (info_.mode != "exact" || r.vram_budget == 0))
      fail("assumed predictor", "mode exact and a vram budget", cat("mode ", info_.mode, ", ", r.vram_budget, " bytes"),
           "plan for a GPU, with --mode exact");
    if (r.predictor && r.predictor->n_bytes < weights().layers.size())
      fail("bytes of the assumed predictor", cat("at least one for each of ", weights().layers.size(), " layers"),
           cat(r.predictor->n_bytes), "state those of all layers");
    if (!(r.step_us >= 0 && r.step_us <= 1e6)) fail("step_us", "0 to 1e6", cat(r.step_us), "pass what was measured");
    if (r.vram_budget == 0) return;
    if (!r.rates || !r.rates->gpu || !r.rates->pcie || !r.rates->handoff_us)
      throw Error(
          error_text("plan", "machine rates for a GPU budget", "rates of the CPU, the GPU, its bus and the hand-off",
                     !r.rates         ? "no machine rates"
                     : !r.rates->gpu  ? "no gpu rates"
                     : !r.rates->pcie ? "no pcie rates"
                                      : "no handoff_us",
                     "run 'hotset bench --machine', and give --gpu-gbps, --pcie-gbps and --handoff-us, or name a "
                     "file that has them with --machine"));
    const uint64_t fixed = bytes().device_compute;
    if (r.vram_budget < fixed)
      fail("vram budget",
           cat("at least ", fixed, " bytes, which activations and buffers take (fewer with a smaller -b)"),
           cat(r.vram_budget), "raise it, or pass 0 for the CPU alone");
  }

  const PlanRequest& request_;
  EngineImpl impl_;
  EngineInfo info_;
  uint64_t n_sequences_ = 1;
  uint64_t device_compute_ = 0;
  std::shared_ptr<const Relayout> rows_;
};

}  // namespace

void apply(const RatesByHand& by_hand, MachineRates& rates) {
  const auto check = [](const char* name, const std::optional<double>& value, double low) {
    if (value && !(*value >= low && *value <= 1e6))
      fail(name, cat(low, " to 1e6"), cat(*value), "pass what was measured");
  };
  check("gpu_gbps", by_hand.gpu_gbps, 1e-3);
  check("pcie_gbps", by_hand.pcie_gbps, 1e-3);
  check("handoff_us", by_hand.handoff_us, 0);
  if (by_hand.gpu_gbps) {
    // Another rate is another card: what was measured with the file's, its memory and its gathered reads, does not
    // hold.
    rates.gpu = GpuRates{"", 0, *by_hand.gpu_gbps, {}};
  }
  if (by_hand.pcie_gbps) rates.pcie = PcieRates{*by_hand.pcie_gbps, *by_hand.pcie_gbps};
  if (by_hand.handoff_us) rates.handoff_us = *by_hand.handoff_us;
}

PlacementProblem placement_problem(std::shared_ptr<const Model> model, const EngineOptions& options,
                                   const PlanRequest& request) {
  return Outline(std::move(model), options, request).problem();
}

std::string find_sidecar(const std::string& asked, const std::string& model_path) {
  return Sidecar::find(asked, model_path);
}

std::vector<std::vector<double>> sidecar_frequencies(const std::string& path, const Model& model) {
  return sidecar_frequencies(*Sidecar::load(path, model.config(), model.fingerprint()), model);
}

std::vector<std::vector<double>> sidecar_frequencies(const Sidecar& sidecar, const Model& model) {
  const std::string path = sidecar.name();
  std::vector<std::vector<double>> out;
  for (int64_t layer = 0; layer < model.config().n_layer; ++layer) {
    const TensorView& stored = sidecar.frequencies(layer).view;
    if (!stored && layer == 0) return {};
    if (!stored)
      throw ModelFormatError(error_text(quoted(path, 300), cat("blk.", layer, ".unit_freq"), "as the first layer has one",
                                        "nothing", "make the sidecar anew with 'hotset place'"));
    const float* const from = reinterpret_cast<const float*>(stored.data);
    out.emplace_back(from, from + stored.n_cols);
    double last = 1;
    for (const double f : out.back()) {
      if (!(f >= 0 && f <= last))
        throw ModelFormatError(error_text(quoted(path, 300), sidecar.frequencies(layer).name,
                                          "numbers from 1 to 0, descending", cat(f, " after ", last),
                                          "make the sidecar anew with 'hotset place'"));
      last = f;
    }
  }
  return out;
}

namespace {

SimulatedStep simulate_step(const Outline& outline, const Plan& plan, const PlacementProblem& problem,
                            const PlanRequest& request) {
  SimulatedCosts costs;
  const int64_t block = KvLayout::kBlockPositions;
  costs.n_positions = (outline.info().n_ctx + block - 1) / block * block / 2;
  if (plan.n_lanes() > 1) {
    const MachineRates& rates = *request.rates;
    costs.to_host_gbps = rates.pcie->d2h_gbps, costs.to_device_gbps = rates.pcie->h2d_gbps;
    costs.flag_seconds = *rates.handoff_us * 1e-6 / 2;
    costs.device_step_seconds = request.step_us * 1e-6;
  }
  return {simulate(plan, problem, costs), simulate_firing(plan, problem, costs, kSimulatedTokens)};
}

// What an engine of both devices takes beside weights, keys and values.
void set_compute(const Outline& outline, const EngineImpl& engine, const Placement& placement, EngineBytes& bytes) {
  const EngineInfo both = engine.info();
  uint64_t weights = 0;  // without what aligns them
  EngineBytes predictors;
  predictors.predictors = bytes.predictors;
  for (const MemoryComponent& each : account(outline.weights(), outline.exact(), predictors, placement).components)
    weights += each.device == "gpu" ? each.bytes : 0;
  bytes.device_compute = both.device_bytes - both.device_kv_bytes - weights;
  bytes.compute = both.host_buffer_bytes;
  bytes.handoff = both.shared_bytes;
  for (const Plan* plan : {&engine.plan(), engine.stream_plan()}) {
    if (plan == nullptr) continue;
    bytes.compute -= unasked_logits_bytes(*plan, outline.n_sequences(), kHostLane);
    bytes.handoff -= unasked_logits_bytes(*plan, outline.n_sequences(), kSharedLane);
    const auto n_listed = outline.most_listed(&placement);
    if (!n_listed) continue;
    const ListBytes lists = untouched_list_bytes(*plan, *n_listed, outline.config().arch->gated);
    bytes.compute -= lists.host, bytes.handoff -= lists.shared;
  }
}

}  // namespace

EnginePlan plan_engine(std::shared_ptr<const Model> model, const EngineOptions& given, const PlanRequest& request) {
  EngineOptions options = given;
  if (request.vram_budget > 0) {
    options.opened_sidecar = open_sidecar(given, *model);
    options.units_by_slot = units_by_slot(options, *model);
  }
  const Outline outline(std::move(model), options, request);
  EnginePlan out;
  out.engine = outline.info();
  out.n_units = outline.config().n_ff;
  out.steps = dump(outline.plan());
  out.pp_reason = "prompts are bound by arithmetic, whose rate is not measured";
  EngineBytes bytes = outline.bytes();
  if (request.rates) {
    const PlacementProblem problem = outline.problem();
    std::shared_ptr<const EngineImpl> both;
    if (request.vram_budget > 0 && !request.predictor) {
      ChosenPlacement choice = choose_placement(outline.model(), options, problem);
      out.placement = std::move(choice.placement), both = std::move(choice.outline);
      out.steps = dump(both->plan());
      if (both->stream_plan())
        out.steps += cat("\nsteps of ", both->stream_from_rows(), " rows and more:\n", dump(*both->stream_plan()));
      set_compute(outline, *both, out.placement, bytes);
    } else {  // an engine has no assumed predictors: where one predicts for all, it detects for all instead
      out.placement = place(problem);
      Placement without = out.placement;
      for (LayerPlacement& layer : without.layers)
        if (layer.device_predicts)
          layer = {layer.n_hot, DetectPlace::kDevice, layer.attention, false, layer.host_kv};
      if (out.placement.uses_device()) both = outline_with(outline.model(), options, std::move(without));
    }
    out.tg_ts = 1 / out.placement.seconds;
    out.gpu_active_share = hot_share(problem, out.placement);
    if (request.simulate)
      out.simulated = simulate_step(outline, out.placement.uses_device() ? both->plan() : outline.plan(), problem, request);
  } else {
    out.placement.layers.resize(outline.weights().layers.size());
    out.tg_reason = "no rates of this machine: run 'hotset bench --machine'";
  }
  out.memory = account(outline.weights(), outline.exact(), bytes, out.placement);
  if (outline.exact() && request.frequencies.empty())
    out.notes.push_back(
        "no activation frequencies: every unit counts as active (profile the model, then 'hotset place')");
  if (request.rates && request.vram_budget > 0 && request.rates->gpu->gathered.empty())
    out.notes.push_back("no gathered rates of the GPU: its gathered reads count at the dense rate");
  if (request.rates && request.rates->memory_bytes > 0 && out.memory.bytes_on("cpu") > request.rates->memory_bytes)
    out.notes.push_back(cat("the host needs ", out.memory.bytes_on("cpu"), " bytes and has ", request.rates->memory_bytes,
                            ": it would be refused, or read from the disk over and over"));
  if (request.vram_budget > 0 && !out.placement.uses_device())
    out.notes.push_back("nothing is faster on the GPU within this budget");
  return out;
}

}  // namespace hotset
