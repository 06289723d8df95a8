// The simulated clock: plans whose times are worked out by hand, the prediction as its lower limit, and models in
// outline.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <stdexcept>

#include "core/devices.h"
#include "core/engine_plan.h"
#include "core/hybrid_planner.h"
#include "core/relayout.h"
#include "core/simulate.h"
#include "core/synth.h"
#include "core/weight_placer.h"
#include "core/weights.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;

constexpr size_t kGiga = 1000000000;  // so that GB at GB/s are seconds

// Plans by hand, whose weights have rows of whole gigabytes.
class HandMadePlan {
 public:
  Plan plan;

  BufferId buffer(int64_t n_cols, int32_t lane, BufferKind kind = BufferKind::kFloats) {
    plan.buffers.push_back({cat("b", plan.buffers.size()), n_cols, BufferRows::kAll, kind, lane});
    return {static_cast<int32_t>(plan.buffers.size()) - 1};
  }
  WeightId weight(const std::string& name, int64_t n_rows, size_t row_gigabytes) {
    static const std::byte kNowhere{};
    plan.weights.push_back({name, {&kNowhere, DType::kF32, 1, n_rows, row_gigabytes * kGiga}, kHostLane});
    return {static_cast<int32_t>(plan.weights.size()) - 1};
  }
  FlagId flag() {
    plan.flags.push_back(cat("f", plan.flags.size()));
    return {static_cast<int32_t>(plan.flags.size()) - 1};
  }
  void add(int32_t lane, Op op) { plan.steps.push_back({lane, std::move(op)}); }
};

PlacementLayer layer_of(std::vector<double> frequency, ReadRate device, ReadRate host) {
  PlacementLayer out;
  out.frequency = std::move(frequency);
  out.device = std::move(device), out.host = std::move(host);
  return out;
}

op::SparseFfn listed(BufferId units, BufferId detected, WeightId gate, WeightId up, WeightId down, BufferId out) {
  op::SparseFfn ffn{};
  ffn.activation = Activation::kRelu;
  ffn.units = units, ffn.detected = detected, ffn.gate = gate, ffn.up = up, ffn.down_t = down, ffn.out = out;
  return ffn;
}

// One layer of four units, the first two on the device, which detects for all.
HandMadePlan forked_layer() {
  HandMadePlan p;
  const WeightId gate = p.weight("blk.0.ffn_gate.weight", 4, 1);
  const WeightId hot_gate = p.weight("blk.0.ffn_gate.weight[:2]", 2, 1);
  const WeightId up = p.weight("blk.0.ffn_up.weight", 2, 2), down = p.weight("blk.0.ffn_down_t.weight", 2, 2);
  const BufferId x = p.buffer(1, kDeviceLane), detected = p.buffer(4, kDeviceLane);
  const BufferId cold = p.buffer(5, kSharedLane, BufferKind::kActive);
  const BufferId hot = p.buffer(3, kDeviceLane, BufferKind::kUnits);
  const BufferId y_hot = p.buffer(1, kDeviceLane, BufferKind::kSums),
                 y_back = p.buffer(1, kDeviceLane, BufferKind::kSums);
  const BufferId y_cold = p.buffer(1, kSharedLane, BufferKind::kSums);
  const FlagId fork = p.flag(), join = p.flag();
  p.add(kDeviceLane, op::Detect{gate, {}, x, detected});
  p.add(kDeviceLane, op::SelectUnits{detected, cold, {}, UnitSet::kActive, 2, 2});
  p.add(kDeviceLane, op::Signal{fork});
  p.add(kDeviceLane, op::SelectUnits{detected, hot, {}, UnitSet::kActive, 0, 2});
  p.add(kDeviceLane, listed(hot, detected, hot_gate, up, down, y_hot));
  p.add(kHostLane, op::Wait{fork});
  p.add(kHostLane, listed(cold, {}, {}, up, down, y_cold));
  p.add(kHostLane, op::Signal{join});
  p.add(kDeviceLane, op::Wait{join});
  p.add(kDeviceLane, op::Copy{y_cold, y_back});
  p.add(kDeviceLane, op::MergeSums{y_hot, y_back, {}, x});
  return p;
}

TEST_CASE("simulate: a forked layer takes what the longest way through it takes") {
  const HandMadePlan p = forked_layer();
  PlacementProblem problem;
  problem.layers = {layer_of({1, 0.5, 0.25, 0.25}, {4, {}}, {1, {{0.25, 0.5}}})};
  SimulatedCosts costs;
  costs.to_host_gbps = 8e-9, costs.to_device_gbps = 4e-9;  // 8 and 4 bytes a second
  costs.copy_seconds = 0.25, costs.flag_seconds = 0.5;

  // Detect 4 GB at 4: 1 s. Half a unit listed, 2 words over the bus: 0.25 + 1 s. Flag: 0.5 s. Half a cold unit of 4 GB,
  // a quarter of the rows, at 0.5: 4 s. Flag: 0.5 s. A sum of 8 bytes back: 0.25 + 2 s. The hot ones, 1.5 s, are
  // hidden.
  const Simulation out = simulate(p.plan, problem, costs);
  CHECK(out.seconds == doctest::Approx(9.5));
  CHECK(out.host_busy == doctest::Approx(4));
  CHECK(out.device_busy == doctest::Approx(1 + 1.25 + 1.5 + 2.25));
  REQUIRE(out.layers.size() == 1);
  CHECK(out.layers[0].device == doctest::Approx(1));
  CHECK(out.layers[0].host == doctest::Approx(4));
  CHECK(out.layers[0].bus == doctest::Approx(3.5));
  CHECK(out.layers[0].flags == doctest::Approx(1));
  CHECK(out.rest.seconds() == 0);

  // With a fast host the device's own units are the longer side: 1 + 1.25 + 1.5 + 2.25 s, and no flag is waited for.
  problem.layers[0].host = {100, {}};
  const Simulation fast = simulate(p.plan, problem, costs);
  CHECK(fast.seconds == doctest::Approx(6));
  CHECK(fast.layers[0].flags == 0);
  CHECK(fast.layers[0].host == 0);

  // Six of the device's steps, none of the host's: Detect, two SelectUnits, SparseFfn, Copy, MergeSums.
  costs.device_step_seconds = 10;
  CHECK(simulate(p.plan, problem, costs).seconds == doctest::Approx(66));
  // And the one of the host's: SparseFfn.
  costs.device_step_seconds = 0, costs.host_step_seconds = 10;
  CHECK(simulate(p.plan, problem, costs).host_busy == doctest::Approx(10 + 2 / 100.0));
}

TEST_CASE("simulate: a side that detects for itself lists its own slots") {
  PlacementProblem problem;
  problem.layers = {layer_of({1, 0.5, 0.25, 0.125}, {4, {}}, {1, {}})};
  for (const bool on_host : {true, false}) {
    CAPTURE(on_host);
    const int32_t lane = on_host ? kHostLane : kDeviceLane;
    HandMadePlan p;
    const WeightId gate = p.weight("blk.0.ffn_gate.weight", 2, 1);
    const WeightId up = p.weight("blk.0.ffn_up.weight", 2, 2), down = p.weight("blk.0.ffn_down_t.weight", 2, 2);
    const BufferId x = p.buffer(1, lane), detected = p.buffer(2, lane);
    const BufferId units = p.buffer(3, lane, BufferKind::kUnits);
    p.add(lane, op::Detect{gate, {}, x, detected});
    p.add(lane, op::SelectUnits{detected, units});
    p.add(lane, listed(units, detected, gate, up, down, x));
    // Detect 2 GB. The host has the last two slots, 0.375 units of 4 GB; the device the first two, 1.5 units.
    CHECK(simulate(p.plan, problem, {}).seconds == doctest::Approx(on_host ? 2 + 1.5 : (2 + 6) / 4.0));
    p.plan.steps[1].op = op::SelectUnits{detected, units, {}, UnitSet::kActive, 1, 1};  // the last slot of the side
    CHECK(simulate(p.plan, problem, {}).seconds == doctest::Approx(on_host ? 2 + 0.5 : (2 + 2) / 4.0));
  }
}

TEST_CASE("simulate: a copied list is as long as expected, and so is its copy") {
  HandMadePlan p;
  const WeightId gate = p.weight("blk.0.ffn_gate.weight", 2, 1), down = p.weight("blk.0.ffn_down_t.weight", 2, 2);
  const BufferId x = p.buffer(1, kDeviceLane), detected = p.buffer(2, kDeviceLane);
  const BufferId units = p.buffer(3, kDeviceLane, BufferKind::kUnits);
  const BufferId copied = p.buffer(3, kSharedLane, BufferKind::kUnits), y = p.buffer(1, kHostLane, BufferKind::kSums);
  const FlagId fork = p.flag();
  p.add(kDeviceLane, op::Detect{gate, {}, x, detected});
  p.add(kDeviceLane, op::SelectUnits{detected, units});
  p.add(kDeviceLane, op::Copy{units, copied});
  p.add(kDeviceLane, op::Signal{fork});
  p.add(kHostLane, op::Wait{fork});
  p.add(kHostLane, listed(copied, {}, {}, {}, down, y));
  PlacementProblem problem;
  problem.layers = {layer_of({1, 0.5}, {4, {}}, {1, {}})};
  SimulatedCosts costs;
  costs.to_host_gbps = 8e-9;  // 8 bytes a second
  // Detect 2 GB at 4: 0.5 s. Length and 1.5 units, 10 bytes: 1.25 s. 1.5 rows of 2 GB on the host: 3 s.
  CHECK(simulate(p.plan, problem, costs).seconds == doctest::Approx(4.75));
}

TEST_CASE("simulate: a predictor in place of the detect matrix") {
  const HandMadePlan p = forked_layer();
  PlacementProblem problem;
  problem.layers = {layer_of({1, 0.5, 0.25, 0.25}, {4, {}}, {1, {}})};
  SimulatedCosts costs;
  costs.to_host_gbps = costs.to_device_gbps = 1;
  problem.layers[0].predictor_bytes = 8 * kGiga;
  problem.layers[0].detect_bytes = 1 * kGiga;
  problem.layers[0].over_selection = 2;
  // Predictor 8 GB at 4: 2 s. Host: half a unit of 4 GB and the detect row of one candidate, at 1: 3 s.
  CHECK(simulate(p.plan, problem, costs).seconds == doctest::Approx(5));
}

TEST_CASE("simulate: operations read what they need") {
  HandMadePlan p;
  const BufferId x = p.buffer(1, kHostLane), y = p.buffer(1, kHostLane), detected = p.buffer(2, kHostLane);
  const BufferId units = p.buffer(3, kHostLane, BufferKind::kUnits);
  const WeightId table = p.weight("token_embd.weight", 100, 1), norm = p.weight("blk.0.attn_norm.weight", 1, 2);
  const WeightId bias = p.weight("blk.0.attn_q.bias", 1, 4), matrix = p.weight("blk.0.attn_q.weight", 2, 8);
  const WeightId gate = p.weight("blk.0.ffn_gate.weight", 2, 32), up = p.weight("blk.0.ffn_up.weight", 2, 64);
  const WeightId down = p.weight("blk.0.ffn_down_t.weight", 2, 128), head = p.weight("output.weight", 1, 1024);
  p.plan.kv = {1, 2, 8, DType::kF32};
  PlacementProblem problem;
  problem.layers = {layer_of({0.5, 0.5}, {}, {1, {}})};
  SimulatedCosts costs;
  costs.n_positions = kGiga;  // of 2 * 2 * 32 bytes: 128 s
  const auto seconds = [&](Op op) {
    p.plan.steps = {{kHostLane, std::move(op)}};
    return simulate(p.plan, problem, costs).seconds;
  };
  CHECK(seconds(op::Embed{table, x}) == doctest::Approx(1));
  CHECK(seconds(op::EmbedPosition{table, x}) == doctest::Approx(1));
  CHECK(seconds(op::Norm{NormKind::kLayer, norm, bias, 0, x, x}) == doctest::Approx(2 + 4));
  CHECK(seconds(op::MatMul{matrix, bias, x, y}) == doctest::Approx(16 + 4));
  CHECK(seconds(op::Attention{0, 2, 1, x, y}) == doctest::Approx(128));
  CHECK(seconds(op::StoreKv{0, x, y}) == 0);
  CHECK(seconds(op::MergeSums{x, {}, bias, y}) == doctest::Approx(4));
  CHECK(seconds(op::MatMul{head, {}, x, y}) == doctest::Approx(1024));
  CHECK(simulate(p.plan, problem, costs).rest.host == doctest::Approx(1024));
  op::SparseFfn ffn{};
  ffn.gate = gate, ffn.up = up, ffn.down_t = down, ffn.down_bias = bias, ffn.in = x, ffn.out = y;
  CHECK(seconds(ffn) == doctest::Approx(2 * (32 + 64 + 128) + 4));
  ffn.detected = detected;  // the gate is known
  CHECK(seconds(ffn) == doctest::Approx(2 * (64 + 128) + 4));
  p.plan.steps = {{kHostLane, op::Detect{gate, {}, x, detected}},
                  {kHostLane, op::SelectUnits{detected, units}},
                  {kHostLane, listed(units, detected, gate, up, down, y)}};
  CHECK(simulate(p.plan, problem, costs).seconds == doctest::Approx(2 * 32 + 1 * (64 + 128)));  // one of two is active
  p.plan.steps[2].op = listed(units, detected, {}, gate, down, y);                              // not gated
  CHECK(simulate(p.plan, problem, costs).seconds == doctest::Approx(2 * 32 + 1 * 128));
}

TEST_CASE("simulate: lanes that wait for each other, and problems of other plans") {
  HandMadePlan p;
  const FlagId a = p.flag(), b = p.flag();
  PlacementProblem problem;
  problem.layers = {layer_of({1, 1, 1}, {1, {}}, {1, {}})};
  p.add(kHostLane, op::Wait{a});
  p.add(kHostLane, op::Signal{b});
  p.add(kDeviceLane, op::Wait{b});
  p.add(kDeviceLane, op::Signal{a});
  CHECK_THROWS_AS(simulate(p.plan, problem, {}), std::invalid_argument);
  std::swap(p.plan.steps[2], p.plan.steps[3]);  // a Wait may stand before its Signal in the list
  CHECK(simulate(p.plan, problem, {}).seconds == 0);

  const HandMadePlan forked = forked_layer();
  CHECK_THROWS_AS(simulate(forked.plan, problem, {1, 1}), std::invalid_argument);  // 3 units, not 4
  problem.layers[0].frequency.push_back(1);
  CHECK_THROWS_AS(simulate(forked.plan, problem, {}), std::invalid_argument);  // no rate of the bus
  CHECK(simulate(forked.plan, problem, {1, 1}).seconds > 0);
  CHECK_THROWS_AS(simulate_firing(forked.plan, problem, {1, 1}, 1), std::invalid_argument);
  problem.layers[0].host = {};
  CHECK_THROWS_AS(simulate(forked.plan, problem, {1, 1}), std::invalid_argument);
  problem.layers.clear();
  CHECK_THROWS_AS(simulate(forked.plan, problem, {1, 1}), std::invalid_argument);
}

double normal_cdf(double x) { return 0.5 * std::erfc(-x * std::sqrt(0.5)); }

TEST_CASE("simulate: the mean over tokens is the expected maximum of two normal times") {
  // 1,000 units of frequency 1/2 on each side, of which any takes 1 s on either: both sides are 500 s +- sqrt(250).
  HandMadePlan p;
  const WeightId gate = p.weight("blk.0.ffn_gate.weight", 2000, 0), rows = p.weight("blk.0.ffn_down_t.weight", 1000, 1);
  const BufferId x = p.buffer(0, kDeviceLane), detected = p.buffer(2000, kDeviceLane);
  const BufferId cold = p.buffer(2001, kSharedLane, BufferKind::kActive);
  const BufferId hot = p.buffer(1001, kDeviceLane, BufferKind::kUnits);
  const FlagId fork = p.flag(), join = p.flag();
  p.add(kDeviceLane, op::Detect{gate, {}, x, detected});
  p.add(kDeviceLane, op::SelectUnits{detected, cold, {}, UnitSet::kActive, 1000, 1000});
  p.add(kDeviceLane, op::Signal{fork});
  p.add(kDeviceLane, op::SelectUnits{detected, hot, {}, UnitSet::kActive, 0, 1000});
  p.add(kDeviceLane, listed(hot, detected, {}, gate, rows, x));
  p.add(kHostLane, op::Wait{fork});
  p.add(kHostLane, listed(cold, {}, {}, {}, rows, x));
  p.add(kHostLane, op::Signal{join});
  p.add(kDeviceLane, op::Wait{join});
  PlacementProblem problem;
  SimulatedCosts costs;
  costs.to_host_gbps = 1e9;
  for (const double device_gbps : {1.0, 1.02, 1.25}) {
    CAPTURE(device_gbps);
    problem.layers = {layer_of(std::vector<double>(2000, 0.5), {device_gbps, {}}, {1, {}})};
    const double a = 500, b = 500 / device_gbps, sa = std::sqrt(250.0), sb = sa / device_gbps;
    const double theta = std::sqrt(sa * sa + sb * sb), alpha = (a - b) / theta;
    const double density = std::exp(-alpha * alpha / 2) / std::sqrt(2 * 3.14159265358979);
    const double expected = a * normal_cdf(alpha) + b * normal_cdf(-alpha) + theta * density;  // Clark 1961
    CHECK(simulate(p.plan, problem, costs).seconds == doctest::Approx(500));
    const SimulatedSpread got = simulate_firing(p.plan, problem, costs, 20000);
    CHECK(std::abs(got.mean_seconds - expected) < 4 * got.standard_error);
    CHECK(got.standard_error < 0.2);
    CHECK(got.p95_seconds > got.mean_seconds + sa);
    CHECK(simulate_firing(p.plan, problem, costs, 20000).mean_seconds == got.mean_seconds);
  }
}

struct ReluFamily {
  const char *arch, *activation;
};
constexpr ReluFamily kReluFamilies[] = {{"llama", "relu"}, {"opt", "relu"}, {"arcee", "relu2"}};

struct Outline {
  SynthSpec spec;
  std::shared_ptr<const Model> model;
  std::shared_ptr<const Relayout> rows;
};

Outline outline_of(const std::string& arch, const std::string& activation, const std::string& type) {
  Outline out;
  out.spec.arch = arch, out.spec.activation = activation, out.spec.type = type;
  out.spec.shape.n_layer = 4, out.spec.shape.n_embd = 256, out.spec.shape.n_ff = 768, out.spec.shape.n_head = 8;
  out.spec.shape.n_head_kv = 4, out.spec.shape.n_vocab = 1000, out.spec.shape.n_ctx = 256;
  out.model = outline_synth(out.spec);
  out.rows = Relayout::outline(*out.model);
  return out;
}

MachineRates made_up_rates() {
  MachineRates rates;
  rates.read = {{"normal", 1, 50, 1, {{64, 0.02, 20}, {64, 0.1, 25}, {1024, 0.02, 30}, {1024, 0.1, 35}}}};
  rates.gpu = GpuRates{"G", uint64_t{1} << 40, 300, {{64, 0.1, 100}, {1024, 0.1, 200}}};
  rates.pcie = PcieRates{20, 25};
  rates.handoff_us = 0.5;
  return rates;
}

EngineOptions options_of(bool exact) {
  EngineOptions options;
  options.n_threads = 1, options.n_ctx = 256, options.n_batch = 8;
  options.mode = exact ? "exact" : "dense";
  return options;
}

double path_seconds(const Simulation& simulation) {
  double out = simulation.rest.seconds();
  for (const PathTime& layer : simulation.layers) out += layer.seconds();
  return out;
}

LayerPlacement random_layer(std::mt19937_64& random, int64_t n_units, bool exact, bool attention_on_device) {
  const auto below = [&](uint64_t n) { return static_cast<int64_t>(random() % n); };
  const Place attention = attention_on_device || below(2) ? Place::kDevice : Place::kHost;
  const int64_t n_hot = below(static_cast<uint64_t>(n_units) + 1);
  switch (below(4)) {
    case 0: return {0, DetectPlace::kHost, attention};
    case 1: return {n_units, DetectPlace::kDevice, attention};
    case 2:
      if (exact) return {n_hot, DetectPlace::kDevice, attention};
      [[fallthrough]];
    default: return {std::clamp<int64_t>(n_hot, 1, n_units - 1), DetectPlace::kSplit, attention};
  }
}

TEST_CASE("simulate: the prediction of a placement is its lower limit") {
  std::mt19937_64 random(5);
  const auto device = make_cpu_device({});
  for (const ReluFamily& family : kReluFamilies)
    for (const bool exact : {true, false})
      for (const bool attention_on_device : {true, false}) {
        const Outline o = outline_of(family.arch, family.activation, "q8_0");
        PlanRequest request;
        request.vram_budget = uint64_t{1} << 30, request.rates = made_up_rates();
        request.frequencies.assign(4, synth_frequencies(o.spec));
        PlacementProblem problem = placement_problem(o.model, options_of(exact), request);
        SimulatedCosts costs{request.rates->pcie->d2h_gbps, request.rates->pcie->h2d_gbps};
        costs.flag_seconds = *request.rates->handoff_us * 1e-6 / 2, costs.n_positions = 128;
        for (int round = 0; round < 40; ++round) {
          CAPTURE(family.arch);
          CAPTURE(round);
          Placement placement;
          placement.head = random() % 2 ? Place::kDevice : Place::kHost;
          for (int layer = 0; layer < 4; ++layer)
            placement.layers.push_back(random_layer(random, 768, exact, attention_on_device));
          if (!placement.uses_device()) continue;
          const WeightPlacer placer(*o.model, o.rows, placement, {}, *device, {.is_outline = true});
          PlanOptions options{.max_rows = 8, .max_output_rows = 8, .max_positions = 256};
          options.exact = exact;
          const Plan plan = build_plan(o.model->config(), placer.weights(), options);
          const Simulation got = simulate(plan, problem, costs);
          PlacementProblem without_handoff = problem;
          without_handoff.handoff_seconds = 0;
          const double almost = 1 - 1e-9;
          CHECK(got.seconds >= almost * predict_seconds(without_handoff, placement));
          // With attention on the host the prediction counts a hand-off per layer where runs of layers share one.
          if (attention_on_device) CHECK(got.seconds >= almost * predict_seconds(problem, placement));
          CHECK(path_seconds(got) == doctest::Approx(got.seconds));
          CHECK(got.host_busy <= got.seconds * (1 + 1e-9));
          CHECK(got.device_busy <= got.seconds * (1 + 1e-9));
        }
      }
}

TEST_CASE("simulate: one lane takes what is predicted, and the embedding's row") {
  for (const ReluFamily& family : kReluFamilies)
    for (const bool exact : {true, false}) {
      CAPTURE(family.arch);
      CAPTURE(exact);
      const Outline o = outline_of(family.arch, family.activation, "q4_0");
      PlanRequest request;
      request.rates = made_up_rates(), request.simulate = true;
      request.frequencies.assign(4, synth_frequencies(o.spec));
      const EnginePlan plan = plan_engine(o.model, options_of(exact), request);
      const Weights& w = o.model->weights();
      const size_t rows = w.token_embd.view.row_stride + (w.position_embd ? w.position_embd.view.row_stride : 0);
      REQUIRE(plan.simulated);
      const Simulation& got = plan.simulated->expected;
      CHECK(got.seconds - static_cast<double>(rows) / 50e9 == doctest::Approx(1 / *plan.tg_ts).epsilon(1e-12));
      CHECK(got.host_busy == doctest::Approx(got.seconds));
      CHECK(got.device_busy == 0);
      CHECK(path_seconds(got) == doctest::Approx(got.seconds));
      CHECK(plan.simulated->firing.mean_seconds == doctest::Approx(got.seconds).epsilon(0.02));
    }
}

TEST_CASE("outline: the largest model of the paper is planned without its weights") {
  SynthSpec spec;
  spec.arch = "opt", spec.type = "q4_0", spec.sparsity = 0.97;
  for (const SynthShape& shape : synth_shapes())
    if (shape.name == "opt-175b") spec.shape = shape;
  const auto model = outline_synth(spec);
  CHECK(model->size_bytes() == plan_synth(spec).n_bytes);
  CHECK(model->size_bytes() > uint64_t{90} << 30);
  PlanRequest request;
  request.rates = made_up_rates(), request.vram_budget = uint64_t{20} << 30, request.simulate = true;
  request.frequencies.assign(96, synth_frequencies(spec));
  const EnginePlan plan = plan_engine(model, options_of(true), request);
  CHECK(plan.memory.bytes_on("gpu") == plan.placement.device_bytes);
  REQUIRE(plan.simulated);
  CHECK(plan.simulated->expected.layers.size() == 96);
  CHECK(plan.simulated->firing.mean_seconds == doctest::Approx(plan.simulated->expected.seconds).epsilon(0.01));

  // A predictor in place of the detect matrices leaves room for more.
  request.predictor = AssumedPredictor{uint64_t{3} << 30, 1.2};
  const EnginePlan predicted = plan_engine(model, options_of(true), request);
  CHECK(predicted.memory.bytes_on("gpu") == predicted.placement.device_bytes);
  CHECK(predicted.simulated->expected.seconds < plan.simulated->expected.seconds);
  CHECK_THROWS_AS(plan_engine(model, options_of(false), request), std::invalid_argument);
  request.predictor->n_bytes = 10;
  CHECK_THROWS_AS(plan_engine(model, options_of(true), request), std::invalid_argument);
  request.predictor.reset(), request.step_us = NAN;
  CHECK_THROWS_AS(plan_engine(model, options_of(true), request), std::invalid_argument);
}

}  // namespace
