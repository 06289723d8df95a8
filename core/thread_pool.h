// A team of threads that share the tasks of one function.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

namespace hotset {

// Lets the core rest for a moment inside a loop that waits: 40 to 140 cycles on x86, depending on the CPU.
inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Waits until ready() is true. Spins for about `spin`, then sleeps on `word` (a futex), which whoever makes ready()
// true must change and notify afterwards. ready() loads what it reads with acquire.
template <class Word, class Ready>
void wait_until(const std::atomic<Word>& word, const Ready& ready, std::chrono::microseconds spin) {
  static_assert(sizeof(Word) == 4, "the size that the kernel can wait for");
  constexpr int kPausesPerLook = 16;  // the clock costs about as much as a pause
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (ready()) return;
      pause_cpu();
    }
  } while (std::chrono::steady_clock::now() - start < spin);
  while (true) {
    const Word old = word.load(std::memory_order_acquire);
    if (ready()) return;
    word.wait(old, std::memory_order_acquire);
  }
}

// The caller is worker 0 and never waits for a thread that has not come: a worker that sleeps, or has lost its core to
// another process, joins a run late or not at all. So neither more threads than cores nor a busy machine stop a run,
// as long as its body takes tasks from a shared counter. Workers spin a bounded time between runs, then sleep. One run
// at a time; run() may be called from any thread, not from inside a run.
class ThreadPool {
 public:
  // n_threads >= 1, the caller included. Worker i runs on the processors worker_cpus[i] only, where there is such an
  // entry, it is not empty and the system allows it; worker 0, the caller's thread, stays as it is. Throws Error when
  // the system refuses a thread.
  explicit ThreadPool(int32_t n_threads, std::vector<std::vector<int32_t>> worker_cpus = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int32_t size() const { return n_threads_; }

  // Calls body(0) here and body(worker), at most once each, on the workers that come before body(0) has returned; waits
  // for those. The first exception is rethrown after all have ended. Throws Error in a process that was forked after
  // the pool was made: the threads stayed with the parent.
  void run(const std::function<void(int32_t)>& body);

 private:
  void stop();
  void work(int32_t worker);
  bool enter(uint32_t& generation);
  void run_body(int32_t worker);
  void bind(int32_t worker) const;

  // Protocol. gate_ = generation << 12 | closed << 11 | workers inside. Caller: writes body_, then opens the gate with
  // the next generation (release) and wakes sleepers; runs its part; closes the gate; waits until nobody is inside
  // (acquire). Worker: waits for a generation it has not seen; where the gate is open, adds itself by compare-exchange
  // (acquire: sees body_), runs, subtracts itself (release) and, as the last one of a closed gate, changes and notifies
  // left_, on which a sleeping caller waits. A generation that is missed, or met again after 2^20 runs, costs nothing
  // but that worker's help. After stopping_ the gate changes once more, closed.
  const int32_t n_threads_;
  const int process_;  // the process that the threads belong to
  const std::vector<std::vector<int32_t>> worker_cpus_;
  const std::function<void(int32_t)>* body_ = nullptr;
  alignas(64) std::atomic<uint32_t> gate_;
  alignas(64) std::atomic<uint32_t> left_{0};
  alignas(64) std::atomic<bool> failed_{false};
  std::atomic<bool> stopping_{false};
  std::exception_ptr first_error_;  // written by the one worker that turned failed_ to true
  std::vector<std::thread> threads_;
};

}  // namespace hotset
