// Families without a gate or with LayerNorm, and exact mode: the active set is the one the definition gives, and
// skipping all others changes no bit.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/devices.h"
#include "core/planner.h"
#include "core/weights.h"
#include "cpu/reference.h"
#include "tests/cpp/families.h"
#include "tests/cpp/slow_model.h"

namespace {

using namespace hotset;
using namespace hotset::test;

constexpr Family kFamilies[] = {
    {"llama", Activation::kRelu},     {"llama", Activation::kDRelu}, {"llama", Activation::kRelu2},
    {"arcee", Activation::kRelu2},    {"arcee", Activation::kSilu},  {"nemotron", Activation::kRelu2},
    {"nemotron", Activation::kRelu}, {"opt", Activation::kRelu},
};

// Those whose layers are of another kind, or activations of another shape.
constexpr Family kOtherFamilies[] = {
    {"llama", Activation::kFatRelu},   {"bamboo", Activation::kDRelu}, {"qwen3", Activation::kFatRelu},
    {"gemma2", Activation::kGeluTanh}, {"gemma3", Activation::kRelu},  {"falcon", Activation::kGelu},
    {"falcon", Activation::kRelu, true}, {"opt", Activation::kRelu, true},
};

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

std::vector<Family> all_families() {
  std::vector<Family> out(std::begin(kFamilies), std::end(kFamilies));
  out.insert(out.end(), std::begin(kOtherFamilies), std::end(kOtherFamilies));
  return out;
}

TEST_CASE("families: logits agree with a forward pass in double") {
  for (const Family& family : all_families()) {
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
  CHECK_THROWS_AS(Engine::create(model, {.n_threads = 1, .n_ctx = 97}), std::invalid_argument);
  CHECK_NOTHROW(Engine::create(model, {.n_threads = 1, .n_ctx = 96}));
}

TEST_CASE("exact: the same bits as dense, whatever the type, family, threads, instruction set and batch") {
  size_t n_families = 0;
  for (const Family& family : all_families()) {
    const bool is_other = ++n_families > std::size(kFamilies);
    if (!is_sparse(family.activation)) continue;
    for (const DType dtype : kModelTypes) {
      const bool is_first = n_families == 1;
      if (skips_type(is_first, dtype) || (is_other && dtype != DType::kQ4_0) || shares_kernels(dtype)) continue;
      if (!is_first && (dtype == DType::kQ2_K || dtype == DType::kIQ4_NL)) continue;
      CAPTURE(family.arch);
      CAPTURE(activation_name(family.activation));
      CAPTURE(dtype_name(dtype));
      const auto model = load_tiny(spec_of(family, dtype));
      const Ids ids = random_tokens(8, 70, 270);
      const Logits dense = all_logits(model, {.n_threads = 1, .mode = "dense", .isa = "generic"}, ids, ids.size());
      for (const std::string& isa : isas())
        for (const int32_t n_threads : {1, 2, 3, 16}) {
          if ((n_threads > (kFewCases ? 1 : 2) || kThreadsOnly) && isa != isas().back()) continue;
          if (kFewCases && n_threads == 2) continue;
          for (const size_t piece : {1, 3, 8, 33, 70}) {  // alone, by ranges, by ranges, by tiles, all units
            if (piece == 1 && n_threads > 1 && isa != isas().back()) continue;
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
      for (size_t i = 0; i < bias.size(); ++i)
        bias[i] = every > 0 && i % static_cast<size_t>(every) == 0 ? 1e2f : -1e2f;
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
      CHECK(counts.computed == counts.active);
    }
  }
}

TEST_CASE("exact: a new layout of weights that are not numbers is not called lossless") {
  std::string bytes = tiny_writer({.dtype = DType::kF16, .neuron_major = false}).bytes();
  const ParsedBytes parsed = parse_bytes(bytes);
  const std::byte* const down = parsed.file->find_tensor("blk.0.ffn_down.weight")->data;
  const uint16_t nan = 0x7e00;
  std::memcpy(bytes.data() + (down - parsed.bytes.get()), &nan, sizeof nan);
  std::string said;
  EngineOptions options{.n_threads = 1, .mode = "exact"};
  options.log = [&](LogLevel, const std::string& line) { said += line; };
  Engine::create(load_bytes(bytes), options);
  CHECK(said.find("lossless") == std::string::npos);
  CHECK(said.find("unknown error") != std::string::npos);
}

// Bits of the integers of a block type, which its name has.
int bits_of_weights(DType dtype) {
  const std::string name = dtype_name(dtype);
  return name[name.find_first_of("23456789")] - '0';
}

// Float types lose nothing when ffn_down is turned, so the standard file gives the bits of the neuron-major one; block
// types are quantised again, which the slow model bounds.
TEST_CASE("exact: a standard file is laid out anew at load") {
  for (const DType dtype : kModelTypes) {
    CAPTURE(dtype_name(dtype));
    const bool blocks = is_block_type(dtype);
    TinySpec spec{.n_embd = 64, .n_ff = 608, .dtype = dtype, .neuron_major = false, .seed = 12};
    widen_for(dtype, spec);
    GgufWriter writer = tiny_writer(spec);
    const auto standard = load_bytes(writer.bytes());
    std::vector<std::string> lines;
    EngineOptions options{.n_threads = 3, .mode = "exact"};
    options.log = [&](LogLevel, const std::string& line) {
      if (line.find("laid out anew") != std::string::npos) lines.push_back(line);
    };
    const Ids ids = random_tokens(13, 12, 270);
    const Logits got = all_logits(standard, options, ids, 1);
    REQUIRE(lines.size() == 1);
    CHECK((lines[0].find("lossless") != std::string::npos) == !blocks);
    CHECK(all_logits(standard, {.n_threads = 1, .mode = "exact"}, ids, ids.size()) == got);
    const auto exact = Engine::create(standard, {.n_threads = 1, .mode = "exact"});
    EngineOptions same{.n_threads = 2, .mode = "dense"};
    same.weights_from = exact;
    CHECK(all_logits(standard, same, ids, 5) == got);
    CHECK_THROWS_AS(Engine::create(load_bytes(writer.bytes()), same), std::invalid_argument);
    SlowModel slow(*standard);
    double worst = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      const std::vector<double> expected = slow.step(ids[i]);
      worst = std::max(worst, nmse(std::span(got).subspan(i * expected.size(), expected.size()), expected));
    }
    // Random nibbles, not weights that were quantised: turning Q4_0 errs by some 8 % of each weight, squared, twice. One
    // bit more halves the error.
    CHECK(worst <= (blocks ? std::max(1e-3, 3e-2 * std::pow(4.0, 4 - bits_of_weights(dtype))) : 1e-5));
    if (blocks) continue;
    for (size_t layer = 0; layer < 2; ++layer) {
      const std::string name = "blk." + std::to_string(layer) + ".ffn_down";
      const GgufWriter::Tensor down = writer.tensor(name + ".weight");
      const size_t each = down.data.size() / static_cast<size_t>(spec.n_ff * spec.n_embd);
      std::string turned(down.data.size(), '\0');
      for (size_t unit = 0; unit < static_cast<size_t>(spec.n_ff); ++unit)
        for (size_t i = 0; i < static_cast<size_t>(spec.n_embd); ++i)
          turned.replace((unit * static_cast<size_t>(spec.n_embd) + i) * each, each, down.data,
                         (i * static_cast<size_t>(spec.n_ff) + unit) * each, each);
      writer.erase_tensor(name + ".weight");
      writer.tensor(name + "_t.weight", {64, 608}, static_cast<uint32_t>(dtype), turned);
    }
    CHECK(all_logits(load_bytes(writer.bytes()), {.n_threads = 1, .mode = "dense"}, ids, 5) == got);
  }
}

// Layer 0 skips units, layer 1 has them all: a worker that comes late must not take the tasks of one for the other's.
TEST_CASE("exact: layers that decide differently, many steps, more threads than cores") {
  GgufWriter writer = tiny_writer(spec_of({"llama", Activation::kRelu}, DType::kF32));
  for (const int layer : {0, 1}) {
    std::vector<float> bias(101);
    for (size_t i = 0; i < bias.size(); ++i) bias[i] = layer == 1 || i % 4 == 0 ? 1e3f : -1e3f;
    writer.tensor("blk." + std::to_string(layer) + ".ffn_gate.bias")
        .data.assign(reinterpret_cast<const char*>(bias.data()), bias.size() * sizeof(float));
  }
  const auto model = load_bytes(writer.bytes());
  const Ids ids = random_tokens(15, 90, 270);
  const Logits dense = all_logits(model, {.n_threads = 1, .mode = "dense"}, ids, ids.size());
  for (int run = 0; run < 10; ++run)
    for (const size_t piece : {1, 12, 70})
      CHECK(all_logits(model, {.n_threads = 8, .mode = "exact"}, ids, piece) == dense);
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

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kDownRuns = 60;
#else
constexpr int kDownRuns = 3000;
#endif

// An engine that adds up rows of several threads without a lock gets 17 of 3,000 such sums wrong. Here a sum's order does
// not depend on threads at all, so every run must give the same bits, and those of a dense pass.
TEST_CASE("exact: the down pass of a 4096 x 11008 matrix never differs") {
  constexpr int64_t kEmbd = 4096, kUnits = 11008;
  std::mt19937_64 random(14);
  const std::string rows = random_matrix(random, DType::kQ4_0, kEmbd, kUnits);
  const TensorView matrix{reinterpret_cast<const std::byte*>(rows.data()), DType::kQ4_0, kEmbd, kUnits,
                          row_bytes(DType::kQ4_0, kEmbd)};
  std::vector<float> values(3 * kUnits), input(3 * kEmbd, 0.0f);  // a token for each share: 1, 5 and 50 %
  for (size_t i = 0; i < values.size(); ++i) {
    const uint64_t share = i < kUnits ? 1 : i < 2 * kUnits ? 5 : 50;
    values[i] = static_cast<float>(random() % 1000 + 1) * (random() % 100 < share ? 1e-3f : -1e-3f);
  }
  const auto table = [](const std::vector<float>& from, int64_t n) {
    return TensorView{reinterpret_cast<const std::byte*>(from.data()), DType::kF32, n, 3, static_cast<size_t>(n) * 4};
  };
  Plan plan;
  plan.max_rows = plan.max_output_rows = 1;
  plan.n_vocab = kEmbd;
  plan.buffers = {{"x", kEmbd}, {"detected", kUnits}, {"units", kUnits + 1}, {"y", kEmbd}, {"out", kEmbd}};
  plan.buffers[2].kind = BufferKind::kUnits;
  plan.buffers[4].rows = BufferRows::kOutput;
  plan.weights = {{"down_t", matrix}, {"values", table(values, kUnits)}, {"input", table(input, kEmbd)}};
  plan.logits = {4};
  op::SparseFfn ffn{};
  ffn.activation = Activation::kRelu;
  ffn.up = ffn.down_t = WeightId{0};
  ffn.detected = {1}, ffn.units = {2}, ffn.in = {0}, ffn.out = {3};
  for (const Op& each : {Op(op::Embed{{2}, {0}}), Op(op::Embed{{1}, {1}}), Op(op::SelectUnits{{1}, {2}}), Op(ffn),
                         Op(op::SelectRows{{3}, {4}})})
    plan.steps.push_back({0, each});
  REQUIRE(lint(plan).empty());
  std::vector<std::vector<float>> expected;
  for (const int32_t n_threads : {1, 2, 3, 8}) {
    const auto device = make_cpu_device({n_threads, ""});
    const auto program = device->compile(plan, 0);
    int64_t n_wrong = 0;
    for (int run = 0; run < (n_threads == 1 ? 3 : kDownRuns); ++run) {
      StepParams params;
      params.rows = {{run % 3, 0, 0}};
      params.output_rows = {0};
      device->launch(*program, params);
      device->synchronize();
      const float* out = program->buffer(plan.logits);
      if (n_threads == 1)
        expected.emplace_back(out, out + kEmbd);
      else
        n_wrong += !std::equal(out, out + kEmbd, expected[static_cast<size_t>(run % 3)].begin());
    }
    CAPTURE(n_threads);
    CHECK(n_wrong == 0);
  }
  for (size_t token = 0; token < 3; ++token) {  // the plain sum in double
    std::vector<double> sum(kEmbd, 0.0);
    for (int64_t unit = 0; unit < kUnits; ++unit) {
      const double h = static_cast<double>(values[token * kUnits + static_cast<size_t>(unit)]);
      for (int64_t i = 0; h > 0 && i < kEmbd; ++i)
        sum[static_cast<size_t>(i)] += h * cpu::reference::weight_at(cpu::kWeightQ4_0, matrix.row(unit), i);
    }
    CHECK(nmse(expected[token], sum) <= 1e-12);
  }
}

}  // namespace
