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

// A pretend accelerator: the CPU's kernels on a thread of their own, started by launch() and waited for by
// synchronize(), in memory that the host cannot touch: the addresses that it gives lie in a mapping without access, so
// that a step that forgets a copy faults where it happens.
struct VirtualDeviceOptions {
  std::string isa{};                   // "" = best here
  uint64_t memory_bytes = UINT64_MAX;  // of all that alloc() and programs may take
  uint64_t seed = 0;                   // of the delays
  int32_t max_delay_us = 0;            // waits up to so long before each phase of a program
  // Runs the CUDA device's kernels instead of the CPU's: see make_cuda_stand_in.
  bool runs_cuda_kernels = false;
  // Faults for tests, counted from 1; 0 = never.
  int64_t fail_alloc = 0;  // this allocation
  int64_t fail_upload = 0;  // this one
  int64_t fail_phase = 0;  // this phase since the device was made throws
  int64_t hang_phase = 0;  // at this phase it stops and says nothing more
};
std::unique_ptr<Device> make_virtual_device(const VirtualDeviceOptions& options);

// What stands for a card with the CUDA device's own kernels: its launch lists run by the host, thread after thread. For
// tests, and for outlines, because it takes the memory that the CUDA device takes. Of the options it has no isa, and of the
// faults only fail_alloc.
std::unique_ptr<Device> make_cuda_stand_in(const VirtualDeviceOptions& options);

// Whether there is a CUDA device to be had, without making one.
struct CudaState {
  bool is_built = false;    // this build has the CUDA device
  std::string problem;      // why it cannot be used; "" = it can
  uint64_t free_bytes = 0;  // that an engine may take
};
CudaState cuda_state();

struct CudaDeviceOptions {
  uint64_t memory_bytes = UINT64_MAX;  // of all that alloc() and programs may take
};
// Throws DeviceError saying why there is no CUDA device (not built in, no driver, no card).
std::unique_ptr<Device> make_cuda_device(const CudaDeviceOptions& options);

}  // namespace hotset
