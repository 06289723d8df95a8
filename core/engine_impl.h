// Private state of Engine and Session.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "core/adaptation.h"
#include "core/device.h"
#include "core/engine.h"
#include "core/executor.h"
#include "core/kv_cache.h"
#include "core/placement.h"
#include "core/predictor.h"
#include "core/prefix_cache.h"
#include "core/relayout.h"
#include "core/sequence_file.h"
#include "core/streamed_units.h"
#include "core/unit_exchange.h"
#include "core/weight_placer.h"

namespace hotset {

struct PlanRequest;

// What a sequence remembers: its tokens, the KV blocks that hold them, the logits of its latest advance.
class SequenceState {
 public:
  std::vector<int32_t> tokens;
  std::vector<int32_t> blocks;        // block numbers in order of position
  // Of the same blocks in the memory of each lane that keeps keys and values.
  std::array<std::vector<std::byte*>, kMaxLanes> addresses;
  std::vector<float> logits;          // (n, n_vocab) of the latest successful advance
  std::vector<float> next_logits;     // being written by the running advance
  std::atomic<bool> cancelled{false};
};

// A mutex that is granted in the order in which it was asked for, so that a long prefill and short steps of other
// sessions alternate.
class FairMutex {
 public:
  void lock();
  void unlock();

 private:
  std::mutex mutex_;
  std::condition_variable turn_;
  uint64_t next_ticket_ = 0;
  uint64_t serving_ = 0;
};

// The sidecar that the options mean; nullptr when there is none. Throws as Sidecar::load.
std::shared_ptr<const Sidecar> open_sidecar(const EngineOptions& options, const Model& model);

class EngineImpl {
 public:
  // `is_outline`: an engine that knows what it would take, but must not compute: no weights are laid out anew.
  EngineImpl(std::shared_ptr<const Model> model, const EngineOptions& options, bool is_outline = false);

  EngineInfo info() const;
  const Predictor* predictor() const { return predictor_.get(); }
  const Plan& plan() const { return executor_->plan(); }
  // Of steps of at least stream_from_rows() rows, if there are such.
  const Plan* stream_plan() const { return stream_executor_ ? &stream_executor_->plan() : nullptr; }
  int64_t stream_from_rows() const { return stream_from_rows_; }
  const Weights& weights() const;
  UnitCounts unit_counts() const;
  Traffic traffic() const;
  ActivityCounts activity();
  void advance(std::span<const Engine::Entry> entries, const std::vector<SequenceState*>& states,
               const StopCheck& stop);
  // Forgets positions from n on and gives their blocks back.
  void truncate(SequenceState& state, int64_t n);
  // See Session. `to` and `state` of reuse and load hold nothing.
  void fork(const SequenceState& from, int64_t n, SequenceState& to);
  int64_t reuse(std::span<const int32_t> tokens, SequenceState& state);
  void keep(const SequenceState& state, size_t n);  // the first n positions
  void save(const SequenceState& state, const std::string& path);
  void load(const std::string& path, SequenceState& state);

  const std::shared_ptr<const Model> model;

 private:
  // One entry of the running advance: how many of its tokens are computed, where its next logits go.
  struct Progress {
    const Engine::Entry* entry;
    SequenceState* state;
    size_t done = 0;
    size_t n_logits = 0;
  };

  // What a plan with an accelerator has beside the host: see hybrid_setup.cpp.
  void add_accelerator(const EngineOptions& options, bool is_outline);
  void make_executors(const EngineOptions& options, const MachineRates& rates,
                      const std::vector<std::vector<double>>& frequencies, uint64_t budget, bool is_outline);
  void check_host_memory(const EngineOptions& options, bool copies_cold) const;
  void take_device_kv(const EngineOptions& options, bool is_outline);
  void fill_info(EngineInfo& info) const;
  // Exchange of units between steps: see engine_adapt.cpp.
  void start_adaptation(const EngineOptions& options, const PlanRequest& request);
  AdaptationOptions affordable_swaps(const MachineRates& rates) const;
  void begin_adaptive_step();
  void adapt();
  std::span<const uint32_t> tallies(size_t layer);
  int64_t blocks_per_sequence() const { return (n_ctx_ + KvLayout::kBlockPositions - 1) / KvLayout::kBlockPositions; }

  std::shared_ptr<const Relayout> choose_weights(const EngineOptions& options, bool is_outline) const;
  std::unique_ptr<Predictor> make_predictor(const EngineOptions& options, bool is_outline) const;
  Plan make_plan(const EngineOptions& options, const StreamRing* stream = nullptr) const;
  int64_t affordable_rows(const Plan& plan) const;
  void check(std::span<const Engine::Entry> entries, const std::vector<SequenceState*>& states) const;
  void reserve_blocks(SequenceState& state, size_t n_positions);
  void release_blocks(SequenceState& state, size_t keep);
  int32_t take_block();
  void own_last_block(SequenceState& state);
  void adopt(std::span<const int32_t> blocks, SequenceState& state);
  SequenceOrigin sequence_origin() const;
  std::byte* host_address(int32_t block);
  std::byte* device_address(int32_t block);
  void place_block(SequenceState& state, size_t at);
  void read_block(int32_t block, std::byte* out);
  void write_block(int32_t block, const std::byte* from);
  void copy_block(int32_t from, int32_t to);
  Executor& executor_for(const std::vector<Progress>& progress);
  bool fill_step(std::vector<Progress>& progress, const Plan& plan);
  void collect_logits(std::vector<Progress>& progress, const float* logits);

  FairMutex compute_;  // held for one step: guards the executors, params_, output_owner_ and what adaptation knows
  // Held shortly: guards pool_, prefixes_ and slabs_. A running step writes only to blocks that its sequences have
  // alone.
  std::mutex blocks_mutex_;
  std::unique_ptr<Device> device_;       // the host's CPU
  std::string accelerator_name_;         // "cuda" or "virtual"
  std::unique_ptr<Device> accelerator_;  // nothing: everything on the CPU
  std::shared_ptr<const Relayout> relayout_;  // the weights that plans use, unless they are the file's
  std::unique_ptr<Predictor> predictor_;      // mode predict; with an accelerator in order of slots
  Placement placement_;                       // with an accelerator
  UnitsBySlot units_by_slot_;                 // the same
  double gpu_active_share_ = 0;
  std::unique_ptr<const WeightPlacer> placed_;
  std::unique_ptr<DeviceMemory> device_kv_;  // of all blocks, the layers that the accelerator attends to
  uint64_t device_kv_bytes_ = 0;
  bool adapts_ = false;  // units are counted one by one, and change places; what follows is nothing in outline
  int64_t max_swaps_ = AdaptationOptions{}.max_swaps;
  std::unique_ptr<Adaptation> adaptation_;
  std::unique_ptr<UnitExchange> exchange_;
  std::vector<uint32_t> tallies_;     // of one layer
  bool exchange_failed_ = false;      // units may be mixed up: no step may follow
  std::atomic<uint64_t> n_swaps_{0};
  std::unique_ptr<Executor> executor_;
  // Of steps with many rows, for which the accelerator computes cold units too; nothing: executor_ does all.
  StreamRing ring_;
  std::unique_ptr<DeviceMemory> ring_memory_;
  std::unique_ptr<Executor> stream_executor_;
  int64_t stream_from_rows_ = 0;
  bool exact_ = false;  // inactive units are skipped
  DType kv_type_ = DType::kF16;
  int64_t n_ctx_ = 0;
  uint64_t memory_limit_ = 0;
  std::unique_ptr<KvBlockPool> pool_;
  std::unique_ptr<PrefixCache> prefixes_;
  int64_t max_kept_blocks_ = 0;  // in use, at which sequences that are closed give theirs up
  int64_t blocks_per_slab_ = 1;
  std::vector<std::unique_ptr<DeviceMemory>> slabs_;  // KV memory, allocated as sequences grow
  StepParams params_;
  std::vector<size_t> output_owner_;  // for each output row of the step, the index of its entry
};

}  // namespace hotset
