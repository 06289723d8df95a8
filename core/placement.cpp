#include "core/placement.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>
#include <tuple>

#include "core/error.h"
#include "core/knapsack.h"

namespace hotset {
namespace {

[[noreturn]] void fail(const std::string& what, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(error_text("placement", what, expected, got, "correct the input of the placement"));
}

constexpr uint64_t kMaxBytes = uint64_t{1} << 62;  // sums stay within 64 bits, and no file is as long

void check(const ReadRate& rate, const std::string& where) {
  if (!(rate.dense_gbps > 0) || !std::isfinite(rate.dense_gbps))
    fail(where, "a dense rate above 0", cat(rate.dense_gbps));
  double density = 0;
  for (const ReadRate::Gathered& each : rate.gathered) {
    if (!(each.density > density && each.density <= 1)) fail(where, "ascending densities up to 1", cat(each.density));
    if (!(each.gbps > 0) || !std::isfinite(each.gbps)) fail(where, "gathered rates above 0", cat(each.gbps));
    density = each.density;
  }
}

void check(const PlacementLayer& layer, size_t index, bool uses_device) {
  const std::string where = cat("layer ", index);
  double last = 1;
  for (const double f : layer.frequency) {
    if (!(f >= 0 && f <= 1)) fail(where + " unit frequency", "0 to 1", cat(f));
    if (f > last) fail(where + " unit frequencies", "descending ones", cat(f, " after ", last));
    last = f;
  }
  if (!(layer.over_selection >= 1 && layer.over_selection <= 1e6))
    fail(where + " over-selection", "1 or more", cat(layer.over_selection));
  const uint64_t most = kMaxBytes >> 24;  // 2^38: no layer has more, and a sum over layers and units stays in range
  for (const uint64_t bytes : {layer.predictor_bytes, layer.attention_bytes, layer.kv_bytes, layer.kv_read_bytes})
    if (bytes > most) fail(where + " bytes", cat("at most ", most), cat(bytes));
  if (layer.frequency.size() > (size_t{1} << 24)) fail(where + " units", "at most 2^24", cat(layer.frequency.size()));
  for (const uint64_t bytes : {layer.detect_bytes, layer.unit_bytes, layer.predictor_unit_bytes})
    if (bytes > (uint64_t{1} << 24)) fail(where + " bytes of a unit", "at most 2^24", cat(bytes));
  check(layer.host, where + " host");
  if (uses_device) check(layer.device, where + " device");
}

void check(const PlacementProblem& problem, bool uses_device) {
  if (problem.layers.empty()) fail("layers", "at least one", "none");
  if (problem.unit_step < 1) fail("unit step", "1 or more", cat(problem.unit_step));
  if (!(problem.handoff_seconds >= 0) || !std::isfinite(problem.handoff_seconds))
    fail("hand-off", "0 seconds or more", cat(problem.handoff_seconds));
  if (problem.head_bytes > kMaxBytes >> 16) fail("bytes of the head", "at most 2^46", cat(problem.head_bytes));
  if (problem.layers.size() > 4096) fail("layers", "at most 4096", cat(problem.layers.size()));
  for (size_t i = 0; i < problem.layers.size(); ++i) check(problem.layers[i], i, uses_device);
}

double giga(double gbps) { return gbps * 1e9; }

// Times and bytes of one layer's feed-forward network; the one place where the model of time is written down.
class FfnModel {
 public:
  FfnModel(const PlacementLayer& layer, double handoff)
      : layer_(layer), handoff_(handoff), expected_(layer.frequency.size() + 1) {
    std::partial_sum(layer.frequency.begin(), layer.frequency.end(), expected_.begin() + 1);
  }

  bool can_be(const LayerPlacement& at) const {
    const int64_t n = layer_.n_units();
    const bool apart = at.device_predicts;
    switch (at.detect) {
      case DetectPlace::kHost: return at.n_hot == 0 && !apart;
      case DetectPlace::kSplit:
        return at.n_hot < n && (apart ? layer_.predicts() : at.n_hot > 0 && !layer_.only_device_predicts);
      case DetectPlace::kDevice:
        return !apart && (at.n_hot == n || (layer_.detect_bytes > 0 && !layer_.only_device_predicts));
    }
    return false;
  }

  uint64_t bytes(const LayerPlacement& at) const {
    if (at.detect == DetectPlace::kHost) return 0;
    const int64_t n = layer_.n_units();
    return predictor_bytes(at.predictor_on_device() ? n : at.n_hot) +
           static_cast<uint64_t>(at.n_hot) * layer_.unit_bytes +
           static_cast<uint64_t>(at.detect == DetectPlace::kDevice ? n : at.n_hot) * layer_.detect_bytes;
  }

  // `gives_work`: the input is on the device, so that giving work to the host costs a hand-off.
  double seconds(const LayerPlacement& at, bool gives_work) const {
    const int64_t n = layer_.n_units(), hot = at.n_hot;
    if (at.detect == DetectPlace::kHost)
      return predict(layer_.host, n) + side(layer_.host, 0, n, true) + (gives_work ? handoff_ : 0);
    if (hot == n) return predict(layer_.device, n) + side(layer_.device, 0, n, true);
    const bool apart = at.detect == DetectPlace::kSplit;  // each side looks at the detect rows of its own units
    double always = 0, device = side(layer_.device, 0, hot, apart), host = side(layer_.host, hot, n, apart) + handoff_;
    if (at.predictor_on_device())
      always += predict(layer_.device, n);
    else
      device += predict(layer_.device, hot), host += predict(layer_.host, n - hot);
    if (!apart) always += detect(layer_.device, 0, n);
    return always + std::max(device, host);
  }

 private:
  // Of the predictor, with the rows of n units.
  uint64_t predictor_bytes(int64_t n) const {
    return n > 0 ? layer_.predictor_bytes + static_cast<uint64_t>(n) * layer_.predictor_unit_bytes : 0;
  }
  double predict(const ReadRate& rate, int64_t n) const {
    return static_cast<double>(predictor_bytes(n)) / giga(rate.dense_gbps);
  }

  double active(int64_t begin, int64_t end) const {
    return std::max(0.0, expected_[static_cast<size_t>(end)] - expected_[static_cast<size_t>(begin)]);
  }

  // Detect rows of units [begin, end): all, in order, or those of candidates.
  double detect(const ReadRate& rate, int64_t begin, int64_t end) const {
    const double n = static_cast<double>(end - begin);
    const double candidates = layer_.predicts() ? std::min(n, active(begin, end) * layer_.over_selection) : n;
    return rate.seconds(candidates, n, static_cast<double>(layer_.detect_bytes));
  }

  // One side's work on units [begin, end): their rows, of which the active ones are needed, and their detect rows.
  double side(const ReadRate& rate, int64_t begin, int64_t end, bool detects) const {
    const double n = static_cast<double>(end - begin);
    const double out = rate.seconds(active(begin, end), n, static_cast<double>(layer_.unit_bytes));
    return detects ? out + detect(rate, begin, end) : out;
  }

  const PlacementLayer& layer_;
  const double handoff_;
  std::vector<double> expected_;  // (n_units + 1) active units among the first ones
};

double attention_seconds(const PlacementLayer& layer, const LayerPlacement& at, double handoff) {
  const auto rate = [&](Place place) {
    return giga(place == Place::kDevice ? layer.device.dense_gbps : layer.host.dense_gbps);
  };
  const double weights = static_cast<double>(layer.attention_bytes), kv = static_cast<double>(layer.kv_read_bytes);
  const bool gives_work = at.attention == Place::kHost || at.kv() == Place::kHost;
  return weights / rate(at.attention) + kv / rate(at.kv()) + (gives_work ? handoff : 0);
}

uint64_t attention_bytes(const PlacementLayer& layer, const LayerPlacement& at) {
  return (at.attention == Place::kDevice ? layer.attention_bytes : 0) + (at.kv() == Place::kDevice ? layer.kv_bytes : 0);
}

double head_seconds(const PlacementProblem& problem, Place place, double handoff) {
  const PlacementLayer& layer = problem.layers[0];
  const double bytes = static_cast<double>(problem.head_bytes);
  return place == Place::kDevice ? bytes / giga(layer.device.dense_gbps)
                                 : bytes / giga(layer.host.dense_gbps) + handoff;
}

double layer_seconds(const FfnModel& ffn, const PlacementLayer& layer, const LayerPlacement& at, double handoff) {
  const bool all_on_host = at.attention == Place::kHost && at.detect == DetectPlace::kHost;
  return attention_seconds(layer, at, handoff) + ffn.seconds(at, !all_on_host);
}

uint64_t layer_bytes(const FfnModel& ffn, const PlacementLayer& layer, const LayerPlacement& at) {
  return attention_bytes(layer, at) + ffn.bytes(at);
}

// What one class of the knapsack may be, with what that means.
struct Options {
  std::vector<LayerPlacement> placements;
  std::vector<Alternative> alternatives;
};

// A layer's alternatives that no other one beats. Attention and FFN are chosen together, because a layer that is wholly on
// the host has one hand-off, not two.
Options layer_options(const PlacementProblem& problem, const PlacementLayer& layer) {
  const FfnModel ffn(layer, problem.handoff_seconds);
  const int64_t n = layer.n_units();
  Options all;
  const auto add = [&](const LayerPlacement& at) {
    all.placements.push_back(at);
    all.alternatives.push_back(
        {static_cast<int64_t>(layer_bytes(ffn, layer, at)), layer_seconds(ffn, layer, at, problem.handoff_seconds)});
  };
  for (const auto& [attention, host_kv] : {std::pair{Place::kHost, false}, {Place::kDevice, false}, {Place::kDevice, true}}) {
    if (host_kv && layer.kv_bytes == 0) continue;
    add({0, DetectPlace::kHost, attention, false, host_kv});
    for (int64_t n_hot = 0;; n_hot = std::min(n, n_hot + problem.unit_step)) {
      for (const LayerPlacement& at : {LayerPlacement{n_hot, DetectPlace::kSplit, attention, false, host_kv},
                                       LayerPlacement{n_hot, DetectPlace::kSplit, attention, true, host_kv},
                                       LayerPlacement{n_hot, DetectPlace::kDevice, attention, false, host_kv}})
        if (ffn.can_be(at)) add(at);
      if (n_hot == n) break;
    }
  }
  Options out;
  for (const size_t i : pareto(all.alternatives)) {
    out.placements.push_back(all.placements[i]);
    out.alternatives.push_back(all.alternatives[i]);
  }
  return out;
}

Placement all_on_host(const PlacementProblem& problem) {
  Placement out;
  out.layers.resize(problem.layers.size());
  out.seconds = out.bound = predict_seconds(problem, out);
  return out;
}

void check_layers(const PlacementProblem& problem, const Placement& placement) {
  if (placement.layers.size() != problem.layers.size())
    fail("layers of the placement", cat(problem.layers.size()), cat(placement.layers.size()));
  for (size_t i = 0; i < placement.layers.size(); ++i) {
    const LayerPlacement& at = placement.layers[i];
    const int64_t n = problem.layers[i].n_units();
    if (at.host_kv && at.attention == Place::kHost)
      fail(cat("keys and values of layer ", i), "on the host with the attention", "apart from it");
    if (at.n_hot < 0 || at.n_hot > n) fail(cat("hot units of layer ", i), cat("0 to ", n), cat(at.n_hot));
    if (!FfnModel(problem.layers[i], 0).can_be(at))
      fail(cat("detect of layer ", i), cat("one that goes with ", at.n_hot, " hot units of ", n),
           place_name(at.detect));
  }
}

}  // namespace

const char* place_name(Place place) { return place == Place::kHost ? "host" : "device"; }

const char* place_name(DetectPlace detect) {
  return detect == DetectPlace::kHost ? "host" : detect == DetectPlace::kSplit ? "split" : "device";
}

double ReadRate::at(double density) const {
  if (gathered.empty() || density >= 1) return dense_gbps;
  if (density <= gathered.front().density) return gathered.front().gbps;
  size_t above = 1;
  while (above < gathered.size() && gathered[above].density < density) ++above;
  const Gathered low = gathered[above - 1];
  const Gathered high = above < gathered.size() ? gathered[above] : Gathered{1, dense_gbps};
  if (low.density >= high.density) return high.gbps;
  return low.gbps + (high.gbps - low.gbps) * std::log(density / low.density) / std::log(high.density / low.density);
}

double ReadRate::seconds(double n_active, double n_units, double unit_bytes) const {
  if (n_active <= 0 || n_units <= 0) return 0;
  const double all = n_units * unit_bytes / giga(dense_gbps);
  return std::min(all, n_active * unit_bytes / giga(at(n_active / n_units)));
}

bool Placement::uses_device() const {
  return head == Place::kDevice || std::any_of(layers.begin(), layers.end(), [](const LayerPlacement& at) {
           return at.attention == Place::kDevice || at.detect != DetectPlace::kHost;
         });
}

double predict_seconds(const PlacementProblem& problem, const Placement& placement) {
  const double handoff = placement.uses_device() ? problem.handoff_seconds : 0;
  double out = head_seconds(problem, placement.head, handoff);
  for (size_t i = 0; i < problem.layers.size(); ++i)
    out += layer_seconds(FfnModel(problem.layers[i], handoff), problem.layers[i], placement.layers[i], handoff);
  return out;
}

uint64_t device_bytes(const PlacementProblem& problem, const Placement& placement) {
  if (!placement.uses_device()) return 0;
  uint64_t out = problem.fixed_bytes + (placement.head == Place::kDevice ? problem.head_bytes : 0);
  for (size_t i = 0; i < problem.layers.size(); ++i)
    out += layer_bytes(FfnModel(problem.layers[i], 0), problem.layers[i], placement.layers[i]);
  return out;
}

Placement place(const PlacementProblem& problem) {
  check(problem, problem.budget > 0 && problem.budget >= problem.fixed_bytes);
  const Placement host = all_on_host(problem);
  if (problem.budget == 0 || problem.budget < problem.fixed_bytes) return host;
  std::vector<Options> layers;
  std::vector<std::vector<Alternative>> classes;
  for (const PlacementLayer& layer : problem.layers) {
    layers.push_back(layer_options(problem, layer));
    classes.push_back(layers.back().alternatives);
  }
  const std::vector<Alternative> head{
      {0, head_seconds(problem, Place::kHost, problem.handoff_seconds)},
      {static_cast<int64_t>(problem.head_bytes), head_seconds(problem, Place::kDevice, 0)}};
  const std::vector<size_t> head_kept = pareto(head);
  classes.emplace_back();
  for (const size_t i : head_kept) classes.back().push_back(head[i]);

  const int64_t limit = static_cast<int64_t>(std::min(problem.budget - problem.fixed_bytes, kMaxBytes));
  const KnapsackResult best = solve_knapsack(classes, limit, {problem.tolerance, problem.max_nodes});
  HS_CHECK(best.feasible, "placement");  // everything on the host weighs nothing
  Placement out;
  for (size_t i = 0; i < layers.size(); ++i) out.layers.push_back(layers[i].placements[best.chosen[i]]);
  out.head = head_kept[best.chosen.back()] == 1 ? Place::kDevice : Place::kHost;
  out.seconds = predict_seconds(problem, out);
  if (host.seconds <= out.seconds) out = host;
  out.bound = std::min({best.bound, host.seconds, out.seconds});
  out.device_bytes = device_bytes(problem, out);
  out.n_nodes = best.n_nodes;
  return out;
}

void check_placement(const PlacementProblem& problem, const Placement& placement) {
  check(problem, placement.uses_device());
  check_layers(problem, placement);
}

Placement shorten(const PlacementProblem& problem, Placement placement) {
  check_layers(problem, placement);
  uint64_t used = device_bytes(problem, placement);
  std::vector<FfnModel> ffn;
  for (const PlacementLayer& layer : problem.layers) ffn.emplace_back(layer, 0);
  // Changes one layer and keeps the sum.
  const auto change = [&](size_t i, LayerPlacement to) {
    used -= layer_bytes(ffn[i], problem.layers[i], placement.layers[i]);
    if (to.n_hot == 0 && to.detect == DetectPlace::kSplit) to = {0, DetectPlace::kHost, to.attention};
    if (to.n_hot < problem.layers[i].n_units() && !ffn[i].can_be(to)) {
      to.detect = to.n_hot == 0 ? DetectPlace::kHost : DetectPlace::kSplit;
      to.device_predicts = to.n_hot > 0 && problem.layers[i].only_device_predicts;
    }
    placement.layers[i] = to;
    used += layer_bytes(ffn[i], problem.layers[i], to);
  };
  // The next step of each layer: how often its most frequent unit is active for its bytes, the rarest first.
  using Step = std::tuple<double, size_t>;
  std::priority_queue<Step, std::vector<Step>, std::greater<>> steps;
  const auto next_hot = [&](size_t i) {
    const int64_t n_hot = placement.layers[i].n_hot;
    return (n_hot - 1) / problem.unit_step * problem.unit_step;
  };
  const auto push = [&](size_t i) {
    if (placement.layers[i].n_hot == 0) return;
    const PlacementLayer& layer = problem.layers[i];
    const double bytes = static_cast<double>(layer.unit_bytes + layer.detect_bytes + layer.predictor_unit_bytes);
    steps.push({layer.frequency[static_cast<size_t>(next_hot(i))] / std::max(bytes, 1.0), i});
  };
  for (size_t i = 0; i < placement.layers.size(); ++i) push(i);
  for (; used > problem.budget && !steps.empty();) {
    const size_t i = std::get<1>(steps.top());
    steps.pop();
    LayerPlacement to = placement.layers[i];
    to.n_hot = next_hot(i);
    change(i, to);
    push(i);
  }
  for (size_t i = placement.layers.size(); i-- > 0 && used > problem.budget;)
    change(i, {0, DetectPlace::kHost, placement.layers[i].attention, false, placement.layers[i].host_kv});
  for (size_t i = placement.layers.size(); i-- > 0 && used > problem.budget;)
    if (LayerPlacement to = placement.layers[i]; to.attention == Place::kDevice) to.host_kv = true, change(i, to);
  if (used > problem.budget && placement.head == Place::kDevice)
    placement.head = Place::kHost, used -= problem.head_bytes;
  for (size_t i = placement.layers.size(); i-- > 0 && used > problem.budget;) change(i, {});
  placement.device_bytes = device_bytes(problem, placement);
  placement.seconds = placement.bound = 0;
  return placement;
}

std::optional<double> hot_share(const PlacementProblem& problem, const Placement& placement) {
  double hot = 0, all = 0;
  for (size_t i = 0; i < problem.layers.size(); ++i) {
    const auto& f = problem.layers[i].frequency;
    hot += std::accumulate(f.begin(), f.begin() + placement.layers[i].n_hot, 0.0);
    all += std::accumulate(f.begin(), f.end(), 0.0);
  }
  return all > 0 ? std::optional(hot / all) : std::nullopt;
}

}  // namespace hotset
