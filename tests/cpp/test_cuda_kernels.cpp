// The CUDA device's kernels against the CPU's, bit for bit, on the stand-in and on a card where there is one. Most ops
// are in test_cpu_phases.cpp, and whole models in test_hybrid*.cpp; here are block decoders, and sizes that those do
// not have.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <numeric>

#include "cpu/cpu_program.h"
#include "cpu/reference.h"
#include "cuda/launches.h"
#include "tests/cpp/cards.h"
#include "tests/cpp/toy_lanes.h"

namespace {

using namespace hotset;
using namespace hotset::test;

constexpr DType kDTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,
                             DType::kQ4_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

TEST_CASE("cuda kernels: elements of every weight type are those of the reference") {
  std::mt19937_64 random(11);
  for (const DType dtype : kDTypes) {
    CAPTURE(dtype_name(dtype));
    const std::string bytes = random_matrix(random, dtype, 768, 3);
    const auto type = static_cast<cpu::WeightType>(cpu::weight_type(dtype));
    for (int64_t r = 0; r < 3; ++r) {
      const size_t at = static_cast<size_t>(r) * row_bytes(dtype, 768);
      const auto* const row = reinterpret_cast<const std::byte*>(bytes.data() + at);
      for (int64_t i = 0; i < 768; ++i)
        REQUIRE(cuda::element(dtype, row, i) == static_cast<float>(cpu::reference::weight_at(type, row, i)));
    }
  }
}

// Memory of a device for a test's operands, and the KV blocks of one sequence.
struct Side {
  Side(Device& on, const Plan& made, int64_t n_blocks) : device(on), plan(made) {
    for (WeightDesc& weight : plan.weights) {
      std::byte* const at = keep(weight.view.size_bytes());
      device.upload(at, weight.view.data, weight.view.size_bytes());
      weight.view.data = at;
    }
    const size_t n_bytes = std::max<size_t>(plan.kv_of(kHostLane).block_bytes(), 1);
    for (int64_t i = 0; i < n_blocks; ++i) blocks.push_back(keep(n_bytes));
    program = device.compile(plan, kHostLane);
  }
  std::byte* keep(size_t n_bytes) {
    memory.push_back(device.alloc(n_bytes));
    return memory.back()->data();
  }
  // Rows of one sequence at positions from `first` on, which are their tokens, too.
  void run(int64_t n_rows, int32_t first) {
    StepParams params;
    params.sequences.emplace_back().blocks[kHostLane] = &blocks;
    for (int32_t row = 0; row < n_rows; ++row) {
      params.rows.push_back({first + row, first + row, 0});
      params.output_rows.push_back(row);
    }
    device.launch(*program, params);
    device.synchronize();
  }
  std::vector<uint32_t> words(BufferId id, int64_t n_rows) const {
    std::vector<uint32_t> out(static_cast<size_t>(n_rows * plan.row_words(id)));
    device.download(reinterpret_cast<const std::byte*>(program->buffer(id)), reinterpret_cast<std::byte*>(out.data()),
                    out.size() * 4);
    return out;
  }

  Device& device;
  Plan plan;
  std::deque<std::unique_ptr<DeviceMemory>> memory;
  std::vector<std::byte*> blocks;
  std::unique_ptr<Program> program;
};

struct Made {
  Plan plan;
  std::deque<std::string> bytes;
  std::mt19937_64 random{5};

  explicit Made(int64_t max_rows) {
    plan.max_rows = plan.max_output_rows = max_rows;
    plan.max_positions = 1024;
  }
  BufferId buffer(int64_t n_cols, BufferKind kind = BufferKind::kFloats) {
    plan.buffers.push_back({"b", n_cols, BufferRows::kAll, kind});
    return {static_cast<int32_t>(plan.buffers.size()) - 1};
  }
  WeightId weight(DType dtype, int64_t n_in, int64_t n_out) {
    bytes.push_back(random_matrix(random, dtype, n_in, n_out));
    plan.weights.push_back({"w", {reinterpret_cast<const std::byte*>(bytes.back().data()), dtype, n_in, n_out,
                                  row_bytes(dtype, n_in)}});
    return {static_cast<int32_t>(plan.weights.size()) - 1};
  }
  WeightId floats(const std::vector<float>& values, int64_t n_in) {
    bytes.emplace_back(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    plan.weights.push_back({"w", {reinterpret_cast<const std::byte*>(bytes.back().data()), DType::kF32, n_in,
                                  static_cast<int64_t>(values.size()) / n_in, row_bytes(DType::kF32, n_in)}});
    return {static_cast<int32_t>(plan.weights.size()) - 1};
  }
  BufferId input(int64_t n_cols) {
    const BufferId out = buffer(n_cols);
    add(op::Embed{weight(DType::kF32, n_cols, plan.max_positions), out});
    return out;
  }
  void add(const Op& op) { plan.steps.push_back({kHostLane, op}); }
  void result(BufferId id) {
    plan.n_vocab = plan.buffer(id).n_cols;
    plan.logits = buffer(plan.n_vocab);
    plan.buffers.back().rows = BufferRows::kOutput;
    add(op::SelectRows{id, plan.logits});
  }
};

TEST_CASE("cuda kernels: attention over several chunks, for one row, few and many, groups of heads cut in parts") {
  struct Shape {
    int64_t n_head, n_head_kv, head_dim;
    DType dtype;
  };
  constexpr Shape kShapes[] = {{12, 1, 32, DType::kF16}, {4, 2, 64, DType::kQ8_0}, {3, 3, 40, DType::kF32}};
  for (const Shape& shape : kShapes) {
    Made made(70);
    made.plan.kv = {1, shape.n_head_kv, shape.head_dim, shape.dtype};
    const BufferId q = made.input(shape.n_head * shape.head_dim), k = made.input(shape.n_head_kv * shape.head_dim);
    const BufferId v = made.input(shape.n_head_kv * shape.head_dim), out = made.buffer(shape.n_head * shape.head_dim);
    made.add(op::StoreKv{0, k, v});
    made.add(op::Attention{0, shape.n_head, 0.3f, q, out});
    made.result(out);
    const auto cpu = make_cpu_device({.n_threads = 2});
    for (const Card& card : cards()) {
      CAPTURE(card.name);
      Side expected(*cpu, made.plan, 32), got(*card.device, made.plan, 32);
      int32_t at = 0;
      for (const int64_t n_rows : {70, 70, 70, 45, 1, 3, 70, 70, 70, 70, 1, 4, 5}) {
        CAPTURE(at);
        expected.run(n_rows, at), got.run(n_rows, at);
        at += static_cast<int32_t>(n_rows);
        const bool is_exact = card.name != "cuda" || at <= 256;  // see cuda/arith.h, library_exp
        const std::vector<uint32_t> a = expected.words(made.plan.logits, n_rows);
        const std::vector<uint32_t> b = got.words(made.plan.logits, n_rows);
        if (is_exact) {
          CHECK(a == b);
          continue;
        }
        std::vector<float> x(a.size()), y(b.size());
        std::memcpy(x.data(), a.data(), a.size() * 4), std::memcpy(y.data(), b.data(), b.size() * 4);
        CHECK(nmse(x, std::vector<double>(y.begin(), y.end())) < 1e-13);
      }
      CHECK(at > 512);
    }
  }
}

// A list's words that count, of each row.
std::vector<std::vector<uint32_t>> lists(const Side& side, BufferId id, int64_t n_rows) {
  const std::vector<uint32_t> words = side.words(id, n_rows);
  const int64_t stride = side.plan.row_words(id), n_cols = side.plan.buffer(id).n_cols;
  std::vector<std::vector<uint32_t>> out;
  for (int64_t row = 0; row < n_rows; ++row) {
    const uint32_t* const at = words.data() + row * stride;
    out.emplace_back(at, at + 1 + at[0]);
    if (side.plan.buffer(id).kind == BufferKind::kActive)
      out.back().insert(out.back().end(), at + 1 + (n_cols - 1) / 2, at + 1 + (n_cols - 1) / 2 + at[0]);
  }
  return out;
}

TEST_CASE("cuda kernels: lists of more units than a block looks at, of some columns, among candidates, counted") {
  for (const int64_t n : {1, 31, 8192, 8193, 20000}) {
    CAPTURE(n);
    Made made(3);
    const BufferId x = made.input(n), margins = made.input(n);
    const int64_t first = n / 3;
    const BufferId all = made.buffer(n + 1, BufferKind::kUnits);
    const BufferId part = made.buffer(2 * (n - first) + 1, BufferKind::kActive);
    const BufferId some = made.buffer(n + 1, BufferKind::kUnits);
    made.add(op::SelectUnits{.in = margins, .out = all, .set = UnitSet::kCandidates});
    made.add(op::SelectUnits{.in = x, .out = part, .first_unit = first, .tally = 2});
    made.add(op::SelectUnits{.in = x, .out = some, .among = all, .first_unit = first, .n_units = n - first});
    made.result(x);
    const auto cpu = make_cpu_device({.n_threads = 1});
    for (const Card& card : cards()) {
      CAPTURE(card.name);
      Side expected(*cpu, made.plan, 0), got(*card.device, made.plan, 0);
      for (int i = 0; i < 2; ++i) expected.run(3, 0), got.run(3, 0);
      for (const BufferId id : {all, part, some}) CHECK(lists(expected, id, 3) == lists(got, id, 3));
      std::vector<uint32_t> a(static_cast<size_t>(n - first + 2)), b = a;
      expected.program->add_tallies(0, a), got.program->add_tallies(0, b);
      CHECK(a == b);
      CHECK(std::accumulate(b.begin(), b.end(), 0u) == 2 * [&] {
        uint32_t sum = 0;
        for (const auto& list : lists(got, part, 3)) sum += list[0];
        return sum;
      }());
      CHECK(expected.program->unit_counts().active == got.program->unit_counts().active);
      CHECK(expected.program->unit_counts().candidates == got.program->unit_counts().candidates);
    }
  }
}

TEST_CASE("cuda kernels: sums of units that are too large for some blocks, or for one of their halves") {
  for (const DType dtype : kDTypes) {
    CAPTURE(dtype_name(dtype));
    Made made(12);
    made.plan.max_positions = 64;
    const BufferId x = made.buffer(1), out = made.buffer(512, BufferKind::kSums);
    std::vector<float> rows(64), up(4);
    for (float& value : rows) value = std::exp2(static_cast<float>(made.random() % 64) / 4 + 8);
    for (float& value : up) value = std::exp2(static_cast<float>(made.random() % 16) / 4);
    made.add(op::Embed{made.floats(rows, 1), x});
    made.add(op::SparseFfn{.activation = Activation::kRelu, .gate = {}, .gate_bias = {}, .up = made.floats(up, 1),
                           .up_bias = {}, .down_t = made.weight(dtype, 512, 4), .down_bias = {}, .detected = {},
                           .units = {}, .in = x, .out = out});
    made.result(x);
    const auto cpu = make_cpu_device({.n_threads = 1});
    for (const Card& card : cards()) {
      CAPTURE(card.name);
      Side expected(*cpu, made.plan, 0), got(*card.device, made.plan, 0);
      int64_t n_none = 0, n_all = 0;
      for (int32_t first = 0; first < 60; first += 12)
        for (const int64_t n_rows : {3, 12}) {
          expected.run(n_rows, first), got.run(n_rows, first);
          const std::vector<uint32_t> sums = got.words(out, n_rows);
          CHECK(expected.words(out, n_rows) == sums);
          for (size_t i = 0; i < sums.size(); i += 2, ++n_all) n_none += sums[i] == 0 && sums[i + 1] == 0x80000000u;
        }
      CHECK(n_none > n_all / 50);
      CHECK(n_none < n_all - n_all / 50);
    }
  }
}

TEST_CASE("cuda kernels: lanes hand over to the host and back, step after step, and after one that failed") {
  for (const Card& card : cards()) {
    CAPTURE(card.name);
    ToyRun toy(5, 2);
    const auto host = make_cpu_device({.n_threads = 2});
    ToyLanes lanes(5);
    Executor executor({host.get(), card.device.get()}, lanes.two_lanes(*card.device));
    const auto run = [&](int64_t n_rows, std::function<bool()> stop = {}) {
      StepParams params = toy_step(n_rows);
      params.stop = std::move(stop);
      executor.run(params);
      return std::vector<float>(executor.logits(), executor.logits() + n_rows * ToyLanes::kColumns);
    };
    for (int i = 0; i < 30; ++i) CHECK(run(1 + i % 8) == toy.expected(1 + i % 8));
    for (int n_asked : {1, 3, 6}) {
      CHECK_THROWS_AS(run(2, [&] { return --n_asked == 0; }), CancelledError);
      CHECK(run(2) == toy.expected(2));
    }
    const Traffic traffic = executor.traffic();
    CHECK(traffic.n_waits >= 33 * 6);
    CHECK(traffic.to_host > 0);
  }
}

TEST_CASE("cuda kernels: a program takes the memory that its outline says, and fails with the one that is too little") {
  Made made(8);
  const BufferId x = made.input(64), y = made.buffer(96);
  made.add(op::MatMul{made.weight(DType::kQ8_0, 64, 96), {}, x, y});
  made.result(y);
  const auto card = make_cuda_stand_in({.memory_bytes = 1 << 20});
  const uint64_t before = card->free_bytes();
  {
    const auto program = card->compile(made.plan, kHostLane);
    CHECK(before - card->free_bytes() == program->buffer_bytes());
  }
  CHECK(card->free_bytes() == before);
  const auto small = make_cuda_stand_in({.memory_bytes = 4000});
  CHECK_THROWS_AS(small->compile(made.plan, kHostLane), OutOfMemoryError);
  CHECK(small->free_bytes() == 4000);
}

TEST_CASE("cuda kernels: what is not there says why") {
  const CudaState state = cuda_state();
  if (state.problem.empty()) {
    MESSAGE("skipped: there is a CUDA device");
    return;
  }
  try {
    make_cuda_device({});
    FAIL("made a device");
  } catch (const DeviceError& error) {
    CHECK(std::string(error.what()).find("use --device cpu") != std::string::npos);
    CHECK(std::string(error.what()).find(state.problem) != std::string::npos);
  }
}

}  // namespace
