// A program of the CUDA device as data: the kernels that one lane's steps become, in order, with their operands.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "core/device.h"
#include "cuda/kernel_attention.h"
#include "cuda/kernel_predict.h"
#include "cuda/kernel_products.h"
#include "cuda/kernel_rows.h"
#include "cuda/kernel_units.h"

namespace hotset::cuda {

// Bytes from memory of the host to the device's, by the copy engine.
struct FetchBytes {
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  size_t n_bytes = 0;
};

template <template <DType> class K, class... More>
using ForDTypes =
    std::variant<K<DType::kF32>, K<DType::kF16>, K<DType::kBF16>, K<DType::kQ8_0>, K<DType::kQ4_0>, K<DType::kQ4_K>,
                 K<DType::kQ5_K>, K<DType::kQ6_K>, More...>;
using AnyProducts = ForDTypes<Products>;
using AnyDownSums = ForDTypes<DownSums>;
using Kernel = std::variant<TakeStep, ShowCounters, EmbedRows, CopyAngles, RotatePairs, NormRows, QuantizeRows,
                            StoreKvRows, AddRows, SoftCapRows, ActivateRows, SelectOutputRows, CopyRows, MergeSumRows,
                            JoinUnitRows, ClearRows, SignalFlag, WaitFlag, AnyProducts, SelectUnitRows, UnitRows,
                            AnyDownSums, MergeShares, PredictScalars, PredictUnits, AttendChunks, MergeAttention,
                            FetchBytes>;

// f(kernel) for the kernel's own type.
template <class F>
void visit_kernel(const Kernel& kernel, F&& f) {
  std::visit(
      [&](const auto& k) {
        using K = std::decay_t<decltype(k)>;
        if constexpr (std::is_same_v<K, AnyProducts> || std::is_same_v<K, AnyDownSums>)
          std::visit(f, k);
        else
          f(k);
      },
      kernel);
}

struct Launch {
  Kernel kernel;
  int64_t few_items = 1, most_items = 1;  // that a step of at most kFewRows rows can have, and any step
};

// What a lane's steps become, and the memory that they use.
struct LaunchList {
  std::vector<Launch> launches;
  std::vector<Rows> buffers;
  std::vector<std::unique_ptr<DeviceMemory>> memory;
  size_t memory_bytes = 0;
  std::unique_ptr<DeviceMemory> step_memory, counter_memory;  // of the host, readable for the device
  size_t step_words = 0;
  int64_t n_tallies = 0;
  uint32_t* tallies = nullptr;
  uint64_t n_signals = 0, n_waits = 0, fetched = 0;  // of a step
  bool has_angles = false, has_kv = false;
  StepHead* step() const { return reinterpret_cast<StepHead*>(step_memory->data()); }
  const Counters& counters() const { return *reinterpret_cast<const Counters*>(counter_memory->data()); }
};

// Whether there are kernels for weights of the type.
bool has_kernels(DType dtype);

// "" when the device can run `op` of `plan`, else what it lacks.
std::string why_unsupported(const Op& op, const Plan& plan);

// Makes the list of the plan's steps on `lane`. Its memory comes zero-filled from `alloc`, whose addresses the lane's
// kernels can read, and from `alloc_shared`. Throws DeviceError for an op that is not supported.
LaunchList build_launches(const Plan& plan, int32_t lane, const SharedState& shared,
                          const std::function<std::unique_ptr<DeviceMemory>(size_t)>& alloc,
                          const std::function<std::unique_ptr<DeviceMemory>(size_t)>& alloc_shared);

// Writes what a step needs where TakeStep finds it. `real` gives the address of a KV block for the lane's kernels.
void write_step(const LaunchList& list, const Plan& plan, int32_t lane, const StepParams& params, uint32_t number,
                const std::function<std::byte*(const std::byte*)>& real);

}  // namespace hotset::cuda
