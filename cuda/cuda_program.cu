#include "cuda/cuda_program.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <type_traits>

#include "core/handoff.h"

namespace hotset::cuda {
namespace {

// Threads that a multiprocessor is given: what it holds at most (1024 on sm_75, 1536 or 2048 on others); the blocks
// that are too many run after the first.
constexpr int kThreadsPerMultiprocessor = 2048;

// One kernel of a list. Blocks take items in turn; the threads of a block meet after every pass.
template <class K>
__global__ void __launch_bounds__(K::kThreads) run_kernel(const __grid_constant__ K kernel) {
  constexpr bool kMeets = !std::is_same_v<typename K::Shared, NoShared>;
  __shared__ typename K::Shared shared;
  const int64_t n_items = kernel.n_items();
  for (int64_t item = blockIdx.x; item < n_items; item += gridDim.x) {
    const int64_t n_rounds = kernel.n_rounds(item);
    for (int64_t round = 0; round < n_rounds; ++round) {
#pragma unroll
      for (int p = 0; p < K::kPasses; ++p) {
        kernel.pass(p, item, round, static_cast<int>(threadIdx.x), shared);
        if constexpr (kMeets) __syncthreads();
      }
    }
  }
}

// Loads the kernel now: with lazy loading its first launch would, which may wait for the device, which may wait for the
// host.
template <class K>
void load_kernel(const K&) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, run_kernel<K>), "cudaFuncGetAttributes");
}

cudaError_t register_pages(uintptr_t begin, uintptr_t end, unsigned flags) {
  const cudaError_t result = cudaHostRegister(reinterpret_cast<void*>(begin), end - begin, flags);
  if (result != cudaSuccess) cudaGetLastError();  // so that the next call does not tell it again
  return result;
}

}  // namespace

CudaProgram::CudaProgram(const Plan& plan, int32_t lane, Handoff* handoff, LaunchList list, cudaStream_t stream,
                         int n_multiprocessors, std::function<void()> on_end)
    : plan_(plan), lane_(lane), handoff_(handoff), list_(std::move(list)), stream_(stream),
      n_multiprocessors_(n_multiprocessors), on_end_(std::move(on_end)) {
  pin_fetched();
  for (const Launch& launch : list_.launches)
    visit_kernel(launch.kernel, [](const auto& kernel) {
      if constexpr (!std::is_same_v<std::decay_t<decltype(kernel)>, FetchBytes>) load_kernel(kernel);
    });
  few_ = capture(&Launch::few_items);
  if (plan.max_rows > kFewRows) many_ = capture(&Launch::most_items);
}

// The copy engine reads pinned memory alone at full rate, and without the host's help. Pieces of one arena or file that
// share pages become one range.
void CudaProgram::pin_fetched() {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  std::map<uintptr_t, uintptr_t> ranges;  // first page, end
  for (const Launch& launch : list_.launches)
    if (const auto* fetch = std::get_if<FetchBytes>(&launch.kernel); fetch && fetch->n_bytes > 0) {
      const auto begin = reinterpret_cast<uintptr_t>(fetch->from);
      uintptr_t& end = ranges[begin / page * page];
      end = std::max(end, (begin + fetch->n_bytes + page - 1) / page * page);
    }
  for (auto it = ranges.begin(); it != ranges.end();) {
    const uintptr_t begin = it->first;
    uintptr_t end = it->second;
    for (++it; it != ranges.end() && it->first <= end; ++it) end = std::max(end, it->second);
    RegisteredBytes piece;
    cudaError_t result = register_pages(begin, end, cudaHostRegisterPortable);
    if (result != cudaSuccess && result != cudaErrorHostMemoryAlreadyRegistered)  // pages of a file are read alone
      result = register_pages(begin, end, cudaHostRegisterPortable | cudaHostRegisterReadOnly);
    if (result == cudaErrorHostMemoryAlreadyRegistered) continue;
    check(result, "cudaHostRegister of the weights that prompts stream");
    *piece.out() = reinterpret_cast<void*>(begin);
    pinned_.push_back(std::move(piece));
  }
}

GraphExec CudaProgram::capture(int64_t Launch::*n_items) {
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  cudaError_t result = cudaSuccess;
  for (const Launch& launch : list_.launches)
    visit_kernel(launch.kernel, [&](const auto& kernel) {
      using K = std::decay_t<decltype(kernel)>;
      if (result != cudaSuccess) return;
      if constexpr (std::is_same_v<K, FetchBytes>) {
        result = cudaMemcpyAsync(kernel.to, kernel.from, kernel.n_bytes, cudaMemcpyHostToDevice, stream_);
      } else {
        const int64_t most = int64_t{n_multiprocessors_} * std::max(1, kThreadsPerMultiprocessor / K::kThreads);
        const auto n_blocks = static_cast<unsigned>(std::clamp<int64_t>(launch.*n_items, 1, most));
        run_kernel<K><<<n_blocks, K::kThreads, 0, stream_>>>(kernel);
        result = cudaGetLastError();
      }
    });
  Graph graph;
  const cudaError_t ended = cudaStreamEndCapture(stream_, graph.out());  // in any case: the stream is used by others
  check(result, "launch of a captured kernel");
  check(ended, "cudaStreamEndCapture");
  GraphExec exec;
  check(cudaGraphInstantiateWithFlags(exec.out(), graph.get(), 0), "cudaGraphInstantiate");
  check(cudaGraphUpload(exec.get(), stream_), "cudaGraphUpload");
  check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  return exec;
}

UnitCounts CudaProgram::unit_counts() const {
  const Counters& n = list_.counters();
  return {n.active, n.computed, n.total, n.candidates, n.on_host};
}

Traffic CudaProgram::traffic() const {
  const Counters& n = list_.counters();
  return {n.to_host, n.to_device, n_runs_ * list_.n_signals, n_runs_ * list_.n_waits, n_runs_ * list_.fetched};
}

void CudaProgram::add_tallies(int64_t first, std::span<uint32_t> counts) const {
  if (first >= list_.n_tallies || counts.empty()) return;
  std::vector<uint32_t> here(std::min<size_t>(counts.size(), static_cast<size_t>(list_.n_tallies - first)));
  const size_t n_bytes = here.size() * sizeof(uint32_t);
  check(cudaMemcpyAsync(here.data(), list_.tallies + first, n_bytes, cudaMemcpyDeviceToHost, stream_),
        "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  for (size_t i = 0; i < here.size(); ++i) counts[i] += here[i];
}

void CudaProgram::launch(const StepParams& params) {
  if (n_runs_ > 0) check(cudaStreamSynchronize(stream_), "the last step");
  write_step(list_, plan_, lane_, params, handoff_ ? handoff_->step() : 0,
             [](const std::byte* at) { return const_cast<std::byte*>(at); });
  const bool is_few = static_cast<int64_t>(params.rows.size()) <= kFewRows;
  check(cudaGraphLaunch((is_few ? few_ : many_).get(), stream_), "cudaGraphLaunch");
  ++n_runs_;
}

}  // namespace hotset::cuda
