#include "core/thread_pool.h"

#include <sched.h>
#include <unistd.h>

#include <system_error>

#include "core/error.h"

namespace hotset {
namespace {

constexpr uint32_t kInside = (1u << 11) - 1;
constexpr uint32_t kClosed = 1u << 11;
constexpr uint32_t kGeneration = ~(kClosed | kInside);
constexpr uint32_t kNextGeneration = 1u << 12;

// Between runs a worker spins as long as sampling a token usually takes; then it costs nothing until the next run.
constexpr std::chrono::microseconds kSpinBetweenRuns{100};
// The caller, done with its part, waits for workers that end theirs.
constexpr std::chrono::microseconds kSpinAtEnd{20};

}  // namespace

ThreadPool::ThreadPool(int32_t n_threads, std::vector<std::vector<int32_t>> worker_cpus)
    : n_threads_(n_threads), process_(::getpid()), worker_cpus_(std::move(worker_cpus)), gate_(kClosed) {
  HS_CHECK(n_threads >= 1 && n_threads <= static_cast<int32_t>(kInside), "thread_pool");
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
  stopping_.store(true, std::memory_order_relaxed);
  gate_.fetch_add(kNextGeneration, std::memory_order_release);
  gate_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(const std::function<void(int32_t)>& body) {
  if (process_ != ::getpid())
    throw Error(error_text("thread_pool", "process", "the one that loaded the model", "one that was forked from it",
                           "load the model after the fork (multiprocessing: start method \"spawn\")"));
  body_ = &body;
  failed_.store(false, std::memory_order_relaxed);
  first_error_ = nullptr;
  if (n_threads_ > 1) {
    const uint32_t generation = gate_.load(std::memory_order_relaxed) & kGeneration;
    gate_.store(generation + kNextGeneration, std::memory_order_release);
    gate_.notify_all();
  }
  run_body(0);
  if (n_threads_ > 1) {
    gate_.fetch_or(kClosed, std::memory_order_relaxed);
    wait_until(left_, [this] { return (gate_.load(std::memory_order_acquire) & kInside) == 0; }, kSpinAtEnd);
  }
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

// Joins the current run if it still takes workers; `generation` becomes its number either way.
bool ThreadPool::enter(uint32_t& generation) {
  uint32_t gate = gate_.load(std::memory_order_acquire);
  while ((gate & kClosed) == 0 && (gate & kGeneration) != generation)
    if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire)) {
      generation = gate & kGeneration;
      return true;
    }
  generation = gate & kGeneration;
  return false;
}

void ThreadPool::bind(int32_t worker) const {
  if (static_cast<size_t>(worker) >= worker_cpus_.size()) return;
  const std::vector<int32_t>& cpus = worker_cpus_[static_cast<size_t>(worker)];
  if (cpus.empty()) return;
  std::vector<cpu_set_t> mask(8);  // room for 8192 processors
  for (const int32_t cpu : cpus) CPU_SET_S(static_cast<size_t>(cpu), mask.size() * sizeof(cpu_set_t), mask.data());
  ::sched_setaffinity(0, mask.size() * sizeof(cpu_set_t), mask.data());  // refused: the scheduler decides
}

void ThreadPool::work(int32_t worker) {
  bind(worker);
  uint32_t seen = 0;
  while (true) {
    wait_until(gate_, [&] { return (gate_.load(std::memory_order_acquire) & kGeneration) != seen; }, kSpinBetweenRuns);
    if (enter(seen)) {
      run_body(worker);
      if (gate_.fetch_sub(1, std::memory_order_acq_rel) % kNextGeneration == (kClosed | 1u)) {
        left_.fetch_add(1, std::memory_order_release);
        left_.notify_all();
      }
    }
    if (stopping_.load(std::memory_order_relaxed)) return;
  }
}

}  // namespace hotset
