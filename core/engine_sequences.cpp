// Sequences: who holds which KV blocks, what they share, and what is kept of those that ended.
#include <algorithm>
#include <cstring>

#include "core/engine.h"
#include "core/engine_impl.h"
#include "core/gguf.h"

namespace hotset {
namespace {

constexpr size_t kBlock = static_cast<size_t>(KvLayout::kBlockPositions);

size_t n_blocks_of(size_t n_positions) { return (n_positions + kBlock - 1) / kBlock; }

// Three pieces of a tensor, which tell requantised weights from the original without reading gigabytes.
uint64_t digest_sample(uint64_t state, const GgufTensor& tensor) {
  constexpr size_t kPiece = 64;
  if (!tensor.data) return state;
  const size_t n = std::min<size_t>(kPiece, tensor.n_bytes);
  for (const size_t at : {size_t{0}, (tensor.n_bytes - n) / 2, tensor.n_bytes - n})
    state = digest(state, tensor.data + at, n);
  return state;
}

}  // namespace

// A block's address in the device's memory, null when no layer has its keys and values there.
std::byte* EngineImpl::device_address(int32_t block) {
  if (!device_kv_) return nullptr;
  return device_kv_->data() + static_cast<size_t>(block) * executor_->plan().kv_of(kDeviceLane).block_bytes();
}

// These three are the only ones that touch the contents of blocks from outside of steps. host_address takes no lock:
// the caller holds blocks_mutex_. `out` and `from` hold all layers in order, whichever lane's memory a layer is in.
void EngineImpl::read_block(int32_t block, std::byte* out) {
  const Plan& plan = executor_->plan();
  const size_t n_bytes = plan.kv.page_offset(1, 0, false);  // of a layer
  for (int64_t layer = 0; layer < plan.kv.n_layer; ++layer, out += n_bytes) {
    const size_t at = static_cast<size_t>(plan.kv_slot(layer)) * n_bytes;
    if (plan.kv_lane(layer) == kHostLane)
      std::memcpy(out, host_address(block) + at, n_bytes);
    else
      accelerator_->download(device_address(block) + at, out, n_bytes);
  }
}

void EngineImpl::write_block(int32_t block, const std::byte* from) {
  const Plan& plan = executor_->plan();
  const size_t n_bytes = plan.kv.page_offset(1, 0, false);
  for (int64_t layer = 0; layer < plan.kv.n_layer; ++layer, from += n_bytes) {
    const size_t at = static_cast<size_t>(plan.kv_slot(layer)) * n_bytes;
    if (plan.kv_lane(layer) == kHostLane)
      std::memcpy(host_address(block) + at, from, n_bytes);
    else
      accelerator_->upload(device_address(block) + at, from, n_bytes);
  }
}

void EngineImpl::copy_block(int32_t from, int32_t to) {
  std::vector<std::byte> contents(executor_->plan().kv.block_bytes());
  read_block(from, contents.data());
  write_block(to, contents.data());
}

// Sets where block `at` of a sequence lies. blocks_mutex_ is held; the host's part has memory already.
void EngineImpl::place_block(SequenceState& state, size_t at) {
  for (auto& addresses : state.addresses) addresses.resize(state.blocks.size(), nullptr);
  state.addresses[kHostLane][at] = host_address(state.blocks[at]);
  state.addresses[kDeviceLane][at] = device_address(state.blocks[at]);
}

// A block for one sequence, with memory; sequences that are closed make room. blocks_mutex_ is held.
int32_t EngineImpl::take_block() {
  while (pool_->n_used() >= max_kept_blocks_ && prefixes_->drop_oldest()) {
  }
  const int32_t block = pool_->take();
  if (block < 0)
    throw OutOfMemoryError(error_text("engine", "KV cache", "a free block", "none of those set aside for n_sequences",
                                      "close a session or raise n_sequences"));
  try {
    host_address(block);
  } catch (...) {
    pool_->release(block);
    throw;
  }
  return block;
}

// Copies the block that the next position falls into if others use it too: a step writes to it. The copy is made under
// blocks_mutex_, so that of two sequences that part at once, one copies and the other finds the block its own.
void EngineImpl::own_last_block(SequenceState& state) {
  const size_t at = state.tokens.size() / kBlock;
  if (at >= state.blocks.size()) return;
  const int32_t shared = state.blocks[at];
  const auto is_shared = [&] { return pool_->count(shared) > 1; };
  while (is_shared() && pool_->n_used() >= max_kept_blocks_ && prefixes_->drop_oldest()) {
  }
  if (!is_shared()) return;
  const int32_t own = take_block();
  try {
    copy_block(shared, own);
  } catch (...) {
    pool_->release(own);
    throw;
  }
  pool_->release(shared);
  state.blocks[at] = own;
  place_block(state, at);
}

// Makes positions up to n_positions writable from the first that is not held.
void EngineImpl::reserve_blocks(SequenceState& state, size_t n_positions) {
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  own_last_block(state);
  while (state.blocks.size() < n_blocks_of(n_positions)) {
    state.blocks.push_back(take_block());
    place_block(state, state.blocks.size() - 1);
  }
}

void EngineImpl::release_blocks(SequenceState& state, size_t keep) {
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  while (state.blocks.size() > keep) {
    pool_->release(state.blocks.back());
    state.blocks.pop_back();
    for (auto& addresses : state.addresses) addresses.resize(state.blocks.size());
  }
}

void EngineImpl::truncate(SequenceState& state, int64_t n) {
  if (n < 0 || n > static_cast<int64_t>(state.tokens.size()))
    throw std::invalid_argument(error_text("session", "truncate", cat("0 to ", state.tokens.size()), cat(n),
                                           "pass a number of positions held"));
  state.tokens.resize(static_cast<size_t>(n));
  release_blocks(state, n_blocks_of(state.tokens.size()));
}

// Gives blocks, counted already, to a sequence that has none. blocks_mutex_ is held.
void EngineImpl::adopt(std::span<const int32_t> blocks, SequenceState& state) {
  for (const int32_t block : blocks) {
    state.blocks.push_back(block);
    place_block(state, state.blocks.size() - 1);
  }
}

void EngineImpl::fork(const SequenceState& from, int64_t n, SequenceState& to) {
  if (n < 0 || n > static_cast<int64_t>(from.tokens.size()))
    throw std::invalid_argument(
        error_text("session", "fork", cat("0 to ", from.tokens.size()), cat(n), "pass a number of positions held"));
  const std::span<const int32_t> blocks = std::span(from.blocks).first(n_blocks_of(static_cast<size_t>(n)));
  to.tokens.assign(from.tokens.begin(), from.tokens.begin() + n);
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  for (const int32_t block : blocks) pool_->share(block);
  adopt(blocks, to);
}

int64_t EngineImpl::reuse(std::span<const int32_t> tokens, SequenceState& state) {
  if (!state.tokens.empty())
    throw std::invalid_argument(error_text("session", "reuse", "a session that holds nothing",
                                           cat(state.tokens.size(), " positions"), "truncate it to 0 first"));
  if (tokens.empty()) return 0;
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  const PrefixCache::Match match = prefixes_->find(tokens.first(tokens.size() - 1));
  adopt(match.blocks, state);
  state.tokens.assign(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(match.n_positions));
  return static_cast<int64_t>(match.n_positions);
}

void EngineImpl::keep(const SequenceState& state, size_t n) {
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  prefixes_->keep(std::span(state.tokens).first(n), std::span(state.blocks).first(n_blocks_of(n)));
}

// What keys and values depend on besides the tokens: results of the same fingerprint differ with the type of the
// weights, the layout that they were brought into at load, and the units that a predictor rules out.
SequenceOrigin EngineImpl::sequence_origin() const {
  uint64_t state = kDigestStart;
  for (const GgufTensor& tensor : model->file().tensors()) {
    state = digest(state, tensor.name.data(), tensor.name.size());
    state = digest(state, &tensor.type, sizeof tensor.type);
    state = digest(state, tensor.shape.ne.data(), sizeof tensor.shape.ne);
    state = digest_sample(state, tensor);
  }
  const uint8_t is_relaid = relayout_ && relayout_->n_bytes() > 0;  // independent of what is placed where
  state = digest(state, &is_relaid, 1);
  const std::string predictor = predictor_ ? cat(predictor_->description(), " ", predictor_->n_bytes()) : "";
  state = digest(state, predictor.data(), predictor.size());
  return {model->fingerprint(), state, executor_->plan().kv, model->config().n_vocab};
}

void EngineImpl::save(const SequenceState& state, const std::string& path) {
  write_sequence(path, sequence_origin(), state.tokens, [&](size_t i, std::byte* out) {
    const std::lock_guard<std::mutex> lock(blocks_mutex_);
    read_block(state.blocks[i], out);
  });
}

void EngineImpl::load(const std::string& path, SequenceState& state) {
  const SequenceFile file = SequenceFile::load(path, sequence_origin(), n_ctx_);
  reserve_blocks(state, file.tokens().size());
  for (size_t i = 0; i < state.blocks.size(); ++i) {
    const std::lock_guard<std::mutex> lock(blocks_mutex_);
    write_block(state.blocks[i], file.block(i));
  }
  state.tokens = file.tokens();
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

Session Session::fork(int64_t n_positions) const {
  Session out = engine_->open_session();
  engine_->impl_->fork(*state_, n_positions, *out.state_);
  return out;
}

int64_t Session::reuse(std::span<const int32_t> tokens) { return engine_->impl_->reuse(tokens, *state_); }
void Session::keep() const { engine_->impl_->keep(*state_, state_->tokens.size() / kBlock * kBlock); }

void Session::retire() {
  engine_->impl_->keep(*state_, state_->tokens.size());
  truncate(0);
}

void Session::save(const std::string& path) const { engine_->impl_->save(*state_, path); }

Session Engine::load_session(const std::string& path) {
  Session out = open_session();
  impl_->load(path, *out.state_);
  return out;
}

}  // namespace hotset
