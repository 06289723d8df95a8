// The CPU as a device: memory from the operating system, programs run by a thread team.
#include <algorithm>
#include <cstring>

#include "core/arena.h"
#include "core/devices.h"
#include "core/error.h"
#include "core/thread_pool.h"
#include "core/topology.h"
#include "cpu/cpu_program.h"
#include "cpu/phase_builder.h"

namespace hotset {
namespace cpu {
namespace {

class ArenaMemory final : public DeviceMemory {
 public:
  explicit ArenaMemory(size_t n_bytes) : arena_(n_bytes, Pages::kNormal) {
    data_ = arena_.data();
    size_ = arena_.size();
  }

 private:
  Arena arena_;
};

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(const CpuDeviceOptions& options)
      : kernels_(kernels_for(options.isa.empty() ? nullptr : options.isa.c_str())),
        n_threads_(options.n_threads),
        memory_nodes_(options.memory_nodes),
        pool_(options.n_processors > 0 ? std::min(options.n_threads, options.n_processors) : options.n_threads,
              options.worker_cpus) {}

  DeviceInfo info() const override { return {"cpu", "CPU", kernels_.isa, n_threads_}; }

  std::string why_unsupported(const Op& op, const Plan& plan) const override {
    return PhaseBuilder::why_unsupported(op, plan);
  }

  std::unique_ptr<DeviceMemory> alloc(size_t n_bytes) override {
    std::unique_ptr<DeviceMemory> memory = allocate(n_bytes);
    if (memory_nodes_.size() > 1) interleave_pages(memory->data(), memory->size(), memory_nodes_);
    return memory;
  }

  std::unique_ptr<DeviceMemory> alloc_shared(size_t n_bytes) override { return alloc(n_bytes); }
  void upload(std::byte* at, const std::byte* from, size_t n_bytes) override { std::memcpy(at, from, n_bytes); }
  void download(const std::byte* at, std::byte* to, size_t n_bytes) override { std::memcpy(to, at, n_bytes); }
  uint64_t free_bytes() const override { return UINT64_MAX; }

  std::unique_ptr<Program> compile(const Plan& plan, int32_t lane, const SharedState& shared) override {
    PhaseBuilder::check_supported(plan, lane, "cpu");
    return std::make_unique<CpuProgram>(plan, lane, shared, kernels_, pool_);
  }

  // The CPU computes at once, on the calling thread and its team.
  void launch(Program& program, const StepParams& params) override { static_cast<CpuProgram&>(program).run(params); }
  void synchronize() override {}

 private:
  const Kernels& kernels_;
  const int32_t n_threads_;  // asked for
  const std::vector<int32_t> memory_nodes_;
  ThreadPool pool_;
};

}  // namespace

std::unique_ptr<DeviceMemory> allocate(size_t n_bytes) { return std::make_unique<ArenaMemory>(n_bytes); }

}  // namespace cpu

std::unique_ptr<Device> make_cpu_device(const CpuDeviceOptions& options) {
  return std::make_unique<cpu::CpuDevice>(options);
}

}  // namespace hotset
