// The engine split over the host and a pretend card: whatever lies where, every bit is that of the host alone.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/devices.h"
#include "core/engine_plan.h"
#include "core/placement.h"
#include "core/weights.h"
#include "tests/cpp/families.h"

namespace {

using namespace hotset;
using namespace hotset::test;

using UnitsBySlot = std::vector<std::vector<int32_t>>;

constexpr Family kFamilies[] = {{"llama", Activation::kRelu},  {"llama", Activation::kSilu},     {"llama", Activation::kDRelu},
                                {"arcee", Activation::kRelu2}, {"nemotron", Activation::kRelu2}, {"opt", Activation::kRelu}};

// Whatever a placement may say of a model whose units can be detected (or, dense, must not be).
Placement random_placement(std::mt19937_64& random, const TinySpec& spec, bool is_dense) {
  Placement out;
  const auto pick = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  for (int64_t i = 0; i < spec.n_layer; ++i) {
    const int64_t n_hot = pick(5) == 0 ? 0 : pick(5) == 0 ? spec.n_ff : pick(spec.n_ff + 1);
    DetectPlace detect = n_hot == 0 ? DetectPlace::kHost : DetectPlace::kSplit;
    if (!is_dense && pick(2)) detect = DetectPlace::kDevice;
    out.layers.push_back({n_hot, detect, pick(4) ? Place::kDevice : Place::kHost});
  }
  out.head = pick(2) ? Place::kDevice : Place::kHost;
  return out;
}

UnitsBySlot random_order(std::mt19937_64& random, const TinySpec& spec) {
  UnitsBySlot out(static_cast<size_t>(spec.n_layer), std::vector<int32_t>(static_cast<size_t>(spec.n_ff)));
  for (auto& layer : out) {
    std::iota(layer.begin(), layer.end(), 0);
    std::shuffle(layer.begin(), layer.end(), random);
  }
  return out;
}

// Logits of every position of two sequences that go on together, a prompt first, then mixed steps.
Logits all_logits(const std::shared_ptr<Engine>& engine, const Ids& ids) {
  Session a = engine->open_session(), b = engine->open_session();
  Logits out;
  const auto step = [&](std::span<const int32_t> for_a, std::span<const int32_t> for_b) {
    std::vector<Engine::Entry> entries;
    if (!for_a.empty()) entries.push_back({&a, for_a, true});
    if (!for_b.empty()) entries.push_back({&b, for_b, true});
    engine->advance(entries);
    for (const Session* session : {&a, &b})
      if (!(session == &a ? for_a : for_b).empty())
        out.insert(out.end(), session->all_logits().begin(), session->all_logits().end());
  };
  const std::span<const int32_t> all(ids);
  step(all.first(7), {});
  step(all.subspan(7, 1), all.first(5));
  for (size_t at = 8; at < ids.size(); ++at) step(all.subspan(at, 1), all.subspan(at - 3, at % 3));
  return out;
}

EngineOptions hybrid_options(std::mt19937_64& random, const TinySpec& spec, const std::string& mode) {
  EngineOptions out{.n_threads = 1 + static_cast<int32_t>(random() % 3), .n_sequences = 2, .mode = mode, .device = "virtual"};
  out.placement = std::make_shared<const Placement>(random_placement(random, spec, mode == "dense"));
  out.units_by_slot = std::make_shared<const UnitsBySlot>(random_order(random, spec));
  VirtualDeviceOptions card;
  card.queue_depth = static_cast<int32_t>(random() % 4);
  card.max_delay_us = random() % 3 == 0 ? 20 : 0;
  card.seed = random();
  out.virtual_device = std::make_shared<const VirtualDeviceOptions>(card);
  return out;
}

TEST_CASE("hybrid: logits are those of the host alone, bit for bit, whatever lies where") {
  std::mt19937_64 random(5);
  for (const Family& family : kFamilies)
    for (const DType dtype : kThreadsOnly ? std::vector<DType>{DType::kQ4_0}
                                          : std::vector<DType>{DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ6_K}) {
      TinySpec spec = spec_of(family, dtype);
      spec.n_layer = 4, spec.seed = random();
      const auto model = load_tiny(spec);
      const Ids ids = random_tokens(random(), 14, 270);
      const Logits expected = all_logits(Engine::create(model, {.n_threads = 2, .n_sequences = 2, .mode = "dense"}), ids);
      for (int i = 0; i < 4; ++i) {
        CAPTURE(family.arch);
        CAPTURE(activation_name(family.activation));
        CAPTURE(dtype_name(dtype));
        CAPTURE(i);
        const std::string mode = is_sparse(family.activation) && i % 4 != 3 ? "exact" : "dense";
        const Logits got = all_logits(Engine::create(model, hybrid_options(random, spec, mode)), ids);
        REQUIRE(got.size() == expected.size());
        CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
      }
    }
}

MachineRates made_up_rates() {
  MachineRates out;
  out.read.push_back({"huge", 1, 50, 1, {}});
  out.gpu = GpuRates{"card", 0, 500, {}};
  out.pcie = PcieRates{20, 20};
  out.handoff_us = 0.01;
  return out;
}

TEST_CASE("hybrid: what is planned is taken to the byte, within the budget, with the results of the host alone") {
  for (const char* mode : {"exact", "dense"}) {
    CAPTURE(mode);
    TinySpec spec{.n_layer = 3, .n_ff = 320, .dtype = DType::kQ8_0};
    const auto model = load_tiny(spec);
    const Ids ids = random_tokens(3, 14, 270);
    const Logits expected = all_logits(Engine::create(model, {.n_threads = 1, .n_sequences = 2, .mode = "dense"}), ids);
    EngineOptions options{.n_threads = 1, .n_ctx = 64, .n_batch = 8, .n_sequences = 2, .mode = mode, .device = "virtual"};
    options.rates = std::make_shared<const MachineRates>(made_up_rates());
    PlanRequest request = request_for(*model, options, uint64_t{1} << 30);
    const uint64_t fixed = placement_problem(model, options, request).fixed_bytes;
    const uint64_t everything = plan_engine(model, options, request).memory.bytes_on("gpu");
    int64_t n_split = 0;
    for (uint64_t budget = fixed; budget <= everything + 20000; budget += 20000) {
      CAPTURE(budget);
      request.vram_budget = budget;
      options.vram_budget = budget;
      const EnginePlan plan = plan_engine(model, options, request);
      const auto engine = Engine::create(model, options);  // checks what its device has taken
      CHECK(engine->info().device_bytes == plan.memory.bytes_on("gpu"));
      CHECK(engine->info().device_bytes <= budget);
      for (const LayerPlacement& layer : plan.placement.layers) n_split += layer.n_hot > 0 && layer.n_hot < spec.n_ff;
      const Logits got = all_logits(engine, ids);
      CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
    }
    CHECK(n_split > 0);
  }
}

TEST_CASE("hybrid: -ngl and the place of the KV cache are obeyed or refused") {
  TinySpec spec{.n_layer = 4, .n_ff = 320};
  const auto model = load_tiny(spec);
  EngineOptions options{.n_threads = 1, .n_ctx = 64, .n_batch = 4, .device = "virtual"};
  const uint64_t weights = model->size_bytes();
  options.n_gpu_layers = "all";
  CHECK(Engine::create(model, options)->info().device_weight_bytes >= weights - model->weights().token_embd.view.size_bytes());
  options.vram_budget = placement_problem(model, options, request_for(*model, options, 1 << 28)).fixed_bytes + weights / 2;
  CHECK_THROWS_AS(Engine::create(model, options), OutOfMemoryError);
  options.n_gpu_layers = std::to_string(2);
  CHECK(Engine::create(model, options)->info().device_weight_bytes > 0);
  options.n_gpu_layers = "auto", options.kv_place = "host";
  CHECK(Engine::create(model, options)->info().device_kv_bytes == 0);
  options.kv_place = "device", options.vram_budget = uint64_t{1} << 30;
  CHECK(Engine::create(model, options)->info().device_kv_bytes > 0);
}

}  // namespace
