// Observers of an engine split over the host and a pretend card see what they see of the host alone, unit by unit.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>

#include "core/calibration.h"
#include "core/profile.h"
#include "tests/cpp/hybrid_util.h"
#include "tests/cpp/unit_recorder.h"

namespace {

using namespace hotset;
using namespace hotset::test;

// What an observer of an engine with these options sees of all_logits().
UnitRecorder seen(const std::shared_ptr<const Model>& model, EngineOptions options, const Ids& ids, Logits& logits) {
  UnitRecorder out(model->config());
  options.observer = &out;
  logits = all_logits(Engine::create(model, options), ids);
  return out;
}

void check_equal(const UnitRecorder& got, const UnitRecorder& expected) {
  CHECK(got.positions == expected.positions);
  REQUIRE(got.layers.size() == expected.layers.size());
  for (size_t layer = 0; layer < got.layers.size(); ++layer) {
    const UnitRecorder::Layer &a = got.layers[layer], &b = expected.layers[layer];
    CHECK(std::all_of(a.n_shown.begin(), a.n_shown.end(), [](int n) { return n == 1; }));
    CHECK(a.in == b.in);
    CHECK(a.detected == b.detected);
    CHECK(a.h == b.h);
    CHECK(a.margins == b.margins);
  }
}

TEST_CASE("hybrid observe: inputs, detect values, h and margins are those of the host alone, by unit") {
  std::mt19937_64 random(71);
  for (const Family& family : kFamilies)
    for (const DType dtype : kThreadsOnly ? std::vector<DType>{DType::kQ4_0}
                                          : std::vector<DType>{DType::kF32, DType::kQ8_0, DType::kQ4_0, DType::kQ4_K}) {
      if (!is_plain_layer(family) && dtype != DType::kQ4_0) continue;
      TinySpec spec = spec_of(family, dtype);
      spec.n_layer = 4, spec.seed = random();
      const auto model = load_tiny(spec);
      const Ids ids = random_tokens(random(), 14, 270);
      for (const bool predicts : {false, true}) {
        if (predicts && !is_sparse(family.activation)) continue;
        CAPTURE(family.arch);
        CAPTURE(activation_name(family.activation));
        CAPTURE(dtype_name(dtype));
        CAPTURE(predicts);
        // A placement for a mode that skips units serves too: what observers want is computed on either side of it.
        EngineOptions options = hybrid_options(random, spec, is_sparse(family.activation) ? "exact" : "dense");
        if (random() % 4 == 0) options.units_by_slot = std::make_shared<const std::vector<std::vector<int32_t>>>();
        options.mode = predicts ? "predict" : "dense";
        options.predictor = predicts ? "bit_planes:2:0.3" : "";
        EngineOptions host = options;
        host.device = "cpu", host.n_threads = 2;
        Logits expected_logits, logits;
        const UnitRecorder expected = seen(model, host, ids, expected_logits), got = seen(model, options, ids, logits);
        check_equal(got, expected);
        CHECK(logits == expected_logits);
      }
    }
}

void check_equal(const ProfileState& got, const ProfileState& expected) {
  CHECK(got.n_tokens == expected.n_tokens);
  CHECK(got.samples.tokens == expected.samples.tokens);
  REQUIRE(got.layers.size() == expected.layers.size());
  for (size_t i = 0; i < got.layers.size(); ++i) {
    CHECK(got.layers[i].counts == expected.layers[i].counts);
    CHECK(got.layers[i].h_sums == expected.layers[i].h_sums);
    CHECK(got.layers[i].overlap == expected.layers[i].overlap);
    CHECK(got.layers[i].threshold == expected.layers[i].threshold);
    CHECK(got.samples.layers[i].input == expected.samples.layers[i].input);
    CHECK(got.samples.layers[i].mask == expected.samples.layers[i].mask);
  }
}

std::vector<Ids> some_sequences() {
  std::vector<Ids> out;
  for (const size_t n : {1, 40, 16, 7, 33, 2, 90}) out.push_back(random_tokens(20 + n, n, 270));
  return out;
}

TEST_CASE("hybrid observe: a profile counts the same, in as many sequences at a time as there is memory for") {
  std::mt19937_64 random(73);
  const std::vector<Ids> sequences = some_sequences();
  for (const Activation activation : {Activation::kRelu, Activation::kSilu}) {
    TinySpec spec = spec_of({"llama", activation}, DType::kQ8_0);
    spec.n_layer = 3;
    const auto model = load_tiny(spec);
    const auto profile = [&](EngineOptions options) {
      Profiler profiler(model, options, 20);
      profiler.calibrate(sequences, 0.01);
      profiler.add(std::span(sequences).first(3));
      profiler.add(std::span(sequences).subspan(3));
      return profiler.state();
    };
    EngineOptions host{.n_threads = 2, .n_ctx = 96, .n_batch = 16};
    const ProfileState expected = profile(host);
    for (const int32_t n_sequences : {0, 1, 2, 5}) {
      EngineOptions options = hybrid_options(random, spec, "dense");
      options.n_ctx = 96, options.n_batch = 16, options.n_sequences = n_sequences;
      CAPTURE(n_sequences);
      check_equal(profile(options), expected);
      host.n_sequences = n_sequences;
      check_equal(profile(host), expected);
    }
  }
}

TEST_CASE("hybrid observe: calibration counts the same") {
  std::mt19937_64 random(79);
  const std::vector<Ids> sequences = some_sequences();
  TinySpec spec = spec_of({"opt", Activation::kRelu}, DType::kQ8_0);
  spec.n_layer = 3;
  const auto model = load_tiny(spec);
  const auto histograms = [&](EngineOptions options) {
    options.predictor = "bit_planes:2:0", options.mode = "predict";
    Calibrator calibrator(model, options, {-2, 2, 32});
    calibrator.add(sequences);
    return calibrator.layers();
  };
  const std::vector<SlackHistogram> expected = histograms({.n_threads = 2, .n_ctx = 96});
  for (int i = 0; i < 3; ++i) {
    EngineOptions options = hybrid_options(random, spec, "exact");
    options.n_ctx = 96;
    const std::vector<SlackHistogram> got = histograms(options);
    REQUIRE(got.size() == expected.size());
    for (size_t layer = 0; layer < got.size(); ++layer) {
      CHECK(got[layer].units == expected[layer].units);
      CHECK(got[layer].active == expected[layer].active);
      CHECK(got[layer].mass == expected[layer].mass);
    }
  }
}

TEST_CASE("hybrid observe: an observer's error ends the step on both sides") {
  class Fails final : public UnitObserver {
   public:
    void begin_step(const std::vector<Row>&) override {}
    void observe(const ObservedUnits&) override {
      if (--left == 0) throw std::runtime_error("seen enough");
    }
    std::atomic<int> left{3};
  } fails;
  std::mt19937_64 random(83);
  const TinySpec spec{.n_layer = 3, .n_ff = 320};
  const auto model = load_tiny(spec);
  EngineOptions options = hybrid_options(random, spec, "dense");
  options.observer = &fails;
  const auto engine = Engine::create(model, options);
  Session session = engine->open_session();
  const Ids ids = random_tokens(1, 5, 270);
  CHECK_THROWS_WITH(session.prefill(ids), "seen enough");
  CHECK(session.n_past() == 0);
  session.prefill(ids);
  const Logits got(session.logits().begin(), session.logits().end());
  Session host = Engine::create(model, {.n_threads = 1, .mode = "dense"})->open_session();
  host.prefill(ids);
  CHECK(got == Logits(host.logits().begin(), host.logits().end()));
}

TEST_CASE("hybrid observe: what an observed engine takes is planned to the byte") {
  const TinySpec spec{.n_layer = 3, .n_ff = 320, .dtype = DType::kQ8_0};
  const auto model = load_tiny(spec);
  UnitRecorder recorder(model->config());
  EngineOptions options{
      .n_threads = 1, .n_ctx = 64, .n_batch = 8, .n_sequences = 2, .device = "virtual", .observer = &recorder};
  options.vram_budget = uint64_t{1} << 20;
  const auto engine = Engine::create(model, options);  // checks what its device has taken
  CHECK(engine->info().device_bytes <= *options.vram_budget);
  CHECK(engine->info().device_weight_bytes > 0);
}

}  // namespace
