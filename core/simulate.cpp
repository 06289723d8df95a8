#include "core/simulate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <numbers>
#include <numeric>
#include <optional>
#include <random>
#include <stdexcept>

#include "core/error.h"
#include "core/plan.h"

namespace hotset {
namespace {

constexpr int64_t kOutside = -1;  // in place of a layer: embedding and head

[[noreturn]] void fail(const std::string& what, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(error_text("simulate", what, expected, got, "simulate a plan with its own problem"));
}

double over(double bytes, double gbps, const char* what) {
  if (bytes <= 0) return 0;
  if (!(gbps > 0) || !std::isfinite(gbps)) fail(what, "a rate above 0", cat(gbps));
  return bytes / (gbps * 1e9);
}

// N of "blk.N.", kOutside of other names.
int64_t layer_of(const std::string& name) {
  return name.starts_with("blk.") ? std::strtoll(name.c_str() + 4, nullptr, 10) : kOutside;
}

// The layer of an op that names one, or a weight of it; nothing for ops that do neither.
std::optional<int64_t> layer_of(const Plan& plan, const Op& any) {
  const auto named = [&](WeightId id) { return layer_of(plan.weights[static_cast<size_t>(id.index)].name); };
  return std::visit(
      [&](const auto& o) -> std::optional<int64_t> {
        if constexpr (requires { o.layer; })
          return o.layer;
        else if constexpr (requires { o.down_t; })
          return named(o.down_t);
        else if constexpr (requires { o.planes; })
          return named(o.planes);
        else if constexpr (requires { o.table; })
          return named(o.table);
        else if constexpr (requires { o.weight; })
          return named(o.weight);
        else if constexpr (std::is_same_v<std::decay_t<decltype(o)>, op::Fetch>)
          return named(o.from);
        else
          return std::nullopt;
      },
      any);
}

// The expected number of units that fire among a layer's first slots, and its variance.
struct Firing {
  std::vector<double> mean{0}, variance{0};  // (n_units + 1)

  explicit Firing(const std::vector<double>& frequency) {
    for (const double f : frequency) {
      mean.push_back(mean.back() + f);
      variance.push_back(variance.back() + f * (1 - f));
    }
  }
  int64_t n_units() const { return static_cast<int64_t>(mean.size()) - 1; }
};

struct Cost {
  double read = 0, bus = 0;  // seconds
};

// How long a list is, of which mean and variance are expected.
using ListLength = std::function<double(double mean, double variance, double n_units)>;

// One simulated step. Visits a plan's steps in an order in which they could end.
class Clock {
 public:
  Clock(const Plan& plan, const PlacementProblem& problem, const SimulatedCosts& costs)
      : plan_(plan), problem_(problem), costs_(costs) {
    for (const PlacementLayer& layer : problem.layers) firing_.emplace_back(layer.frequency);
    if (problem.layers.empty()) fail("layers", "at least one", "none");
    int64_t layer = kOutside;
    for (const Step& step : plan.steps) {
      layer = layer_of(plan, step.op).value_or(layer);
      if (layer >= n_layers()) fail("layers of the plan", cat("at most ", n_layers()), cat("layer ", layer));
      layer_.push_back(layer);
      const auto* select = std::get_if<op::SelectUnits>(&step.op);
      predicts_ = predicts_ || (select && select->set == UnitSet::kCandidates);
    }
  }

  // Seconds of the step.
  double run(const ListLength& list_length) {
    list_length_ = &list_length;
    lists_.assign(plan_.buffers.size(), 0);
    first_slot_.assign(plan_.buffers.size(), 0);
    signalled_.assign(plan_.flags.size(), kNoStep);
    events_.assign(plan_.steps.size(), {});
    lanes_.fill({});
    for (bool moved = true; moved;) {
      moved = false;
      for (int32_t lane = 0; lane < kMaxLanes; ++lane) moved = advance(lane) || moved;
    }
    double out = 0;
    for (int32_t lane = 0; lane < kMaxLanes; ++lane) {
      if (next_of(lane) < plan_.steps.size()) fail("lanes", "that end", "a wait for a flag that nobody sets");
      out = std::max(out, at(lane).time);
    }
    return out;
  }

  // What the latest run() came to.
  Simulation result(double seconds) const {
    Simulation out;
    out.seconds = seconds;
    out.host_busy = at(kHostLane).busy, out.device_busy = at(kDeviceLane).busy;
    out.layers.resize(problem_.layers.size());
    const int32_t last = at(kDeviceLane).time > at(kHostLane).time ? kDeviceLane : kHostLane;
    for (size_t step = at(last).latest; step != kNoStep; step = events_[step].after) {
      const Event& event = events_[step];
      PathTime& path = layer_[step] == kOutside ? out.rest : out.layers[static_cast<size_t>(layer_[step])];
      (plan_.steps[step].lane == kHostLane ? path.host : path.device) += event.cost.read;
      path.bus += event.cost.bus;
      path.flags += event.flag;
    }
    return out;
  }

 private:
  static constexpr size_t kNoStep = static_cast<size_t>(-1);

  // A step that has ended: what it took, and the step whose end it began at.
  struct Event {
    Cost cost;
    double flag = 0;  // of a Wait that had to wait
    size_t after = kNoStep;
    double end = 0;
  };
  struct Lane {
    size_t next = 0;
    double time = 0, busy = 0;
    size_t latest = kNoStep;
  };

  int64_t n_layers() const { return static_cast<int64_t>(problem_.layers.size()); }
  Lane& at(int32_t lane) { return lanes_[static_cast<size_t>(lane)]; }
  const Lane& at(int32_t lane) const { return lanes_[static_cast<size_t>(lane)]; }

  // The lane's next step; plan_.steps.size() at its end.
  size_t next_of(int32_t lane) {
    size_t& next = at(lane).next;
    while (next < plan_.steps.size() && plan_.steps[next].lane != lane) ++next;
    return next;
  }

  // Runs a lane up to a flag that is not up, or to its end.
  bool advance(int32_t lane) {
    bool moved = false;
    for (size_t step = next_of(lane); step < plan_.steps.size(); step = next_of(lane)) {
      const Op& any = plan_.steps[step].op;
      const auto* wait = std::get_if<op::Wait>(&any);
      if (wait && signalled_[static_cast<size_t>(wait->flag.index)] == kNoStep) return moved;
      if (wait)
        end_wait(lane, step, signalled_[static_cast<size_t>(wait->flag.index)]);
      else
        end_step(lane, step, any);
      if (const auto* signal = std::get_if<op::Signal>(&any))
        signalled_[static_cast<size_t>(signal->flag.index)] = step;
      ++at(lane).next;
      moved = true;
    }
    return moved;
  }

  void end_wait(int32_t lane, size_t step, size_t signal) {
    const double seen = events_[signal].end + costs_.flag_seconds;
    const bool waited = seen > at(lane).time;
    events_[step] = {
        {}, waited ? costs_.flag_seconds : 0, waited ? signal : at(lane).latest, std::max(seen, at(lane).time)};
    at(lane).time = events_[step].end, at(lane).latest = step;
  }

  void end_step(int32_t lane, size_t step, const Op& any) {
    const Work work{*this, lane, layer_[step]};
    Cost cost = std::visit(work, any);
    const bool is_flag = std::holds_alternative<op::Signal>(any);
    if (!is_flag) cost.read += lane == kHostLane ? costs_.host_step_seconds : costs_.device_step_seconds;
    at(lane).busy += cost.read + cost.bus;
    at(lane).time += cost.read + cost.bus;
    events_[step] = {cost, 0, at(lane).latest, at(lane).time};
    at(lane).latest = step;
  }

  // What an op of a lane and layer takes.
  struct Work {
    Clock& clock;
    int32_t lane;
    int64_t layer_index;

    const PlacementLayer& layer() const {
      return clock.problem_.layers[static_cast<size_t>(std::max<int64_t>(layer_index, 0))];
    }
    const ReadRate& rate() const { return lane == kHostLane ? layer().host : layer().device; }
    bool stands_for_predictor() const { return !clock.predicts_ && layer().predicts(); }

    const TensorView* view(WeightId id) const { return id ? &clock.plan_.weight(id) : nullptr; }
    Cost dense(double bytes) const { return {over(bytes, rate().dense_gbps, "read rate of a lane"), 0}; }
    double size(WeightId id) const { return id ? static_cast<double>(view(id)->size_bytes()) : 0; }
    double row(WeightId id) const { return id ? static_cast<double>(view(id)->row_stride) : 0; }
    template <class... Ids>
    Cost all_of(Ids... ids) const {
      return dense((size(ids) + ...));
    }

    double& list(BufferId id) const { return clock.lists_[static_cast<size_t>(id.index)]; }
    int64_t& first_slot(BufferId id) const { return clock.first_slot_[static_cast<size_t>(id.index)]; }

    Cost operator()(const op::Embed& o) const { return dense(row(o.table)); }
    Cost operator()(const op::EmbedPosition& o) const { return dense(row(o.table)); }
    Cost operator()(const op::Norm& o) const { return all_of(o.weight, o.bias); }
    Cost operator()(const op::HeadNorm& o) const { return all_of(o.weight); }
    Cost operator()(const op::MatMul& o) const { return all_of(o.weight, o.bias); }
    Cost operator()(const op::RopeAngles&) const { return {}; }
    Cost operator()(const op::Rope&) const { return {}; }
    Cost operator()(const op::StoreKv&) const { return {}; }
    Cost operator()(const op::Attention&) const {
      const KvLayout& kv = clock.plan_.kv;
      return dense(static_cast<double>(clock.costs_.n_positions) * 2 * static_cast<double>(kv.n_head_kv) *
                   static_cast<double>(row_bytes(kv.dtype, kv.head_dim)));
    }
    Cost operator()(const op::Activate&) const { return {}; }
    Cost operator()(const op::Predict& o) const {
      note_slots(o.planes, o.out);
      return all_of(o.planes, o.low, o.step, o.error, o.bias);
    }
    Cost operator()(const op::JoinUnits&) const { return {}; }
    Cost operator()(const op::Observe&) const { return {}; }
    Cost operator()(const op::MergeSums& o) const { return all_of(o.bias); }
    Cost operator()(const op::Add&) const { return {}; }
    Cost operator()(const op::SoftCap&) const { return {}; }
    Cost operator()(const op::SelectRows&) const { return {}; }
    Cost operator()(const op::Signal&) const { return {}; }
    Cost operator()(const op::Wait&) const { return {}; }

    // Values of as many slots as the weight has rows: a device's are the first ones, the host's the last.
    void note_slots(WeightId rows, BufferId values) const {
      const int64_t n_rows = view(rows)->n_rows, n_units = firing().n_units();
      if (n_rows > n_units) fail(cat("units of layer ", layer_index), cat("at least ", n_rows), cat(n_units));
      first_slot(values) = lane == kHostLane ? n_units - n_rows : 0;
    }

    Cost operator()(const op::Detect& o) const {
      note_slots(o.weight, o.out);
      if (stands_for_predictor()) {
        const uint64_t rows = static_cast<uint64_t>(view(o.weight)->n_rows) * layer().predictor_unit_bytes;
        return dense(static_cast<double>(layer().predictor_bytes + rows) + size(o.bias));
      }
      if (!o.units) return all_of(o.weight, o.bias);
      return gathered(list(o.units), view(o.weight)->n_rows, row(o.weight), size(o.bias));
    }

    Cost operator()(const op::SelectUnits& o) const {
      const int64_t first = first_slot(o.in) + o.first_unit;
      const int64_t n = o.n_units > 0 ? o.n_units : clock.plan_.buffer(o.in).n_cols - o.first_unit;
      if (first + n > firing().n_units())
        fail(cat("units of layer ", layer_index), cat("at least ", first + n), cat(firing().n_units()));
      const auto sum = [&](const std::vector<double>& sums) {
        return std::max(0.0, sums[static_cast<size_t>(first + n)] - sums[static_cast<size_t>(first)]);
      };
      const double all = static_cast<double>(n);
      const double active = (*clock.list_length_)(sum(firing().mean), sum(firing().variance), all);
      list(o.out) = o.set == UnitSet::kCandidates ? std::min(all, active * layer().over_selection) : active;
      const bool crosses = lane == kDeviceLane && clock.plan_.buffer(o.out).lane == kSharedLane;
      return {0, crosses ? crossing(o.out, clock.costs_.to_host_gbps) : 0};
    }

    Cost operator()(const op::SparseFfn& o) const {
      const int64_t n = view(o.down_t)->n_rows;
      // Values from Detect, or in the list, spare the rows that give them.
      const bool has_values = o.detected || o.units;
      const bool listed_up = o.units && clock.plan_.buffer(o.units).kind == BufferKind::kActive;
      const bool reads_up = o.gate || !has_values || listed_up;
      const double bytes = row(o.down_t) + (has_values ? 0 : row(o.gate)) + (reads_up ? row(o.up) : 0);
      const double always = size(o.down_bias) + (has_values ? 0 : size(o.gate_bias)) + (reads_up ? size(o.up_bias) : 0);
      const double active = o.units ? list(o.units) : static_cast<double>(n);
      Cost out = gathered(active, n, bytes, always);
      if (o.units && stands_for_predictor())
        out.read += gathered(std::min(static_cast<double>(n), active * layer().over_selection), n,
                             static_cast<double>(layer().detect_bytes), 0)
                        .read;
      return out;
    }

    Cost operator()(const op::Copy& o) const {
      const bool to_host = clock.plan_.buffer(o.to).lane == kSharedLane;
      if (clock.plan_.buffer(o.from).kind != BufferKind::kFloats) list(o.to) = list(o.from);
      return {0, crossing(o.from, to_host ? clock.costs_.to_host_gbps : clock.costs_.to_device_gbps)};
    }

    Cost operator()(const op::Fetch& o) const {
      return {0, clock.costs_.copy_seconds + over(size(o.from), clock.costs_.to_device_gbps, "rate of the bus")};
    }

    const Firing& firing() const { return clock.firing_[static_cast<size_t>(std::max<int64_t>(layer_index, 0))]; }

    Cost gathered(double n_active, int64_t n_rows, double row_bytes, double dense_bytes) const {
      Cost out = dense(dense_bytes);
      if (row_bytes <= 0) return out;
      over(1, rate().dense_gbps, "read rate of a lane");
      out.read += rate().seconds(n_active, static_cast<double>(n_rows), row_bytes);
      return out;
    }

    double crossing(BufferId id, double gbps) const {
      const BufferDesc& buffer = clock.plan_.buffer(id);
      double words = static_cast<double>(buffer.row_words());
      if (buffer.kind == BufferKind::kUnits) words = 1 + list(id);
      if (buffer.kind == BufferKind::kActive) words = 1 + 2 * list(id);
      return clock.costs_.copy_seconds + over(4 * words, gbps, "rate of the bus");
    }
  };

  const Plan& plan_;
  const PlacementProblem& problem_;
  const SimulatedCosts& costs_;
  std::vector<Firing> firing_;  // of each layer
  std::vector<int64_t> layer_;  // of each step
  bool predicts_ = false;

  // Of the running step.
  const ListLength* list_length_ = nullptr;
  std::vector<double> lists_;        // of each buffer: units in its list
  std::vector<int64_t> first_slot_;  // of each buffer of detect values: the slot of its first column
  std::vector<size_t> signalled_;    // of each flag: the step that set it
  std::vector<Event> events_;        // of each step
  std::array<Lane, kMaxLanes> lanes_;
};

// Standard normal numbers, the same everywhere.
class NormalStream {
 public:
  explicit NormalStream(uint64_t seed) : random_(seed) {}
  double next() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }

 private:
  double uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }
  std::mt19937_64 random_;
};

}  // namespace

Simulation simulate(const Plan& plan, const PlacementProblem& problem, const SimulatedCosts& costs) {
  Clock clock(plan, problem, costs);
  const double seconds = clock.run([](double mean, double, double) { return mean; });
  return clock.result(seconds);
}

SimulatedSpread simulate_firing(const Plan& plan, const PlacementProblem& problem, const SimulatedCosts& costs,
                                int64_t n_samples, uint64_t seed) {
  if (n_samples < 2 || n_samples > 1 << 24) fail("samples", "2 to 2^24", cat(n_samples));
  Clock clock(plan, problem, costs);
  NormalStream normal(seed);
  const ListLength draw = [&](double mean, double variance, double n_units) {
    return std::clamp(mean + std::sqrt(variance) * normal.next(), 0.0, n_units);
  };
  std::vector<double> seconds;
  for (int64_t i = 0; i < n_samples; ++i) seconds.push_back(clock.run(draw));
  const double n = static_cast<double>(n_samples);
  SimulatedSpread out;
  out.mean_seconds = std::accumulate(seconds.begin(), seconds.end(), 0.0) / n;
  double squares = 0;
  for (const double each : seconds) squares += (each - out.mean_seconds) * (each - out.mean_seconds);
  out.standard_error = std::sqrt(squares / (n - 1) / n);
  std::sort(seconds.begin(), seconds.end());
  out.p95_seconds = seconds[static_cast<size_t>(std::ceil(0.95 * n)) - 1];
  return out;
}

}  // namespace hotset
