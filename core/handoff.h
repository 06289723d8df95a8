// Flags between the lanes of a plan: how a device and the host pass work to each other within a step.
//
//   word           written by             read by               order
//   flag f         Signal's lane, once    Wait's lane           release, acquire: shared buffers written before the
//                  a step: the number     until >= the step     Signal are read after the Wait
//                  of the step
//   all flags      whoever fails: kAbort  every Wait            kAbort is above every step number, so all waits end;
//                                                               aborted() then tells why
//
// Each flag has a cache line of its own in shared memory. Numbers only grow, so nothing is reset between steps; before
// they reach kAbort, and after an abort, begin_step() starts anew while no lane runs.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>

#include "core/op.h"

namespace hotset {

class Handoff {
 public:
  static constexpr uint32_t kAbort = 1u << 30;
  static constexpr size_t kFlagBytes = 64;

  // `memory`: n_flags * kFlagBytes zero-filled bytes that all lanes can access; outlives this. When the host has waited
  // for as long as `patience` it aborts the step: the watchdog for a device that has died without a word. Time in which
  // the whole process was stopped does not count.
  Handoff(std::byte* memory, int32_t n_flags, std::chrono::milliseconds patience);

  // While no lane runs: the number of the coming step.
  void begin_step();
  uint32_t step() const { return step_; }

  void signal(FlagId flag);
  // For a device's lane: returns when the flag has been signalled in this step. Spins for a while, then sleeps. Throws
  // DeviceError once the step is aborted. The host may take as long as it likes: its lane ends, or aborts the step.
  void wait(FlagId flag);
  // The same for the host's lane: throws when patience is over, too. Every few milliseconds it asks is_over(), which
  // must not throw; true ends the wait, and this returns false.
  bool wait_on_host(FlagId flag, const std::function<bool()>& is_over);

  // Ends all waits of this step with an error, from any thread. The first error given is the step's.
  void abort(std::exception_ptr error);
  bool aborted() const { return aborted_.load(std::memory_order_acquire); }
  // Aborts the step because the device says nothing any more: it cannot be counted on from then on.
  void lose_patience();
  bool lost_patience() const { return lost_patience_.load(std::memory_order_acquire); }
  std::chrono::milliseconds patience() const { return patience_; }
  std::exception_ptr error() const;  // the first given to abort() in this step, else null

  // The flag's word, for devices that wait and signal in hardware.
  std::atomic<uint32_t>& word(FlagId flag) const;

 private:
  template <class Ask>
  bool look(FlagId flag, const Ask& ask);

  std::byte* memory_;
  int32_t n_flags_;
  std::chrono::milliseconds patience_;
  uint32_t step_ = 0;
  std::atomic<bool> aborted_{false};
  std::atomic<bool> lost_patience_{false};
  mutable std::mutex mutex_;  // guards error_
  std::exception_ptr error_;
};

}  // namespace hotset
