// The engine split over the host and a pretend card: whatever lies where, every bit is that of the host alone.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/devices.h"
#include "core/engine_plan.h"
#include "core/executor.h"
#include "core/hybrid_planner.h"
#include "core/placement.h"
#include "core/weight_placer.h"
#include "core/weights.h"
#include "tests/cpp/hybrid_util.h"
#include "tests/cpp/placed_plans.h"

namespace {

using namespace hotset;
using namespace hotset::test;

TEST_CASE("hybrid: logits are those of the host alone, bit for bit, whatever lies where") {
  std::mt19937_64 random(5);
  for (const Family& family : kFamilies)
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ6_K,
                              DType::kIQ4_NL}) {
      if (skips_type(&family == kFamilies, dtype) || (!is_plain_layer(family) && dtype != DType::kQ4_0)) continue;
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

TEST_CASE("hybrid: random steps of random engines give the bits of the host alone") {
  std::mt19937_64 random(random_steps_seed(23));
  const int64_t n_steps = n_random_steps();
  for (int64_t done = 0; done < n_steps;) {
    const Family family = kFamilies[random() % std::size(kFamilies)];
    TinySpec spec = spec_of(family, random() % 2 ? DType::kQ4_0 : DType::kF16);
    spec.n_layer = 3, spec.seed = random();
    const auto model = load_tiny(spec);
    const bool is_dense = !is_sparse(family.activation) || random() % 4 == 0;
    EngineOptions options = hybrid_options(random, spec, is_dense ? "dense" : "exact");
    options.n_sequences = 3, options.n_batch = 1 + static_cast<int32_t>(random() % 12);
    Driven hybrid(Engine::create(model, options));
    Driven host(Engine::create(model, {.n_threads = 1, .n_sequences = 3, .mode = "dense"}));
    for (int i = 0; i < 50 && done < n_steps; ++i, ++done) {
      const uint64_t seed = random();
      const Logits expected = host.step(std::mt19937_64(seed)), got = hybrid.step(std::mt19937_64(seed));
      REQUIRE(got.size() == expected.size());
      REQUIRE(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("hybrid: a layer costs one fork and one join, a vector each way and the list of active units") {
  TinySpec spec{.n_layer = 5, .n_ff = 256, .dtype = DType::kQ8_0};
  const auto model = load_tiny(spec);
  EngineOptions options{.n_threads = 1, .mode = "exact", .device = "virtual"};
  Placement placement;
  placement.layers.assign(5, LayerPlacement{100, DetectPlace::kDevice, Place::kDevice});
  placement.head = Place::kDevice;
  options.placement = std::make_shared<const Placement>(placement);
  const auto engine = Engine::create(model, options);
  Session session = engine->open_session();
  session.prefill(random_tokens(1, 8, 270));
  const Traffic before = engine->traffic();
  session.prefill(random_tokens(2, 1, 270));
  const Traffic after = engine->traffic();
  // The embedding comes once a token, the logits go once.
  CHECK(after.n_signals - before.n_signals == 5 + 1);
  CHECK(after.n_waits - before.n_waits == 5 + 1);
  const uint64_t vector = 64 * sizeof(float), logits = static_cast<uint64_t>(model->config().n_vocab) * sizeof(float);
  CHECK(after.to_device - before.to_device == vector + 5 * 2 * vector);  // exact sums have 8 bytes
  const uint64_t lists = after.to_host - before.to_host - logits - 5 * vector;
  CHECK(lists >= 5 * 4);
  CHECK(lists <= 5 * 4 * (1 + 2 * 156));
}

TEST_CASE("hybrid: faults end a step or a load with an error, and leave the engine as it was where that can be") {
  std::mt19937_64 random(31);
  TinySpec spec{.n_layer = 3, .n_ff = 128, .dtype = DType::kQ8_0};
  const auto model = load_tiny(spec);
  EngineOptions options = hybrid_options(random, spec, "exact");
  options.device = "virtual";  // whose faults they are
  const Ids ids = random_tokens(3, 14, 270);
  const Logits expected = all_logits(Engine::create(model, options), ids);
  const auto with = [&](auto&& set) {
    VirtualDeviceOptions card;
    set(card);
    options.virtual_device = std::make_shared<const VirtualDeviceOptions>(card);
    return options;
  };
  int64_t n_allocs = 0;
  for (int64_t n = 1; n_allocs == 0; ++n) try {
      Engine::create(model, with([&](VirtualDeviceOptions& card) { card.fail_alloc = n; }));
      n_allocs = n - 1;
    } catch (const OutOfMemoryError&) {
    }
  CHECK(n_allocs > 5);
  for (int i = 0; i < 40; ++i) {
    const auto engine = Engine::create(model, with([&](VirtualDeviceOptions& card) { card.fail_phase = 1 + static_cast<int64_t>(random() % 300); }));
    bool failed = false;
    for (int attempt = 0; attempt < 2; ++attempt) try {
        const Logits got = all_logits(engine, ids);
        CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
      } catch (const DeviceError&) {
        CHECK(!failed);  // the fault comes once
        failed = true;
      }
  }
}

TEST_CASE("hybrid: a step that is cancelled anywhere changes nothing") {
  std::mt19937_64 random(37);
  TinySpec spec{.n_layer = 3, .n_ff = 128, .dtype = DType::kQ8_0};
  const auto model = load_tiny(spec);
  EngineOptions options = hybrid_options(random, spec, "exact");
  Placement placement;  // with which the host has much to do, so that it asks often
  placement.layers.assign(3, LayerPlacement{64, DetectPlace::kSplit, Place::kHost});
  options.placement = std::make_shared<const Placement>(placement);
  const auto engine = Engine::create(model, options);
  const Ids ids = random_tokens(3, 6, 270);
  Session session = engine->open_session(), other = engine->open_session();
  other.prefill(ids);
  const Logits expected(other.logits().begin(), other.logits().end());
  int64_t n_cancelled = 0;
  for (int i = 0; i < (kFewCases ? 200 : 1000); ++i) {
    int64_t left = static_cast<int64_t>(random() % 100);
    try {
      session.prefill(ids, [&] { return left-- <= 0; });
      CHECK(std::memcmp(session.logits().data(), expected.data(), expected.size() * sizeof(float)) == 0);
      session.truncate(0);
    } catch (const CancelledError&) {
      ++n_cancelled;
      CHECK(session.n_past() == 0);
    }
  }
  CHECK(n_cancelled > (kFewCases ? 5 : 50));
}

TEST_CASE("hybrid: a device that says nothing any more is given up") {
  std::mt19937_64 random(41);
  TinySpec spec{.n_layer = 3, .n_ff = 128, .dtype = DType::kQ8_0};
  const auto model = load_tiny(spec);
  Placement placement;
  placement.layers.assign(3, LayerPlacement{64, DetectPlace::kDevice, Place::kDevice});
  const auto host = make_cpu_device({.n_threads = 2});
  const auto card = make_virtual_device({.hang_phase = 20});
  const WeightPlacer placed(*model, std::make_shared<const Relayout>(*model, 1, LogSink{}), placement, {}, *card, {});
  PlanOptions options{.max_rows = 4, .max_output_rows = 4, .max_positions = 32, .exact = true};
  const Plan plan = build_plan(model->config(), placed.weights(), options);
  const auto kv = card->alloc(plan.kv_of(kDeviceLane).block_bytes());
  const std::vector<std::byte*> blocks{kv->data()};
  Executor executor({host.get(), card.get()}, plan, std::chrono::milliseconds(300));
  StepParams params;
  params.rows = {{5, 0, 0}};
  params.sequences = {{{nullptr, &blocks}}};
  params.output_rows = {0};
  CHECK_THROWS_AS(executor.run(params), DeviceError);
  CHECK_THROWS_WITH_AS(executor.run(params), doctest::Contains("earlier step"), DeviceError);
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

TEST_CASE("hybrid: keys and values on the host leave attention's weights on the card, of whatever type they are") {
  TinySpec spec{.n_layer = 3, .n_embd = 128, .n_ff = 320, .head_dim = 32, .dtype = DType::kQ8_0};
  const auto model = load_tiny(spec);
  const Ids ids = random_tokens(3, 14, 270);
  for (const char* kv_type : {"f16", "q8_0"}) {
    CAPTURE(kv_type);
    EngineOptions host{.n_threads = 1, .n_sequences = 2, .kv_type = kv_type, .mode = "dense"};
    const Logits expected = all_logits(Engine::create(model, host), ids);
    EngineOptions options{.n_threads = 1, .n_ctx = 2048, .n_batch = 8, .n_sequences = 2, .kv_type = kv_type, .device = "virtual"};
    options.rates = std::make_shared<const MachineRates>(made_up_rates());
    const uint64_t fixed = placement_problem(model, options, request_for(*model, options, 1 << 28)).fixed_bytes;
    // The context's keys and values take more than everything else.
    const uint64_t budget = fixed + model->size_bytes();
    for (const char* kv_place : {"auto", "host"}) {
      options.kv_place = kv_place, options.vram_budget = budget;
      const auto engine = Engine::create(model, options);
      const EnginePlan plan = plan_engine(model, options, request_for(*model, options, budget));
      CHECK(engine->info().device_bytes == plan.memory.bytes_on("gpu"));
      int64_t n_apart = 0;
      for (const LayerPlacement& layer : plan.placement.layers) n_apart += layer.host_kv;
      CHECK(n_apart == 3);
      CHECK(engine->info().device_kv_bytes == 0);
      const Logits got = all_logits(engine, ids);
      CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
    }
    options.kv_place = "device";
    CHECK_THROWS_AS(Engine::create(model, options), OutOfMemoryError);
  }
}

TEST_CASE("hybrid: a model that is larger than both memories is refused with the figures before it is loaded") {
  TinySpec spec{.n_layer = 4, .n_ff = 320, .dtype = DType::kQ8_0};
  const auto model = load_tiny(spec);
  EngineOptions options{.n_threads = 1, .n_ctx = 64, .n_batch = 4, .device = "virtual"};
  options.rates = std::make_shared<const MachineRates>(made_up_rates());
  const uint64_t fixed = placement_problem(model, options, request_for(*model, options, 1 << 28)).fixed_bytes;
  options.vram_budget = fixed + model->size_bytes() / 3;
  options.host_memory = model->size_bytes();
  const auto engine = Engine::create(model, options);
  const uint64_t there = engine->info().device_weight_bytes;
  CHECK(there > 0);
  options.host_memory = (model->size_bytes() - there) / 2;
  try {
    Engine::create(model, options);
    FAIL("a model that fits nowhere");
  } catch (const OutOfMemoryError& error) {
    const std::string text = error.what();
    CHECK(text.find(cat("beside ", there, " on the device")) != std::string::npos);
    CHECK(text.find(cat("got ", options.host_memory)) != std::string::npos);
    CHECK(text.find("--vram-budget") != std::string::npos);
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

TEST_CASE("hybrid: an engine that takes over weights laid out anew has the same, made again") {
  std::mt19937_64 random(43);
  TinySpec spec{.n_layer = 3, .n_ff = 128, .dtype = DType::kQ8_0, .neuron_major = false};
  const auto model = load_tiny(spec);
  const Ids ids = random_tokens(3, 14, 270);
  for (const char* device : {"virtual", "cpu"}) {
    EngineOptions options = hybrid_options(random, spec, "exact");
    int64_t n_made = 0;
    options.log = [&](LogLevel level, const std::string&) { n_made += level == LogLevel::kWarning; };
    const auto exact = Engine::create(model, options);
    CHECK(n_made == 1);
    options = hybrid_options(random, spec, "dense");
    options.log = [&](LogLevel level, const std::string&) { n_made += level == LogLevel::kWarning; };
    options.device = device, options.weights_from = exact;
    const auto dense = Engine::create(model, options);
    CHECK(n_made == 2);  // the first has copies of its rows only, on two sides
    CHECK(all_logits(dense, ids) == all_logits(exact, ids));
  }
}

}  // namespace
