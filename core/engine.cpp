// Engine: owns the device, the plan and the KV blocks, and advances sequences in batches.
#include "core/engine.h"

#include <algorithm>

#include "core/devices.h"
#include "core/engine_impl.h"
#include "core/topology.h"

namespace hotset {

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

// The host's part of a block; memory is taken as blocks are first used.
std::byte* EngineImpl::host_address(int32_t block) {
  const size_t slab = static_cast<size_t>(block / blocks_per_slab_);
  const size_t block_bytes = executor_->plan().kv_of(kHostLane).block_bytes();
  if (block_bytes == 0) return nullptr;
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

// The executor for the rows that are left.
Executor& EngineImpl::executor_for(const std::vector<Progress>& progress) {
  if (!stream_executor_) return *executor_;
  size_t n_rows = 0;
  for (const Progress& p : progress) n_rows += p.entry->tokens.size() - p.done;
  return n_rows < static_cast<size_t>(stream_from_rows_) ? *executor_ : *stream_executor_;
}

// Puts the next rows of all entries into params_, up to the plan's limits; false when nothing is left.
bool EngineImpl::fill_step(std::vector<Progress>& progress, const Plan& plan) {
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
    if (used) params_.sequences.push_back({{&p.state->addresses[kHostLane], &p.state->addresses[kDeviceLane]}});
  }
  return !params_.rows.empty();
}

void EngineImpl::collect_logits(std::vector<Progress>& progress, const float* logits) {
  const size_t n_vocab = static_cast<size_t>(model->config().n_vocab);
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
      Executor& executor = executor_for(progress);
      if (!fill_step(progress, executor.plan())) break;
      begin_adaptive_step();
      params_.stop = stop_any;
      if (params_.observer) params_.observer->begin_step(params_.rows);
      executor.run(params_);
      collect_logits(progress, executor.logits());
      adapt();
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

UnitCounts EngineImpl::unit_counts() const {
  UnitCounts out = executor_->unit_counts();
  if (stream_executor_) out += stream_executor_->unit_counts();
  return out;
}

Traffic EngineImpl::traffic() const {
  Traffic out = executor_->traffic();
  if (stream_executor_) out += stream_executor_->traffic();
  return out;
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

namespace {

// The CPU, and a line that says why. Not a CUDA device, until one has run on hardware (docs/GPU.md).
std::string available_device(const EngineOptions& options) {
  const CudaState cuda = cuda_state();
  if (cuda.is_built)
    log_to(options.log, LogLevel::kWarning,
           cat("[engine] device auto: the CPU, as ",
               cuda.problem.empty() ? "CUDA is new and untried here; --device cuda takes the card"
                                    : cat("there is no CUDA device: ", cuda.problem)));
  return "cpu";
}

}  // namespace

std::shared_ptr<Engine> Engine::create(std::shared_ptr<const Model> model, const EngineOptions& options) {
  EngineOptions chosen = options;
  if (options.device == "auto") chosen.device = available_device(options);
  return std::shared_ptr<Engine>(new Engine(std::make_unique<EngineImpl>(std::move(model), chosen)));
}

const Model& Engine::model() const { return *impl_->model; }
EngineInfo Engine::info() const { return impl_->info(); }
const Predictor* Engine::predictor() const { return impl_->predictor(); }
Traffic Engine::traffic() const { return impl_->traffic(); }
ActivityCounts Engine::activity() const { return impl_->activity(); }
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

}  // namespace hotset
