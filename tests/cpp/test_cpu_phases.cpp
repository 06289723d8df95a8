// Programs of the CPU made of one or two ops each: every op against its definition, for few and many rows, aliased
// where that is allowed, on any number of threads.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <numeric>

#include "core/devices.h"
#include "core/error.h"
#include "cpu/cpu_program.h"
#include "cpu/reference.h"
#include "tests/cpp/cards.h"
#include "tests/cpp/sanitizers.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;
using Matrix = std::vector<std::vector<double>>;  // rows of columns

constexpr int64_t kMaxRows = 80;

// A plan under construction. Its input buffers are filled by Embed from tables of their own: row r has token r.
class Toy {
 public:
  explicit Toy(uint64_t seed) : random_(seed) {
    plan_.max_rows = kMaxRows;
    plan_.max_output_rows = kMaxRows;
    plan_.max_positions = 64;
  }

  BufferId buffer(int64_t n_cols, BufferRows rows = BufferRows::kAll) {
    plan_.buffers.push_back({"b", n_cols, rows});
    return {static_cast<int32_t>(plan_.buffers.size()) - 1};
  }
  BufferId buffer(int64_t n_cols, BufferKind kind) {
    const BufferId out = buffer(n_cols);
    plan_.buffers.back().kind = kind;
    return out;
  }
  // Rows [first, end) of a weight.
  WeightId rows_of(WeightId id, int64_t first, int64_t end) {
    TensorView view = plan_.weight(id);
    view.data = view.row(first), view.n_rows = end - first;
    plan_.weights.push_back({"w", view});
    return {static_cast<int32_t>(plan_.weights.size()) - 1};
  }
  WeightId weight(DType dtype, int64_t n_in, int64_t n_out) {
    bytes_.push_back(random_matrix(random_, dtype, n_in, n_out));
    const auto* data = reinterpret_cast<const std::byte*>(bytes_.back().data());
    plan_.weights.push_back({"w", {data, dtype, n_in, n_out, row_bytes(dtype, n_in)}});
    return {static_cast<int32_t>(plan_.weights.size()) - 1};
  }
  BufferId input(int64_t n_cols) {
    const WeightId table = weight(DType::kF32, n_cols, kMaxRows);
    const BufferId out = buffer(n_cols);
    add(op::Embed{table, out});
    inputs_.push_back(values(table));
    return out;
  }
  void add(const Op& op) { plan_.steps.push_back({0, op}); }
  void result(BufferId id) {
    plan_.logits = buffer(plan_.buffer(id).n_cols, BufferRows::kOutput);
    plan_.n_vocab = plan_.buffer(id).n_cols;
    add(op::SelectRows{id, plan_.logits});
  }

  // Rows of a weight.
  Matrix values(WeightId id) const {
    const TensorView& view = plan_.weight(id);
    const auto type = static_cast<cpu::WeightType>(cpu::weight_type(view.dtype));
    Matrix out;
    for (int64_t row = 0; row < view.n_rows; ++row) {
      out.emplace_back();
      for (int64_t i = 0; i < view.n_cols; ++i) out.back().push_back(cpu::reference::weight_at(type, view.row(row), i));
    }
    return out;
  }
  const Matrix& input_values(size_t i) const { return inputs_[i]; }
  Plan& plan() { return plan_; }

 private:
  std::mt19937_64 random_;
  Plan plan_;
  std::deque<std::string> bytes_;
  std::vector<Matrix> inputs_;
};

StepParams rows_at(int64_t n_rows, int32_t first_position = 0) {
  StepParams params;
  for (int32_t row = 0; row < n_rows; ++row) {
    params.rows.push_back({row, first_position + row, 0});
    params.output_rows.push_back(row);
  }
  return params;
}

std::vector<float> run(const Plan& plan, const StepParams& params, int32_t n_threads, const std::string& isa = "") {
  const auto device = make_cpu_device({n_threads, isa});
  const auto program = device->compile(plan, 0);
  device->launch(*program, params);
  device->synchronize();
  const float* out = program->buffer(plan.logits);
  return {out, out + params.output_rows.size() * static_cast<size_t>(plan.n_vocab)};
}

// Runs the plan for all kinds of row counts: each row must be `expected(row)`, and the bits the same in every run, on
// cards too.
void check_rows(Toy& toy, const std::function<std::vector<double>(size_t)>& expected, double tolerance = 1e-11) {
  for (const std::string& problem : lint(toy.plan()))  // toys may have outputs that nobody reads
    REQUIRE(problem.find("is read before it is lost") != std::string::npos);
  const size_t n_cols = static_cast<size_t>(toy.plan().n_vocab);
  const std::vector<float> all = run(toy.plan(), rows_at(kMaxRows), 1, "generic");
  for (size_t row = 0; row < static_cast<size_t>(kMaxRows); ++row) {
    CAPTURE(row);
    CHECK(nmse(std::span(all).subspan(row * n_cols, n_cols), expected(row)) <= tolerance);
  }
  for (const std::string& isa : isas())
    for (const int64_t n_rows : {1, 2, 4, 5, 8, 9, 65, 80}) {
      CAPTURE(isa);
      CAPTURE(n_rows);
      const std::vector<float> first(all.begin(), all.begin() + n_rows * toy.plan().n_vocab);
      CHECK(run(toy.plan(), rows_at(n_rows), 1, isa) == first);
      if (isa == isas().back()) CHECK(run(toy.plan(), rows_at(n_rows), 3, isa) == first);
    }
  if (!have_kernels(toy.plan())) return;
  for (const Card& card : cards())
    for (const int64_t n_rows : {1, 5, 9}) {
      CAPTURE(card.name);
      CAPTURE(n_rows);
      const std::vector<float> got = run_on_card(*card.device, toy.plan(), rows_at(n_rows));
      CHECK(std::memcmp(got.data(), all.data(), got.size() * sizeof(float)) == 0);
    }
}

std::vector<double> times(const Matrix& weight, const std::vector<double>& x) {
  std::vector<double> out;
  for (const auto& row : weight) out.push_back(std::inner_product(row.begin(), row.end(), x.begin(), 0.0));
  return out;
}

// What block weights see of an activation row.
std::vector<double> quantised(const std::vector<double>& x, DType dtype) {
  if (!cpu::is_block_type(dtype)) return x;
  const std::vector<float> floats(x.begin(), x.end());
  std::vector<int8_t> q(x.size());
  std::vector<double> scales(x.size() / 32), out;
  std::vector<int32_t> sums(x.size() / 32);
  cpu::reference::quantize_activation(floats.data(), static_cast<int64_t>(x.size()), q.data(), scales.data(),
                                      sums.data());
  for (size_t i = 0; i < x.size(); ++i) out.push_back(q[i] * scales[i / 32]);
  return out;
}

TEST_CASE("cpu phases: SelectRows takes the rows asked for, in order") {
  Toy toy(1);
  toy.result(toy.input(7));
  StepParams params = rows_at(50);
  for (const std::vector<int32_t>& wanted : {std::vector<int32_t>{}, {49}, {0, 1, 2}, {3, 9, 11, 30, 31, 32, 48}}) {
    params.output_rows = wanted;
    const std::vector<float> got = run(toy.plan(), params, 3);
    REQUIRE(got.size() == wanted.size() * 7);
    for (size_t i = 0; i < got.size(); ++i)
      CHECK(static_cast<double>(got[i]) == toy.input_values(0)[static_cast<size_t>(wanted[i / 7])][i % 7]);
  }
}

TEST_CASE("cpu phases: Norm, also in place") {
  for (const bool in_place : {false, true}) {
    Toy toy(2);
    const BufferId x = toy.input(37), out = in_place ? x : toy.buffer(37);
    const WeightId weight = toy.weight(DType::kF32, 37, 1);
    toy.add(op::Norm{NormKind::kRms, weight, {}, 0.01f, x, out});
    toy.result(out);
    check_rows(toy, [&](size_t row) {
      std::vector<double> y = toy.input_values(0)[row];
      const double squares = std::inner_product(y.begin(), y.end(), y.begin(), 0.0);
      for (size_t i = 0; i < y.size(); ++i) y[i] *= toy.values(weight)[0][i] / std::sqrt(squares / 37 + 0.01f);
      return y;
    });
  }
}

TEST_CASE("cpu phases: Add, also onto an operand") {
  for (const int alias : {0, 1, 2}) {
    Toy toy(3);
    const BufferId a = toy.input(21), b = toy.input(21);
    const BufferId out = alias == 0 ? toy.buffer(21) : alias == 1 ? a : b;
    toy.add(op::Add{a, b, out});
    toy.result(out);
    check_rows(toy, [&](size_t row) {
      std::vector<double> y = toy.input_values(0)[row];
      for (size_t i = 0; i < y.size(); ++i) y[i] += toy.input_values(1)[row][i];
      return y;
    });
  }
}

// All of these go over the same rows, so each row runs through them in one go.
TEST_CASE("cpu phases: Add, Norm and the quantisation that a product asks for, row by row") {
  Toy toy(13);
  const BufferId a = toy.input(64), b = toy.input(64), x_norm = toy.buffer(64), y = toy.buffer(5);
  const WeightId scale = toy.weight(DType::kF32, 64, 1), weight = toy.weight(DType::kQ8_0, 64, 5);
  toy.add(op::Add{a, b, a});
  toy.add(op::Norm{NormKind::kRms, scale, {}, 0.01f, a, x_norm});
  toy.add(op::MatMul{weight, {}, x_norm, y});
  toy.result(y);
  check_rows(
      toy,
      [&](size_t row) {
        std::vector<double> x = toy.input_values(0)[row];
        for (size_t i = 0; i < x.size(); ++i) x[i] += toy.input_values(1)[row][i];
        const double squares = std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
        for (size_t i = 0; i < x.size(); ++i) x[i] *= toy.values(scale)[0][i] / std::sqrt(squares / 64 + 0.01f);
        return times(toy.values(weight), quantised(x, DType::kQ8_0));
      },
      1e-10);
}

TEST_CASE("cpu phases: Activate, also onto an operand") {
  for (const Activation activation : {Activation::kSilu, Activation::kRelu})
    for (const int alias : {0, 1, 2}) {
      Toy toy(4);
      const BufferId gate = toy.input(35), up = toy.input(35);
      const BufferId out = alias == 0 ? toy.buffer(35) : alias == 1 ? gate : up;
      toy.add(op::Activate{activation, gate, up, out});
      toy.result(out);
      check_rows(toy, [&](size_t row) {
        std::vector<double> y;
        for (size_t i = 0; i < 35; ++i) {
          const double g = toy.input_values(0)[row][i];
          y.push_back((activation == Activation::kRelu ? std::max(g, 0.0) : g / (1 + std::exp(-g))) *
                      toy.input_values(1)[row][i]);
        }
        return y;
      });
    }
}

TEST_CASE("cpu phases: Rope turns pairs in both layouts and leaves the rest of a head alone") {
  for (const RopeLayout layout : {RopeLayout::kInterleaved, RopeLayout::kHalfSplit})
    for (const int64_t n_rot : {2, 6, 10}) {
      Toy toy(5);
      constexpr int64_t kHeads = 3, kDim = 10;
      for (int64_t i = 0; i < n_rot / 2; ++i) toy.plan().rope_freqs.push_back(1.0 / static_cast<double>(1 + i * i));
      const BufferId x = toy.input(kHeads * kDim), angles = toy.buffer(n_rot);
      toy.add(op::RopeAngles{angles});
      toy.add(op::Rope{layout, kHeads, kDim, n_rot, angles, x});
      toy.result(x);
      check_rows(toy, [&](size_t row) {
        std::vector<double> y = toy.input_values(0)[row];
        for (int64_t head = 0; head < kHeads; ++head)
          for (int64_t i = 0; i < n_rot / 2; ++i) {
            const int64_t first = layout == RopeLayout::kInterleaved ? 2 * i : i;
            const int64_t second = layout == RopeLayout::kInterleaved ? 2 * i + 1 : i + n_rot / 2;
            double& a = y[static_cast<size_t>(head * kDim + first)];
            double& b = y[static_cast<size_t>(head * kDim + second)];
            const double angle = static_cast<double>(row) / static_cast<double>(1 + i * i);
            const double turned = a * std::cos(angle) - b * std::sin(angle);
            b = a * std::sin(angle) + b * std::cos(angle);
            a = turned;
          }
        return y;
      });
    }
}

TEST_CASE("cpu phases: MatMul, several of one input fused, float and block weights mixed") {
  for (const DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K,
        DType::kQ2_K, DType::kQ5_1, DType::kIQ4_NL}) {
    for (const int64_t n_out : {3, 33, 300}) {
      CAPTURE(dtype_name(dtype));
      CAPTURE(n_out);
      Toy toy(6);
      const bool blocks = cpu::is_block_type(dtype);
      const int64_t n_in = std::max<int64_t>(64, dtype_info(dtype).block_size);
      const BufferId x = toy.input(n_in), other = toy.buffer(5), more = toy.buffer(7), y = toy.buffer(n_out);
      toy.add(op::MatMul{toy.weight(dtype, n_in, 5), {}, x, other});
      const WeightId weight = toy.weight(dtype, n_in, n_out);
      toy.add(op::MatMul{weight, {}, x, y});
      toy.add(op::MatMul{toy.weight(blocks ? DType::kF32 : DType::kQ8_0, n_in, 7), {}, x, more});
      toy.result(y);
      const Matrix values = toy.values(weight);
      check_rows(toy, [&](size_t row) { return times(values, quantised(toy.input_values(0)[row], dtype)); }, 1e-10);
    }
  }
}

TEST_CASE("cpu phases: SparseFfn, for unit counts around the number of shares and any width") {
  for (const DType dtype :
       {DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kQ2_K,
        DType::kQ5_1}) {
    if (skips_for_threads(dtype)) continue;
    for (const auto& [n_least, n_ff] :
         {std::pair<int64_t, int64_t>{32, 1}, {64, 15}, {96, 17}, {160, 100}, {32, 300}}) {
      for (const Activation activation : {Activation::kSilu, Activation::kRelu}) {
        CAPTURE(dtype_name(dtype));
        CAPTURE(n_ff);
        Toy toy(7);
        const int64_t n_block = dtype_info(dtype).block_size;
        const int64_t n = n_block == 1 ? n_least - 3 : (n_least + n_block - 1) / n_block * n_block;
        const BufferId x = toy.input(n), y = toy.buffer(n);
        const WeightId gate = toy.weight(dtype, n, n_ff), up = toy.weight(dtype, n, n_ff);
        const WeightId down_t = toy.weight(dtype, n, n_ff);
        toy.add(op::SparseFfn{activation, gate, {}, up, {}, down_t, {}, {}, {}, x, y});
        toy.add(op::Add{x, y, y});  // so that a row whose only unit is off is not all zero
        toy.result(y);
        const Matrix gates = toy.values(gate), ups = toy.values(up), downs = toy.values(down_t);
        check_rows(
            toy,
            [&](size_t row) {
              const std::vector<double> in = toy.input_values(0)[row];
              std::vector<double> out = in;
              const std::vector<double> seen = quantised(in, dtype), g = times(gates, seen), u = times(ups, seen);
              for (size_t unit = 0; unit < g.size(); ++unit) {
                const double h =
                    (activation == Activation::kRelu ? std::max(g[unit], 0.0) : g[unit] / (1 + std::exp(-g[unit])));
                for (size_t i = 0; i < out.size(); ++i) out[i] += h * u[unit] * downs[unit][i];
              }
              return out;
            },
            1e-10);
      }
    }
  }
}

// The FFN over two parts of its units, with lists or without, whose sums are merged.
BufferId add_parts(Toy& toy, const op::SparseFfn& whole, BufferId detected, int64_t cut, bool listed) {
  const int64_t n_ff = toy.plan().weight(whole.down_t).n_rows, n = toy.plan().weight(whole.down_t).n_cols;
  BufferId sums[2];
  for (const bool second : {false, true}) {
    const int64_t first = second ? cut : 0, end = second ? n_ff : cut;
    op::SparseFfn part = whole;
    part.up = toy.rows_of(whole.up, first, end), part.down_t = toy.rows_of(whole.down_t, first, end);
    part.down_bias = {}, part.out = sums[second] = toy.buffer(n, BufferKind::kSums);
    if (listed) {
      part.gate = {}, part.units = toy.buffer(2 * (end - first) + 1, BufferKind::kActive);
      toy.add(op::SelectUnits{detected, part.units, {}, UnitSet::kActive, first, end - first});
    } else {
      part.gate = toy.rows_of(whole.gate, first, end);
    }
    toy.add(part);
  }
  const BufferId out = toy.buffer(n);
  toy.add(op::MergeSums{sums[0], sums[1], whole.down_bias, out});
  return out;
}

TEST_CASE("cpu phases: sums of two parts of the units merge to the bits of all units") {
  for (const DType dtype :
       {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ6_K, DType::kQ2_K})
    for (const int64_t cut : {1, 90, 149})
      for (const bool listed : {false, true}) {
        if (skips_for_threads(dtype)) continue;
        CAPTURE(dtype_name(dtype));
        CAPTURE(cut);
        CAPTURE(listed);
        constexpr int64_t kUnits = 150;
        Toy toy(9);
        const int64_t n = dtype_info(dtype).block_size == 1 ? 43 : 256;
        const BufferId x = toy.input(n), y = toy.buffer(n), detected = toy.buffer(kUnits);
        const WeightId gate = toy.weight(dtype, n, kUnits), up = toy.weight(dtype, n, kUnits);
        const WeightId down_t = toy.weight(dtype, n, kUnits), bias = toy.weight(DType::kF32, n, 1);
        const op::SparseFfn whole{Activation::kRelu, gate, {}, up, {}, down_t, bias, {}, {}, x, y};
        toy.add(op::Detect{gate, {}, x, detected});
        toy.add(whole);
        Toy other = toy;
        toy.result(y);
        other.result(add_parts(other, whole, detected, cut, listed));
        for (const std::string& isa : isas())
          for (const int64_t n_rows : {1, 3, 9, 70}) {
            CAPTURE(isa);
            CAPTURE(n_rows);
            CHECK(run(other.plan(), rows_at(n_rows), 2, isa) == run(toy.plan(), rows_at(n_rows), 1, isa));
          }
      }
}

TEST_CASE("cpu phases: a unit without numbers makes its row NaN, wherever it is summed") {
  Toy toy(10);
  const BufferId x = toy.input(64), a = toy.buffer(64, BufferKind::kSums), y = toy.buffer(64);
  const WeightId up = toy.weight(DType::kF32, 64, 5), down_t = toy.weight(DType::kQ8_0, 64, 5);
  const float nan = NAN;
  std::memcpy(const_cast<std::byte*>(toy.plan().weight(up).row(3)), &nan, sizeof nan);
  toy.add(op::SparseFfn{Activation::kSilu, {}, {}, up, {}, down_t, {}, {}, {}, x, a});
  toy.add(op::MergeSums{a, {}, {}, y});
  toy.result(y);
  for (const int64_t n_rows : {1, 9})
    for (const float value : run(toy.plan(), rows_at(n_rows), 2)) CHECK(std::isnan(value));
}

TEST_CASE("cpu phases: a buffer that is written again is quantised again") {
  Toy toy(8);
  const BufferId x = toy.input(64), y = toy.buffer(64);
  const WeightId first = toy.weight(DType::kQ8_0, 64, 64), second = toy.weight(DType::kQ8_0, 64, 64);
  toy.add(op::MatMul{first, {}, x, y});
  toy.add(op::Add{x, y, x});
  toy.add(op::MatMul{second, {}, x, y});
  toy.result(y);
  check_rows(
      toy,
      [&](size_t row) {
        std::vector<double> in = toy.input_values(0)[row];
        const std::vector<double> product = times(toy.values(first), in);
        for (size_t i = 0; i < in.size(); ++i) in[i] += product[i];
        return times(toy.values(second), in);
      },
      5e-4);
}

TEST_CASE("cpu phases: a program stops when asked, throws what the check throws, and runs again") {
  Toy toy(9);
  const BufferId x = toy.input(64);
  for (int i = 0; i < 10; ++i) {
    const BufferId y = toy.buffer(64);
    toy.add(op::MatMul{toy.weight(DType::kF32, 64, 64), {}, x, y});
    toy.add(op::Add{x, y, x});
  }
  toy.result(x);
  for (const int32_t n_threads : {1, 2, 16}) {
    const auto device = make_cpu_device({n_threads, ""});
    const auto program = device->compile(toy.plan(), 0);
    const StepParams params = rows_at(20);
    const std::vector<float> expected = run(toy.plan(), params, 1);
    for (int n_calls = 0; n_calls < 20; n_calls += 3) {
      int n_asked = 0;
      StepParams stopped = params;
      stopped.stop = [&] { return n_asked++ == n_calls; };
      if (n_threads == 1 || n_calls == 0) {
        CHECK_THROWS_AS(device->launch(*program, stopped), CancelledError);
      } else {  // phases that others have done before worker 0 looks are not asked about
        try {
          device->launch(*program, stopped);
          CHECK(n_asked <= n_calls);
        } catch (const CancelledError&) {
          CHECK(n_asked == n_calls + 1);
        }
      }
      stopped.stop = []() -> bool { throw std::logic_error("own"); };
      CHECK_THROWS_AS(device->launch(*program, stopped), std::logic_error);
      device->launch(*program, params);
      device->synchronize();
      CHECK(std::equal(expected.begin(), expected.end(), program->buffer(toy.plan().logits)));
    }
    CHECK_THROWS_AS(device->launch(*program, rows_at(kMaxRows + 1)), Error);
  }
}

TEST_CASE("cpu phases: what the device lacks is a DeviceError before anything runs") {
  Toy toy(10);
  const BufferId q = toy.input(600 * 2), k = toy.input(2), out = toy.buffer(600 * 2);
  toy.plan().kv = {1, 1, 2, DType::kF16};
  toy.add(op::StoreKv{0, k, k});
  toy.add(op::Attention{0, 600, 1, q, out});
  toy.result(out);
  REQUIRE(lint(toy.plan()).empty());
  const auto device = make_cpu_device({1, ""});
  CHECK(device->why_unsupported(toy.plan().steps[0].op, toy.plan()).empty());
  CHECK_THROWS_AS(device->compile(toy.plan(), 0), DeviceError);
}

TEST_CASE("cpu phases: weight types without kernels are refused, whichever operand has them") {
  const auto device = make_cpu_device({1, ""});
  for (const DType dtype : {DType::kQ8_0, DType::kQ8_1}) {
    Toy toy(12);
    const WeightId right = toy.weight(DType::kQ8_0, 32, 64), other = toy.weight(DType::kQ8_0, 32, 64);
    toy.plan().weights.back().view.dtype = dtype;
    const BufferId x = toy.buffer(32);
    const std::vector<Op> ops = {op::Embed{other, x}, op::EmbedPosition{other, x}, op::MatMul{other, {}, x, x},
                                 op::SparseFfn{Activation::kRelu, {}, {}, right, {}, other, {}, {}, {}, x, x},
                                 op::SparseFfn{Activation::kRelu, {}, {}, other, {}, right, {}, {}, {}, x, x},
                                 op::SparseFfn{Activation::kRelu, other, {}, right, {}, right, {}, {}, {}, x, x}};
    for (const Op& op : ops) CHECK(device->why_unsupported(op, toy.plan()).empty() == (dtype == DType::kQ8_0));
  }
}

TEST_CASE("cpu phases: steps of other lanes are not run") {
  Toy toy(11);
  const BufferId x = toy.input(8);
  toy.add(op::Add{x, x, x});
  toy.plan().steps.back().lane = 1;
  toy.result(x);
  const std::vector<float> got = run(toy.plan(), rows_at(1), 2);
  for (size_t i = 0; i < got.size(); ++i) CHECK(static_cast<double>(got[i]) == toy.input_values(0)[0][i]);
}

TEST_CASE("cpu device: memory is zero, aligned, and refused when there is none") {
  const auto device = make_cpu_device({1, ""});
  const auto memory = device->alloc(100000);
  CHECK(memory->size() >= 100000);
  CHECK(reinterpret_cast<uintptr_t>(memory->data()) % 64 == 0);
  CHECK(std::all_of(memory->data(), memory->data() + 100000, [](std::byte each) { return each == std::byte{0}; }));
  CHECK_THROWS_AS(device->alloc(size_t{1} << 60), OutOfMemoryError);
  CHECK_THROWS_AS(device->alloc(SIZE_MAX - 10), OutOfMemoryError);
}

}  // namespace
