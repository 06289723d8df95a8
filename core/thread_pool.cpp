#include "core/thread_pool.h"

#include <unistd.h>

#include <system_error>

#include "core/error.h"

namespace hotset {
namespace {

// A waiting worker first spins, then offers its core to whoever is ready to run, then sleeps. Spinning covers the
// usual wait at a barrier (a few microseconds); yielding lets a worker that lost its core, to another process or
// because there are more workers than cores, come back at once; sleeping costs a system call on both sides.
constexpr int kSpins = 300;
constexpr int kYields = 100;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until `word` differs from `old`.
template <class T>
void wait_while_equal(const std::atomic<T>& word, T old) {
  for (int i = 0; i < kSpins + kYields; ++i) {
    if (word.load(std::memory_order_acquire) != old) return;
    if (i < kSpins)
      pause_cpu();
    else
      std::this_thread::yield();
  }
  while (word.load(std::memory_order_acquire) == old) word.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int32_t n_threads) : n_threads_(n_threads), process_(::getpid()) {
  HS_CHECK(n_threads >= 1, "thread_pool");
  threads_.reserve(static_cast<size_t>(n_threads - 1));
  try {
    for (int32_t worker = 1; worker < n_threads; ++worker) threads_.emplace_back([this, worker] { work(worker); });
  } catch (const std::system_error& error) {
    const size_t n_started = threads_.size() + 1;
    stop();
    throw Error(error_text("thread_pool", "threads", cat(n_threads), cat(n_started, " (", error.what(), ")"),
                           "ask for fewer threads (-t) or raise the system's limit"));
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  if (process_ != ::getpid()) {  // a forked copy: there is nobody to join
    for (std::thread& thread : threads_) thread.detach();
    return;
  }
  stopping_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(const std::function<void(int32_t)>& body) {
  if (process_ != ::getpid())
    throw Error(error_text("thread_pool", "process", "the one that loaded the model", "one that was forked from it",
                           "load the model after the fork (multiprocessing: start method \"spawn\")"));
  body_ = &body;
  failed_.store(false, std::memory_order_relaxed);
  first_error_ = nullptr;
  remaining_.store(n_threads_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  run_body(0);
  for (int32_t left = remaining_.load(std::memory_order_acquire); left != 0;
       left = remaining_.load(std::memory_order_acquire))
    wait_while_equal(remaining_, left);
  body_ = nullptr;
  if (first_error_) std::rethrow_exception(first_error_);
}

void ThreadPool::run_body(int32_t worker) {
  try {
    (*body_)(worker);
  } catch (...) {
    if (!failed_.exchange(true, std::memory_order_acq_rel)) first_error_ = std::current_exception();
  }
}

void ThreadPool::work(int32_t worker) {
  uint32_t seen = 0;
  while (true) {
    wait_while_equal(generation_, seen);
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_) return;
    run_body(worker);
    if (remaining_.fetch_sub(1, std::memory_order_acq_rel) == 1) remaining_.notify_all();
  }
}

void ThreadPool::barrier() {
  if (n_threads_ == 1) return;
  const uint32_t round = barrier_round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == n_threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    barrier_round_.fetch_add(1, std::memory_order_release);
    barrier_round_.notify_all();
    return;
  }
  wait_while_equal(barrier_round_, round);
}

}  // namespace hotset
