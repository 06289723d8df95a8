// The CUDA device without a card: the same launch lists, run by threads of the host, kernel by kernel, block by block
// and thread by thread. Tests run whole models on it under the sanitizers; outlines of engines count its memory.
#include <algorithm>
#include <array>
#include <condition_variable>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "core/arena.h"
#include "core/devices.h"
#include "core/error.h"
#include "cuda/launches.h"

namespace hotset::cuda {

void yield_core() { std::this_thread::yield(); }

namespace {

// Blocks that share a kernel's items, few enough that loops over items are walked more than once.
constexpr int64_t kBlocks = 3;

// Threads of a block go up and down by turns, so that one that relies on another of the same pass gives wrong results.
// Shared memory is what the block before left there.
template <class K>
void run_on_host(const K& kernel, bool& upwards) {
  const auto shared = std::make_unique<typename K::Shared>();
  const int64_t n_items = kernel.n_items();
  for (int64_t first = 0; first < kBlocks; ++first)
    for (int64_t item = first; item < n_items; item += kBlocks)
      for (int64_t round = 0, n_rounds = kernel.n_rounds(item); round < n_rounds; ++round)
        for (int p = 0; p < K::kPasses; ++p, upwards = !upwards)
          for (int i = 0; i < K::kThreads; ++i)
            kernel.pass(p, item, round, upwards ? i : K::kThreads - 1 - i, *shared);
}

// Small pieces come from the heap, where ASAN sees their ends; large ones as pages that nothing commits until they are
// touched, which outlines do not.
class HostPiece final : public DeviceMemory {
 public:
  HostPiece(size_t n_bytes, std::function<void()> on_free) : on_free_(std::move(on_free)) {
    void* at = nullptr;
    if (n_bytes >= kLarge)
      at = (arena_ = std::make_unique<Arena>(n_bytes, Pages::kNormal))->data();
    else if (::posix_memalign(&at, 64, std::max<size_t>(n_bytes, 1)) == 0)
      heap_.reset(static_cast<std::byte*>(std::memset(at, 0, n_bytes)));
    HS_CHECK(at != nullptr, "cuda stand-in");
    data_ = static_cast<std::byte*>(at), size_ = n_bytes;
  }
  ~HostPiece() override { on_free_(); }

 private:
  static constexpr size_t kLarge = 1 << 20;
  std::unique_ptr<std::byte, decltype([](std::byte* at) { std::free(at); })> heap_;
  std::unique_ptr<Arena> arena_;
  std::function<void()> on_free_;
};

class StandInProgram final : public Program {
 public:
  StandInProgram(const Plan& plan, int32_t lane, Handoff* handoff, LaunchList list, std::function<void()> on_end)
      : plan_(plan), lane_(lane), handoff_(handoff), list_(std::move(list)), on_end_(std::move(on_end)) {}
  ~StandInProgram() override { on_end_(); }
  const float* buffer(BufferId id) const override { return list_.buffers[static_cast<size_t>(id.index)].data; }
  size_t buffer_bytes() const override { return list_.memory_bytes; }
  UnitCounts unit_counts() const override {
    const Counters& n = list_.counters();
    return {n.active, n.computed, n.total, n.candidates, n.on_host};
  }
  Traffic traffic() const override {
    const Counters& n = list_.counters();
    return {n.to_host, n.to_device, n_runs_ * list_.n_signals, n_runs_ * list_.n_waits, n_runs_ * list_.fetched};
  }
  void add_tallies(int64_t first, std::span<uint32_t> counts) const override {
    for (int64_t i = 0; i < static_cast<int64_t>(counts.size()) && first + i < list_.n_tallies; ++i)
      counts[static_cast<size_t>(i)] += list_.tallies[first + i];
  }
  int32_t lane() const { return lane_; }
  Handoff* handoff() const { return handoff_; }
  void take(const StepParams& params) {
    write_step(list_, plan_, lane_, params, handoff_ ? handoff_->step() : 0,
               [](const std::byte* at) { return const_cast<std::byte*>(at); });
  }

  // before(): called before every kernel.
  template <class F>
  void run(F&& before) {
    bool upwards = true;
    for (const Launch& launch : list_.launches) {
      before();
      visit_kernel(launch.kernel, [&](const auto& kernel) {
        using K = std::decay_t<decltype(kernel)>;
        if constexpr (std::is_same_v<K, FetchBytes>)
          std::copy_n(kernel.from, kernel.n_bytes, kernel.to);
        else
          run_on_host(kernel, upwards);
      });
    }
    ++n_runs_;
  }

 private:
  const Plan plan_;
  const int32_t lane_;
  Handoff* const handoff_;
  const LaunchList list_;
  const std::function<void()> on_end_;
  uint64_t n_runs_ = 0;
};

class StandInDevice final : public Device {
 public:
  explicit StandInDevice(const VirtualDeviceOptions& options) : options_(options) {}
  ~StandInDevice() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (Queue& queue : queues_)
      if (queue.thread.joinable()) queue.thread.join();
  }

  DeviceInfo info() const override { return {"cuda", "stand-in for a CUDA device", "host", 1}; }
  std::string why_unsupported(const Op& op, const Plan& plan) const override { return cuda::why_unsupported(op, plan); }
  std::unique_ptr<DeviceMemory> alloc(size_t n_bytes) override {
    const std::lock_guard lock(memory_mutex_);
    if (++n_allocs_ == options_.fail_alloc || n_bytes > options_.memory_bytes - used_)
      throw OutOfMemoryError(error_text("cuda stand-in", "allocation",
                                        cat("at most ", options_.memory_bytes - used_, " bytes"), cat(n_bytes),
                                        "raise --vram-budget, or lower -c or -b"));
    used_ += n_bytes;
    return std::make_unique<HostPiece>(n_bytes, [this, n_bytes] { used_ -= n_bytes; });
  }
  std::unique_ptr<DeviceMemory> alloc_shared(size_t n_bytes) override {
    return std::make_unique<HostPiece>(n_bytes, [] {});
  }
  void upload(std::byte* at, const std::byte* from, size_t n_bytes) override { std::copy_n(from, n_bytes, at); }
  void download(const std::byte* at, std::byte* to, size_t n_bytes) override { std::copy_n(at, n_bytes, to); }
  uint64_t free_bytes() const override {
    return options_.memory_bytes == UINT64_MAX ? UINT64_MAX : options_.memory_bytes - used_;
  }

  std::unique_ptr<Program> compile(const Plan& plan, int32_t lane, const SharedState& shared) override {
    LaunchList list = build_launches(
        plan, lane, shared, [this](size_t n) { return alloc(n); }, [this](size_t n) { return alloc_shared(n); });
    return std::make_unique<StandInProgram>(plan, lane, shared.handoff, std::move(list), [this] { finish(); });
  }

  void launch(Program& program, const StepParams& params) override {
    auto& next = static_cast<StandInProgram&>(program);
    std::unique_lock lock(mutex_);
    Queue& queue = queues_.at(static_cast<size_t>(std::max(next.lane() - kDeviceLane, 0)));
    changed_.wait(lock, [&] { return queue.launches.empty(); });  // the step is written where the last one is read
    next.take(params);
    if (!queue.thread.joinable()) {
      queue.random.seed(options_.seed + static_cast<uint64_t>(next.lane()));
      queue.thread = std::thread([this, &queue] { work(queue); });
    }
    queue.launches.push_back(&next);
    changed_.notify_all();
  }
  void synchronize() override { finish(); }
  bool finishes_within(std::chrono::milliseconds patience) override {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, patience, [&] { return is_idle(); });
  }

 private:
  struct Queue {
    std::deque<StandInProgram*> launches;  // guarded by mutex_
    std::mt19937_64 random;                // of the thread
    std::thread thread;
  };
  bool is_idle() const {
    return std::all_of(queues_.begin(), queues_.end(), [](const Queue& queue) { return queue.launches.empty(); });
  }
  void finish() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_idle(); });
  }
  void delay(Queue& queue) const {
    if (options_.max_delay_us <= 0) return;
    std::this_thread::sleep_for(
        std::chrono::microseconds(std::uniform_int_distribution<int32_t>(0, options_.max_delay_us)(queue.random)));
  }
  void work(Queue& queue) {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stopping_ || !queue.launches.empty(); });
      if (queue.launches.empty()) return;
      StandInProgram& next = *queue.launches.front();
      lock.unlock();
      next.run([&] { delay(queue); });
      lock.lock();
      queue.launches.pop_front();
      changed_.notify_all();
    }
  }

  const VirtualDeviceOptions options_;
  std::mutex memory_mutex_;
  std::atomic<uint64_t> used_{0};
  int64_t n_allocs_ = 0;  // guarded by memory_mutex_
  std::mutex mutex_;      // guards what follows
  std::condition_variable changed_;
  bool stopping_ = false;
  std::array<Queue, kMaxLanes - kDeviceLane> queues_;
};

}  // namespace
}  // namespace hotset::cuda

namespace hotset {

std::unique_ptr<Device> make_cuda_stand_in(const VirtualDeviceOptions& options) {
  return std::make_unique<cuda::StandInDevice>(options);
}

}  // namespace hotset
