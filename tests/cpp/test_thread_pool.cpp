// The thread team: tasks are done once, what is written is seen, errors come back, nobody is waited for in vain.
#include <doctest/doctest.h>
#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "core/error.h"
#include "core/thread_pool.h"

namespace {

using namespace hotset;

// Runs body(task) for every task once, by whichever workers come.
template <class Body>
void for_each_task(ThreadPool& pool, int64_t n_tasks, const Body& body) {
  std::atomic<int64_t> next{0};
  pool.run([&](int32_t) {
    for (int64_t task = next.fetch_add(1); task < n_tasks; task = next.fetch_add(1)) body(static_cast<size_t>(task));
  });
}

// A run in which every worker takes part: each waits for all others.
void run_all(ThreadPool& pool, const std::function<void(int32_t)>& body) {
  std::atomic<int32_t> n_here{0};
  pool.run([&](int32_t worker) {
    n_here.fetch_add(1);
    n_here.notify_all();
    wait_until(n_here, [&] { return n_here.load() == pool.size(); }, std::chrono::microseconds(1));
    body(worker);
  });
}

TEST_CASE("thread pool: every task is done once and its result seen, for 1 to 16 threads") {
  for (int32_t n = 1; n <= 16; ++n) {
    CAPTURE(n);
    ThreadPool pool(n);
    CHECK(pool.size() == n);
    std::vector<int64_t> results(1000);  // plain, so that a missing order is a race
    for (int run = 0; run < 20; ++run) for_each_task(pool, 1000, [&](size_t task) { ++results[task]; });
    CHECK(results == std::vector<int64_t>(1000, 20));
  }
}

TEST_CASE("thread pool: a worker joins a run at most once, and worker 0 is the caller") {
  for (const int32_t n : {2, 3, 8}) {
    ThreadPool pool(n);
    std::vector<int64_t> joined(static_cast<size_t>(n));
    int64_t wrong = 0;
    constexpr int kRuns = 2000;
    for (int run = 0; run < kRuns; ++run) {
      std::vector<int64_t> now(static_cast<size_t>(n));
      pool.run([&, caller = std::this_thread::get_id()](int32_t worker) {
        ++now[static_cast<size_t>(worker)];
        if ((worker == 0) != (std::this_thread::get_id() == caller)) now[static_cast<size_t>(worker)] = 100;
      });
      wrong += now[0] != 1 || *std::max_element(now.begin(), now.end()) != 1;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("thread pool: all workers can be in one run, also when they have slept") {
  for (const int32_t n : {1, 2, 5, 16}) {
    CAPTURE(n);
    ThreadPool pool(n);
    std::vector<int> counts(static_cast<size_t>(n));
    for (int run = 0; run < 20; ++run) run_all(pool, [&](int32_t worker) { ++counts[static_cast<size_t>(worker)]; });
    CHECK(counts == std::vector<int>(static_cast<size_t>(n), 20));
  }
}

TEST_CASE("thread pool: many small runs, from several callers in turn") {
  ThreadPool pool(3);
  std::vector<int64_t> counts(7);
  for (int round = 0; round < 4; ++round) {
    std::thread caller([&] {
      for (int run = 0; run < 500; ++run) for_each_task(pool, 7, [&](size_t task) { ++counts[task]; });
    });
    caller.join();
  }
  CHECK(counts == std::vector<int64_t>(7, 2000));
}

TEST_CASE("thread pool: pools that never run, or are made and dropped quickly, end") {
  for (int i = 0; i < 50; ++i) ThreadPool pool(1 + i % 5);
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(1 + i % 5);
    pool.run([](int32_t) {});
  }
  CHECK_THROWS_AS(ThreadPool(0), Error);
  CHECK_THROWS_AS(ThreadPool(-1), Error);
  CHECK_THROWS_AS(ThreadPool(1 << 20), Error);
}

TEST_CASE("thread pool: an error of any worker comes back, and the pool goes on") {
  for (const int32_t n : {1, 2, 4, 7}) {
    CAPTURE(n);
    ThreadPool pool(n);
    for (int32_t thrower = 0; thrower < n; ++thrower) {
      std::vector<int> ran(static_cast<size_t>(n));
      try {
        run_all(pool, [&](int32_t worker) {
          ran[static_cast<size_t>(worker)] = 1;
          if (worker == thrower) throw std::runtime_error("from " + std::to_string(worker));
        });
        FAIL_CHECK("no error");
      } catch (const std::runtime_error& error) {
        CHECK(std::string(error.what()) == "from " + std::to_string(thrower));
      }
      CHECK(ran == std::vector<int>(static_cast<size_t>(n), 1));
    }
    CHECK_THROWS_AS(pool.run([](int32_t) { throw std::logic_error("all"); }), std::logic_error);
    pool.run([](int32_t) {});
  }
}

TEST_CASE("thread pool: waiting workers go to sleep") {
  ThreadPool pool(4);
  pool.run([](int32_t) {});
  // The caller works on for 200 ms of its own processor time. Three workers that spun on would take as much each, as
  // far as there are processors; sleeping ones take next to nothing.
  const auto seconds = [](int who) {
    rusage usage{};
    ::getrusage(who, &usage);
    return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  };
  const double all = seconds(RUSAGE_SELF), own = seconds(RUSAGE_THREAD);
  while (seconds(RUSAGE_THREAD) - own < 0.2) pause_cpu();
  const double others = (seconds(RUSAGE_SELF) - all) - (seconds(RUSAGE_THREAD) - own);
  CHECK(others < 0.1);
}

TEST_CASE("thread pool: workers keep to their processors, the caller stays as it is") {
  cpu_set_t before;
  REQUIRE(::sched_getaffinity(0, sizeof before, &before) == 0);
  int32_t last = 0;
  for (int32_t cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(static_cast<size_t>(cpu), &before)) last = cpu;
  {
    ThreadPool pool(4, {{last}, {last}, {}, {8191}});  // worker 3: a processor that is not there, so no binding
    std::vector<cpu_set_t> masks(4);
    run_all(pool,
            [&](int32_t worker) { ::sched_getaffinity(0, sizeof(cpu_set_t), &masks[static_cast<size_t>(worker)]); });
    CHECK(CPU_EQUAL(&masks[0], &before));
    CHECK(CPU_COUNT(&masks[1]) == 1);
    CHECK(CPU_ISSET(static_cast<size_t>(last), &masks[1]));
    CHECK(CPU_EQUAL(&masks[2], &before));
    CHECK(CPU_EQUAL(&masks[3], &before));
  }
  cpu_set_t after;
  REQUIRE(::sched_getaffinity(0, sizeof after, &after) == 0);
  CHECK(CPU_EQUAL(&before, &after));
}

}  // namespace
