// The virtual device: memory that the host cannot touch, counted to the byte, and launches that run by themselves.
#include <doctest/doctest.h>

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <numeric>

#include "core/error.h"
#include "tests/cpp/toy_lanes.h"

namespace {

using namespace hotset;
using namespace hotset::test;

// Whether `touch` ends a process by SIGSEGV. It runs in a forked copy of this one, which has no threads.
template <class F>
bool faults(F touch) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::signal(SIGSEGV, SIG_DFL);  // sanitizers and doctest have handlers of their own
    try {
      touch();
    } catch (...) {
    }
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
}

template <class T>
void read(const T* at) {
  static_cast<void>(*static_cast<const volatile T*>(at));
}

TEST_CASE("virtual device: its memory faults when the host touches it") {
  const auto card = make_virtual_device({});
  const auto memory = card->alloc(10000);
  CHECK(faults([&] { read(memory->data()); }));
  CHECK(faults([&] { read(memory->data() + 9999); }));
  CHECK(faults([&] { *static_cast<volatile std::byte*>(memory->data() + 5000) = std::byte{1}; }));
  const auto shared = card->alloc_shared(10000);
  CHECK(!faults([&] { read(shared->data() + 9999); }));
  CHECK(!faults([&] { *static_cast<volatile std::byte*>(shared->data()) = std::byte{1}; }));
}

TEST_CASE("virtual device: buffers of its programs fault too, shared ones do not") {
  ToyRun toy(1, 1);
  Plan plan = toy.toy.two_lanes(*toy.card);
  plan.steps.clear();
  SharedState shared;
  const auto memory = toy.card->alloc_shared(1 << 16);
  for (const BufferDesc& buffer : plan.buffers)
    shared.buffers.push_back(buffer.lane == kSharedLane ? memory->data() : nullptr);
  const auto program = toy.card->compile(plan, kDeviceLane, shared);
  int n_own = 0;
  for (int32_t i = 0; i < static_cast<int32_t>(plan.buffers.size()); ++i) {
    const float* const at = program->buffer({i});
    if (at == nullptr) continue;
    CAPTURE(plan.buffers[static_cast<size_t>(i)].name);
    n_own += plan.buffers[static_cast<size_t>(i)].lane == kDeviceLane;
    CHECK(faults([&] { read(at); }) == (plan.buffers[static_cast<size_t>(i)].lane == kDeviceLane));
  }
  CHECK(n_own > 0);
}

TEST_CASE("virtual device: a step of the host that reads device memory faults where it happens") {
  const auto card = make_virtual_device({});
  const auto memory = card->alloc(ToyLanes::weight_bytes());
  const ToyLanes toy(1);
  Plan plan = toy.one_lane();
  plan.weights[1].view.data = memory->data();
  CHECK(faults([&] {
    const auto host = make_cpu_device({.n_threads = 1});
    Executor({host.get()}, plan).run(toy_step(1));
  }));
}

TEST_CASE("virtual device: bytes come back as they were moved in, and nothing goes past a piece") {
  const auto card = make_virtual_device({});
  const auto memory = card->alloc(9000), other = card->alloc(0);
  std::vector<std::byte> in(9000), out(9000);
  card->download(memory->data(), out.data(), 9000);
  CHECK(in == out);  // zero-filled
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::byte>(i * 7 + i / 256);
  card->upload(memory->data(), in.data(), 4097);
  card->upload(memory->data() + 4097, in.data() + 4097, 9000 - 4097);
  card->download(memory->data(), out.data(), 9000);
  CHECK(in == out);
  card->download(memory->data() + 8999, out.data(), 1);
  CHECK(out[0] == in[8999]);
  card->upload(memory->data() + 9000, in.data(), 0);
  card->upload(other->data(), in.data(), 0);
  CHECK_THROWS_AS(card->upload(memory->data() + 9000, in.data(), 1), Error);
  CHECK_THROWS_AS(card->upload(memory->data() + 1, in.data(), 9000), Error);
  CHECK_THROWS_AS(card->download(memory->data(), out.data(), SIZE_MAX), Error);
  CHECK_THROWS_AS(card->download(memory->data() - 1, out.data(), 1), Error);
  CHECK_THROWS_AS(card->upload(other->data(), in.data(), 1), Error);
  CHECK_THROWS_AS(card->upload(in.data(), in.data(), 1), Error);
}

TEST_CASE("virtual device: the limit is exact, and what is freed can be had again") {
  const auto card = make_virtual_device({.memory_bytes = 10000});
  CHECK(card->free_bytes() == 10000);
  CHECK_THROWS_AS(card->alloc(10001), OutOfMemoryError);
  CHECK_THROWS_AS(card->alloc(SIZE_MAX), OutOfMemoryError);
  {
    const auto a = card->alloc(6001), b = card->alloc(3999);
    CHECK(a->size() == 6001);
    CHECK(card->free_bytes() == 0);
    CHECK(card->alloc(0)->size() == 0);
    CHECK_THROWS_WITH_AS(card->alloc(1), doctest::Contains("at most 0 bytes"), OutOfMemoryError);
    CHECK(card->alloc_shared(4096)->size() == 4096);  // host memory
  }
  CHECK(card->free_bytes() == 10000);
  CHECK(card->alloc(10000)->size() == 10000);
  CHECK(make_virtual_device({})->free_bytes() == UINT64_MAX);
}

TEST_CASE("virtual device: programs take what they say, give it back, and fail without a trace when there is less") {
  const auto free_after = [](uint64_t limit, bool keep) {
    const auto host = make_cpu_device({.n_threads = 1});
    const auto card = make_virtual_device({.memory_bytes = limit});
    ToyLanes toy(3);
    const Plan plan = toy.two_lanes(*card);
    const uint64_t before = card->free_bytes();
    CHECK(before == limit - 3 * ToyLanes::weight_bytes());
    auto executor = std::make_unique<Executor>(std::vector<Device*>{host.get(), card.get()}, plan);
    CHECK(before - card->free_bytes() == executor->buffer_bytes(kDeviceLane));
    const uint64_t left = card->free_bytes();
    if (keep) return left;
    executor = nullptr;
    CHECK(card->free_bytes() == before);
    return left;
  };
  const uint64_t limit = 1 << 20, needed = limit - free_after(limit, false);
  CHECK(free_after(needed, true) == 0);

  const auto card = make_virtual_device({.memory_bytes = needed - 1});
  ToyLanes toy(3);
  const auto host = make_cpu_device({.n_threads = 1});
  const Plan plan = toy.two_lanes(*card);
  const uint64_t before = card->free_bytes();
  CHECK_THROWS_AS(Executor({host.get(), card.get()}, plan), OutOfMemoryError);
  CHECK(card->free_bytes() == before);
}

TEST_CASE("virtual device: every allocation can fail, and leaves what was there") {
  int64_t n = 1;
  for (; n < 100; ++n) {
    const auto host = make_cpu_device({.n_threads = 1});
    const auto card = make_virtual_device({.memory_bytes = 1 << 20, .fail_alloc = n});
    bool failed = false;
    {
      ToyLanes toy(2);
      try {
        Executor({host.get(), card.get()}, toy.two_lanes(*card)).run(toy_step(2));
      } catch (const OutOfMemoryError&) {
        failed = true;
      }
    }
    CHECK(card->free_bytes() == 1 << 20);
    if (!failed) break;
  }
  CHECK(n > 2);
  CHECK(n < 100);
}

// Rows of a table, by the device alone, into a shared buffer once the flag is signalled.
struct Gather {
  Gather(Device& on, Handoff& handoff, std::byte* out) : device(on), memory(on.alloc(4 * sizeof(float))) {
    const std::array<float, 4> table{1, 2, 3, 4};
    device.upload(memory->data(), reinterpret_cast<const std::byte*>(table.data()), sizeof table);
    plan.max_rows = plan.max_output_rows = 4, plan.n_vocab = 1;
    plan.buffers = {{"x", 1, BufferRows::kAll, BufferKind::kFloats, kDeviceLane},
                    {"shared_x", 1, BufferRows::kAll, BufferKind::kFloats, kSharedLane}};
    plan.weights = {{"table", {memory->data(), DType::kF32, 1, 4, sizeof(float)}, kDeviceLane}};
    plan.flags = {"go"};
    plan.steps = {{kDeviceLane, op::Wait{{0}}}, {kDeviceLane, op::Embed{{0}, {0}}}, {kDeviceLane, op::Copy{{0}, {1}}}};
    program = device.compile(plan, kDeviceLane, {{nullptr, out}, &handoff});
  }
  void launch(int32_t token) {
    StepParams params;
    params.rows = {{token, 0, 0}};
    device.launch(*program, params);
  }
  Device& device;
  std::unique_ptr<DeviceMemory> memory;
  Plan plan;
  std::unique_ptr<Program> program;
};

TEST_CASE("virtual device: launches run by themselves, in order, with parameters of their own") {
  const auto card = make_virtual_device({});
  const auto flags = card->alloc_shared(Handoff::kFlagBytes), out = card->alloc_shared(4096);
  Handoff handoff(flags->data(), 1, std::chrono::minutes(10));
  Gather gather(*card, handoff, out->data());
  const auto value = [&] {
    float x;
    std::memcpy(&x, out->data(), sizeof x);
    return x;
  };
  for (int32_t token = 0; token < 4; ++token) {
    handoff.begin_step();
    gather.launch((token + 1) % 4);
    gather.launch(token);
    CHECK(!card->finishes_within(std::chrono::milliseconds(0)));
    handoff.signal({0});
    CHECK(card->finishes_within(std::chrono::minutes(10)));
    card->synchronize();
    CHECK(value() == static_cast<float>(token + 1));
  }
  CHECK(gather.program->traffic().n_waits == 8);
  CHECK(gather.program->traffic().to_host == 8 * sizeof(float));
}

TEST_CASE("virtual device: synchronize gives the first error once; a program that is destroyed takes its own along") {
  const auto card = make_virtual_device({.fail_phase = 2});
  const auto flags = card->alloc_shared(Handoff::kFlagBytes), out = card->alloc_shared(4096);
  Handoff handoff(flags->data(), 1, std::chrono::minutes(10));
  const auto launch = [&](Gather& gather) {
    handoff.begin_step();
    gather.launch(0);
    handoff.signal({0});
  };
  Gather gather(*card, handoff, out->data());
  launch(gather);
  CHECK_THROWS_WITH_AS(card->synchronize(), doctest::Contains("injected"), DeviceError);
  CHECK_NOTHROW(card->synchronize());
  launch(gather);
  CHECK_NOTHROW(card->synchronize());

  const auto fragile = make_virtual_device({.fail_phase = 1});
  {
    Gather unheard(*fragile, handoff, out->data());
    launch(unheard);
  }
  Gather next(*fragile, handoff, out->data());
  launch(next);
  CHECK_NOTHROW(fragile->synchronize());
}

TEST_CASE("virtual device: a device that hangs is not done, and ends when its program is destroyed") {
  for (const bool again : {false, true}) {
    const auto card = make_virtual_device({.hang_phase = again ? 4 : 1});
    const auto flags = card->alloc_shared(Handoff::kFlagBytes), out = card->alloc_shared(4096);
    Handoff handoff(flags->data(), 1, std::chrono::minutes(10));
    if (again) {  // the end of a program that did not hang leaves the next hang alone
      Gather healthy(*card, handoff, out->data());
      handoff.begin_step();
      healthy.launch(0);
      handoff.signal({0});
      card->synchronize();
    }
    Gather gather(*card, handoff, out->data());
    handoff.begin_step();
    gather.launch(0);
    handoff.signal({0});
    CHECK(!card->finishes_within(std::chrono::milliseconds(30)));
    gather.program = nullptr;
    CHECK(card->finishes_within(std::chrono::milliseconds(0)));
  }
}

TEST_CASE("virtual device: counts what its program moves and how often it hands over") {
  ToyRun toy(3, 1);
  constexpr uint64_t kRow = ToyLanes::kColumns * sizeof(float);
  for (uint64_t n = 1; n <= 2; ++n) {
    toy.run(5);
    const Traffic traffic = toy.executor->traffic();
    CHECK(traffic.n_signals == n * (3 + 1));
    CHECK(traffic.n_waits == n * (3 + 1));
    CHECK(traffic.to_device == n * 5 * kRow * (1 + 3));
    CHECK(traffic.to_host == n * 5 * kRow * (3 + 1));
  }
}

}  // namespace
