// Units that change places while generating: what is moved, and that no bit of a result changes.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/devices.h"
#include "core/profile.h"
#include "core/unit_exchange.h"
#include "core/weight_placer.h"
#include "tests/cpp/families.h"
#include "tests/cpp/hybrid_util.h"

namespace {

using namespace hotset;
using namespace hotset::test;

using UnitsBySlot = std::vector<std::vector<int32_t>>;

Placement random_placement(std::mt19937_64& random, const TinySpec& spec) {
  Placement out;
  const auto pick = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  for (int64_t i = 0; i < spec.n_layer; ++i) {
    const int64_t n_hot = pick(8) == 0 ? 0 : pick(8) == 0 ? spec.n_ff : 1 + pick(spec.n_ff - 1);
    const DetectPlace detect = pick(2) ? DetectPlace::kDevice : n_hot == 0 ? DetectPlace::kHost : DetectPlace::kSplit;
    out.layers.push_back({n_hot, detect, pick(4) ? Place::kDevice : Place::kHost});
  }
  out.head = pick(2) ? Place::kDevice : Place::kHost;
  return out;
}

constexpr Family kFamilies[] = {{"llama", Activation::kRelu},
                                {"llama", Activation::kDRelu},
                                {"arcee", Activation::kRelu2},
                                {"opt", Activation::kRelu}};

TEST_CASE("adaptation: exchanged rows are those of a model placed in the order that results") {
  std::mt19937_64 random(17);
  const auto device = make_cpu_device({});  // whose memory can be looked into
  for (const Family& family : kFamilies)
    for (const DType dtype : {DType::kF32, DType::kQ4_0, DType::kQ6_K}) {
      TinySpec spec = spec_of(family, dtype);
      spec.n_layer = 5;
      const auto model = load_tiny(spec);
      const auto rows = std::make_shared<const Relayout>(*model, 1, LogSink{});
      const Placement placement = random_placement(random, spec);
      UnitsBySlot order = random_unit_order(random, spec);
      if (random() % 2)
        for (auto& layer : order) std::iota(layer.begin(), layer.end(), 0);
      const WeightPlacer placed(*model, rows, placement, order, *device, {.copies_cold = true});
      const WeightPlacer outline(*model, rows, placement, order, *device, {.is_outline = true, .copies_cold = true});
      CHECK(placed.arena_bytes() == outline.arena_bytes());
      UnitExchange exchange(placed.weights(), *device, 4);
      for (size_t layer = 0; layer < 5; ++layer) {
        const int64_t n_hot = placement.layers[layer].n_hot, n_cold = spec.n_ff - n_hot;
        CHECK(placed.can_exchange(layer) == (n_hot > 0 && n_cold > 0));
        for (int round = 0; placed.can_exchange(layer) && round < 20; ++round) {
          std::vector<SlotSwap> swaps;
          for (int64_t i = 0; i < std::min<int64_t>({4, n_hot, n_cold}); ++i) {
            const int64_t shift = static_cast<int64_t>(random() % 1000) * 4;
            swaps.push_back({(i + shift) % n_hot, n_hot + (i + shift) % n_cold});
            const auto repeats = [&](const SlotSwap& each) {
              return each.hot == swaps.back().hot || each.cold == swaps.back().cold;
            };
            if (std::count_if(swaps.begin(), swaps.end(), repeats) > 1) swaps.pop_back();
          }
          exchange.exchange(layer, swaps);
          for (const SlotSwap& each : swaps)
            std::swap(order[layer][static_cast<size_t>(each.hot)], order[layer][static_cast<size_t>(each.cold)]);
        }
      }
      const WeightPlacer expected(*model, rows, placement, order, *device, {});
      for (size_t layer = 0; layer < 5; ++layer)
        for (NamedTensor LayerWeights::*which :
             {&LayerWeights::ffn_gate, &LayerWeights::ffn_gate_b, &LayerWeights::ffn_up, &LayerWeights::ffn_up_b,
              &LayerWeights::ffn_down_t})
          for (LayerWeights PlacedLayer::*side : {&PlacedLayer::device, &PlacedLayer::host}) {
            const TensorView &got = ((placed.weights().layers[layer].*side).*which).view,
                             &want = ((expected.weights().layers[layer].*side).*which).view;
            REQUIRE(got.size_bytes() == want.size_bytes());
            if (got) CHECK(std::memcmp(got.data, want.data, got.size_bytes()) == 0);
          }
    }
}

// Swaps as often as the counts allow, and they allow it often.
AdaptationOptions eager() { return {.window_rows = 12, .deviations = 0.4, .swaps_per_step = 6, .steps_per_round = 2}; }

EngineOptions adaptive_options(std::mt19937_64& random, const TinySpec& spec) {
  EngineOptions out{.n_threads = 1 + static_cast<int32_t>(random() % 3),
                    .n_batch = 1 + static_cast<int32_t>(random() % 12),
                    .n_sequences = 3,
                    .mode = "exact",
                    .device = "virtual"};
  out.adapt = "on";
  out.adaptation = std::make_shared<const AdaptationOptions>(eager());
  out.placement = std::make_shared<const Placement>(random_placement(random, spec));
  if (random() % 2) out.units_by_slot = std::make_shared<const UnitsBySlot>(random_unit_order(random, spec));
  out.virtual_device = std::make_shared<const VirtualDeviceOptions>(
      VirtualDeviceOptions{.seed = random(), .max_delay_us = random() % 4 == 0 ? 20 : 0});
  return out;
}

bool same_bits(const Logits& a, const Logits& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_CASE("adaptation: on and off give the bits of the host alone") {
  std::mt19937_64 random(random_steps_seed(29));
  uint64_t n_swaps = 0;
  const int64_t n_steps = n_random_steps(600);
  for (int64_t done = 0; done < n_steps;) {
    const Family family = kFamilies[random() % std::size(kFamilies)];
    TinySpec spec = spec_of(family, random() % 2 ? DType::kQ4_0 : DType::kF16);
    spec.n_layer = 3, spec.seed = random();
    const auto model = load_tiny(spec);
    EngineOptions options = adaptive_options(random, spec);
    Driven on(Engine::create(model, options));
    options.adapt = "off";
    Driven off(Engine::create(model, options));
    Driven host(Engine::create(model, {.n_threads = 1, .n_sequences = 3, .mode = "dense"}));
    for (int i = 0; i < 75 && done < n_steps; ++i, ++done) {
      const uint64_t seed = random();
      const Logits expected = host.step(std::mt19937_64(seed));
      REQUIRE(same_bits(on.step(std::mt19937_64(seed)), expected));
      REQUIRE(same_bits(off.step(std::mt19937_64(seed)), expected));
    }
    n_swaps += on.engine->info().n_swaps;
    CHECK(on.engine->info().adapts);
    CHECK_FALSE(off.engine->info().adapts);
    CHECK(off.engine->info().n_swaps == 0);
    CHECK(off.engine->activity().layers.empty());
    CHECK(on.engine->unit_counts().active == off.engine->unit_counts().active);
  }
  MESSAGE(n_swaps, " swaps in ", n_steps, " steps");
  CHECK(static_cast<int64_t>(n_swaps) > n_steps);
}

TEST_CASE("adaptation: what is counted is what a profile counts, whatever has changed places") {
  std::mt19937_64 random(31);
  TinySpec spec{.n_layer = 3, .n_ff = 128, .n_ctx = 256, .dtype = DType::kQ8_0};
  const auto model = load_tiny(spec);
  EngineOptions options = adaptive_options(random, spec);
  options.n_sequences = 1;
  options.units_by_slot = std::make_shared<const UnitsBySlot>(random_unit_order(random, spec));
  const auto engine = Engine::create(model, options);
  const Ids ids = random_tokens(5, 120, 270);
  Session session = engine->open_session();
  session.prefill(std::span(ids).first(20));
  for (size_t at = 20; at < ids.size(); ++at) session.prefill(std::span(ids).subspan(at, 1));
  CHECK(engine->info().n_swaps > 50);
  Profiler profiler(model, {.n_threads = 1, .mode = "dense"}, 0);
  profiler.add(std::vector<Ids>{ids});
  const ActivityCounts got = engine->activity();
  CHECK(got.n_tokens == 120);
  REQUIRE(got.layers.size() == 3);
  for (size_t layer = 0; layer < 3; ++layer) CHECK(got.layers[layer] == profiler.state().layers[layer].counts);
}

// A model whose even units fire for the first half of the vocabulary and odd ones for the second: the first element of
// an embedding, which dwarfs what layers add to it, says which half.
std::shared_ptr<const Model> topical_model(const TinySpec& spec) {
  GgufWriter writer = tiny_writer(spec);
  const auto set_first = [&](const std::string& name, auto&& value) {
    std::string& data = writer.tensor(name).data;
    const size_t row = static_cast<size_t>(spec.n_embd) * sizeof(float);
    for (size_t i = 0; i < data.size() / row; ++i) {
      const float first = value(i);
      std::memcpy(data.data() + i * row, &first, sizeof first);
    }
  };
  set_first("token_embd.weight", [](size_t token) { return token < 135 ? 40.0f : -40.0f; });
  for (int64_t layer = 0; layer < spec.n_layer; ++layer)
    set_first("blk." + std::to_string(layer) + ".ffn_gate.weight",
              [](size_t unit) { return unit % 2 == 0 ? 2.0f : -2.0f; });
  return load_bytes(writer.bytes());
}

TEST_CASE("adaptation: when the topic changes the cold share falls again, and the output is the same") {
  TinySpec spec{.n_layer = 4, .n_ff = 128, .n_ctx = 512};
  const auto model = topical_model(spec);
  UnitsBySlot order(4);
  for (auto& layer : order)
    for (int32_t i = 0; i < 128; ++i) layer.push_back(i < 64 ? 2 * i : 2 * (i - 64) + 1);
  EngineOptions options{.n_threads = 1, .n_sequences = 1, .mode = "exact", .device = "virtual"};
  Placement placement;
  placement.layers = {{64, DetectPlace::kDevice, Place::kDevice}, {64, DetectPlace::kSplit, Place::kDevice},
                      {64, DetectPlace::kDevice, Place::kHost}, {64, DetectPlace::kSplit, Place::kHost}};
  options.placement = std::make_shared<const Placement>(placement);
  options.units_by_slot = std::make_shared<const UnitsBySlot>(order);
  options.adaptation = std::make_shared<const AdaptationOptions>(
      AdaptationOptions{.window_rows = 32, .deviations = 3, .swaps_per_step = 8, .steps_per_round = 4});
  struct Halves {
    double first, second;  // cold shares, each of the later part of a topic
    Logits logits;
  };
  const auto run = [&](const char* adapt) {
    options.adapt = adapt;
    const auto engine = Engine::create(model, options);
    Session session = engine->open_session();
    Halves out{};
    UnitCounts before;
    for (int i = 0; i < 400; ++i) {
      if (i == 100 || i == 300) before = engine->unit_counts();
      const int32_t token = 10 + i * 37 % 120 + (i < 200 ? 0 : 130);
      session.prefill({&token, 1});
      out.logits.insert(out.logits.end(), session.logits().begin(), session.logits().end());
      if (i == 199) out.first = (engine->unit_counts() - before).cold_share().value();
    }
    out.second = (engine->unit_counts() - before).cold_share().value();
    return out;
  };
  const Halves fixed = run("off"), adapted = run("on");
  CHECK(same_bits(fixed.logits, adapted.logits));
  MESSAGE("cold share before and after: ", fixed.first, " ", fixed.second, " fixed, ", adapted.first, " ",
          adapted.second, " adapted");
  CHECK(fixed.first < 0.2);
  CHECK(fixed.second > 0.8);
  CHECK(adapted.first < 0.2);
  CHECK(adapted.second < 0.2);
}

TEST_CASE("adaptation: a device that fails while rows are moved ends the engine, with no wrong result") {
  std::mt19937_64 random(43);
  TinySpec spec{.n_layer = 2, .n_ff = 128, .dtype = DType::kQ8_0};
  const auto model = load_tiny(spec);
  EngineOptions options = adaptive_options(random, spec);
  Placement placement;
  placement.layers = {{40, DetectPlace::kDevice, Place::kDevice}, {70, DetectPlace::kSplit, Place::kDevice}};
  options.placement = std::make_shared<const Placement>(placement);
  const auto failing_at = [&](int64_t upload) {
    options.virtual_device =
        std::make_shared<const VirtualDeviceOptions>(VirtualDeviceOptions{.fail_upload = upload});
    return Engine::create(model, options);
  };
  int64_t n_loading = 0;
  for (int64_t n = 1; n_loading == 0; ++n) try {
      failing_at(n);
      n_loading = n - 1;
    } catch (const DeviceError&) {
    }
  CHECK(n_loading > 5);
  for (int64_t n = 1; n <= 12; ++n) {
    CAPTURE(n);
    Driven on(failing_at(n_loading + n));
    Driven host(Engine::create(model, {.n_threads = 1, .n_sequences = 3, .mode = "dense"}));
    bool failed = false;
    for (uint64_t seed = 1; seed < 60 && !failed; ++seed) {
      std::vector<int64_t> held;
      for (const Session& session : on.sessions) held.push_back(session.n_past());
      const Logits expected = host.step(std::mt19937_64(seed));
      try {
        const Logits got = on.step(std::mt19937_64(seed));
        CHECK(same_bits(got, expected));
      } catch (const DeviceError&) {
        failed = true;
        for (size_t i = 0; i < held.size(); ++i)  // a step may truncate first
          CHECK(on.sessions[i].n_past() <= held[i]);
      }
    }
    CHECK(failed);
    CHECK_THROWS_WITH_AS(on.step(std::mt19937_64(99)), doctest::Contains("earlier step"), DeviceError);
  }
}

}  // namespace
