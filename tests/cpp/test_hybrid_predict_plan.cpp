// Plans of two lanes that predict, and those that are observed: lint finds them right, and none of their steps can be
// spared.
#include <doctest/doctest.h>

#include <algorithm>

#include "core/engine_plan.h"
#include "core/hybrid_planner.h"
#include "core/sidecar.h"
#include "core/simulate.h"
#include "core/weight_placer.h"
#include "core/weights.h"
#include "tests/cpp/hybrid_util.h"
#include "tests/cpp/placed_plans.h"

namespace {

using namespace hotset;
using namespace hotset::test;

using Order = std::vector<std::vector<int32_t>>;

// A model of like layers, its predictor, and the weights of a placement: what a plan is made from.
struct Placed {
  Placed(const TinySpec& spec, const LayerPlacement& layer, const PredictorSpec& predicted,
         std::shared_ptr<const Order> units = nullptr)
      : order(std::move(units)),
        model(load_tiny(spec)),
        predictor(model->weights(), predicted, {.n_threads = 1, .order = order}),
        device(make_cpu_device({})) {
    placement.layers.assign(static_cast<size_t>(spec.n_layer), layer);
    placement.head = Place::kDevice;
    placer = std::make_unique<WeightPlacer>(*model, std::make_shared<const Relayout>(*model, 1, LogSink{}), placement,
                                            order ? *order : Order{}, *device,
                                            WeightPlacer::Options{1, false, false, {}, &predictor});
  }
  Plan plan(bool exact = true) const {
    PlanOptions options{.max_rows = 8, .max_output_rows = 4, .max_positions = 64};
    options.exact = exact, options.observe = !exact;
    return build_plan(model->config(), placer->weights(), options);
  }
  std::shared_ptr<const Order> order;
  std::shared_ptr<const Model> model;
  Predictor predictor;
  std::unique_ptr<Device> device;
  Placement placement;
  std::unique_ptr<WeightPlacer> placer;
};

constexpr TinySpec kSmall{.n_layer = 1, .dtype = DType::kQ8_0};

std::string ffn_of(const Plan& plan) {
  const std::string text = dump(plan);
  const size_t begin = text.find("ffn_norm");
  const size_t from = text.rfind('\n', begin) + 1, to = text.find("SelectRows(");
  return text.substr(from, text.rfind('\n', to) + 1 - from);
}

TEST_CASE("hybrid predict: the dump reads like the figure of the paper") {
  const PredictorSpec planes = parse_predictor("bit_planes:2:0.5", 1);
  CHECK(ffn_of(Placed(kSmall, {32, DetectPlace::kDevice, kDevice}, planes).plan()) ==
        "device  x_norm = Norm(blk.0.ffn_norm.weight F32; x)\n"
        "device  shared_x_norm = Copy(x_norm)\n"
        "device  margins = Predict(2 bits of blk.0.ffn_gate.weight.planes I8, z 0.5; x_norm)\n"
        "device  candidates = SelectUnits(margins[0:96])\n"
        "device  detected = Detect(candidates; blk.0.ffn_gate.weight Q8_0; x_norm)\n"
        "device  shared_cold = SelectUnits(detected[32:96] among candidates)\n"
        "device  Signal(fork 0)\n"
        "device  hot = SelectUnits(detected[0:32] among candidates)\n"
        "device  y_hot = SparseFfn(hot by detected; blk.0.ffn_gate.weight[:32] Q8_0, blk.0.ffn_up.weight Q8_0, "
        "blk.0.ffn_down_t.weight Q8_0; x_norm)\n"
        "host                Wait(fork 0)\n"
        "host                shared_y = SparseFfn(shared_cold; blk.0.ffn_up.weight Q8_0, blk.0.ffn_down_t.weight Q8_0; "
        "shared_x_norm)\n"
        "host                Signal(join 0)\n"
        "device  Wait(join 0)\n"
        "device  y_back = Copy(shared_y)\n"
        "device  y = MergeSums(y_hot, y_back)\n"
        "device  x = Add(x, y)\n");
  const std::string apart = ffn_of(Placed(kSmall, {32, DetectPlace::kSplit, kDevice, true}, planes).plan());
  CHECK(apart.find("device  margins = Predict(2 bits of blk.0.ffn_gate.weight.planes I8, z 0.5; x_norm)\n"
                   "device  shared_candidates = SelectUnits(margins[32:96])\n"
                   "device  Signal(fork 0)\n"
                   "device  candidates = SelectUnits(margins[0:32])\n"
                   "device  detected = Detect(candidates; blk.0.ffn_gate.weight Q8_0; x_norm)\n") != std::string::npos);
  CHECK(apart.find("host                host_detected = Detect(shared_candidates; blk.0.ffn_gate.weight Q8_0; "
                   "shared_x_norm)\n"
                   "host                host_cold = SelectUnits(host_detected[0:64] among shared_candidates)\n") !=
        std::string::npos);
  const std::string split = ffn_of(Placed(kSmall, {32, DetectPlace::kSplit, kDevice}, planes).plan());
  CHECK(split.find("host                host_margins = Predict(2 bits of blk.0.ffn_gate.weight.planes I8, z 0.5; "
                   "shared_x_norm)\n"
                   "host                host_candidates = SelectUnits(host_margins[0:64])\n"
                   "host                host_detected = Detect(host_candidates; ") != std::string::npos);
  CHECK(split.find("Signal") == split.find("Signal(fork 0)"));
}

// Whatever a layer of n units may be.
std::vector<LayerPlacement> choices_of(int64_t n, bool exact) {
  std::vector<LayerPlacement> out;
  for (const Place attention : {kHost, kDevice}) {
    out.push_back({0, DetectPlace::kHost, attention});
    for (const int64_t n_hot : {int64_t{1}, n / 3}) out.push_back({n_hot, DetectPlace::kSplit, attention});
    for (const int64_t n_hot : {int64_t{0}, n / 3})
      if (exact) out.push_back({n_hot, DetectPlace::kSplit, attention, true});
    for (const int64_t n_hot : {int64_t{0}, n / 3, n})
      if (exact || n_hot == n) out.push_back({n_hot, DetectPlace::kDevice, attention});
  }
  return out;
}

// Calls check(plan) for plans of three layers with and without units' lists, by planes and by factors.
template <class F>
void for_all_plans(bool exact, F check) {
  std::mt19937_64 random(3);
  TinySpec spec = spec_of({"opt", Activation::kRelu}, DType::kF32);
  spec.n_layer = 3;
  const auto order = std::make_shared<const Order>(random_unit_order(random, spec));
  const auto model = load_tiny(spec);
  const auto factors = [&](const char* kind) {
    const TempFile file(predictor_file(random, *model, *order, kind));
    return predictor_of(Sidecar::load(file.path(), model->config(), model->fingerprint()));
  };
  for (const PredictorSpec& predicted :
       {parse_predictor("bit_planes:1:0", 3), factors("mlp"), factors("residual_mlp")})
    for (const LayerPlacement& layer : choices_of(spec.n_ff, exact)) {
      INFO(cat(predictor_kind_name(predicted.kind), exact ? ", exact: " : ", observed: ", layer.n_hot, " hot, detect ",
               place_name(layer.detect), layer.device_predicts ? ", device predicts" : "", ", attention ",
               place_name(layer.attention)));
      check(Placed(spec, layer, predicted, order).plan(exact));
    }
}

TEST_CASE("hybrid predict, hybrid observe: plans are right, and lint misses every step and every flag of them") {
  for (const bool exact : {true, false})
    for_all_plans(exact, [&](const Plan& plan) {
      CHECK(lint(plan).empty());
      for (size_t i = 0; i < plan.steps.size(); ++i)
        if (lint(without_step(plan, i)).empty() != works_in_place(plan.steps[i]))
          FAIL_CHECK("step ", i, ": ", dump_of(plan, i));
      for (size_t i = 0; i < plan.flags.size(); ++i)
        if (lint(without_flag(plan, static_cast<int32_t>(i))).empty()) FAIL_CHECK("flag ", plan.flags[i]);
      if (exact) return;
      for (Plan wrong = plan; Step& step : wrong.steps) {
        auto* const join = std::get_if<op::JoinUnits>(&step.op);
        if (!join) continue;
        const auto complains = [&](auto change) {
          const op::JoinUnits right = *join;
          change(*join);
          const bool out = !lint(wrong).empty();
          *join = right;
          return out;
        };
        CHECK(complains([](op::JoinUnits& o) { ++o.n_hot; }));
        CHECK(complains([](op::JoinUnits& o) { o.n_hot = -1; }));
        CHECK(complains([](op::JoinUnits& o) {
          std::swap(o.hot, o.cold);
          o.n_hot += 1;
        }));
        CHECK(complains([](op::JoinUnits& o) { o.out = o.hot ? o.hot : o.cold; }));
        CHECK(complains([](op::JoinUnits& o) { o.unit_of_slot = {0}; }));
        CHECK(complains([](op::JoinUnits& o) { o.hot = o.cold = {}; }));
      }
    });
}

TEST_CASE("hybrid predict: what does not go together is refused") {
  const Placed good({.n_layer = 1}, {32, DetectPlace::kSplit, kDevice}, parse_predictor("bit_planes:1:0", 1));
  const auto refuses = [&](auto spoil, const char* what) {
    PlacedWeights bad = good.placer->weights();
    spoil(bad.layers[0]);
    PlanOptions options{.max_rows = 8, .max_output_rows = 4, .max_positions = 64};
    options.exact = true;
    CHECK_THROWS_WITH_AS(build_plan(good.model->config(), bad, options), doctest::Contains(what), Error);
  };
  refuses([](PlacedLayer& layer) { layer.host_predictor = {}; }, "predictor of the host");
  refuses([](PlacedLayer& layer) { layer.device_predictor.planes.view.n_rows = 31; }, "predictor of the device");
  refuses([](PlacedLayer& layer) { layer.place.device_predicts = true; }, "predictor of the device");
}

TEST_CASE("hybrid predict: the clock charges what the prediction counts, at least") {
  TinySpec spec{.n_layer = 3, .n_ff = 320, .dtype = DType::kQ8_0};
  const auto model = load_tiny(spec);
  EngineOptions options{.n_threads = 1, .n_ctx = 64, .n_batch = 8, .mode = "predict", .predictor = "bit_planes:2"};
  PlanRequest request;
  request.rates = made_up_rates(), request.simulate = true, request.vram_budget = uint64_t{1} << 30;
  request.frequencies.assign(3, std::vector<double>(320, 0.1));
  const PlacementProblem problem = placement_problem(model, options, request);
  for (const LayerPlacement& layer : choices_of(320, true)) {
    if (layer.attention == kHost) continue;  // where the prediction counts more hand-offs
    CAPTURE(layer.n_hot);
    CAPTURE(place_name(layer.detect));
    CAPTURE(layer.device_predicts);
    const Placed placed(spec, layer, parse_predictor("bit_planes:2", 3));
    SimulatedCosts costs{20, 20};
    costs.flag_seconds = *request.rates->handoff_us * 1e-6 / 2, costs.n_positions = 32;
    const double seconds = simulate(placed.plan(), problem, costs).seconds,
                 predicted = predict_seconds(problem, placed.placement);
    CHECK(seconds >= (1 - 1e-9) * predicted);
  }
  const EnginePlan plan = plan_engine(model, options, request);
  REQUIRE(plan.simulated);
  CHECK(1 / plan.simulated->expected.seconds <= *plan.tg_ts * (1 + 1e-9));
}

}  // namespace
