// Families without a gate or with LayerNorm, and exact mode: the active set is the one the definition gives, and
// skipping all others changes no bit.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "core/devices.h"
#include "core/planner.h"
#include "core/weights.h"
#include "tests/cpp/slow_model.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;
using Ids = std::vector<int32_t>;
using Logits = std::vector<float>;

struct Family {
  const char* arch;
  Activation activation;
};
constexpr Family kFamilies[] = {
    {"llama", Activation::kRelu},     {"llama", Activation::kDRelu}, {"llama", Activation::kRelu2},
    {"arcee", Activation::kRelu2},    {"arcee", Activation::kSilu},  {"nemotron", Activation::kRelu2},
    {"nemotron", Activation::kRelu}, {"opt", Activation::kRelu},
};
constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0};

// Logits of every position, the tokens given in pieces of `piece`.
Logits all_logits(const std::shared_ptr<const Model>& model, const EngineOptions& options, const Ids& ids,
                  size_t piece) {
  const auto engine = Engine::create(model, options);
  Session session = engine->open_session();
  Logits out;
  for (size_t at = 0; at < ids.size(); at += piece) {
    const Engine::Entry entry{&session, std::span(ids).subspan(at, std::min(piece, ids.size() - at)), true};
    engine->advance({&entry, 1});
    out.insert(out.end(), session.all_logits().begin(), session.all_logits().end());
  }
  return out;
}

TinySpec spec_of(const Family& family, DType dtype) {
  TinySpec spec{.arch = family.arch, .n_ctx = 64, .dtype = dtype, .activation = family.activation, .biases = true};
  if (dtype != DType::kQ8_0 && dtype != DType::kQ4_0) spec.n_embd = 50, spec.n_ff = 101, spec.head_dim = 14;
  if (spec.arch != "opt") spec.n_rot = 6;
  return spec;
}

TEST_CASE("families: logits agree with a forward pass in double") {
  for (const Family& family : kFamilies) {
    for (const bool neuron_major : {true, false}) {
      for (const bool biases : {true, false}) {
        CAPTURE(family.arch);
        CAPTURE(activation_name(family.activation));
        CAPTURE(neuron_major);
        TinySpec spec = spec_of(family, DType::kF32);
        spec.neuron_major = neuron_major, spec.biases = biases, spec.n_layer = 11, spec.tied = biases;
        const auto model = load_tiny(spec);
        const Ids ids = random_tokens(7, 12, 270);
        const Logits got = all_logits(model, {.n_threads = 2, .mode = "dense"}, ids, ids.size());
        SlowModel slow(*model);
        for (size_t i = 0; i < ids.size(); ++i) {
          const std::vector<double> expected = slow.step(ids[i]);
          CHECK(nmse(std::span(got).subspan(i * expected.size(), expected.size()), expected) <= 1e-9);
        }
      }
    }
  }
}

TEST_CASE("families: learned positions end where the table ends") {
  const auto model = load_tiny(spec_of({"opt", Activation::kRelu}, DType::kF32));
  CHECK_THROWS_AS(Engine::create(model, {.n_threads = 1, .n_ctx = 65}), std::invalid_argument);
  CHECK_NOTHROW(Engine::create(model, {.n_threads = 1, .n_ctx = 64}));
}

TEST_CASE("exact: the same bits as dense, whatever the type, family, threads, instruction set and batch") {
  for (const Family& family : kFamilies) {
    if (!is_sparse(family.activation)) continue;
    for (const DType dtype : kTypes) {
      CAPTURE(family.arch);
      CAPTURE(activation_name(family.activation));
      CAPTURE(dtype_name(dtype));
      const auto model = load_tiny(spec_of(family, dtype));
      const Ids ids = random_tokens(8, 21, 270);
      const Logits dense = all_logits(model, {.n_threads = 1, .mode = "dense", .isa = "generic"}, ids, ids.size());
      for (const std::string& isa : isas())
        for (const int32_t n_threads : {1, 2, 3, 16}) {
          if (n_threads > 2 && isa != isas().back()) continue;
          for (const size_t piece : {1, 3, 8, 9}) {
            CAPTURE(isa);
            CAPTURE(n_threads);
            CAPTURE(piece);
            CHECK(all_logits(model, {.n_threads = n_threads, .mode = "exact", .isa = isa}, ids, piece) == dense);
          }
        }
    }
  }
}

// A model whose units are all off, all on, or on in every other unit: the bias of the detect matrix decides.
TEST_CASE("exact: no unit, every unit and every other unit active") {
  for (const Family& family : {Family{"llama", Activation::kRelu}, Family{"arcee", Activation::kRelu2}}) {
    for (const int every : {0, 1, 2}) {
      CAPTURE(every);
      GgufWriter writer = tiny_writer(spec_of(family, DType::kF32));
      std::vector<float> bias(101);
      for (size_t i = 0; i < bias.size(); ++i) bias[i] = every > 0 && i % static_cast<size_t>(every) == 0 ? 1e3f : -1e3f;
      for (const char* layer : {"blk.0.", "blk.1."})
        writer.tensor(std::string(layer) + (family.activation == Activation::kRelu ? "ffn_gate" : "ffn_up") + ".bias")
            .data.assign(reinterpret_cast<const char*>(bias.data()), bias.size() * sizeof(float));
      const auto model = load_bytes(writer.bytes());
      const Ids ids = random_tokens(9, 10, 270);
      const Logits dense = all_logits(model, {.n_threads = 1, .mode = "dense"}, ids, 1);
      CHECK(all_logits(model, {.n_threads = 3, .mode = "exact"}, ids, 1) == dense);
      const auto engine = Engine::create(model, {.n_threads = 2, .mode = "exact"});
      Session session = engine->open_session();
      session.prefill(std::span(ids).first(4));
      const UnitCounts counts = engine->unit_counts();
      CHECK(counts.total == 4 * 2 * 101);
      CHECK(counts.active == (every == 0 ? 0 : every == 1 ? counts.total : 4 * 2 * 51));
    }
  }
}

TEST_CASE("exact: the list of a layer is the set of units whose detect value is not <= 0") {
  const auto model = load_tiny({.n_layer = 1, .seed = 11});
  PlanOptions options;
  options.max_rows = options.max_output_rows = 4;
  options.max_positions = 64;
  options.exact = true;
  const Plan plan = build_plan(model->config(), model->weights(), options);
  BufferId detected, units;
  for (const Step& step : plan.steps)
    if (const auto* o = std::get_if<op::SelectUnits>(&step.op)) detected = o->in, units = o->out;
  REQUIRE(units.index >= 0);
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
  const int64_t n_ff = model->config().n_ff, stride = (n_ff + 15) / 16 * 16, list_stride = (n_ff + 16) / 16 * 16;
  for (int64_t row = 0; row < 3; ++row) {
    const float* values = program->buffer(detected) + row * stride;
    std::vector<int32_t> expected;
    for (int32_t unit = 0; unit < n_ff; ++unit)
      if (!(values[unit] <= 0)) expected.push_back(unit);
    const int32_t* list = reinterpret_cast<const int32_t*>(program->buffer(units) + row * list_stride);
    CHECK(std::vector<int32_t>(list + 1, list + 1 + list[0]) == expected);
    CHECK(expected.size() > 20);
    CHECK(expected.size() < 80);
  }
}

// What lies in a model file may be anything: values that are not numbers stay visible in both modes.
TEST_CASE("exact: NaN and infinity in the input are not skipped") {
  GgufWriter writer = tiny_writer({.dtype = DType::kF32});
  float* table = reinterpret_cast<float*>(writer.tensor("token_embd.weight").data.data());
  table[5 * 64] = std::nanf("");
  table[6 * 64] = HUGE_VALF;
  const auto model = load_bytes(writer.bytes());
  for (const int32_t token : {5, 6}) {
    for (const char* mode : {"dense", "exact"}) {
      const Logits logits = all_logits(model, {.n_threads = 1, .mode = mode}, {token}, 1);
      CHECK(std::all_of(logits.begin(), logits.end(), [](float each) { return std::isnan(each); }));
    }
  }
}

}  // namespace
