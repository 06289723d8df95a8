// A compiled plan on the CPU: a list of phases that the whole thread team walks together.
//
// Each op becomes one or more phases; a phase is a set of independent tasks that workers take from the phase's counter.
// Whoever finishes the last task of a phase goes on with the phases of one task that follow, alone, and then lets the
// team into the next phase of several. Nobody waits for a worker that has no task in hand, so a worker that sleeps or
// has lost its core holds up nothing. Which worker computes a task never changes its result.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/device.h"
#include "core/thread_pool.h"
#include "cpu/kernels.h"

namespace hotset::cpu {

// Consecutive rows of one sequence that attention computes together.
struct RowTile {
  int32_t first_row;
  int32_t n_rows;
};

// What phases see of a step.
struct StepContext {
  const StepParams& params;
  const Kernels& kernels;
  int32_t n_workers;
  int64_t n_rows;
  int64_t n_output_rows;
  const std::vector<RowTile>& tiles;
  // Asked every few milliseconds by a phase of one task that waits, on the worker that runs it: whether to give up,
  // because the step has failed or shall stop. Never throws.
  const std::function<bool(int32_t worker)>& is_over;

  int64_t rows_of(BufferRows kind) const { return kind == BufferRows::kAll ? n_rows : n_output_rows; }
};

class Phase {
 public:
  virtual ~Phase() = default;
  // Number of tasks for this step. Asked once per step, by the worker that has seen all earlier phases end and before it
  // lets the team in, so that it may depend on their results. Phases of one task run without the team.
  virtual int64_t n_tasks(const StepContext& context) const = 0;
  virtual void run(int64_t task, int32_t worker, const StepContext& context) const = 0;
};

// Zero-filled memory from the operating system, committed when touched.
std::unique_ptr<DeviceMemory> allocate(size_t n_bytes);

// Whose a program is: where its memory comes from, and what is called before each of its phases.
struct ProgramHost {
  std::function<std::unique_ptr<DeviceMemory>(size_t)> alloc = allocate;
  std::function<void()> before_phase{};
};

// The kernel table's index of a weight type; -1 when there are no kernels for it.
int weight_type(DType dtype);
inline WeightRows weight_rows(const TensorView& view) { return {view.data, view.row_stride, view.n_cols}; }
inline bool is_block_type(DType dtype) { return dtype_info(dtype).block_size > 1; }

// An activation buffer in memory: float32, or what its kind says. Rows are `stride` floats apart and 64-byte aligned.
struct RowBuffer {
  float* data = nullptr;
  int64_t stride = 0;
  int64_t n_cols = 0;
  BufferRows rows = BufferRows::kAll;
  BufferKind kind = BufferKind::kFloats;
  // One per row; q, scale and sum are null unless a block weight or Predict reads the buffer. The last block is filled up
  // with zeros.
  const ActivationRow* acts = nullptr;

  float* row(int64_t index) const { return data + index * stride; }
  int64_t* sums(int64_t index) const { return reinterpret_cast<int64_t*>(row(index)); }  // of kind kSums
};

class CpuProgram final : public Program {
 public:
  CpuProgram(const Plan& plan, int32_t lane, const SharedState& shared, const Kernels& kernels, ThreadPool& pool,
             ProgramHost host = {});

  const float* buffer(BufferId id) const override { return buffers_[static_cast<size_t>(id.index)].data; }
  size_t buffer_bytes() const override { return memory_bytes_; }
  UnitCounts unit_counts() const override {
    const auto value = [](const std::atomic<uint64_t>& count) { return count.load(std::memory_order_relaxed); };
    return {value(unit_counts_.active), value(unit_counts_.computed), value(unit_counts_.total),
            value(unit_counts_.candidates), value(unit_counts_.on_host)};
  }
  void add_tallies(int64_t first, std::span<uint32_t> counts) const override {
    for (int64_t i = 0; i < std::min(std::ssize(counts), n_tallies_ - first); ++i)
      counts[static_cast<size_t>(i)] += tallies_[first + i];
  }

  Traffic traffic() const override {
    const auto value = [](const std::atomic<uint64_t>& count) { return count.load(std::memory_order_relaxed); };
    return {value(traffic_.to_host), value(traffic_.to_device), value(traffic_.n_signals), value(traffic_.n_waits),
            value(traffic_.fetched)};
  }

  // Runs all phases. Rethrows the first error of any worker; the buffers are then undefined.
  void run(const StepParams& params);

 private:
  friend class PhaseBuilder;
  void plan_tiles(const StepParams& params);
  void walk(int32_t worker, const StepContext& context);
  bool share(size_t phase, int64_t n_tasks, int32_t worker, const StepContext& context);
  void run_alone(size_t phase, int32_t worker, const StepContext& context);
  void run_task(size_t phase, int64_t task, int32_t worker, const StepContext& context);
  void prepare();
  void ask_stop(int32_t worker, const StepContext& context);
  bool is_over(int32_t worker, const StepContext& context);
  void fail(std::exception_ptr error);

  const Kernels& kernels_;
  ThreadPool& pool_;
  const ProgramHost host_;
  int64_t max_rows_;
  int64_t max_output_rows_;
  int64_t tile_rows_ = 1;
  size_t memory_bytes_ = 0;
  std::vector<std::unique_ptr<DeviceMemory>> memory_;
  std::vector<RowBuffer> buffers_;
  std::vector<std::vector<ActivationRow>> activations_;
  std::vector<std::unique_ptr<Phase>> phases_;
  std::vector<RowTile> tiles_;
  struct {
    std::atomic<uint64_t> active{0}, computed{0}, total{0}, candidates{0}, on_host{0};
  } unit_counts_;
  struct {
    std::atomic<uint64_t> to_host{0}, to_device{0}, n_signals{0}, n_waits{0}, fetched{0};
  } traffic_;
  uint32_t* tallies_ = nullptr;  // (n_tallies_) op::SelectUnits::tally
  int64_t n_tallies_ = 0;
  bool only_listed_ = false;  // FfnShape::only_listed
  bool detects_listed_ = false;  // DetectShape::only_listed

  // Protocol. run() resets the counters and current_ before the team starts. A worker reads current_ (acquire), takes
  // tasks of that phase from `next`, and adds the number it has finished to `done` (acquire and release). The one that
  // brings `done` to the number of tasks has seen all results; it runs the phases of one task that follow and moves
  // current_ on (release, then wakes sleepers). The others wait for current_ to change. One cache line per phase.
  // Where it waits for another lane meanwhile, it flips kNudge in current_ every few milliseconds: that wakes the others
  // too, who find no tasks, and lets worker 0 ask whether to stop.
  struct alignas(64) Counter {
    int64_t n_tasks = 0;           // written before current_ names the phase: a late worker must not ask again
    std::atomic<int64_t> next{0};  // task to take
    std::atomic<int64_t> done{0};  // tasks finished
  };
  std::vector<Counter> counters_;
  static constexpr int32_t kNudge = 1 << 30;
  alignas(64) std::atomic<int32_t> current_{-1};  // phase that the team works on; -1 until worker 0 has found the first
  alignas(64) std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // written by the worker that turned failed_ to true
};

}  // namespace hotset::cpu
