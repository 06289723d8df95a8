// Engine: owns the device, the plan and the KV blocks, and advances sequences in batches.
#include "core/engine.h"

#include <algorithm>
#include <cstdlib>
#include <thread>

#include "core/devices.h"
#include "core/engine_impl.h"
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
  if (options.n_sequences < 0) fail_option("n_sequences", "0 (no limit) or more", cat(options.n_sequences));
  if (options.mode == "predict")
    throw UnsupportedModelError(error_text("engine", "mode", "auto, exact or dense (predict is not in this version)",
                                           quoted(options.mode), "use --mode exact"));
  if (options.mode != "auto" && options.mode != "dense" && options.mode != "exact")
    fail_option("mode", "auto, dense, exact or predict", quoted(options.mode));
  if (options.kv_type != "auto" && options.kv_type != "f16" && options.kv_type != "f32" && options.kv_type != "q8_0")
    fail_option("kv_type", "auto, f16, q8_0 or f32", quoted(options.kv_type));
  if (options.pin != "auto" && options.pin != "on" && options.pin != "off")
    fail_option("pin", "auto, on or off", quoted(options.pin));
  if (options.device == "virtual")
    throw DeviceError(error_text("engine", "device", "auto, cpu or cuda (virtual is not in this version)",
                                 "\"virtual\"", "use --device cpu"));
  if (options.device != "auto" && options.device != "cpu" && options.device != "cuda")
    fail_option("device", "auto, cpu or cuda", quoted(options.device));
}

// Whether inactive units are skipped: where the activation makes exact zeros, unless dense is asked for.
bool skips_units(const EngineOptions& options, const ModelConfig& config) {
  const bool sparse = is_sparse(config.activation);
  if (options.mode == "exact" && !sparse)
    throw UnsupportedModelError(error_text("engine", "mode exact", "an activation that makes exact zeros",
                                           quoted(activation_name(config.activation)),
                                           "use --mode dense, or --activation when the file is wrong"));
  return sparse && options.mode != "dense";
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
int32_t relayout_threads(int32_t n_threads) {
  return std::clamp<int32_t>(n_threads, 1, std::max<int32_t>(1, static_cast<int32_t>(std::thread::hardware_concurrency())));
}

std::unique_ptr<Device> make_device(const EngineOptions& options) {
  if (options.device == "cuda") return make_cuda_device();
  const Topology topology = read_topology();
  CpuDeviceOptions out;
  out.n_threads = options.n_threads > 0 ? options.n_threads : topology.default_threads();
  out.isa = chosen_isa(options);
  out.n_processors = topology.n_processors;
  out.worker_cpus = place_threads(topology, out.n_threads, options.pin);
  out.memory_nodes = topology.nodes();
  if (out.n_threads > topology.n_processors)
    log_to(options.log, LogLevel::kInfo,
           cat("[engine] ", out.n_threads, " threads asked for, ", topology.n_processors,
               " can run at once and are used"));
  return make_cpu_device(out);
}

}  // namespace

EngineImpl::EngineImpl(std::shared_ptr<const Model> model_in, const EngineOptions& options)
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
  memory_limit_ = physical_memory_bytes();
  device_ = make_device(options);
  if (exact_) relayout_ = std::make_unique<Relayout>(*model, relayout_threads(device_->info().n_threads), options.log);
  executor_ = std::make_unique<Executor>(std::vector<Device*>{device_.get()}, make_plan(options));
  const int64_t blocks_each = (n_ctx_ + KvLayout::kBlockPositions - 1) / KvLayout::kBlockPositions;
  pool_ = std::make_unique<KvBlockPool>(options.n_sequences > 0 ? blocks_each * options.n_sequences : INT32_MAX);
  const int64_t block_bytes = static_cast<int64_t>(executor_->plan().kv.block_bytes());
  blocks_per_slab_ = std::clamp<int64_t>(kSlabBytes / block_bytes, 1, 1024);
}

const Weights& EngineImpl::weights() const { return relayout_ ? relayout_->weights() : model->weights(); }

Plan EngineImpl::make_plan(const EngineOptions& options) const {
  const ModelConfig& config = model->config();
  PlanOptions plan_options;
  plan_options.max_rows = std::min<int64_t>(options.n_batch, n_ctx_ * std::max(options.n_sequences, 1));
  plan_options.max_rows = std::max<int64_t>(plan_options.max_rows, std::min<int64_t>(options.n_batch, 64));
  const int64_t logit_bytes = config.n_vocab * static_cast<int64_t>(sizeof(float));
  plan_options.max_output_rows = std::clamp<int64_t>(kMaxLogitBytes / logit_bytes, 1, plan_options.max_rows);
  plan_options.max_positions = n_ctx_;
  plan_options.kv_type = kv_type_;
  plan_options.exact = exact_;
  Plan plan = build_plan(config, weights(), plan_options);
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
  out.mode = exact_ ? "exact" : "dense";
  out.kv_type = kv_type_name(kv_type_);
  out.n_threads = device.n_threads;
  out.n_ctx = n_ctx_;
  out.weight_bytes = model->size_bytes();
  out.weight_bytes_per_token = model->size_bytes();
  const TensorView& table = model->weights().token_embd.view;
  if (!model->weights().tied) out.weight_bytes_per_token -= table.size_bytes() - table.row_stride;
  const TensorView& positions = model->weights().position_embd.view;
  if (positions) out.weight_bytes_per_token -= positions.size_bytes() - positions.row_stride;
  out.kv_bytes_per_position = kv.block_bytes() / static_cast<uint64_t>(KvLayout::kBlockPositions);
  out.buffer_bytes = executor_->buffer_bytes();
  if (!exact_) return out;
  out.relayout_bytes = relayout_->n_bytes();
  for (const LayerWeights& layer : weights().layers) {
    out.skippable_bytes_per_token += layer.ffn_down_t.view.size_bytes();
    if (layer.ffn_gate) out.skippable_bytes_per_token += layer.ffn_up.view.size_bytes();
  }
  return out;
}

void EngineImpl::check(std::span<const Engine::Entry> entries, const std::vector<SequenceState*>& states) const {
  const int64_t n_vocab = model->config().n_vocab;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (entries[i].tokens.empty())
      throw std::invalid_argument(error_text("engine", "tokens", "at least one", "none", "pass a prompt"));
    for (size_t other = 0; other < i; ++other)
      if (states[other] == states[i])
        throw std::invalid_argument(error_text("engine", "sessions", "each once", "one twice", "merge its tokens"));
    for (const int32_t token : entries[i].tokens)
      if (token < 0 || token >= n_vocab)
        throw std::invalid_argument(error_text("engine", "token id", cat("0 to ", n_vocab - 1), cat(token),
                                               "use ids of this model's vocabulary"));
    const int64_t total = static_cast<int64_t>(states[i]->tokens.size() + entries[i].tokens.size());
    if (total > n_ctx_)
      throw ContextLengthError(error_text("engine", "context", cat("at most ", n_ctx_, " positions"), cat(total),
                                          "shorten the prompt or raise the context (-c, n_ctx)"));
  }
}

std::byte* EngineImpl::block_address(int32_t block) {
  const size_t slab = static_cast<size_t>(block / blocks_per_slab_);
  const size_t block_bytes = executor_->plan().kv.block_bytes();
  const size_t slab_bytes = static_cast<size_t>(blocks_per_slab_) * block_bytes;
  while (slabs_.size() <= slab) {
    const uint64_t needed = (slabs_.size() + 1) * slab_bytes;
    if (memory_limit_ > 0 && needed > memory_limit_)
      throw OutOfMemoryError(error_text("engine", "KV cache", cat("at most ", memory_limit_, " bytes of memory"),
                                        cat(needed), "use fewer or shorter sequences"));
    slabs_.push_back(device_->alloc(slab_bytes));
  }
  return slabs_[slab]->data() + static_cast<size_t>(block % blocks_per_slab_) * block_bytes;
}

void EngineImpl::reserve_blocks(SequenceState& state, size_t n_positions) {
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  const size_t each = static_cast<size_t>(KvLayout::kBlockPositions);
  while (state.blocks.size() * each < n_positions) {
    const int32_t block = pool_->take();
    if (block < 0)
      throw OutOfMemoryError(error_text("engine", "KV cache", "a free block", "none of those set aside for n_sequences",
                                        "close a session or raise n_sequences"));
    state.blocks.push_back(block);
    state.addresses.push_back(nullptr);
    state.addresses.back() = block_address(block);
  }
}

void EngineImpl::release_blocks(SequenceState& state, size_t keep) {
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  while (state.blocks.size() > keep) {
    pool_->release(state.blocks.back());
    state.blocks.pop_back();
    state.addresses.pop_back();
  }
}

void EngineImpl::truncate(SequenceState& state, int64_t n) {
  if (n < 0 || n > static_cast<int64_t>(state.tokens.size()))
    throw std::invalid_argument(error_text("session", "truncate", cat("0 to ", state.tokens.size()), cat(n),
                                           "pass a number of positions held"));
  state.tokens.resize(static_cast<size_t>(n));
  release_blocks(state, (state.tokens.size() + KvLayout::kBlockPositions - 1) / KvLayout::kBlockPositions);
}

// Puts the next rows of all entries into params_, up to the plan's limits; false when nothing is left.
bool EngineImpl::fill_step(std::vector<Progress>& progress) {
  const Plan& plan = executor_->plan();
  params_.rows.clear();
  params_.sequences.clear();
  params_.output_rows.clear();
  output_owner_.clear();
  for (size_t i = 0; i < progress.size(); ++i) {
    Progress& p = progress[i];
    const size_t n = p.entry->tokens.size();
    const int32_t sequence = static_cast<int32_t>(params_.sequences.size());
    const int64_t past = static_cast<int64_t>(p.state->tokens.size());
    bool used = false;
    while (p.done < n && static_cast<int64_t>(params_.rows.size()) < plan.max_rows) {
      const bool wants_logits = p.entry->all_logits || p.done + 1 == n;
      if (wants_logits && static_cast<int64_t>(params_.output_rows.size()) == plan.max_output_rows) break;
      if (wants_logits) {
        params_.output_rows.push_back(static_cast<int32_t>(params_.rows.size()));
        output_owner_.push_back(i);
      }
      params_.rows.push_back(
          {p.entry->tokens[p.done], static_cast<int32_t>(past + static_cast<int64_t>(p.done)), sequence});
      ++p.done;
      used = true;
    }
    if (used) params_.sequences.push_back({&p.state->addresses});
  }
  return !params_.rows.empty();
}

void EngineImpl::collect_logits(std::vector<Progress>& progress) {
  const size_t n_vocab = static_cast<size_t>(model->config().n_vocab);
  const float* logits = executor_->logits();
  for (size_t i = 0; i < output_owner_.size(); ++i) {
    Progress& p = progress[output_owner_[i]];
    std::copy_n(logits + i * n_vocab, n_vocab, p.state->next_logits.data() + p.n_logits++ * n_vocab);
  }
}

void EngineImpl::advance(std::span<const Engine::Entry> entries, const std::vector<SequenceState*>& states,
                         const StopCheck& stop) {
  check(entries, states);
  const size_t n_vocab = static_cast<size_t>(model->config().n_vocab);
  std::vector<Progress> progress;
  std::vector<size_t> old_blocks;
  for (size_t i = 0; i < entries.size(); ++i) {
    progress.push_back({&entries[i], states[i]});
    old_blocks.push_back(states[i]->blocks.size());
  }
  const StopCheck stop_any = [&] {
    for (SequenceState* state : states)
      if (state->cancelled.load(std::memory_order_relaxed)) return true;
    return stop && stop();
  };
  try {
    for (size_t i = 0; i < entries.size(); ++i) {
      SequenceState& state = *states[i];
      const size_t n_tokens = state.tokens.size() + entries[i].tokens.size();
      // Nothing may fail after the last step. Doubling, because reserve alone would copy all tokens for each new one.
      if (n_tokens > state.tokens.capacity()) state.tokens.reserve(std::max(n_tokens, 2 * state.tokens.capacity()));
      reserve_blocks(state, n_tokens);
      state.next_logits.resize((entries[i].all_logits ? entries[i].tokens.size() : 1) * n_vocab);
    }
    while (true) {
      const std::lock_guard<FairMutex> lock(compute_);
      if (!fill_step(progress)) break;
      params_.stop = stop_any;
      executor_->run(params_);
      collect_logits(progress);
    }
  } catch (...) {
    for (size_t i = 0; i < states.size(); ++i) {
      release_blocks(*states[i], old_blocks[i]);
      states[i]->cancelled.store(false, std::memory_order_relaxed);
    }
    throw;
  }
  for (size_t i = 0; i < states.size(); ++i) {
    states[i]->tokens.insert(states[i]->tokens.end(), entries[i].tokens.begin(), entries[i].tokens.end());
    states[i]->logits.swap(states[i]->next_logits);
  }
}

void FairMutex::lock() {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t ticket = next_ticket_++;
  turn_.wait(lock, [&] { return serving_ == ticket; });
}

void FairMutex::unlock() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++serving_;
  }
  turn_.notify_all();
}

Engine::Engine(std::unique_ptr<EngineImpl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

std::string describe_processors() { return describe(read_topology()); }

std::shared_ptr<Engine> Engine::create(std::shared_ptr<const Model> model, const EngineOptions& options) {
  return std::shared_ptr<Engine>(new Engine(std::make_unique<EngineImpl>(std::move(model), options)));
}

const Model& Engine::model() const { return *impl_->model; }
EngineInfo Engine::info() const { return impl_->info(); }
UnitCounts Engine::unit_counts() const { return impl_->unit_counts(); }
Session Engine::open_session() { return Session(shared_from_this(), std::make_unique<SequenceState>()); }

void Engine::advance(std::span<const Entry> entries, const StopCheck& stop) {
  std::vector<SequenceState*> states;
  for (const Entry& entry : entries) {
    if (!entry.session || entry.session->engine_.get() != this)
      throw std::invalid_argument(error_text("engine", "session", "one of this engine", "another", "open it here"));
    states.push_back(entry.session->state_.get());
  }
  impl_->advance(entries, states, stop);
}

Session::Session(std::shared_ptr<Engine> engine, std::unique_ptr<SequenceState> state)
    : engine_(std::move(engine)), state_(std::move(state)) {}
Session::Session(Session&&) noexcept = default;

Session& Session::operator=(Session&& other) noexcept {
  std::swap(engine_, other.engine_);
  std::swap(state_, other.state_);
  return *this;
}

Session::~Session() {
  if (state_) engine_->impl_->truncate(*state_, 0);
}

void Session::prefill(std::span<const int32_t> tokens, const StopCheck& stop) {
  const Engine::Entry entry{this, tokens};
  engine_->advance({&entry, 1}, stop);
}

std::span<const float> Session::logits() const {
  const size_t n_vocab = static_cast<size_t>(engine_->model().config().n_vocab);
  if (state_->logits.empty()) return {};
  return std::span<const float>(state_->logits).last(n_vocab);
}

std::span<const float> Session::all_logits() const { return state_->logits; }
int64_t Session::n_past() const { return static_cast<int64_t>(state_->tokens.size()); }
const std::vector<int32_t>& Session::tokens() const { return state_->tokens; }
void Session::truncate(int64_t n_positions) { engine_->impl_->truncate(*state_, n_positions); }
void Session::cancel() { state_->cancelled.store(true, std::memory_order_relaxed); }

}  // namespace hotset
