// The virtual device: the CPU's phases on a thread of their own, in memory of their own.
#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <thread>
#include <utility>

#include "core/devices.h"
#include "core/error.h"
#include "core/thread_pool.h"
#include "cpu/cpu_program.h"
#include "cpu/phase_builder.h"
#include "cpu/virtual_memory.h"

namespace hotset {
namespace cpu {
namespace {

// A CPU program over the readable side of the device's memory.
class VirtualProgram final : public Program {
 public:
  ~VirtualProgram() override { on_end_(); }
  VirtualProgram(const Plan& plan, int32_t lane, const SharedState& shared, const Kernels& kernels, ThreadPool& pool,
                 const VirtualMemory& memory, ProgramHost host, std::function<void()> on_end)
      : lane_(lane), handoff_(shared.handoff), memory_(memory), on_end_(std::move(on_end)),
        inner_(plan, lane, shared, kernels, pool, std::move(host)) {}

  const float* buffer(BufferId id) const override {
    const float* const own = inner_.buffer(id);
    const std::byte* const handed = memory_.handed(reinterpret_cast<const std::byte*>(own));
    return handed ? reinterpret_cast<const float*>(handed) : own;
  }
  size_t buffer_bytes() const override { return inner_.buffer_bytes(); }
  UnitCounts unit_counts() const override { return inner_.unit_counts(); }
  Traffic traffic() const override { return inner_.traffic(); }
  void add_tallies(int64_t first, std::span<uint32_t> counts) const override { inner_.add_tallies(first, counts); }

  int32_t lane() const { return lane_; }
  Handoff* handoff() const { return handoff_; }
  void run(const StepParams& params) { inner_.run(params); }

 private:
  const int32_t lane_;
  Handoff* const handoff_;
  const VirtualMemory& memory_;
  const std::function<void()> on_end_;  // returns when nothing runs any more
  CpuProgram inner_;
};

class VirtualDevice final : public Device {
 public:
  explicit VirtualDevice(const VirtualDeviceOptions& options)
      : options_(options),
        kernels_(kernels_for(options.isa.empty() ? nullptr : options.isa.c_str())),
        memory_(options.memory_bytes, options.fail_alloc) {}

  ~VirtualDevice() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (Queue& queue : queues_)
      if (queue.thread.joinable()) queue.thread.join();
  }

  DeviceInfo info() const override { return {"virtual", "virtual device", kernels_.isa, 1}; }
  std::string why_unsupported(const Op& op, const Plan& plan) const override {
    return PhaseBuilder::why_unsupported(op, plan);
  }
  std::unique_ptr<DeviceMemory> alloc(size_t n_bytes) override { return memory_.alloc(n_bytes); }
  std::unique_ptr<DeviceMemory> alloc_shared(size_t n_bytes) override { return allocate(n_bytes); }
  void upload(std::byte* at, const std::byte* from, size_t n_bytes) override {
    if (++n_uploads_ == options_.fail_upload)
      throw DeviceError(error_text("virtual device", "upload", "to be done", "an injected fault", "start again"));
    std::memcpy(memory_.real(at, n_bytes), from, n_bytes);
  }
  void download(const std::byte* at, std::byte* to, size_t n_bytes) override {
    std::memcpy(to, memory_.real(at, n_bytes), n_bytes);
  }
  uint64_t free_bytes() const override { return memory_.free_bytes(); }

  std::unique_ptr<Program> compile(const Plan& plan, int32_t lane, const SharedState& shared) override {
    PhaseBuilder::check_supported(plan, lane, "virtual device");
    Plan inside = plan;
    for (WeightDesc& weight : inside.weights)
      if (weight.lane == kDeviceLane) weight.view.data = memory_.real(weight.view.data, weight.view.size_bytes());
    Queue& queue = queue_of(lane);
    return std::make_unique<VirtualProgram>(
        inside, lane, shared, kernels_, queue.pool, memory_,
        ProgramHost{[this](size_t n_bytes) { return memory_.alloc_real(n_bytes); },
                    [this, &queue, handoff = shared.handoff] { before_phase(queue, handoff); }},
        [this] { finish(); });
  }

  void launch(Program& program, const StepParams& params) override {
    auto next = std::make_unique<Launch>(static_cast<VirtualProgram&>(program));
    take(params, *next);
    {
      const std::lock_guard lock(mutex_);
      queue_of(next->program.lane()).launches.push_back(std::move(next));
    }
    changed_.notify_all();
  }

  void synchronize() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_idle(); });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  bool finishes_within(std::chrono::milliseconds patience) override {
    constexpr std::chrono::milliseconds kLook{10};  // short ones, so that a stop of the process costs one
    std::unique_lock lock(mutex_);
    for (auto left = patience; left.count() > 0 && !is_idle(); left -= kLook)
      changed_.wait_for(lock, kLook, [&] { return is_idle(); });
    return is_idle();
  }

 private:
  struct Launch {
    explicit Launch(VirtualProgram& launched) : program(launched) {}
    VirtualProgram& program;
    StepParams params;
    std::deque<std::vector<std::byte*>> blocks;  // what params.sequences name
  };

  // One lane's launches, in their order on a thread of its own.
  struct Queue {
    ThreadPool pool{1};
    std::mt19937_64 random;                        // of that thread
    std::deque<std::unique_ptr<Launch>> launches;  // guarded by mutex_
    std::thread thread;
  };

  Queue& queue_of(int32_t lane) {
    Queue& out = queues_[static_cast<size_t>(lane - kDeviceLane)];
    if (!out.thread.joinable()) {
      out.random.seed(options_.seed + static_cast<uint64_t>(lane));
      out.thread = std::thread([this, &out] { work(out); });
    }
    return out;
  }
  bool is_idle() const {
    return std::all_of(queues_.begin(), queues_.end(), [](const Queue& queue) { return queue.launches.empty(); });
  }

  void work(Queue& queue) {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stopping_ || !queue.launches.empty(); });
      if (queue.launches.empty()) return;
      const Launch& next = *queue.launches.front();
      lock.unlock();
      std::exception_ptr error;
      try {
        next.program.run(next.params);
      } catch (...) {
        error = std::current_exception();
        if (next.program.handoff()) next.program.handoff()->abort(error);
      }
      lock.lock();
      if (error && !error_) error_ = error;
      queue.launches.pop_front();
      changed_.notify_all();
    }
  }

  // The step as the device sees it: KV blocks at addresses that it can read; only the host asks whether to stop.
  void take(const StepParams& params, Launch& launch) {
    const size_t lane = static_cast<size_t>(launch.program.lane());
    launch.params.rows = params.rows;
    launch.params.output_rows = params.output_rows;
    for (const SequenceBlocks& sequence : params.sequences) {
      std::vector<std::byte*>& blocks = launch.blocks.emplace_back();
      if (sequence.blocks[lane] != nullptr)
        for (const std::byte* block : *sequence.blocks[lane]) blocks.push_back(memory_.real(block));
      launch.params.sequences.emplace_back().blocks[lane] = &blocks;
    }
  }

  // Frees a device that hangs, and waits for what it was launched for. Nobody asks for the errors of that any more.
  void finish() {
    std::unique_lock lock(mutex_);
    stopping_hang_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return is_idle(); });
    stopping_hang_ = false;
    error_ = nullptr;
  }

  // A step that has failed elsewhere ends here, before the next of its waits.
  void before_phase(Queue& queue, const Handoff* handoff) {
    if (handoff != nullptr && handoff->aborted())
      throw DeviceError(
          error_text("virtual device", "step", "to run to its end", "a failure on the host", "see its error"));
    const int64_t n_phases = ++n_phases_;
    if (n_phases == options_.fail_phase)
      throw DeviceError(error_text("virtual device", "phase", "to be computed", "an injected fault", "start again"));
    if (n_phases == options_.hang_phase) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || stopping_hang_; });
      throw DeviceError(error_text("virtual device", "phase", "to be computed", "an injected stop", "start again"));
    }
    if (options_.max_delay_us > 0) {
      const auto delay = std::uniform_int_distribution<int32_t>(0, options_.max_delay_us)(queue.random);
      if (delay > 0) std::this_thread::sleep_for(std::chrono::microseconds(delay));
    }
  }

  const VirtualDeviceOptions options_;
  const Kernels& kernels_;
  VirtualMemory memory_;
  std::atomic<int64_t> n_phases_{0};
  std::atomic<int64_t> n_uploads_{0};
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::exception_ptr error_;
  bool stopping_ = false, stopping_hang_ = false;
  std::array<Queue, kMaxLanes - kDeviceLane> queues_;
};

}  // namespace
}  // namespace cpu

std::unique_ptr<Device> make_virtual_device(const VirtualDeviceOptions& options) {
  return std::make_unique<cpu::VirtualDevice>(options);
}

}  // namespace hotset
