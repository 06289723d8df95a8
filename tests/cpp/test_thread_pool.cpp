// The thread team: every worker runs, barriers hold, errors come back, more threads than cores finish.
#include <doctest/doctest.h>

#include <numeric>
#include <stdexcept>
#include <string>

#include "core/error.h"
#include "core/thread_pool.h"

namespace {

using namespace hotset;

TEST_CASE("thread pool: every worker runs once, for 1 to 16 threads") {
  for (int32_t n = 1; n <= 16; ++n) {
    CAPTURE(n);
    ThreadPool pool(n);
    CHECK(pool.size() == n);
    std::vector<int64_t> sums(static_cast<size_t>(n));
    for (int run = 0; run < 20; ++run)
      pool.run([&](int32_t worker) {
        for (int64_t i = worker; i < 1000; i += n) sums[static_cast<size_t>(worker)] += i;
      });
    CHECK(std::accumulate(sums.begin(), sums.end(), int64_t{0}) == 20 * 499500);
  }
}

TEST_CASE("thread pool: many small runs, from several callers in turn") {
  ThreadPool pool(3);
  std::vector<int64_t> counts(3);
  for (int round = 0; round < 4; ++round) {
    std::thread caller([&] {
      for (int run = 0; run < 500; ++run) pool.run([&](int32_t worker) { ++counts[static_cast<size_t>(worker)]; });
    });
    caller.join();
  }
  CHECK(counts == std::vector<int64_t>(3, 2000));
}

TEST_CASE("thread pool: pools that never run, or are made and dropped quickly, end") {
  for (int i = 0; i < 50; ++i) ThreadPool pool(1 + i % 5);
  CHECK_THROWS_AS(ThreadPool(0), Error);
  CHECK_THROWS_AS(ThreadPool(-1), Error);
}

TEST_CASE("thread pool: what was written before a barrier is seen by all behind it") {
  for (const int32_t n : {1, 2, 3, 5, 8}) {
    CAPTURE(n);
    ThreadPool pool(n);
    constexpr int kPhases = 100;
    std::vector<int> values(static_cast<size_t>(n));  // plain, so that a missing order is a race
    std::vector<int> wrong(static_cast<size_t>(n));
    pool.run([&](int32_t worker) {
      for (int phase = 1; phase <= kPhases; ++phase) {
        values[static_cast<size_t>(worker)] = phase;
        pool.barrier();
        for (const int value : values) wrong[static_cast<size_t>(worker)] += value != phase;
        pool.barrier();
      }
    });
    CHECK(wrong == std::vector<int>(static_cast<size_t>(n)));
  }
}

TEST_CASE("thread pool: an error of any worker comes back, and the pool goes on") {
  for (const int32_t n : {1, 2, 4, 7}) {
    CAPTURE(n);
    ThreadPool pool(n);
    for (int32_t thrower = 0; thrower < n; ++thrower) {
      std::vector<int> ran(static_cast<size_t>(n));
      try {
        pool.run([&](int32_t worker) {
          ran[static_cast<size_t>(worker)] = 1;
          if (worker == thrower) throw std::runtime_error("from " + std::to_string(worker));
        });
        FAIL_CHECK("no error");
      } catch (const std::runtime_error& error) {
        CHECK(std::string(error.what()) == "from " + std::to_string(thrower));
      }
      CHECK(ran == std::vector<int>(static_cast<size_t>(n), 1));
      pool.run([&](int32_t worker) { ran[static_cast<size_t>(worker)] = 2; });
      CHECK(ran == std::vector<int>(static_cast<size_t>(n), 2));
    }
    CHECK_THROWS_AS(pool.run([](int32_t) { throw std::logic_error("all"); }), std::logic_error);
  }
}

TEST_CASE("thread pool: many more threads than cores finish their barriers") {
  ThreadPool pool(32);
  std::atomic<int64_t> sum{0};
  for (int run = 0; run < 10; ++run)
    pool.run([&](int32_t worker) {
      for (int phase = 0; phase < 10; ++phase) {
        sum.fetch_add(worker, std::memory_order_relaxed);
        pool.barrier();
      }
    });
  CHECK(sum.load() == 100 * 496);
}

}  // namespace
