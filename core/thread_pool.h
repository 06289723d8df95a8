// A team of threads that runs one function together, with a barrier to pass from phase to phase.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace hotset {

// Fork-join: run() executes a function once per worker; the caller is worker 0. A worker that waits, within
// a run or between two, spins and yields a bounded time and then sleeps on a futex, so idle pools cost nothing and more
// threads than cores do not collapse. One run at a time; run() may be called from any thread, not from inside a run.
class ThreadPool {
 public:
  // n_threads >= 1, the caller included. Throws Error when the system refuses a thread.
  explicit ThreadPool(int32_t n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int32_t size() const { return n_threads_; }

  // Calls body(worker) on every worker and waits for all. The first exception is rethrown here after all have ended;
  // a body that calls barrier() must therefore catch its own and keep calling barrier(). Throws Error in a process that
  // was forked after the pool was made: the threads stayed with the parent.
  void run(const std::function<void(int32_t)>& body);

  // Waits until every worker of the current run has come here as often. Everything written before is visible after.
  void barrier();

 private:
  void stop();
  void work(int32_t worker);
  void run_body(int32_t worker);

  // Protocol. Caller writes body_ and remaining_, then increments generation_ (release) and wakes sleepers; a worker
  // sees the new generation (acquire), runs the body and decrements remaining_ (release); the caller waits for 0
  // (acquire). stopping_ is written before the last increment. Each word sits on its own cache line.
  const int32_t n_threads_;
  const int process_;  // the process that the threads belong to
  const std::function<void(int32_t)>* body_ = nullptr;
  bool stopping_ = false;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int32_t> remaining_{0};
  alignas(64) std::atomic<int32_t> arrived_{0};         // workers at the barrier
  alignas(64) std::atomic<uint32_t> barrier_round_{0};  // incremented by the last to arrive
  alignas(64) std::atomic<bool> failed_{false};
  std::exception_ptr first_error_;  // written by the one worker that turned failed_ to true
  std::vector<std::thread> threads_;
};

}  // namespace hotset
