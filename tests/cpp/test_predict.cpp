// Mode predict: which units the predictor proposes, that only those count, and that nothing else changes a result.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "core/bit_planes.h"
#include "core/devices.h"
#include "core/planner.h"
#include "core/quantize.h"
#include "core/weights.h"
#include "tests/cpp/families.h"

namespace {

using namespace hotset;
using namespace hotset::test;

constexpr Family kFamilies[] = {
    {"llama", Activation::kRelu}, {"arcee", Activation::kRelu2}, {"opt", Activation::kRelu}};

struct Outcome {
  Logits logits;
  UnitCounts counts;
};

// Logits of every position, the tokens given in pieces of `piece`.
Outcome run(const std::shared_ptr<const Model>& model, const EngineOptions& options, const Ids& ids, size_t piece) {
  const auto engine = Engine::create(model, options);
  Session session = engine->open_session();
  Outcome out;
  for (size_t at = 0; at < ids.size(); at += piece) {
    const Engine::Entry entry{&session, std::span(ids).subspan(at, std::min(piece, ids.size() - at)), true};
    engine->advance({&entry, 1});
    out.logits.insert(out.logits.end(), session.all_logits().begin(), session.all_logits().end());
  }
  out.counts = engine->unit_counts();
  return out;
}

EngineOptions predict(const std::string& predictor, int32_t n_threads = 2, const std::string& isa = "") {
  EngineOptions out{.n_threads = n_threads, .mode = "predict", .predictor = predictor};
  out.isa = isa;
  return out;
}

TEST_CASE("predict: with endless slack the same bits as exact") {
  for (const Family& family : kFamilies)
    for (const DType dtype : {DType::kF32, DType::kQ8_0, DType::kQ4_0, DType::kQ6_K}) {
      if (kThreadsOnly && dtype != DType::kQ4_0) continue;
      CAPTURE(family.arch);
      CAPTURE(dtype_name(dtype));
      const auto model = load_tiny(spec_of(family, dtype));
      const Ids ids = random_tokens(8, 20, 270);
      const Outcome exact = run(model, {.n_threads = 1, .mode = "exact"}, ids, ids.size());
      for (const char* predictor : {"bit_planes:1:inf", "bit_planes:2:inf", "bit_planes:3:1e30"})
        for (const size_t piece : {1, 7, 20}) {
          const Outcome got = run(model, predict(predictor), ids, piece);
          CHECK(got.logits == exact.logits);
          CHECK(got.counts.candidates == got.counts.total);
          CHECK(got.counts.active == exact.counts.active);
        }
    }
}

TEST_CASE("predict: the same bits whatever the threads, instruction set and batch") {
  for (const Family& family : kFamilies)
    for (const DType dtype : {DType::kF32, DType::kQ4_0, DType::kQ6_K})
      for (const char* predictor : {"bit_planes:1:0.4", "bit_planes:2:0", "bit_planes:2:-2", "bit_planes:3:0.2"}) {
        if (skips_type(&family == kFamilies, dtype)) continue;
        if (kFewCases && std::string(predictor).find(":2:") != std::string::npos) continue;
        CAPTURE(family.arch);
        CAPTURE(dtype_name(dtype));
        CAPTURE(predictor);
        const auto model = load_tiny(spec_of(family, dtype));
        const Ids ids = random_tokens(8, 70, 270);
        const Outcome base = run(model, predict(predictor, 1, "generic"), ids, 1);
        CHECK(base.counts.candidates < base.counts.total);
        CHECK(base.counts.active <= base.counts.candidates);
        for (const std::string& isa : isas())
          for (const int32_t n_threads : {1, 2, 3, 8})
            for (const size_t piece : {1, 3, 8, 33, 70}) {  // alone, by lists, with the dense kernels
              if ((n_threads > (kFewCases ? 1 : 2) || piece == 1 || kThreadsOnly) && isa != isas().back()) continue;
              if (kFewCases && n_threads == 2) continue;
              CAPTURE(isa);
              CAPTURE(n_threads);
              CAPTURE(piece);
              const Outcome got = run(model, predict(predictor, n_threads, isa), ids, piece);
              CHECK(got.logits == base.logits);
              CHECK(got.counts.candidates == base.counts.candidates);
              CHECK(got.counts.active == base.counts.active);
            }
      }
}

// With one layer the input of its network does not depend on what was predicted, so that lists can be compared.
TEST_CASE("predict: more slack, more candidates, and none of the active ones lost that had been found") {
  const auto model = load_tiny({.n_layer = 1, .seed = 11});
  const Ids ids = random_tokens(9, 30, 270);
  const Outcome exact = run(model, {.n_threads = 1, .mode = "exact"}, ids, 30);
  for (const int n_bits : {1, 2, 3}) {
    UnitCounts before;
    for (const char* z : {"-inf", "-3", "-1", "0", "0.5", "1", "2", "inf"}) {
      CAPTURE(n_bits);
      CAPTURE(z);
      const UnitCounts counts = run(model, predict(cat("bit_planes:", n_bits, ":", z)), ids, 30).counts;
      CHECK(counts.total == exact.counts.total);
      CHECK(counts.candidates >= before.candidates);
      CHECK(counts.active >= before.active);
      if (std::string(z) == "-inf") CHECK(counts.candidates == 0);
      if (std::string(z) == "1") CHECK(counts.candidates > before.candidates);
      before = counts;
    }
    CHECK(before.active == exact.counts.active);
  }
}

// Runs the plan of a one-layer model and looks at what each step left.
TEST_CASE("predict: margins, candidates and detect values are what the definitions say") {
  for (const DType dtype : {DType::kF32, DType::kQ4_0}) {
    TinySpec spec = spec_of({"llama", Activation::kRelu}, dtype);
    spec.n_layer = 1;
    const auto model = load_tiny(spec);
    const Predictor predictor(model->weights(), parse_predictor("bit_planes:2:0.25", 1), {.n_threads = 2});
    PlanOptions options;
    options.max_rows = options.max_output_rows = 4;
    options.max_positions = 64;
    options.exact = true;
    options.predictor = &predictor;
    const Plan plan = build_plan(model->config(), model->weights(), options);
    const std::string text = dump(plan);
    CHECK(text.find(
              "margins = Predict(2 bits of blk.0.ffn_gate.weight.planes I8 + blk.0.ffn_gate.bias, z 0.25; x_norm)") !=
          std::string::npos);
    CHECK(text.find("candidates = SelectUnits(margins)") != std::string::npos);
    CHECK(text.find("detected = Detect(candidates; blk.0.ffn_gate.weight") != std::string::npos);
    CHECK(text.find("units = SelectUnits(detected among candidates)") != std::string::npos);
    op::Predict op{};
    op::Detect detect{};
    BufferId units;
    for (const Step& step : plan.steps) {
      if (const auto* o = std::get_if<op::Predict>(&step.op)) op = *o;
      if (const auto* o = std::get_if<op::Detect>(&step.op)) detect = *o;
      if (const auto* o = std::get_if<op::SelectUnits>(&step.op)) units = o->out;
    }
    const auto device = make_cpu_device({2, ""});
    const auto program = device->compile(plan, 0);
    const auto kv = device->alloc(plan.kv.block_bytes() * 2);
    std::vector<std::byte*> blocks{kv->data(), kv->data() + plan.kv.block_bytes()};
    StepParams params;
    params.rows = {{5, 0, 0}, {9, 1, 0}, {40, 2, 0}};
    params.sequences = {{&blocks}};
    params.output_rows = {2};
    device->launch(*program, params);
    device->synchronize();
    const int64_t n_ff = model->config().n_ff, n_embd = model->config().n_embd;
    const auto stride = [](int64_t n) { return (n + 15) / 16 * 16; };
    const auto list_of = [&](BufferId id, int64_t row) {
      const int32_t* list = reinterpret_cast<const int32_t*>(program->buffer(id) + row * stride(n_ff + 1));
      return std::vector<int32_t>(list + 1, list + 1 + list[0]);
    };
    const TensorView gate = model->weights().layers[0].ffn_gate.view;
    const float* const bias = reinterpret_cast<const float*>(model->weights().layers[0].ffn_gate_b.view.data);
    std::vector<float> w(static_cast<size_t>(n_embd));
    std::vector<std::byte> planes(static_cast<size_t>(plane_row_bytes(2, n_embd)));
    for (int64_t row = 0; row < 3; ++row) {
      const float* x = program->buffer(op.in) + row * stride(n_embd);
      const float* margins = program->buffer(op.out) + row * stride(n_ff);
      const float* detected = program->buffer(detect.out) + row * stride(n_ff);
      double squares = 0, largest = 0;
      for (int64_t i = 0; i < n_embd; ++i)
        squares += static_cast<double>(x[i]) * x[i], largest = std::max(largest, std::fabs(static_cast<double>(x[i])));
      std::vector<int32_t> candidates, active;
      for (int32_t unit = 0; unit < n_ff; ++unit) {
        dequantize_row(gate.dtype, gate.row(unit), n_embd, w.data());
        const PlaneFit fit = encode_planes(w.data(), n_embd, 2, planes.data());
        double estimate = 0, exact = 0, size = 0;
        for (int64_t i = 0; i < n_embd; ++i) {
          const double level =
              static_cast<double>(fit.low) + static_cast<double>(fit.step) * plane_code(planes.data(), 2, i);
          estimate += level * x[i], exact += static_cast<double>(w[static_cast<size_t>(i)]) * x[i];
          size += std::fabs(level) + std::fabs(static_cast<double>(w[static_cast<size_t>(i)]));
        }
        const double slack = 0.25 * static_cast<double>(fit.error) * std::sqrt(squares / static_cast<double>(n_embd));
        // Inputs are rounded to 127 steps of their block's largest value, at worst half a step off each.
        const double bound = size * largest / 254 + 1e-5;
        CHECK(std::fabs(margins[unit] - (estimate + slack + bias[unit])) <= bound);
        // By Cauchy and Schwarz the estimate is at most that far away.
        CHECK(std::fabs(estimate - exact) <= static_cast<double>(fit.error) * std::sqrt(squares) + 1e-6);
        if (!(margins[unit] <= 0)) candidates.push_back(unit);
        const bool is_candidate = !candidates.empty() && candidates.back() == unit;
        if (is_candidate)
          CHECK(std::fabs(detected[unit] - (exact + bias[unit])) <= bound);
        else
          CHECK((detected[unit] == 0 && !std::signbit(detected[unit])));
        if (!(detected[unit] <= 0)) active.push_back(unit);
      }
      CHECK(list_of(detect.units, row) == candidates);
      CHECK(list_of(units, row) == active);
      CHECK(candidates.size() > 10);
      CHECK(candidates.size() < static_cast<size_t>(n_ff) - 10);
    }
  }
}

TEST_CASE("predict: a standard file runs as the neuron-major one, dense weights can be compared") {
  TinySpec spec{.n_embd = 64, .n_ff = 128, .dtype = DType::kF16, .neuron_major = false, .seed = 12};
  const auto model = load_tiny(spec);
  const Ids ids = random_tokens(13, 12, 270);
  const Outcome exact = run(model, {.n_threads = 2, .mode = "exact"}, ids, 5);
  CHECK(run(model, predict("bit_planes:1:inf"), ids, 5).logits == exact.logits);
}

TEST_CASE("predict: what it costs is accounted for") {
  const auto model = load_tiny({.n_embd = 512, .n_ff = 256, .dtype = DType::kQ4_0});
  const EngineInfo info = Engine::create(model, predict("bit_planes:2:0"))->info();
  CHECK(info.mode == "predict");
  CHECK(info.predictor == "bit_planes:2");
  const uint64_t each = 256 * (512 / 4 + 3 * 4);
  CHECK(info.predictor_bytes_per_token == 2 * each);
  CHECK(info.predictor_bytes >= 2 * each);
  CHECK(info.detect_bytes_per_token == 2 * 256 * 512 / 32 * 18);
  CHECK(Engine::create(model, {.n_threads = 1, .mode = "exact"})->info().predictor_bytes == 0);
}

TEST_CASE("predict: lint sees a missing step, a wrong list and planes of another size") {
  const auto model = load_tiny({.n_layer = 3, .n_ff = 128});
  const Predictor predictor(model->weights(), parse_predictor("bit_planes:1:0", 3), {});
  PlanOptions options{.max_rows = 8, .max_output_rows = 4, .max_positions = 64, .exact = true};
  options.predictor = &predictor;
  const Plan right = build_plan(model->config(), model->weights(), options);
  const auto index_of = [&](const char* name) {
    for (size_t i = 0; i < right.buffers.size(); ++i)
      if (right.buffers[i].name == name) return BufferId{static_cast<int32_t>(i)};
    return BufferId{};
  };
  int n_seen = 0;
  for (size_t i = 0; i < right.steps.size(); ++i) {
    const Op& op = right.steps[i].op;
    if (std::holds_alternative<op::Predict>(op) || std::holds_alternative<op::Detect>(op) ||
        std::holds_alternative<op::SelectUnits>(op)) {
      Plan plan = right;
      plan.steps.erase(plan.steps.begin() + static_cast<std::ptrdiff_t>(i));
      CAPTURE(i);
      CHECK_FALSE(lint(plan).empty());
      ++n_seen;
    }
    const auto with = [&](auto change) {
      Plan plan = right;
      change(plan, plan.steps[i].op);
      return lint(plan).empty();
    };
    if (std::holds_alternative<op::Detect>(op)) {
      CHECK_FALSE(with([&](Plan&, Op& o) { std::get<op::Detect>(o).units = index_of("units"); }));
      CHECK_FALSE(with([&](Plan&, Op& o) { std::get<op::Detect>(o).units = index_of("margins"); }));
      CHECK_FALSE(with([&](Plan&, Op& o) { std::get<op::Detect>(o).units = {99}; }));
    }
    if (std::holds_alternative<op::Predict>(op)) {
      CHECK_FALSE(with([&](Plan&, Op& o) { std::get<op::Predict>(o).n_bits = 2; }));
      CHECK_FALSE(with([&](Plan&, Op& o) { std::get<op::Predict>(o).n_bits = 0; }));
      CHECK_FALSE(with([&](Plan&, Op& o) { std::get<op::Predict>(o).low = {}; }));
      CHECK_FALSE(with([&](Plan&, Op& o) { std::get<op::Predict>(o).out = index_of("y"); }));
      CHECK_FALSE(with([&](Plan& plan, Op& o) {
        plan.weights[static_cast<size_t>(std::get<op::Predict>(o).error.index)].view.n_cols = 127;
      }));
      CHECK_FALSE(with([&](Plan& plan, Op& o) {
        plan.weights[static_cast<size_t>(std::get<op::Predict>(o).planes.index)].view.dtype = DType::kQ8_0;
      }));
    }
  }
  CHECK(n_seen == 3 * 4);
}

TEST_CASE("predict: bad options") {
  const auto model = load_tiny({});
  for (const char* text :
       {"bit_planes", "bit_planes:", "bit_planes:0", "bit_planes:4", "bit_planes:22", "bit_planes:2:", "bit_planes:2:x",
        "bit_planes:2:nan", "bit_planes:2:1 ", "bit_planes:2;1", "oracle", "\xff"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(Engine::create(model, predict(text)), std::invalid_argument);
  }
  CHECK_THROWS_AS(Engine::create(model, {.n_threads = 1, .mode = "exact", .predictor = "bit_planes:2"}),
                  std::invalid_argument);
  CHECK_THROWS_AS(Engine::create(model, {.n_threads = 1, .mode = "predict"}), Error);
  CHECK_THROWS_AS(Engine::create(load_tiny({.activation = Activation::kSilu}), predict("bit_planes:2")),
                  UnsupportedModelError);
}

}  // namespace
