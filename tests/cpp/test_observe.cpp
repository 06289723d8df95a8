// Observe: every unit of every row is shown once, with the values that the definition gives, whatever the type, family,
// layout, threads, instruction set and batch; and looking changes no bit of the logits.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "core/architecture.h"
#include "core/planner.h"
#include "core/weights.h"
#include "cpu/cpu_program.h"
#include "cpu/reference.h"
#include "tests/cpp/families.h"
#include "tests/cpp/unit_recorder.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;
using Ids = std::vector<int32_t>;
using Floats = std::vector<float>;
using Recorder = UnitRecorder;

// Runs the tokens in pieces and returns the logits of every position.
Floats all_logits(const std::shared_ptr<const Model>& model, const EngineOptions& options, const Ids& ids,
                  size_t piece) {
  const auto engine = Engine::create(model, options);
  Session session = engine->open_session();
  Floats out;
  for (size_t at = 0; at < ids.size(); at += piece) {
    const Engine::Entry entry{&session, std::span(ids).subspan(at, std::min(piece, ids.size() - at)), true};
    engine->advance({&entry, 1});
    out.insert(out.end(), session.all_logits().begin(), session.all_logits().end());
  }
  return out;
}

constexpr Family kFamilies[] = {{"llama", Activation::kRelu},  {"llama", Activation::kSilu},
                                {"llama", Activation::kDRelu}, {"arcee", Activation::kRelu2},
                                {"arcee", Activation::kSilu},  {"opt", Activation::kRelu}};

TinySpec spec_of(const Family& family, DType dtype, bool neuron_major) {
  TinySpec spec = test::spec_of(family, dtype);
  spec.neuron_major = neuron_major;
  if (!is_block_type(dtype)) spec.n_ff = 141;  // units of two tasks
  return spec;
}

double activated(Activation activation, double x) {
  if (activation == Activation::kSilu) return x / (1 + std::exp(-x));
  return activation == Activation::kRelu2 ? std::pow(std::max(x, 0.0), 2) : std::max(x, 0.0);
}

// weight times x plus bias in double.
std::vector<double> product(const NamedTensor& weight, const NamedTensor& bias, const float* x) {
  std::vector<double> out;
  for (int64_t row = 0; row < weight.view.n_rows; ++row) {
    double sum = bias ? static_cast<double>(reinterpret_cast<const float*>(bias.view.data)[row]) : 0;
    for (int64_t i = 0; i < weight.view.n_cols; ++i)
      sum += cpu::reference::weight_at(cpu::kWeightF32, weight.view.row(row), i) * static_cast<double>(x[i]);
    out.push_back(sum);
  }
  return out;
}

TEST_CASE("observe: detect values and h are what the definition gives for the input shown") {
  for (const Family& family : kFamilies)
    for (const bool neuron_major : {true, false}) {
      CAPTURE(family.arch);
      CAPTURE(activation_name(family.activation));
      CAPTURE(neuron_major);
      const auto model = load_tiny(spec_of(family, DType::kF32, neuron_major));
      Recorder seen(model->config());
      const Ids ids = random_tokens(7, 9, 270);
      all_logits(model, {.n_threads = 2, .observer = &seen}, ids, ids.size());
      REQUIRE(seen.n_rows == ids.size());
      for (size_t layer = 0; layer < seen.layers.size(); ++layer) {
        const Recorder::Layer& got = seen.layers[layer];
        const LayerWeights& w = model->weights().layers[layer];
        CHECK(std::all_of(got.n_shown.begin(), got.n_shown.end(), [](int n) { return n == 1; }));
        for (size_t row = 0; row < ids.size(); ++row) {
          const float* x = got.in.data() + row * seen.n_embd();
          const std::vector<double> up = product(w.ffn_up, w.ffn_up_b, x);
          const std::vector<double> detected = w.ffn_gate ? product(w.ffn_gate, w.ffn_gate_b, x) : up;
          std::vector<double> h;
          for (size_t unit = 0; unit < up.size(); ++unit) {
            const double value = family.activation == Activation::kDRelu ? std::max(up[unit], 0.0) : up[unit];
            h.push_back(activated(family.activation, detected[unit]) * (w.ffn_gate ? value : 1));
          }
          const size_t at = row * seen.n_ff();
          CHECK(nmse(std::span(got.detected).subspan(at, up.size()), detected) <= 1e-11);
          CHECK(nmse(std::span(got.h).subspan(at, up.size()), h) <= 1e-11);
        }
      }
    }
}

TEST_CASE("observe: the same bits whatever the type, layout, threads, instruction set and batch, and dense logits") {
  for (const Family& family : kFamilies)
    for (const bool neuron_major : {true, false})
      for (const DType dtype : {DType::kF32, DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ5_1}) {
        if (skips_type(&family == kFamilies, dtype)) continue;
        CAPTURE(family.arch);
        CAPTURE(activation_name(family.activation));
        CAPTURE(neuron_major);
        CAPTURE(dtype_name(dtype));
        const auto model = load_tiny(spec_of(family, dtype, neuron_major));
        const Ids ids = random_tokens(8, 70, 270);
        Recorder expected(model->config());
        const Floats dense = all_logits(model, {.n_threads = 1, .mode = "dense", .isa = "generic"}, ids, ids.size());
        CHECK(all_logits(model, {.n_threads = 1, .isa = "generic", .observer = &expected}, ids, ids.size()) == dense);
        for (const std::string& isa : isas())
          for (const int32_t n_threads : {1, 2, 3, 16}) {
            if ((n_threads > (kFewCases ? 1 : 2) || kThreadsOnly) && isa != isas().back()) continue;
            for (const size_t piece : {1, 9, 70}) {
              if (piece == 1 && isa != isas().back()) continue;
              CAPTURE(isa);
              CAPTURE(n_threads);
              CAPTURE(piece);
              Recorder got(model->config());
              const EngineOptions options{.n_threads = n_threads, .mode = "dense", .isa = isa, .observer = &got};
              CHECK(all_logits(model, options, ids, piece) == dense);
              CHECK(got.positions == expected.positions);
              for (size_t layer = 0; layer < got.layers.size(); ++layer) {
                CHECK(got.layers[layer].in == expected.layers[layer].in);
                CHECK(got.layers[layer].detected == expected.layers[layer].detected);
                CHECK(got.layers[layer].h == expected.layers[layer].h);
                CHECK(got.layers[layer].n_shown == expected.layers[layer].n_shown);
              }
            }
          }
      }
}

TEST_CASE("observe: sequences of one pass are shown in order") {
  const auto model = load_tiny({.n_ff = 141, .seed = 3});
  Recorder seen(model->config());
  const auto engine = Engine::create(model, {.n_threads = 2, .n_batch = 16, .observer = &seen});
  Session a = engine->open_session(), b = engine->open_session();
  const Ids ids = random_tokens(9, 40, 270);
  const Engine::Entry entries[] = {{&a, std::span(ids).first(25)}, {&b, std::span(ids).last(15)}};
  engine->advance(entries);
  std::vector<int32_t> positions;
  for (const int32_t n : {25, 15})
    for (int32_t position = 0; position < n; ++position) positions.push_back(position);
  CHECK(seen.positions == positions);
}

TEST_CASE("observe: an observer's error ends the step, and exact mode cannot be observed") {
  class Fails final : public UnitObserver {
   public:
    void begin_step(const std::vector<Row>&) override {}
    void observe(const ObservedUnits&) override { throw std::runtime_error("seen enough"); }
  } fails;
  const auto model = load_tiny({.seed = 4});
  const auto engine = Engine::create(model, {.n_threads = 2, .observer = &fails});
  Session session = engine->open_session();
  CHECK_THROWS_WITH(session.prefill(random_tokens(1, 5, 270)), "seen enough");
  CHECK(session.n_past() == 0);
  CHECK_THROWS_AS(Engine::create(model, {.mode = "exact", .observer = &fails}), std::invalid_argument);
}

TEST_CASE("observe: the plan reads like the model, and lint sees operands that are confused") {
  for (const bool neuron_major : {true, false}) {
    const auto model = load_tiny({.n_layer = 1, .dtype = DType::kQ8_0, .neuron_major = neuron_major});
    const Plan plan = build_plan(model->config(), model->weights(),
                                 {.max_rows = 8, .max_output_rows = 4, .max_positions = 64, .observe = true});
    const std::string neuron_text =
        "host    detected = Detect(blk.0.ffn_gate.weight Q8_0; x_norm)\n"
        "host    y, h = SparseFfn(all units by detected; blk.0.ffn_gate.weight Q8_0, blk.0.ffn_up.weight Q8_0, "
        "blk.0.ffn_down_t.weight Q8_0; x_norm)\n"
        "host    observed[0] = Observe(x_norm, detected, h)\n";
    const std::string standard_text =
        "host    h = Activate(gate, up)\n"
        "host    observed[0] = Observe(x_norm, gate, h)\n"
        "host    y = MatMul(blk.0.ffn_down.weight Q8_0; h)\n";
    CHECK(dump(plan).find(neuron_major ? neuron_text : standard_text) != std::string::npos);
    const auto complains = [&](auto change) {
      Plan changed = plan;
      for (Step& step : changed.steps)
        if (auto* o = std::get_if<op::Observe>(&step.op)) change(*o);
      return !lint(changed).empty();
    };
    CHECK(complains([](op::Observe& o) { o.layer = 1; }));
    CHECK(complains([](op::Observe& o) { o.layer = -1; }));
    CHECK(complains([](op::Observe& o) { o.h = {}; }));
    CHECK(complains([](op::Observe& o) { o.detected = o.in; }));
    CHECK_FALSE(complains([](op::Observe&) {}));
    if (!neuron_major) continue;
    const auto wrong_ffn = [&](auto change) {
      Plan changed = plan;
      for (Step& step : changed.steps)
        if (auto* o = std::get_if<op::SparseFfn>(&step.op)) change(*o);
      return !lint(changed).empty();
    };
    CHECK(wrong_ffn([](op::SparseFfn& o) { o.h = o.detected; }));
    CHECK(wrong_ffn([](op::SparseFfn& o) { o.h = o.in; }));
    CHECK(wrong_ffn([](op::SparseFfn& o) { o.h = {}; }));
  }
}

}  // namespace
