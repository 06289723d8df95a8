// Hand-offs between two lanes: flags by themselves, then steps of small plans on the host and the virtual device, which
// are delayed, fail, hang, are cancelled.
#include <doctest/doctest.h>

#include <array>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "core/error.h"
#include "core/handoff.h"
#include "tests/cpp/families.h"
#include "tests/cpp/toy_lanes.h"

namespace {

using namespace hotset;
using namespace hotset::test;
using std::chrono::milliseconds;

constexpr milliseconds kLong = std::chrono::minutes(10);

struct Flags {
  explicit Flags(milliseconds patience) : handoff(memory.data(), 2, patience) {}
  alignas(Handoff::kFlagBytes) std::array<std::byte, 2 * Handoff::kFlagBytes> memory{};
  Handoff handoff;
};

bool never() { return false; }

bool is_same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_CASE("handoff: what is written before a signal is read after its wait, step after step") {
  Flags flags(kLong);
  int64_t to_device = 0, to_host = 0;  // ordered by the flags alone
  for (int64_t step = 1; step <= 300; ++step) {
    flags.handoff.begin_step();
    std::thread device([&] {
      flags.handoff.wait({0});
      to_host = to_device + 1;
      flags.handoff.signal({1});
    });
    to_device = 10 * step;
    flags.handoff.signal({0});
    CHECK(flags.handoff.wait_on_host({1}, never));
    CHECK(to_host == 10 * step + 1);
    device.join();
  }
}

TEST_CASE("handoff: an abort ends all waits, the first error is kept, the next step begins anew") {
  Flags flags(kLong);
  for (int i = 0; i < 100; ++i) {
    flags.handoff.begin_step();
    CHECK(!flags.handoff.aborted());
    CHECK(!flags.handoff.error());
    std::thread device([&] { CHECK_THROWS_AS(flags.handoff.wait({0}), DeviceError); });
    flags.handoff.abort(std::make_exception_ptr(std::runtime_error("first")));
    flags.handoff.abort(std::make_exception_ptr(std::runtime_error("second")));
    flags.handoff.signal({1});  // too late
    CHECK_THROWS_AS(flags.handoff.wait_on_host({1}, never), DeviceError);
    device.join();
    CHECK(flags.handoff.aborted());
    CHECK_THROWS_WITH(std::rethrow_exception(flags.handoff.error()), "first");
  }
  flags.handoff.begin_step();
  flags.handoff.signal({0});
  CHECK_NOTHROW(flags.handoff.wait({0}));
}

TEST_CASE("handoff: only the host loses patience, or gives up when it is told to") {
  Flags flags(milliseconds(20));
  flags.handoff.begin_step();
  int n_asked = 0;
  CHECK(!flags.handoff.wait_on_host({0}, [&] { return ++n_asked == 2; }));
  CHECK(n_asked == 2);
  CHECK(!flags.handoff.lost_patience());
  std::thread device([&] { CHECK_THROWS_AS(flags.handoff.wait({1}), DeviceError); });
  CHECK_THROWS_AS(flags.handoff.wait_on_host({0}, never), DeviceError);
  device.join();
  CHECK(flags.handoff.lost_patience());
  CHECK_THROWS_WITH_AS(std::rethrow_exception(flags.handoff.error()), doctest::Contains("20 ms"), DeviceError);
}

TEST_CASE("handoff: a step on two lanes has the bits of one, whatever the delays and the threads") {
  std::mt19937_64 random(3);
  CHECK(lint(ToyLanes(5).one_lane()).empty());
  for (int32_t n_threads = 1; n_threads <= 4; ++n_threads)
    for (const int32_t max_delay_us : {0, 30, 300}) {
      CAPTURE(n_threads);
      CAPTURE(max_delay_us);
      ToyRun toy(5, n_threads, {.seed = random(), .max_delay_us = max_delay_us});
      CHECK(lint(toy.executor->plan()).empty());
      for (int i = 0; i < (max_delay_us == 300 ? 10 : 60); ++i) {
        const int64_t n_rows = 1 + static_cast<int64_t>(random() % ToyLanes::kMaxRows);
        REQUIRE(is_same(toy.run(n_rows), toy.expected(n_rows)));
      }
    }
}

TEST_CASE("handoff: a device that fails at any phase ends the step with its error, and the next one is right") {
  int64_t n_failed = 0;
  for (bool fails = true; fails; n_failed += fails) {
    ToyRun toy(3, 2, {.fail_phase = n_failed + 1});
    fails = false;
    try {
      const std::vector<float> got = toy.run(4);
      CHECK(is_same(got, toy.expected(4)));
    } catch (const DeviceError& error) {
      fails = true;
      CHECK(std::string(error.what()).find("injected") != std::string::npos);
    }
    if (fails) CHECK(is_same(toy.run(4), toy.expected(4)));
    if (n_failed > 100) break;
  }
  CHECK(n_failed >= 3 * 5);
}

TEST_CASE("handoff: a device that hangs at any phase is given up, then and in later steps, and can be destroyed") {
  int64_t n_hung = 0;
  for (bool hangs = true; hangs; n_hung += hangs) {
    ToyRun toy(2, 1 + static_cast<int32_t>(n_hung % 3), {.hang_phase = n_hung + 1}, milliseconds(30));
    hangs = false;
    try {
      toy.run(4);
    } catch (const DeviceError& error) {
      hangs = true;
      CHECK(std::string(error.what()).find("sign of life") != std::string::npos);
      for (int i = 0; i < 2; ++i) CHECK_THROWS_WITH_AS(toy.run(4), doctest::Contains("earlier step"), DeviceError);
    }
    if (n_hung > 100) break;
  }
  CHECK(n_hung >= 2 * 5);
}

TEST_CASE("handoff: a device that hangs behind its last signal, or while the host fails, is given up too") {
  ToyRun toy(2, 1, {.hang_phase = 3}, milliseconds(300));
  int64_t left = 25;  // more than the lane asks between operations
  CHECK_THROWS_WITH(toy.run(4, [&] { return left-- > 0 ? false : throw std::runtime_error("host"); }), "host");
  CHECK_THROWS_WITH_AS(toy.run(4), doctest::Contains("earlier step"), DeviceError);

  const auto host = make_cpu_device({.n_threads = 1}), card = make_virtual_device({.hang_phase = 6});
  Plan plan;
  plan.max_rows = plan.max_output_rows = 1;
  plan.n_vocab = 4;
  plan.buffers = {{"logits", 4, BufferRows::kOutput, BufferKind::kFloats, kHostLane}};
  plan.logits = {0};
  plan.flags = {"a", "b"};
  plan.steps = {{kDeviceLane, op::Signal{{0}}}, {kHostLane, op::Wait{{0}}}, {kHostLane, op::Signal{{1}}},
                {kDeviceLane, op::Wait{{1}}}};
  Executor executor({host.get(), card.get()}, plan, milliseconds(50));
  executor.run({});
  executor.run({});  // phases 3 and 4; the next is 5, and hangs where the host has ended
  CHECK_THROWS_AS(executor.run({}), DeviceError);
}

TEST_CASE("handoff: an error of the host's lane ends the step with that error, and the next one is right") {
  std::mt19937_64 random(7);
  for (int32_t n_threads = 1; n_threads <= 3; ++n_threads) {
    ToyRun toy(4, n_threads);
    const std::vector<float> expected = toy.expected(8);
    for (int i = 0; i < 60; ++i) {
      int64_t left = static_cast<int64_t>(random() % 12);
      const auto stop = [&]() -> bool {
        if (left-- == 0) throw std::runtime_error("the host fails");
        return false;
      };
      try {
        const std::vector<float> got = toy.run(8, stop);
        CHECK(is_same(got, expected));
        CHECK(left >= 0);
      } catch (const std::runtime_error& error) {
        CHECK(std::string(error.what()) == "the host fails");
      }
      CHECK(is_same(toy.run(8), expected));
    }
  }
}

// How often an undisturbed step asks whether to stop.
int64_t n_asked(ToyRun& toy) {
  int64_t n = 0;
  toy.run(8, [&] { return ++n < 0; });
  return n;
}

TEST_CASE("handoff: steps cancelled at any point end with CancelledError and leave the executor usable") {
  std::mt19937_64 random(11);
  const int n_steps = kThreadsOnly ? 300 : 1000;
  ToyRun toy(4, 1, {.seed = 5, .max_delay_us = 20});
  const std::vector<float> expected = toy.expected(8);
  ToyRun undisturbed(4, 1);
  const auto at_least = static_cast<uint64_t>(4 * 3);  // each layer's wait, product and signal
  CHECK(n_asked(undisturbed) >= static_cast<int64_t>(at_least));
  for (int i = 0; i < n_steps; ++i) {
    int64_t left = static_cast<int64_t>(random() % at_least);
    CHECK_THROWS_AS(toy.run(8, [&] { return left-- == 0; }), CancelledError);
    if (i % 10 == 0) CHECK(is_same(toy.run(8), expected));
  }
}

TEST_CASE("handoff: with a team, a cancelled step is cancelled or right") {
  std::mt19937_64 random(13);
  ToyRun toy(4, 3, {.seed = 5, .max_delay_us = 20});
  const std::vector<float> expected = toy.expected(8);
  int n_cancelled = 0;
  for (int i = 0; i < 300; ++i) {
    int64_t left = static_cast<int64_t>(random() % 12);
    bool is_told = false;
    const auto stop = [&] { return is_told = is_told || left-- == 0; };
    try {
      const std::vector<float> got = toy.run(8, stop);
      CHECK(is_same(got, expected));
    } catch (const CancelledError&) {
      CHECK(is_told);
      ++n_cancelled;
    }
  }
  CHECK(n_cancelled > 0);
}

TEST_CASE("handoff: the host asks whether to stop while it waits, on the caller's thread, whoever of the team waits") {
  for (int32_t n_threads = 1; n_threads <= 3; ++n_threads) {
    CAPTURE(n_threads);
    // The host's lane of 3 layers has fewer than 30 points where it asks between operations.
    ToyRun toy(3, n_threads, {.hang_phase = 4}, milliseconds(700));
    int64_t n = 0;
    const auto caller = std::this_thread::get_id();
    const auto stop = [&] {
      CHECK(std::this_thread::get_id() == caller);
      // Holds the caller back, so that another of the team, where there is one, comes to the wait.
      const auto start = std::chrono::steady_clock::now();
      while (std::chrono::steady_clock::now() - start < milliseconds(2)) std::this_thread::yield();
      return ++n >= 30;
    };
    CHECK_THROWS_AS(toy.run(8, stop), CancelledError);
    CHECK(n == 30);
    CHECK_THROWS_WITH_AS(toy.run(8), doctest::Contains("earlier step"), DeviceError);
  }
}

}  // namespace
