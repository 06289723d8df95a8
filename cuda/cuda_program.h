// A launch list as one CUDA graph.
#pragma once

#include <functional>
#include <vector>

#include "cuda/cuda_handles.h"
#include "cuda/launches.h"

namespace hotset::cuda {

// The kernels of a list are captured when it is made. What changes from step to step lies in pinned memory, which the
// graph's first node reads, and a kernel's blocks loop over what work there is: so a graph serves any number of rows,
// is never made again, and a launch allocates nothing. There are two, which differ in the numbers of blocks alone: with
// those for many rows, blocks without work would be most of what a step of one row starts. Waits and signals are nodes.
class CudaProgram final : public Program {
 public:
  // `stream`: where it runs. on_end() is called before anything is freed and returns when nothing runs any more.
  CudaProgram(const Plan& plan, int32_t lane, Handoff* handoff, LaunchList list, cudaStream_t stream,
              int n_multiprocessors, std::function<void()> on_end);
  ~CudaProgram() override { on_end_(); }

  const float* buffer(BufferId id) const override { return list_.buffers[static_cast<size_t>(id.index)].data; }
  size_t buffer_bytes() const override { return list_.memory_bytes; }
  UnitCounts unit_counts() const override;
  Traffic traffic() const override;
  void add_tallies(int64_t first, std::span<uint32_t> counts) const override;

  // Starts a step. Waits first until the last one has ended, whose parameters lie where this one's are written.
  void launch(const StepParams& params);

 private:
  void pin_fetched();
  GraphExec capture(int64_t Launch::*n_items);

  const Plan plan_;
  const int32_t lane_;
  Handoff* const handoff_;
  const LaunchList list_;
  const cudaStream_t stream_;
  const int n_multiprocessors_;
  const std::function<void()> on_end_;
  std::vector<RegisteredBytes> pinned_;
  GraphExec few_, many_;  // for at most kFewRows rows, and for more
  uint64_t n_runs_ = 0;
};

}  // namespace hotset::cuda
