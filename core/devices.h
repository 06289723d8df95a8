// Makers of devices. Which file defines make_cuda_device decides whether this build has CUDA.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/device.h"

namespace hotset {

struct CpuDeviceOptions {
  int32_t n_threads = 1;
  std::string isa{};         // "" = best here
  int32_t n_processors = 0;  // threads beyond this number are not started, they would only take turns; 0 = no limit
  std::vector<std::vector<int32_t>> worker_cpus{};  // see ThreadPool
  std::vector<int32_t> memory_nodes{};              // alloc() spreads pages over these NUMA nodes when it names several
};

// Throws Error for an instruction set this CPU lacks.
std::unique_ptr<Device> make_cpu_device(const CpuDeviceOptions& options);

// Throws DeviceError saying why there is no CUDA device (not built in, no driver, no card).
std::unique_ptr<Device> make_cuda_device();

}  // namespace hotset
