// The CUDA device's kernels against the CPU's, bit for bit, on the stand-in and on a card where there is one. Most ops
// are in test_cpu_phases.cpp, and models split with the host in test_hybrid*.cpp; here are block decoders, models of
// every family, values at the borders of activations, and sizes that those do not have.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <numeric>

#include "core/planner.h"
#include "cpu/cpu_program.h"
#include "cpu/reference.h"
#include "cuda/launches.h"
#include "tests/cpp/hybrid_util.h"
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

// The words of floats, every NaN alike.
std::vector<uint32_t> same_nans(std::vector<uint32_t> words) {
  for (uint32_t& word : words)
    if ((word & 0x7fffffffu) > 0x7f800000u) word = 0x7fc00000u;
  return words;
}

// Windows end within a group of 16 positions, at its border, with a chunk, and where several chunks are seen in part.
TEST_CASE("cuda kernels: attention over several chunks, for one row, few and many, groups of heads cut in parts") {
  struct Shape {
    int64_t n_head, n_head_kv, head_dim;
    DType dtype;
    float softcap = 0;
    int64_t window = 0;
  };
  constexpr Shape kShapes[] = {{12, 1, 32, DType::kF16},          {4, 2, 64, DType::kQ8_0},
                               {3, 3, 40, DType::kF32},           {4, 2, 24, DType::kF16, 0, 37},
                               {9, 1, 16, DType::kF32, 1.5f, 300}, {2, 2, 32, DType::kQ8_0, 3, 1},
                               {2, 1, 16, DType::kF32, 0, 256},   {2, 1, 16, DType::kF32, 0.5f, 257}};
  for (const Shape& shape : kShapes) {
    if (kThreadsOnly && &shape >= kShapes + 3) break;
    Made made(70);
    made.plan.kv = {1, shape.n_head_kv, shape.head_dim, shape.dtype};
    const BufferId q = made.input(shape.n_head * shape.head_dim), k = made.input(shape.n_head_kv * shape.head_dim);
    const BufferId v = made.input(shape.n_head_kv * shape.head_dim), out = made.buffer(shape.n_head * shape.head_dim);
    if (shape.window > 0 && shape.window < 100) {  // a value that even a weight of 0 would let be seen
      const float infinite = INFINITY;
      const size_t row_of_v = row_bytes(DType::kF32, shape.n_head_kv * shape.head_dim);
      std::memcpy(made.bytes.back().data() + 5 * row_of_v, &infinite, sizeof infinite);
    }
    made.add(op::StoreKv{0, k, v});
    made.add(op::Attention{0, shape.n_head, 0.3f, q, out, shape.softcap, shape.window});
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
        const std::vector<uint32_t> a = same_nans(expected.words(made.plan.logits, n_rows));
        const std::vector<uint32_t> b = same_nans(got.words(made.plan.logits, n_rows));
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

// Compares a buffer after a step of `n_rows` rows on the CPU and on every card.
void check_same(const Made& made, BufferId id, int64_t n_rows) {
  const auto cpu = make_cpu_device({.n_threads = 1});
  for (const Card& card : cards()) {
    CAPTURE(card.name);
    Side expected(*cpu, made.plan, 0), got(*card.device, made.plan, 0);
    expected.run(n_rows, 0), got.run(n_rows, 0);
    CHECK(same_nans(expected.words(id, n_rows)) == same_nans(got.words(id, n_rows)));
  }
}

// Every exponent with both signs, zeros, infinities and NaN included, and what is random.
std::vector<float> borders(std::mt19937_64& random, size_t n) {
  std::vector<float> out{0.0f, -0.0f, INFINITY, -INFINITY, NAN, 20.0f, -20.0f, 0.25f, -0.25f};
  for (int exponent = -149; exponent < 128; ++exponent)
    for (const float sign : {1.0f, -1.0f}) out.push_back(std::ldexp(sign, exponent));
  std::normal_distribution<float> normal(0, 4);
  while (out.size() < n) out.push_back(normal(random));
  return out;
}

TEST_CASE("cuda kernels: every activation, with a gate and without, at the borders of its range") {
  for (const Activation activation : {Activation::kSilu, Activation::kRelu, Activation::kRelu2, Activation::kDRelu,
                                      Activation::kFatRelu, Activation::kGelu, Activation::kGeluTanh})
    for (const bool has_gate : {false, true}) {
      CAPTURE(activation_name(activation));
      CAPTURE(has_gate);
      if (activation == Activation::kDRelu && !has_gate) continue;
      constexpr int64_t kColumns = 2000;
      Made made(2);
      std::vector<float> gates = borders(made.random, kColumns), ups(kColumns);
      for (size_t i = 0; i < kColumns; ++i) ups[i] = gates[(i * 7 + 3) % kColumns];
      const BufferId gate = made.buffer(kColumns), up = made.buffer(kColumns), out = made.buffer(kColumns);
      for (const auto& [values, to] : {std::pair{&gates, gate}, std::pair{&ups, up}}) {
        values->insert(values->end(), values->rbegin(), values->rend());  // row 1: in another order
        made.add(op::Embed{made.floats(*values, kColumns), to});
      }
      const float threshold = activation == Activation::kFatRelu ? 0.375f : 0.0f;
      made.add(op::Activate{activation, has_gate ? gate : BufferId{}, up, out, threshold});
      made.result(out);
      check_same(made, out, 2);
    }
}

TEST_CASE("cuda kernels: scaled embeddings, soft caps, norms of heads, angles of two tables") {
  constexpr int64_t kHeads = 5, kHeadDim = 42, kColumns = kHeads * kHeadDim;
  for (const bool interleaved : {false, true}) {
    Made made(70);
    made.plan.kv.head_dim = kHeadDim;
    made.plan.rope_magnitude = 1.125f;
    for (int i = 0; i < 7; ++i) {
      made.plan.rope_freqs.push_back(1.0 / (1 + i * i));
      made.plan.rope_freqs_local.push_back(0.3 / (1 + i));
    }
    const BufferId x = made.buffer(kColumns), global = made.buffer(14), local = made.buffer(14);
    made.add(op::Embed{made.weight(DType::kF16, kColumns, 100), x, 7.3f});
    made.add(op::SoftCap{1.75f, x});
    made.add(op::HeadNorm{made.weight(DType::kF32, kHeadDim, 1), kHeads, 1e-5f, x});
    made.add(op::RopeAngles{global});
    made.add(op::RopeAngles{local, true});
    const RopeLayout layout = interleaved ? RopeLayout::kInterleaved : RopeLayout::kHalfSplit;
    made.add(op::Rope{layout, kHeads, kHeadDim, 14, global, x});
    made.add(op::Rope{layout, kHeads, kHeadDim, 14, local, x});
    made.result(x);
    for (const BufferId id : {global, local, x})
      for (const int64_t n_rows : {1, 9, 70}) check_same(made, id, n_rows);
  }
  Made made(2);
  std::vector<float> values = borders(made.random, 1000);
  values.insert(values.end(), values.begin(), values.end());
  const BufferId x = made.buffer(1000);
  made.add(op::Embed{made.floats(values, 1000), x, 1.5f});
  made.add(op::SoftCap{30, x});
  made.result(x);
  check_same(made, x, 2);
}

// Those that test_hybrid.cpp does not have.
constexpr Family kMoreFamilies[] = {{"llama", Activation::kFatRelu},   {"bamboo", Activation::kDRelu},
                                    {"gemma3", Activation::kGeluTanh}, {"falcon", Activation::kGelu},
                                    {"qwen2", Activation::kSilu},      {"jais2", Activation::kRelu2}};

TEST_CASE("cuda kernels: models of every family, all units and those that fire") {
  std::vector<Family> families(std::begin(kFamilies), std::end(kFamilies));
  families.insert(families.end(), std::begin(kMoreFamilies), std::end(kMoreFamilies));
  const auto cpu = make_cpu_device({.n_threads = 2});
  for (const Family& family : families)
    for (const DType dtype : {DType::kF32, DType::kQ4_0})
      for (const bool exact : {false, true}) {
        if (exact && !is_sparse(family.activation)) continue;
        if (kFewCases && dtype != DType::kQ4_0) continue;
        CAPTURE(family.arch);
        CAPTURE(family.is_other);
        CAPTURE(activation_name(family.activation));
        CAPTURE(dtype_name(dtype));
        CAPTURE(exact);
        TinySpec spec = spec_of(family, dtype);
        if (family.arch == std::string("gemma3")) spec.n_layer = 6;  // the sixth has no window
        const auto model = load_tiny(spec);
        const Plan plan =
            build_plan(model->config(), model->weights(),
                       {.max_rows = 20, .max_output_rows = 20, .max_positions = 64, .exact = exact});
        for (const Card& card : cards()) {
          CAPTURE(card.name);
          Side expected(*cpu, plan, 2), got(*card.device, plan, 2);
          int32_t at = 0;
          for (const int64_t n_rows : {20, 1, 5, 1, 9}) {
            CAPTURE(at);
            expected.run(n_rows, at), got.run(n_rows, at);
            at += static_cast<int32_t>(n_rows);
            CHECK(expected.words(plan.logits, n_rows) == got.words(plan.logits, n_rows));
          }
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
    if (kThreadsOnly && n > 8193) continue;
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
