// What an engine is made of: its options checked, the device chosen, the plan built for the memory there is.
#include <algorithm>
#include <cstdlib>
#include <thread>

#include "core/devices.h"
#include "core/engine_impl.h"
#include "core/gguf.h"
#include "core/hybrid_planner.h"
#include "core/planner.h"
#include "core/topology.h"
#include "core/weights.h"

namespace hotset {
namespace {

// Logits of a step are kept below this size; wanting more only means more steps.
constexpr int64_t kMaxLogitBytes = int64_t{64} << 20;
// Activations of a step may take this much, or as much as the weights: a model with few weights and wide layers gets
// smaller steps, not gigabytes.
constexpr uint64_t kMinActivationBytes = uint64_t{64} << 20;
// KV memory is allocated in pieces of about this size.
constexpr int64_t kSlabBytes = int64_t{16} << 20;

[[noreturn]] void fail_option(const std::string& name, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(error_text("engine", name, expected, got, "pass a value in that range"));
}

void check_options(const EngineOptions& options) {
  if (options.n_threads < 0 || options.n_threads > 1024)
    fail_option("n_threads", "0 (one per core) to 1024", cat(options.n_threads));
  if (options.n_ctx < 0 || options.n_ctx > int64_t{1} << 30)
    fail_option("n_ctx", "0 (as the model) to 2^30", cat(options.n_ctx));
  if (options.n_batch < 1 || options.n_batch > 65536) fail_option("n_batch", "1 to 65536", cat(options.n_batch));
  if (options.stream_from_rows < -1)
    fail_option("stream_from_rows", "-1 (automatic), 0 (none) or more", cat(options.stream_from_rows));
  if (options.n_sequences < 0) fail_option("n_sequences", "0 (no limit) or more", cat(options.n_sequences));
  if (options.n_kept_sequences < 0) fail_option("n_kept_sequences", "0 or more", cat(options.n_kept_sequences));
  if (options.mode != "auto" && options.mode != "dense" && options.mode != "exact" && options.mode != "predict")
    fail_option("mode", "auto, dense, exact or predict", quoted(options.mode));
  if (!options.predictor.empty() && options.mode != "predict")
    throw std::invalid_argument(error_text("engine", "predictor", "none, or mode predict",
                                           "mode " + quoted(options.mode), "add --mode predict or drop the predictor"));
  if (options.kv_type != "auto" && options.kv_type != "f16" && options.kv_type != "f32" && options.kv_type != "q8_0")
    fail_option("kv_type", "auto, f16, q8_0 or f32", quoted(options.kv_type));
  if (options.kv_place != "auto" && options.kv_place != "device" && options.kv_place != "host")
    fail_option("kv_place", "auto, device or host", quoted(options.kv_place));
  const bool is_number = !options.n_gpu_layers.empty() && options.n_gpu_layers.size() < 8 &&
                         options.n_gpu_layers.find_first_not_of("0123456789") == std::string::npos;
  if (options.n_gpu_layers != "auto" && options.n_gpu_layers != "all" && !is_number)
    fail_option("n_gpu_layers", "auto, all or a number of layers", quoted(options.n_gpu_layers));
  if (options.adapt != "auto" && options.adapt != "on" && options.adapt != "off")
    fail_option("adapt", "auto, on or off", quoted(options.adapt));
  if (options.pin != "auto" && options.pin != "on" && options.pin != "off")
    fail_option("pin", "auto, on or off", quoted(options.pin));
  if (options.device != "auto" && options.device != "cpu" && options.device != "cuda" && options.device != "virtual")
    fail_option("device", "auto, cpu, cuda or virtual", quoted(options.device));
}

// Whether inactive units are skipped: where the activation makes exact zeros, unless dense is asked for.
bool skips_units(const EngineOptions& options, const ModelConfig& config) {
  if (options.observer && options.mode == "exact")
    fail_option("mode", "dense, auto or predict when units are observed", quoted(options.mode));
  const bool sparse = is_sparse(config.activation);
  if ((options.mode == "exact" || options.mode == "predict") && !sparse)
    throw UnsupportedModelError(error_text("engine", "mode " + options.mode, "an activation that makes exact zeros",
                                           quoted(activation_name(config.activation)),
                                           "use --mode dense, or --activation when the file is wrong"));
  return sparse && options.mode != "dense" && !options.observer;
}

// The one environment variable of the library: HOTSET_ISA names the instruction set when the options do not.
std::string chosen_isa(const EngineOptions& options) {
  if (!options.isa.empty()) return options.isa;
  const char* value = std::getenv("HOTSET_ISA");
  return value ? value : "";
}

DType chosen_kv_type(const EngineOptions& options, const Model& model) {
  if (options.kv_type == "q8_0") {
    if (model.config().head_dim % dtype_info(DType::kQ8_0).block_size != 0)
      throw UnsupportedModelError(error_text("engine", "kv_type q8_0", "heads of a multiple of 32 elements",
                                             cat(model.config().head_dim), "use --kv-type f16"));
    return DType::kQ8_0;
  }
  const bool f32 = options.kv_type == "f32" || (options.kv_type == "auto" && model.weights().all_f32);
  return f32 ? DType::kF32 : DType::kF16;
}

const char* kv_type_name(DType dtype) {
  return dtype == DType::kQ8_0 ? "q8_0" : dtype == DType::kF16 ? "f16" : "f32";
}

// No more than there are processors.
int32_t load_threads(int32_t n_threads) {
  return std::clamp<int32_t>(n_threads, 1, std::max<int32_t>(1, static_cast<int32_t>(std::thread::hardware_concurrency())));
}

// Bytes of a layer's down projection, whichever way it is laid out.
size_t down_bytes(const LayerWeights& layer) {
  return (layer.ffn_down_t ? layer.ffn_down_t : layer.ffn_down).view.size_bytes();
}

std::unique_ptr<Device> make_device(const EngineOptions& options) {
  const Topology topology = read_topology();
  CpuDeviceOptions out;
  out.n_threads = options.n_threads > 0 ? options.n_threads : topology.default_threads();
  out.isa = chosen_isa(options);
  out.n_processors = topology.n_processors;
  if (options.device == "virtual") {  // whose thread needs a core
    out.n_processors = std::max(1, topology.n_processors - 1);
    if (options.n_threads == 0) out.n_threads = std::max(1, out.n_threads - 1);
  }
  out.worker_cpus = place_threads(topology, out.n_threads, options.pin);
  out.memory_nodes = topology.nodes();
  if (out.n_threads > topology.n_processors)
    log_to(options.log, LogLevel::kInfo,
           cat("[engine] ", out.n_threads, " threads asked for, ", topology.n_processors,
               " can run at once and are used"));
  return make_cpu_device(out);
}

}  // namespace

EngineImpl::EngineImpl(std::shared_ptr<const Model> model_in, const EngineOptions& options, bool is_outline)
    : model(std::move(model_in)) {
  check_options(options);
  const ModelConfig& config = model->config();
  n_ctx_ = options.n_ctx > 0 ? options.n_ctx : config.n_ctx_train;
  if (n_ctx_ > config.n_ctx_train && config.arch->positions == Positions::kLearned)
    fail_option("n_ctx", cat("at most ", config.n_ctx_train, ", the positions that the model has learned"), cat(n_ctx_));
  if (n_ctx_ > config.n_ctx_train)
    log_to(options.log, LogLevel::kWarning,
           cat("[engine] a context of ", n_ctx_, " is longer than the ", config.n_ctx_train,
               " positions the model was trained for; the end may be nonsense"));
  kv_type_ = chosen_kv_type(options, *model);
  exact_ = skips_units(options, config);
  params_.observer = options.observer;
  memory_limit_ = options.host_memory > 0 ? options.host_memory : physical_memory_bytes();
  device_ = make_device(options);
  pool_ = std::make_unique<KvBlockPool>(options.n_sequences > 0 ? blocks_per_sequence() * options.n_sequences : INT32_MAX);
  if (is_accelerator(options.device)) {
    add_accelerator(options, is_outline);
  } else {
    // Rows of listed units lie anywhere in the file. (With an accelerator they are copied to large pages.)
    if (!is_outline) model->file().prefer_large_pages();
    relayout_ = choose_weights(options, is_outline);
    if (options.mode == "predict") predictor_ = make_predictor(options, is_outline);
    executor_ = std::make_unique<Executor>(std::vector<Device*>{device_.get()}, make_plan(options));
  }
  const int64_t block_bytes = static_cast<int64_t>(executor_->plan().kv_of(kHostLane).block_bytes());
  blocks_per_slab_ = std::clamp<int64_t>(kSlabBytes / std::max<int64_t>(block_bytes, 1), 1, 1024);
  // An observer would miss the tokens that are not computed.
  prefixes_ =
      std::make_unique<PrefixCache>(*pool_, KvLayout::kBlockPositions, options.observer ? 0 : options.n_kept_sequences);
  max_kept_blocks_ = blocks_per_sequence() * std::max(options.n_sequences, 1);
  if (memory_limit_ > 0 && block_bytes > 0)
    max_kept_blocks_ = std::min(max_kept_blocks_, static_cast<int64_t>(memory_limit_ / 8) / block_bytes);
}

std::shared_ptr<const Relayout> EngineImpl::choose_weights(const EngineOptions& options, bool is_outline) const {
  if (options.weights_from) {
    if (&options.weights_from->model() != model.get())
      throw std::invalid_argument(error_text("engine", "weights_from", "an engine of the same Model", "of another one",
                                             "create both from one Model"));
    const EngineImpl& from = *options.weights_from->impl_;
    // One with an accelerator has copies of what it made; made again, it is the same.
    if (from.relayout_ && from.accelerator_ && !is_accelerator(options.device) && !is_outline)
      return std::make_shared<Relayout>(*model, load_threads(device_->info().n_threads), options.log);
    if (from.relayout_ && !from.accelerator_ && !is_accelerator(options.device)) return from.relayout_;
  }
  if (!exact_ && !is_accelerator(options.device)) return nullptr;
  if (is_outline || is_accelerator(options.device)) return Relayout::outline(*model);
  return std::make_shared<Relayout>(*model, load_threads(device_->info().n_threads), options.log);
}

std::shared_ptr<const Sidecar> open_sidecar(const EngineOptions& options, const Model& model) {
  if (options.opened_sidecar) return options.opened_sidecar;
  const std::string path = Sidecar::find(options.sidecar, model.path());
  return path.empty() ? nullptr : Sidecar::load(path, model.config(), model.fingerprint());
}

// The predictor that the options name, else that of the sidecar.
std::unique_ptr<Predictor> EngineImpl::make_predictor(const EngineOptions& options, bool is_outline) const {
  PredictorSpec spec;
  if (!options.predictor.empty()) {
    spec = parse_predictor(options.predictor, model->config().n_layer);
    log_to(options.log, LogLevel::kWarning,
           cat("[engine] predictor ", options.predictor, " is not calibrated on this model; `hotset kld --mode ",
               "predict` shows what it loses"));
  } else {
    auto sidecar = open_sidecar(options, *model);
    const bool has_own = model->predictor() != nullptr;
    if (!sidecar && !has_own)
      throw Error(error_text("engine", "mode predict", "a predictor",
                             "no sidecar " + quoted(Sidecar::path_beside(model->path()), 200),
                             "make one with `hotset train-predictor`, or use --predictor bit_planes:2"));
    spec = has_own && !(sidecar && sidecar->predictor()) ? predictor_of(model) : predictor_of(std::move(sidecar));
  }
  const int32_t n_threads = load_threads(device_->info().n_threads);
  return std::make_unique<Predictor>(weights(), spec,
                                     Predictor::Options{n_threads, is_outline, units_by_slot_, options.log});
}

const Weights& EngineImpl::weights() const { return relayout_ ? relayout_->weights() : model->weights(); }

Plan EngineImpl::make_plan(const EngineOptions& options, const StreamRing* stream) const {
  const ModelConfig& config = model->config();
  PlanOptions plan_options;
  plan_options.max_rows = std::min<int64_t>(options.n_batch, n_ctx_ * std::max(options.n_sequences, 1));
  plan_options.max_rows = std::max<int64_t>(plan_options.max_rows, std::min<int64_t>(options.n_batch, 64));
  const int64_t logit_bytes = config.n_vocab * static_cast<int64_t>(sizeof(float));
  plan_options.max_output_rows = std::clamp<int64_t>(kMaxLogitBytes / logit_bytes, 1, plan_options.max_rows);
  plan_options.max_positions = n_ctx_;
  plan_options.kv_type = kv_type_;
  plan_options.exact = exact_;
  plan_options.observe = options.observer != nullptr;
  plan_options.predictor = predictor_.get();
  plan_options.stream = stream;
  plan_options.tally = adapts_;
  Plan plan = placed_ ? build_plan(config, placed_->weights(), plan_options)
                      : build_plan(config, weights(), plan_options);
  plan.max_rows = affordable_rows(plan);
  plan.max_output_rows = std::min(plan.max_output_rows, plan.max_rows);
  return plan;
}

// How many rows of the plan fit the memory that activations may take; at least one.
int64_t EngineImpl::affordable_rows(const Plan& plan) const {
  const uint64_t each = row_memory_bytes(plan);
  if (memory_limit_ > 0 && each > memory_limit_)
    throw OutOfMemoryError(error_text("engine", "activations of one token", cat("at most ", memory_limit_, " bytes"),
                                      cat(each), "use a smaller model"));
  const uint64_t budget = std::max(kMinActivationBytes, model->size_bytes());
  return std::clamp<int64_t>(static_cast<int64_t>(budget / each), 1, plan.max_rows);
}

EngineInfo EngineImpl::info() const {
  const DeviceInfo device = device_->info();
  const KvLayout& kv = executor_->plan().kv;
  EngineInfo out;
  out.device = device.kind;
  out.isa = device.detail;
  out.mode = !exact_ ? "dense" : predictor_ ? "predict" : "exact";
  out.kv_type = kv_type_name(kv_type_);
  out.n_threads = device.n_threads;
  out.n_ctx = n_ctx_;
  out.weight_bytes = model->size_bytes();
  out.weight_bytes_per_token = model->size_bytes();
  const TensorView& table = model->weights().token_embd.view;
  if (!model->weights().tied) out.weight_bytes_per_token -= table.size_bytes() - table.row_stride;
  const TensorView& positions = model->weights().position_embd.view;
  if (positions) out.weight_bytes_per_token -= positions.size_bytes() - positions.row_stride;
  // A new layout may have another type.
  if (relayout_)
    for (size_t i = 0; i < weights().layers.size(); ++i)
      out.weight_bytes_per_token +=
          weights().layers[i].ffn_down_t.view.size_bytes() - down_bytes(model->weights().layers[i]);
  out.kv_bytes_per_position = kv.block_bytes() / static_cast<uint64_t>(KvLayout::kBlockPositions);
  for (const Executor* each : {executor_.get(), stream_executor_.get()}) {
    if (each == nullptr) continue;
    out.buffer_bytes += each->buffer_bytes();
    out.host_buffer_bytes += each->buffer_bytes(kHostLane);
  }
  if (predictor_ && exact_) {
    out.predictor = predictor_->description();
    out.predictor_bytes = predictor_->n_bytes();
    out.predictor_bytes_per_token = predictor_->bytes_per_token();
  }
  if (accelerator_) fill_info(out);
  if (!exact_ || accelerator_) return out;
  out.relayout_bytes = relayout_->n_bytes();
  for (const LayerWeights& layer : weights().layers) {
    out.skippable_bytes_per_token += layer.ffn_down_t.view.size_bytes();
    if (layer.ffn_gate) out.skippable_bytes_per_token += layer.ffn_up.view.size_bytes();
  }
  if (!predictor_) return out;
  for (size_t i = 0; i < weights().layers.size(); ++i) {
    const LayerWeights& layer = weights().layers[i];
    if (predictor_->layers()[i])
      out.detect_bytes_per_token += (layer.ffn_gate ? layer.ffn_gate : layer.ffn_up).view.size_bytes();
  }
  return out;
}

}  // namespace hotset
