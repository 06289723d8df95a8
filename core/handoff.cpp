#include "core/handoff.h"

#include <algorithm>
#include <new>
#include <thread>

#include "core/error.h"
#include "core/thread_pool.h"

namespace hotset {
namespace {

// How long a waiting lane spins before it sleeps: longer than the other lane takes for a layer, so that a running step
// never pays for waking up.
constexpr std::chrono::microseconds kSpin{2000};
// After that it looks this often. There is nothing to sleep on: a device in hardware wakes nobody.
constexpr std::chrono::microseconds kNap{50};
constexpr int kPausesPerLook = 16;  // the clock costs about as much as a pause
constexpr std::chrono::milliseconds kAskEvery{5};
// A look that took longer counts as this: the process was stopped (Ctrl-Z), and the device's thread perhaps with it.
constexpr std::chrono::milliseconds kLongestLook{10};

}  // namespace

Handoff::Handoff(std::byte* memory, int32_t n_flags, std::chrono::milliseconds patience)
    : memory_(memory), n_flags_(n_flags), patience_(patience) {
  static_assert(sizeof(std::atomic<uint32_t>) == 4 && std::atomic<uint32_t>::is_always_lock_free);
  for (int32_t i = 0; i < n_flags; ++i) new (memory_ + static_cast<size_t>(i) * kFlagBytes) std::atomic<uint32_t>(0);
}

std::atomic<uint32_t>& Handoff::word(FlagId flag) const {
  HS_CHECK(flag.index >= 0 && flag.index < n_flags_, "handoff");
  return *std::launder(
      reinterpret_cast<std::atomic<uint32_t>*>(memory_ + static_cast<size_t>(flag.index) * kFlagBytes));
}

void Handoff::begin_step() {
  if (step_ + 1 == kAbort || aborted()) {
    for (int32_t i = 0; i < n_flags_; ++i) word({i}).store(0, std::memory_order_relaxed);
    step_ = 0;
    const std::lock_guard lock(mutex_);
    error_ = nullptr;
    aborted_.store(false, std::memory_order_release);
  }
  ++step_;
}

// A flag that abort() has raised stays above all steps.
void Handoff::signal(FlagId flag) {
  std::atomic<uint32_t>& at = word(flag);
  uint32_t was = at.load(std::memory_order_relaxed);
  while (was < step_ && !at.compare_exchange_weak(was, step_, std::memory_order_release, std::memory_order_relaxed)) {
  }
}

// Looks at the flag until it is signalled, or ask(how long it has waited) is false.
template <class Ask>
bool Handoff::look(FlagId flag, const Ask& ask) {
  using Clock = std::chrono::steady_clock;
  const std::atomic<uint32_t>& at = word(flag);
  Clock::duration waited{0}, asked{0};
  for (Clock::time_point last = Clock::now(); at.load(std::memory_order_acquire) < step_;) {
    const Clock::time_point now = Clock::now();
    waited += std::min<Clock::duration>(now - last, kLongestLook);
    last = now;
    if (waited - asked > kAskEvery) {
      asked = waited;
      if (!ask(waited)) return false;
    }
    if (waited > kSpin) std::this_thread::sleep_for(kNap);
    for (int i = 0; i < kPausesPerLook && at.load(std::memory_order_relaxed) < step_; ++i) pause_cpu();
  }
  if (at.load(std::memory_order_acquire) >= kAbort)
    throw DeviceError(
        error_text("handoff", "step", "to run to its end", "a failure on the other lane", "see its error"));
  return true;
}

void Handoff::wait(FlagId flag) {
  look(flag, [](auto) { return true; });
}

bool Handoff::wait_on_host(FlagId flag, const std::function<bool()>& is_over) {
  return look(flag, [&](auto waited) {
    if (waited > patience_) lose_patience();
    return !is_over();
  });
}

void Handoff::lose_patience() {
  lost_patience_.store(true, std::memory_order_release);
  abort(std::make_exception_ptr(
      DeviceError(error_text("handoff", "device", cat("a sign of life within ", patience_.count(), " ms"), "none",
                             "the device may have failed; start again, or use --device cpu"))));
}

void Handoff::abort(std::exception_ptr error) {
  {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
    aborted_.store(true, std::memory_order_release);
  }
  for (int32_t i = 0; i < n_flags_; ++i) word({i}).store(kAbort, std::memory_order_release);
}

std::exception_ptr Handoff::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

}  // namespace hotset
