// Placement: the knapsack and the time model against brute force, what budgets may do, and shortening.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>

#include "core/knapsack.h"
#include "core/placement.h"

namespace {

using namespace hotset;
using Random = std::mt19937_64;

double uniform(Random& random, double low, double high) {
  return low + (high - low) * static_cast<double>(random() >> 11) / 9007199254740992.0;
}
int64_t integer(Random& random, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
}

// Least cost within the limit by trying everything; infinite when nothing fits.
double brute_force(const std::vector<std::vector<Alternative>>& classes, int64_t limit) {
  double best = std::numeric_limits<double>::infinity();
  const std::function<void(size_t, int64_t, double)> walk = [&](size_t at, int64_t weight, double cost) {
    if (weight > limit) return;
    if (at == classes.size()) {
      best = std::min(best, cost);
      return;
    }
    for (const Alternative& each : classes[at]) walk(at + 1, weight + each.weight, cost + each.cost);
  };
  walk(0, 0, 0);
  return best;
}

std::vector<std::vector<Alternative>> random_classes(Random& random, int64_t n_classes, int64_t n_most) {
  std::vector<std::vector<Alternative>> out;
  for (int64_t c = 0; c < n_classes; ++c) {
    std::vector<Alternative> points;
    for (int64_t i = integer(random, 1, n_most); i > 0; --i)
      points.push_back({integer(random, 0, 20), static_cast<double>(integer(random, 0, 12))});
    out.emplace_back();
    for (const size_t i : pareto(points)) out.back().push_back(points[i]);
  }
  return out;
}

TEST_CASE("knapsack: equals brute force, with equal weights, equal costs and limits that nothing meets") {
  Random random(11);
  for (int round = 0; round < 2000; ++round) {
    CAPTURE(round);
    const auto classes = random_classes(random, integer(random, 1, 5), 7);
    const int64_t limit = integer(random, 0, 60);
    const double best = brute_force(classes, limit);
    const KnapsackResult got = solve_knapsack(classes, limit, {0, 1 << 20});
    CHECK(got.feasible == std::isfinite(best));
    if (!got.feasible) continue;
    int64_t weight = 0;
    double cost = 0;
    for (size_t c = 0; c < classes.size(); ++c) {
      weight += classes[c][got.chosen[c]].weight;
      cost += classes[c][got.chosen[c]].cost;
    }
    CHECK(weight <= limit);
    CHECK(cost == got.cost);
    CHECK(got.cost == best);
    CHECK(got.bound <= got.cost);
    CHECK(got.bound >= got.cost * (1 - 1e-9));
  }
}

TEST_CASE("knapsack: the bound stays below the best when the search is cut short") {
  Random random(12);
  for (int round = 0; round < 300; ++round) {
    CAPTURE(round);
    const auto classes = random_classes(random, 5, 7);
    const int64_t limit = integer(random, 10, 60);
    const double best = brute_force(classes, limit);
    for (const KnapsackOptions& options : {KnapsackOptions{0, 1}, KnapsackOptions{0, 4}, KnapsackOptions{0.2, 1000}}) {
      const KnapsackResult got = solve_knapsack(classes, limit, options);
      if (!got.feasible) continue;
      CHECK(got.bound <= best * (1 + 1e-12));
      CHECK(got.cost >= best);
    }
  }
}

TEST_CASE("knapsack: pareto keeps what no other alternative beats") {
  CHECK(pareto({{3, 1}, {1, 5}, {2, 5}, {3, 0.5}, {1, 5}, {9, 0.5}, {2, 4}}) == std::vector<size_t>{1, 6, 3});
}

constexpr double kHandoff = 10e-6;

struct Shape {
  int64_t n_layer = 3, n_units = 4;
  uint64_t detect_bytes = 1000, unit_bytes = 2000;
  bool is_dense = false;
  double predictor_share = 0;  // predictor bytes per detect byte
  double handoff = kHandoff;
  bool only_device_predicts = false;
};

PlacementProblem random_problem(Random& random, const Shape& shape) {
  PlacementProblem out;
  out.unit_step = 1;
  out.tolerance = 0;
  out.max_nodes = 1 << 20;
  out.handoff_seconds = shape.handoff;
  out.head_bytes = static_cast<uint64_t>(integer(random, 1, 4)) * 1000;
  for (int64_t l = 0; l < shape.n_layer; ++l) {
    PlacementLayer layer;
    for (int64_t i = 0; i < shape.n_units; ++i)
      layer.frequency.push_back(shape.is_dense ? 1 : std::pow(uniform(random, 0, 1), 3));
    std::sort(layer.frequency.rbegin(), layer.frequency.rend());
    layer.detect_bytes = shape.is_dense ? 0 : shape.detect_bytes;
    layer.unit_bytes = shape.unit_bytes + (shape.is_dense ? shape.detect_bytes : 0);
    layer.predictor_unit_bytes = static_cast<uint64_t>(shape.predictor_share * static_cast<double>(shape.detect_bytes));
    layer.predictor_bytes = shape.predictor_share > 0 ? 70 : 0;
    layer.only_device_predicts = shape.only_device_predicts;
    layer.over_selection = shape.predictor_share > 0 ? 1.5 : 1;
    layer.attention_bytes = static_cast<uint64_t>(integer(random, 1, 6)) * 1000;
    layer.kv_bytes = random() % 4 == 0 ? 9000 : 500, layer.kv_read_bytes = 250;
    layer.device = {1, {{0.01, 0.3}, {0.1, 0.5}}};
    layer.host = {0.05, {{0.02, 0.02}, {0.1, 0.025}, {0.5, 0.04}}};
    out.layers.push_back(layer);
  }
  return out;
}

// All placements of a tiny problem, by the definitions of placement.h alone.
double best_by_trying_all(const PlacementProblem& problem) {
  std::vector<std::vector<LayerPlacement>> layers;
  for (const PlacementLayer& layer : problem.layers) {
    layers.emplace_back();
    for (const auto& [attention, host_kv] :
         {std::pair{Place::kHost, false}, {Place::kDevice, false}, {Place::kDevice, true}}) {
      layers.back().push_back({0, DetectPlace::kHost, attention, false, host_kv});
      layers.back().push_back({layer.n_units(), DetectPlace::kDevice, attention, false, host_kv});
      for (int64_t n_hot = 0; n_hot < layer.n_units(); ++n_hot) {
        if (layer.predicts()) layers.back().push_back({n_hot, DetectPlace::kSplit, attention, true, host_kv});
        if (layer.only_device_predicts) continue;
        if (layer.detect_bytes > 0) layers.back().push_back({n_hot, DetectPlace::kDevice, attention, false, host_kv});
        if (n_hot > 0) layers.back().push_back({n_hot, DetectPlace::kSplit, attention, false, host_kv});
      }
    }
  }
  double best = std::numeric_limits<double>::infinity();
  Placement placement;
  const std::function<void(size_t)> walk = [&](size_t at) {
    if (at < layers.size()) {
      for (const LayerPlacement& each : layers[at]) {
        placement.layers.push_back(each);
        walk(at + 1);
        placement.layers.pop_back();
      }
      return;
    }
    for (const Place head : {Place::kHost, Place::kDevice}) {
      placement.head = head;
      if (device_bytes(problem, placement) <= problem.budget)
        best = std::min(best, predict_seconds(problem, placement));
    }
  };
  walk(0);
  return best;
}

TEST_CASE("placement: equals brute force on tiny instances, for every kind of layer") {
  Random random(21);
  const Shape shapes[] = {{2, 4},
                          {3, 2},
                          {2, 3, 1000, 2000, false, 0.2},
                          {2, 3, 1000, 2000, false, 0.02, 1e-7},
                          {2, 3, 1000, 2000, false, 0.2, kHandoff, true},
                          {3, 2, 1000, 1000, true},
                          {2, 4, 1000, 2000, false, 0, 0},
                          {2, 4, 1000, 2000, false, 0, 1}};
  for (int round = 0; round < 240; ++round) {
    CAPTURE(round);
    PlacementProblem problem = random_problem(random, shapes[round % std::size(shapes)]);
    problem.fixed_bytes = round % 3 == 0 ? 1500 : 0;
    problem.budget = static_cast<uint64_t>(integer(random, 0, 60)) * 1000;
    const Placement got = place(problem);
    CHECK(got.seconds == doctest::Approx(best_by_trying_all(problem)).epsilon(1e-9));
    CHECK(got.seconds == predict_seconds(problem, got));
    CHECK(got.device_bytes == device_bytes(problem, got));
    CHECK(got.device_bytes <= problem.budget);
    CHECK(got.gap() >= 0);
    CHECK(got.gap() < 1e-9);
  }
}

TEST_CASE("placement: the time of one layer, term by term") {
  PlacementProblem problem;
  problem.handoff_seconds = 1;
  problem.head_bytes = 5'000'000'000;
  PlacementLayer layer;
  layer.frequency = {1, 0.5, 0.5, 0};
  layer.detect_bytes = 1'000'000'000, layer.unit_bytes = 2'000'000'000;
  layer.attention_bytes = 3'000'000'000, layer.kv_bytes = 9, layer.kv_read_bytes = 1'000'000'000;
  layer.device = {10, {{0.5, 4}}};
  layer.host = {2, {{0.25, 1}}};
  problem.layers = {layer};
  Placement at;
  at.layers = {{0, DetectPlace::kHost, Place::kHost}};
  // 4 / 2 attention, 4 / 2 detect; 2 of 4 units active, half way from 1 to 2 GB/s in logarithms; 5 / 2 head.
  CHECK(predict_seconds(problem, at) == doctest::Approx(2 + 2 + 2 * 2 / 1.5 + 2.5));
  CHECK(device_bytes(problem, at) == 0);
  at.layers = {{4, DetectPlace::kDevice, Place::kDevice}}, at.head = Place::kDevice;
  CHECK(predict_seconds(problem, at) == doctest::Approx(0.4 + 0.4 + std::min(4 / 4.0, 8 / 10.0) + 0.5));
  CHECK(device_bytes(problem, at) == 4 * 3'000'000'000 + 3'000'000'009 + 5'000'000'000);
  at.layers = {{1, DetectPlace::kDevice, Place::kDevice}};
  // Hot: all of one unit, in order. Cold: 1 of 3 units active, its rate between density 0.25 and 1; a hand-off.
  const double cold = 2 / (1 + std::log((1 / 3.0) / 0.25) / std::log(4.0));
  CHECK(predict_seconds(problem, at) == doctest::Approx(0.4 + 0.4 + std::max(0.2, cold + 1) + 0.5));
  at.layers = {{1, DetectPlace::kSplit, Place::kHost}};
  CHECK(predict_seconds(problem, at) == doctest::Approx(2 + 1 + std::max(0.3, 3 / 2.0 + cold + 1) + 0.5));
  CHECK(device_bytes(problem, at) == 3'000'000'000 + 5'000'000'000);
}

TEST_CASE("placement: the time and bytes of a predicted layer, term by term") {
  PlacementProblem problem;
  problem.handoff_seconds = 1;
  PlacementLayer layer;
  layer.frequency = {1, 1, 0.25, 0.25};
  layer.detect_bytes = 1'000'000'000, layer.unit_bytes = 2'000'000'000;
  layer.predictor_bytes = 400'000'000, layer.predictor_unit_bytes = 100'000'000, layer.over_selection = 1.5;
  layer.device = {10, {}}, layer.host = {1, {}};
  problem.layers = {layer};
  Placement at;
  const auto seconds = [&](const LayerPlacement& place) {
    at.layers = {place};
    return predict_seconds(problem, at);
  };
  const auto bytes = [&](const LayerPlacement& place) {
    at.layers = {place};
    return device_bytes(problem, at);
  };
  // Candidates are 1.5 of those that fire, but no more than there are: of the first two units 2, of the others 0.75.
  // Of all four the 2.5 that fire make 3.75.
  CHECK(seconds({0, DetectPlace::kHost, Place::kHost}) == doctest::Approx(0.8 + 3.75 + 2.5 * 2));
  CHECK(seconds({4, DetectPlace::kDevice, Place::kDevice}) ==
        doctest::Approx((0.8 + 3.75 + 2.5 * 2) / 10 + 1));  // head
  // Everything that decides on the device: only its products cross.
  const LayerPlacement whole{2, DetectPlace::kDevice, Place::kDevice};
  CHECK(seconds(whole) == doctest::Approx((0.8 + 3.75) / 10 + (0.5 * 2 + 1) + 1));
  CHECK(bytes(whole) == uint64_t{4} * 1'100'000'000 + 400'000'000 + uint64_t{2} * 2'000'000'000);
  // Each side for itself, with what all units share on both.
  const LayerPlacement split{2, DetectPlace::kSplit, Place::kDevice};
  CHECK(seconds(split) == doctest::Approx(0.6 + 0.75 + 0.5 * 2 + 1 + 1));
  CHECK(bytes(split) == uint64_t{2} * 3'100'000'000 + 400'000'000);
  // The predictor on the device, candidates cross.
  const LayerPlacement apart{2, DetectPlace::kSplit, Place::kDevice, true};
  CHECK(seconds(apart) == doctest::Approx(0.8 / 10 + 0.75 + 0.5 * 2 + 1 + 1));
  CHECK(bytes(apart) == uint64_t{2} * 3'000'000'000 + uint64_t{4} * 100'000'000 + 400'000'000);
}

TEST_CASE("placement: where a predictor can be") {
  Random random(23);
  PlacementProblem problem = random_problem(random, {1, 4, 1000, 2000, false, 0.2});
  const auto can_be = [&](const LayerPlacement& place) {
    Placement at;
    at.layers = {place};
    try {
      check_placement(problem, at);
      return true;
    } catch (const std::invalid_argument&) {
      return false;
    }
  };
  const LayerPlacement apart{2, DetectPlace::kSplit, Place::kHost, true}, split{2, DetectPlace::kSplit, Place::kHost};
  CHECK(can_be(apart));
  CHECK(can_be({0, DetectPlace::kSplit, Place::kHost, true}));
  CHECK_FALSE(can_be({4, DetectPlace::kSplit, Place::kHost, true}));
  CHECK_FALSE(can_be({0, DetectPlace::kHost, Place::kHost, true}));
  CHECK_FALSE(can_be({2, DetectPlace::kDevice, Place::kHost, true}));
  CHECK(can_be(split));
  problem.layers[0].only_device_predicts = true;
  CHECK(can_be(apart));
  CHECK_FALSE(can_be(split));
  CHECK_FALSE(can_be({2, DetectPlace::kDevice, Place::kHost}));
  CHECK(can_be({4, DetectPlace::kDevice, Place::kHost}));
  problem.layers[0].predictor_bytes = problem.layers[0].predictor_unit_bytes = 0;
  problem.layers[0].only_device_predicts = false;
  CHECK(can_be(split));
  CHECK_FALSE(can_be(apart));
}

TEST_CASE("placement: more memory is never slower; none is the host, enough is the device") {
  Random random(31);
  for (const bool is_dense : {false, true}) {
    Shape shape{12, 96, 1000, 2000, is_dense};
    PlacementProblem problem = random_problem(random, shape);
    problem.tolerance = 1e-6, problem.max_nodes = 1000;
    problem.fixed_bytes = 4000;
    const uint64_t everything = 12 * (96 * 3000 + 6500) + 4000 + 4000;
    double last = std::numeric_limits<double>::infinity();
    for (uint64_t budget = 0; budget <= everything + 100000; budget += 29973) {
      CAPTURE(budget);
      problem.budget = budget;
      const Placement got = place(problem);
      CHECK(got.device_bytes <= budget);
      CHECK(got.seconds <= last * (1 + 1e-6));  // the tolerance of the search
      if (budget == 0) CHECK(!got.uses_device());
      last = std::min(last, got.seconds);
    }
    problem.budget = everything;
    const Placement all = place(problem);
    CHECK(all.head == Place::kDevice);
    for (const LayerPlacement& at : all.layers) CHECK(at.attention == Place::kDevice);
    problem.handoff_seconds = 1;  // without hand-offs this dear, two sides that read at once may be faster
    for (const LayerPlacement& at : place(problem).layers) CHECK(at.n_hot == 96);
    problem.budget = problem.fixed_bytes - 1;
    CHECK(!place(problem).uses_device());
  }
}

// Frequencies of which 26 % of the units have 80 % of the activations, one tenth active on average.
std::vector<double> skewed(int64_t n) {
  std::vector<double> out;
  const double power = std::log(0.8) / std::log(0.26);
  for (int64_t i = 0; i < n; ++i) {
    const double share = std::pow((i + 1.0) / n, power) - std::pow(static_cast<double>(i) / n, power);
    out.push_back(std::min(1.0, 0.1 * n * share));
  }
  return out;
}

TEST_CASE("placement: 80 layers of 28672 units are placed with a small proven gap") {
  PlacementProblem problem;
  problem.handoff_seconds = 12e-6;
  problem.head_bytes = 148 << 20;
  problem.fixed_bytes = 500 << 20;
  PlacementLayer layer;
  layer.detect_bytes = 4608, layer.unit_bytes = 9216;
  layer.attention_bytes = 80 << 20, layer.kv_bytes = 16 << 20, layer.kv_read_bytes = 8 << 20;
  layer.device = {900, {{0.02, 300}, {0.1, 500}, {0.5, 700}}};
  layer.host = {60, {{0.02, 30}, {0.05, 33}, {0.1, 36}, {0.2, 40}, {0.5, 48}}};
  layer.frequency = skewed(28672);
  for (int l = 0; l < 80; ++l) {
    problem.layers.push_back(layer);
    for (double& f : layer.frequency) f *= 0.995;  // no two layers alike
  }
  double last = std::numeric_limits<double>::infinity();
  for (const uint64_t gib : {0, 4, 8, 11, 16, 24, 32, 48}) {
    CAPTURE(gib);
    problem.budget = gib << 30;
    const Placement got = place(problem);
    CHECK(got.gap() <= 2e-3);
    CHECK(got.seconds <= last);
    CHECK(got.device_bytes <= problem.budget);
    last = got.seconds;
    const Placement again = place(problem);
    for (size_t l = 0; l < 80; ++l) CHECK(again.layers[l].n_hot == got.layers[l].n_hot);
  }
}

TEST_CASE("placement: shortening fits any budget, only takes away, and takes the rarest units first") {
  Random random(41);
  for (const double predictor : {0.0, 0.2}) {
    PlacementProblem problem = random_problem(random, {5, 40, 1000, 2000, false, predictor});
    problem.max_nodes = 100, problem.tolerance = 1e-3, problem.unit_step = 8;
    problem.fixed_bytes = 3000;
    problem.budget = 400000;
    const Placement full = place(problem);
    REQUIRE(full.uses_device());
    for (uint64_t budget = 0; budget <= full.device_bytes + 5000; budget += 777) {
      CAPTURE(budget);
      problem.budget = budget;
      const Placement got = shorten(problem, full);
      CHECK(device_bytes(problem, got) <= budget);
      CHECK(got.device_bytes == device_bytes(problem, got));
      if (budget >= full.device_bytes) CHECK(got.device_bytes == full.device_bytes);
      for (size_t l = 0; l < got.layers.size(); ++l) {
        CHECK(got.layers[l].n_hot <= full.layers[l].n_hot);
        CHECK((got.layers[l].n_hot % 8 == 0 || got.layers[l].n_hot == full.layers[l].n_hot));
        CHECK(got.layers[l].attention <= full.layers[l].attention);
        // As long as units are hot, only units were taken.
        if (got.layers[l].n_hot > 0) CHECK(got.layers[l].attention == full.layers[l].attention);
      }
    }
    problem.budget = full.device_bytes - 1;
    const Placement one = shorten(problem, full);
    double taken = 0, least_left = 1;
    for (size_t l = 0; l < one.layers.size(); ++l) {
      const auto& f = problem.layers[l].frequency;
      const int64_t n = one.layers[l].n_hot;
      if (n < full.layers[l].n_hot) taken = std::max(taken, f[static_cast<size_t>(n)]);
      if (n > 0) least_left = std::min(least_left, f[static_cast<size_t>((n - 1) / 8 * 8)]);
    }
    CHECK(taken <= least_left);
  }
}

TEST_CASE("placement: bad input is refused") {
  Random random(51);
  const auto expect_bad = [&](const std::function<void(PlacementProblem&)>& spoil) {
    PlacementProblem problem = random_problem(random, {});
    problem.budget = 20000;
    spoil(problem);
    CHECK_THROWS_AS(place(problem), std::invalid_argument);
  };
  using P = PlacementProblem;
  expect_bad([](P& p) { p.layers.clear(); });
  expect_bad([](P& p) { p.layers[1].frequency[2] = NAN; });
  expect_bad([](P& p) { p.layers[1].frequency[0] = 1.5; });
  expect_bad([](P& p) { p.layers[1].frequency[3] = -0.1; });
  expect_bad([](P& p) { p.layers[0].frequency = {0.1, 0.2}; });
  expect_bad([](P& p) { p.layers[0].host.dense_gbps = 0; });
  expect_bad([](P& p) { p.layers[0].device.dense_gbps = INFINITY; });
  expect_bad([](P& p) { p.layers[0].device.gathered[0].density = 0.5; });
  expect_bad([](P& p) { p.layers[0].host.gathered[0].gbps = -1; });
  expect_bad([](P& p) { p.layers[2].over_selection = 0.5; });
  expect_bad([](P& p) { p.layers[2].kv_bytes = UINT64_MAX; });
  expect_bad([](P& p) { p.layers[2].unit_bytes = UINT64_MAX; });
  expect_bad([](P& p) { p.head_bytes = UINT64_MAX; });
  expect_bad([](P& p) { p.handoff_seconds = NAN; });
  expect_bad([](P& p) { p.unit_step = 0; });
  Placement wrong;
  wrong.layers.resize(2);
  CHECK_THROWS_AS(shorten(random_problem(random, {}), wrong), std::invalid_argument);
  wrong.layers.resize(3);
  wrong.layers[0] = {5, DetectPlace::kDevice, Place::kHost};
  CHECK_THROWS_AS(shorten(random_problem(random, {}), wrong), std::invalid_argument);
  PlacementProblem empty = random_problem(random, {});
  empty.layers[0].frequency.clear();  // a layer without units is just never hot
  empty.budget = 20000;
  CHECK(place(empty).layers[0].n_hot == 0);
}

}  // namespace
