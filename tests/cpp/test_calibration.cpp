// Calibration: a threshold proposes and misses exactly what the histograms say.
#include <doctest/doctest.h>

#include <cmath>
#include <numeric>

#include "core/calibration.h"
#include "core/profile.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;
using Sequences = std::vector<std::vector<int32_t>>;

EngineOptions by(const std::string& predictor, int32_t n_threads = 2) {
  return {.n_threads = n_threads, .mode = "predict", .predictor = predictor};
}

// Candidates and active ones among them that a run at this threshold counts.
UnitCounts counts_at(const std::shared_ptr<const Model>& model, const Sequences& sequences,
                     const std::string& predictor) {
  const auto engine = Engine::create(model, by(predictor));
  for (const auto& sequence : sequences) engine->open_session().prefill(sequence);
  return engine->unit_counts();
}

template <class T>
T sum_to(const std::vector<T>& bins, size_t n) {
  return std::accumulate(bins.begin(), bins.begin() + static_cast<std::ptrdiff_t>(n), T{});
}

TEST_CASE("calibration: bins add up to what a run with that threshold counts") {
  const auto model = load_tiny({.n_layer = 1, .n_ff = 1200, .seed = 5});  // a layer, whose input no threshold changes
  const Sequences sequences = {random_tokens(1, 40, 270), random_tokens(2, 25, 270)};
  for (const int n_bits : {1, 2, 3}) {
    Calibrator calibrator(model, by(cat("bit_planes:", n_bits, ":0")), {-4, 4, 64});
    calibrator.add(std::span(sequences).first(1));
    calibrator.add(std::span(sequences).last(1));
    const std::vector<SlackHistogram> layers = calibrator.layers();
    REQUIRE(layers.size() == 1);
    CHECK(sum_to(layers[0].units, 64) == 65 * 1200);
    for (const int end : {8, 24, 32, 40, 52}) {  // thresholds that are bin ends
      CAPTURE(n_bits);
      CAPTURE(end);
      const UnitCounts counts = counts_at(model, sequences, cat("bit_planes:", n_bits, ":", -4 + end / 8.0));
      const auto near = [](uint64_t got,
                           uint64_t expected) {  // slacks are rounded: some lie on the other side of an end
        return std::fabs(static_cast<double>(got) - static_cast<double>(expected)) <= 2;
      };
      CHECK(near(sum_to(layers[0].units, static_cast<size_t>(end)), counts.candidates));
      CHECK(near(sum_to(layers[0].active, static_cast<size_t>(end)), counts.active));
      CHECK(counts.candidates > 0);
    }
  }
}

TEST_CASE("calibration: the same counts and masses whatever the threads, batch and the threshold it starts from") {
  const auto model = load_tiny({.n_layer = 12, .n_ff = 700, .dtype = DType::kQ8_0});
  const Sequences sequences = {random_tokens(3, 30, 270), random_tokens(4, 20, 270)};
  const auto count = [&](EngineOptions options) {
    Calibrator calibrator(model, options, {-2, 2, 32});
    calibrator.add(sequences);
    return calibrator.layers();
  };
  const std::vector<SlackHistogram> base = count(by("bit_planes:2:0", 1));
  REQUIRE(base.size() == 12);
  for (const int32_t n_threads : {2, 5})
    for (const int32_t n_batch : {1, 7, 512}) {
      EngineOptions options = by("bit_planes:2:0", n_threads);
      options.n_batch = n_batch;
      const std::vector<SlackHistogram> got = count(options);
      for (size_t i = 0; i < got.size(); ++i) {
        CHECK(got[i].units == base[i].units);
        CHECK(got[i].active == base[i].active);
        CHECK(got[i].mass == base[i].mass);
      }
    }
  const std::vector<SlackHistogram> shifted = count(by("bit_planes:2:0.75"));
  for (size_t i = 0; i < shifted.size(); ++i)
    for (size_t bin = 0; bin < 32; ++bin)  // rounding of margins may move a few
      CHECK(std::fabs(static_cast<double>(shifted[i].units[bin]) - static_cast<double>(base[i].units[bin])) <= 3);
}

TEST_CASE("calibration: masses are those of the profile") {
  const auto model = load_tiny({.n_layer = 1, .n_ff = 128});
  const Sequences sequences = {random_tokens(6, 30, 270)};
  Calibrator calibrator(model, by("bit_planes:2:0"), {});
  calibrator.add(sequences);
  const SlackHistogram layer = calibrator.layers()[0];
  Profiler profiler(model, {.n_threads = 1}, 0);
  profiler.add(sequences);
  double mass = 0;
  uint64_t n_active = 0;
  for (size_t unit = 0; unit < 128; ++unit) {
    mass += profiler.state().layers[0].h_sums[unit] * profiler.down_norms()[0][unit];
    n_active += profiler.state().layers[0].counts[unit];
  }
  CHECK(sum_to(layer.active, layer.active.size()) == n_active);
  CHECK(sum_to(layer.mass, layer.mass.size()) == doctest::Approx(mass).epsilon(1e-9));
}

TEST_CASE("calibration: what cannot be calibrated, and a pass that fails counts nothing") {
  const auto model = load_tiny({});
  CHECK_THROWS_AS(Calibrator(model, by("bit_planes:2:inf"), {}), std::invalid_argument);
  CHECK_THROWS_AS(Calibrator(model, by("bit_planes:2"), {1, 1, 8}), std::invalid_argument);
  CHECK_THROWS_AS(Calibrator(model, by("bit_planes:2"), {0, 1, 1}), std::invalid_argument);
  CHECK_THROWS_AS(Calibrator(model, by("bit_planes:2"), {0, HUGE_VAL, 8}), std::invalid_argument);
  CHECK_THROWS_AS(Calibrator(load_tiny({.activation = Activation::kSilu}), by("bit_planes:2"), {}),
                  UnsupportedModelError);
  Calibrator calibrator(model, by("bit_planes:2:0"), {});
  CHECK(calibrator.layers()[0].units.empty());
  const Sequences sequences = {random_tokens(6, 30, 270)};
  CHECK_THROWS_AS(calibrator.add(sequences, [] { return true; }), CancelledError);
  CHECK(calibrator.layers()[0].units.empty());
  calibrator.add(sequences);
  CHECK(sum_to(calibrator.layers()[1].units, 1024) == 30 * 96);
}

}  // namespace
