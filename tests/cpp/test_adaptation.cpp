// Which units change places while generating: what is decided, by numbers alone.
#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <stdexcept>

#include "core/adaptation.h"

namespace {

using namespace hotset;

// Slots of one layer whose units fire as they are told, and what is decided about them.
struct OneLayer {
  OneLayer(const AdaptiveLayer& layer, const AdaptationOptions& options)
      : adaptation({layer}, options), tallies(static_cast<size_t>(layer.n_units)) {}

  // A step of n_rows rows; fires(unit) of them make a unit active. Makes the swaps that are chosen.
  template <class Fires>
  std::vector<SlotSwap> step(int64_t n_rows, Fires fires) {
    adaptation.begin_step(n_rows);
    for (size_t slot = 0; slot < tallies.size(); ++slot)
      tallies[slot] += static_cast<uint32_t>(fires(adaptation.unit_of_slot(0, static_cast<int64_t>(slot))));
    std::vector<SlotSwap> out;
    for (const size_t layer : adaptation.end_step()) {
      adaptation.count(layer, tallies);
      const auto swaps = adaptation.choose(layer);
      out.assign(swaps.begin(), swaps.end());
      adaptation.swapped(layer, swaps);
    }
    return out;
  }
  bool is_hot(int32_t unit, int64_t n_hot) const {
    for (int64_t slot = 0; slot < n_hot; ++slot)
      if (adaptation.unit_of_slot(0, slot) == unit) return true;
    return false;
  }

  Adaptation adaptation;
  std::vector<uint32_t> tallies;
};

TEST_CASE("adaptation: units that fire alike stay where they are, others change places once") {
  OneLayer layer({100, 40}, {.window_rows = 64, .deviations = 3, .swaps_per_step = 4, .steps_per_round = 1});
  for (int i = 0; i < 500; ++i) CHECK(layer.step(1, [&](int32_t) { return i % 3 == 0; }).empty());
  // Units 90 to 99 fire always now, 0 to 9 never.
  int64_t n_swaps = 0;
  const auto fires = [](int32_t unit) { return unit >= 90 ? 1 : unit < 10 ? 0 : 1; };
  for (int i = 0; i < 500; ++i) n_swaps += std::ssize(layer.step(1, fires));
  CHECK(n_swaps == 10);
  for (int32_t unit = 0; unit < 10; ++unit) CHECK_FALSE(layer.is_hot(unit, 40));
  for (int32_t unit = 10; unit < 40; ++unit) CHECK(layer.is_hot(unit, 40));
}

TEST_CASE("adaptation: chance moves few units, and fewer the more deviations are asked for") {
  const auto n_swaps = [](double deviations) {
    std::mt19937_64 random(3);
    OneLayer layer({400, 100},
                   {.window_rows = 64, .deviations = deviations, .swaps_per_step = 16, .steps_per_round = 1});
    for (int i = 0; i < 2000; ++i) layer.step(1, [&](int32_t) { return random() % 4 == 0; });
    return layer.adaptation.n_swaps();
  };
  const uint64_t eager = n_swaps(0.5), calm = n_swaps(3);
  CHECK(eager > 1000);
  CHECK(calm * 50 < eager);
}

TEST_CASE("adaptation: no step makes more swaps than it may, nor many steps more than on average") {
  std::mt19937_64 random(7);
  AdaptationOptions options{
      .window_rows = 8, .deviations = 0.1, .swaps_per_step = 0.25, .max_swaps = 3, .steps_per_round = 1};
  OneLayer layer({64, 32}, options);
  int64_t n_swaps = 0;
  for (int i = 1; i <= 400; ++i) {
    const auto swaps = layer.step(1, [&](int32_t) { return random() % 2; });
    CHECK(swaps.size() <= 3);
    for (const SlotSwap& swap : swaps) CHECK((swap.hot >= 0 && swap.hot < 32 && swap.cold >= 32 && swap.cold < 64));
    n_swaps += std::ssize(swaps);
    CHECK(static_cast<double>(n_swaps) <= 3 + 0.25 * i);
  }
  CHECK(n_swaps >= 100);
  options.swaps_per_step = 0;
  OneLayer still({64, 32}, options);
  for (int i = 0; i < 400; ++i) still.step(1, [&](int32_t) { return random() % 2; });
  CHECK(still.adaptation.n_swaps() == 3);  // what there is at first
}

TEST_CASE("adaptation: frequencies and the prompt are where it starts from") {
  std::vector<double> frequencies(50);
  for (size_t i = 0; i < 50; ++i) frequencies[i] = 1 - 0.02 * static_cast<double>(i);
  const AdaptationOptions options{.window_rows = 100, .deviations = 3, .swaps_per_step = 16, .steps_per_round = 1};
  OneLayer known({50, 25, false, {}, frequencies}, options), unknown({50, 25}, options);
  CHECK(known.adaptation.weighted_count(0, 0) == doctest::Approx(100.5).epsilon(0.01));
  // A token is nothing against a profile, and little against none; a prompt is much.
  const auto backwards = [](int32_t unit) { return unit >= 25 ? 1 : 0; };
  CHECK(known.step(1, backwards).empty());
  CHECK(unknown.step(1, backwards).empty());
  CHECK(unknown.step(200, [&](int32_t unit) { return 200 * backwards(unit); }).size() == 16);
  CHECK(known.step(200, [&](int32_t unit) { return 200 * backwards(unit); }).size() == 16);
}

// Cold shares of a placement that adapts, and of the one that it starts from, in both halves of three stretches of
// text: of the topic that was profiled, of another one for which a third of the units fire as often as some other
// would, and of the first again. Texts of 250 rows have units that they favour, as real ones do.
struct Stretches {
  explicit Stretches(const AdaptationOptions& options) {
    constexpr size_t kUnits = 400, kHot = 140;
    std::mt19937_64 random(19);
    const auto often = [](size_t unit) { return 10000 / (20 + unit); };  // of 1000 rows
    std::vector<size_t> as(kUnits);  // the unit that it fires like in the other topic
    std::vector<double> frequencies;
    for (size_t unit = 0; unit < kUnits; ++unit) {
      as[unit] = random() % 3 == 0 ? random() % kUnits : unit;
      frequencies.push_back(static_cast<double>(often(unit)) / 1000);
    }
    OneLayer layer({kUnits, kHot, false, {}, frequencies}, options);
    std::vector<uint64_t> promille(kUnits);
    std::vector<bool> fires(kUnits);
    for (size_t half = 0; half < 6; ++half) {
      double n_fixed = 0, n_adapted = 0, n_active = 0;
      for (int row = 0; row < 1000; ++row) {
        for (size_t unit = 0; unit < kUnits && row % 250 == 0; ++unit)
          promille[unit] = often(half / 2 == 1 ? as[unit] : unit) * (random() % 4 == 0 ? 3 : 1) / 2;
        for (size_t unit = 0; unit < kUnits; ++unit) fires[unit] = random() % 1000 < promille[unit];
        for (size_t slot = 0; slot < kUnits; ++slot) {
          const int32_t unit = layer.adaptation.unit_of_slot(0, static_cast<int64_t>(slot));
          const bool is_active = fires[static_cast<size_t>(unit)];
          n_active += is_active, n_adapted += is_active && slot >= kHot, n_fixed += fires[slot] && slot >= kHot;
        }
        layer.step(1, [&](int32_t unit) { return fires[static_cast<size_t>(unit)]; });
      }
      fixed[half] = n_fixed / n_active, adapted[half] = n_adapted / n_active;
    }
  }
  double fixed[6], adapted[6];
};

TEST_CASE("adaptation: another topic is followed, and the return to the one that was profiled costs next to nothing") {
  const Stretches with({.steps_per_round = 1}), without({.prior_rows = 0, .steps_per_round = 1});
  for (size_t half = 0; half < 6; ++half) {
    CAPTURE(half);
    CHECK(with.adapted[half] < with.fixed[half] + (half / 2 == 1 ? -0.06 : 0.01));
  }
  CHECK(with.adapted[4] + with.adapted[5] < with.fixed[4] + with.fixed[5] + 0.01);
  CHECK(without.adapted[4] > with.adapted[4] + 0.01);  // what is known of units brings them back sooner
}

TEST_CASE("adaptation: layers that are all hot, all cold or fixed are counted and left alone") {
  for (const AdaptiveLayer& given : {AdaptiveLayer{20, 20}, AdaptiveLayer{20, 0}, AdaptiveLayer{20, 10, true}}) {
    OneLayer layer(given, {.window_rows = 8, .deviations = 0.1, .swaps_per_step = 16, .steps_per_round = 1});
    for (int i = 0; i < 50; ++i) CHECK(layer.step(1, [](int32_t unit) { return unit >= 10; }).empty());
    CHECK(layer.adaptation.choose(0).empty());
    layer.adaptation.count(0, layer.tallies);
    CHECK(layer.adaptation.counts_by_unit(0)[15] == 50);
  }
}

TEST_CASE("adaptation: layers take turns, and counts go along with units") {
  std::mt19937_64 random(13);
  std::vector<AdaptiveLayer> layers(7, AdaptiveLayer{30, 11});
  for (AdaptiveLayer& layer : layers) {
    layer.units_by_slot.resize(30);
    std::iota(layer.units_by_slot.begin(), layer.units_by_slot.end(), 0);
    std::shuffle(layer.units_by_slot.begin(), layer.units_by_slot.end(), random);
  }
  layers[3].n_hot = 0;
  Adaptation adaptation(layers, {.window_rows = 16, .deviations = 0.3, .swaps_per_step = 0.5, .steps_per_round = 4});
  std::vector<std::vector<uint64_t>> expected(7, std::vector<uint64_t>(30));
  std::vector<std::vector<uint32_t>> tallies(7, std::vector<uint32_t>(30, UINT32_MAX - 40));  // they wrap
  for (size_t layer = 0; layer < 7; ++layer) adaptation.begin_step(1), adaptation.count(layer, tallies[layer]);
  const std::vector<std::vector<uint64_t>> start = [&] {
    std::vector<std::vector<uint64_t>> out;
    for (size_t layer = 0; layer < 7; ++layer) out.push_back(adaptation.counts_by_unit(layer));
    return out;
  }();
  std::vector<int64_t> n_swaps(7);
  for (int i = 0; i < 300; ++i) {
    adaptation.begin_step(2);
    for (size_t layer = 0; layer < 7; ++layer)
      for (int64_t slot = 0; slot < 30; ++slot) {
        const uint32_t n = static_cast<uint32_t>(random() % 3);
        tallies[layer][static_cast<size_t>(slot)] += n;
        expected[layer][static_cast<size_t>(adaptation.unit_of_slot(layer, slot))] += n;
      }
    for (const size_t layer : adaptation.end_step()) {
      CHECK(layer != 3);
      adaptation.count(layer, tallies[layer]);
      const auto swaps = adaptation.choose(layer);
      n_swaps[layer] += std::ssize(swaps);
      adaptation.swapped(layer, swaps);
    }
  }
  for (size_t layer = 0; layer < 7; ++layer) {
    CAPTURE(layer);
    CHECK((n_swaps[layer] >= 5) == (layer != 3));
    adaptation.count(layer, tallies[layer]);
    std::vector<uint64_t> got = adaptation.counts_by_unit(layer);
    std::vector<bool> seen(30);
    for (size_t unit = 0; unit < 30; ++unit) got[unit] -= start[layer][unit];
    CHECK(got == expected[layer]);
    for (int64_t slot = 0; slot < 30; ++slot) seen[static_cast<size_t>(adaptation.unit_of_slot(layer, slot))] = true;
    CHECK(std::count(seen.begin(), seen.end(), true) == 30);
  }
}

TEST_CASE("adaptation: nonsense is refused") {
  CHECK_THROWS_AS(Adaptation({{10, 11}}, {}), std::invalid_argument);
  CHECK_THROWS_AS(Adaptation({{10, 5, false, {1, 0}}}, {}), std::invalid_argument);
  CHECK_THROWS_AS(Adaptation({{10, 5, false, {}, {1.0}}}, {}), std::invalid_argument);
  CHECK_THROWS_AS(Adaptation({}, {.window_rows = 0}), std::invalid_argument);
  CHECK_THROWS_AS(Adaptation({}, {.max_swaps = 0}), std::invalid_argument);
}

}  // namespace
