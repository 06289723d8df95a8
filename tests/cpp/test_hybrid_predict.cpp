// Mode predict over the host and a pretend card: candidates, active units and every bit are those of the host alone.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "core/engine_plan.h"
#include "core/sidecar.h"
#include "tests/cpp/hybrid_util.h"
#include "tests/cpp/placed_plans.h"

namespace {

using namespace hotset;
using namespace hotset::test;

// Options that name a predictor of some kind; `file` keeps its sidecar.
void choose_predictor(std::mt19937_64& random, const Model& model, const TinySpec& spec, EngineOptions& options,
                      std::unique_ptr<TempFile>& file) {
  const char* const planes[] = {"bit_planes:1:0.4", "bit_planes:2:0",   "bit_planes:3:0.2",
                                "bit_planes:2:-1",  "bit_planes:2:inf", "bit_planes:1:-inf"};
  options.mode = "predict", options.predictor = "", options.sidecar = "none";
  const size_t kind = random() % 10;
  if (kind < std::size(planes)) {
    options.predictor = planes[kind];
    return;
  }
  const char* const factors[] = {"low_rank", "mlp", "residual_mlp", "residual_mlp"};
  file = std::make_unique<TempFile>(
      predictor_file(random, model, random_unit_order(random, spec), factors[kind - std::size(planes)]));
  options.sidecar = file->path();
}

EngineOptions on_host(const EngineOptions& options, int32_t n_threads) {
  EngineOptions out = options;
  out.device = "cpu", out.n_threads = n_threads;
  return out;
}

void check_counts(const UnitCounts& got, const UnitCounts& expected) {
  CHECK(got.total == expected.total);
  CHECK(got.candidates == expected.candidates);
  CHECK(got.active == expected.active);
}

TEST_CASE("hybrid predict: logits and counts are those of the host alone, whatever lies where") {
  std::mt19937_64 random(51);
  int64_t n_less = 0;
  for (const Family& family : kFamilies) {
    if (!is_sparse(family.activation)) continue;
    for (const DType dtype :
         {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kIQ4_NL}) {
      if (skips_type(&family == kFamilies, dtype) || (!is_plain_layer(family) && dtype != DType::kQ4_0)) continue;
      TinySpec spec = spec_of(family, dtype);
      spec.n_layer = 4, spec.seed = random();
      const auto model = load_tiny(spec);
      const Ids ids = random_tokens(random(), 14, 270);
      for (int i = 0; i < (kThreadsOnly ? 3 : 6); ++i) {
        EngineOptions options = hybrid_options(random, spec, "exact");
        std::unique_ptr<TempFile> file;
        choose_predictor(random, *model, spec, options, file);
        if (file && random() % 2) options.units_by_slot = nullptr;  // that of the sidecar
        CAPTURE(family.arch);
        CAPTURE(activation_name(family.activation));
        CAPTURE(dtype_name(dtype));
        CAPTURE(options.predictor);
        const auto host = Engine::create(model, on_host(options, 2)), hybrid = Engine::create(model, options);
        const Logits expected = all_logits(host, ids), got = all_logits(hybrid, ids);
        REQUIRE(got.size() == expected.size());
        CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
        check_counts(hybrid->unit_counts(), host->unit_counts());
        CHECK(hybrid->info().mode == "predict");
        CHECK(hybrid->info().predictor == host->info().predictor);
        CHECK(hybrid->info().predictor_bytes_per_token == host->info().predictor_bytes_per_token);
        n_less += host->unit_counts().candidates < host->unit_counts().total;
      }
    }
  }
  CHECK(n_less > 5);
}

TEST_CASE("hybrid predict: random steps of random engines give the bits of the host alone") {
  std::mt19937_64 random(random_steps_seed(53));
  const int64_t n_steps = std::max<int64_t>(n_random_steps() / 2, 100);
  for (int64_t done = 0; done < n_steps;) {
    const Family family = kFamilies[random() % std::size(kFamilies)];
    if (!is_sparse(family.activation)) continue;
    TinySpec spec = spec_of(family, random() % 2 ? DType::kQ4_0 : DType::kF16);
    spec.n_layer = 3, spec.seed = random();
    const auto model = load_tiny(spec);
    EngineOptions options = hybrid_options(random, spec, "exact");
    std::unique_ptr<TempFile> file;
    choose_predictor(random, *model, spec, options, file);
    options.n_sequences = 3, options.n_batch = 1 + static_cast<int32_t>(random() % 12);
    Driven hybrid(Engine::create(model, options)), host(Engine::create(model, on_host(options, 1)));
    for (int i = 0; i < 50 && done < n_steps; ++i, ++done) {
      const uint64_t seed = random();
      const Logits expected = host.step(std::mt19937_64(seed)), got = hybrid.step(std::mt19937_64(seed));
      REQUIRE(got.size() == expected.size());
      REQUIRE(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("hybrid predict: a layer costs one fork and one join, a vector each way and a list") {
  for (const bool apart : {false, true}) {
    CAPTURE(apart);
    TinySpec spec{.n_layer = 5, .n_ff = 256, .dtype = DType::kQ8_0};
    const auto model = load_tiny(spec);
    EngineOptions options{.n_threads = 1, .mode = "predict", .predictor = "bit_planes:2:0.5", .device = "virtual"};
    Placement placement;
    placement.layers.assign(5, {100, apart ? DetectPlace::kSplit : DetectPlace::kDevice, Place::kDevice, apart});
    placement.head = Place::kDevice;
    options.placement = std::make_shared<const Placement>(placement);
    const auto engine = Engine::create(model, options);
    Session session = engine->open_session();
    session.prefill(random_tokens(1, 8, 270));
    const Traffic before = engine->traffic();
    session.prefill(random_tokens(2, 1, 270));
    const Traffic after = engine->traffic();
    CHECK(after.n_signals - before.n_signals == 5 + 1);
    CHECK(after.n_waits - before.n_waits == 5 + 1);
    const uint64_t vector = 64 * sizeof(float), logits = static_cast<uint64_t>(model->config().n_vocab) * sizeof(float);
    CHECK(after.to_device - before.to_device == vector + 5 * 2 * vector);
    const uint64_t lists = after.to_host - before.to_host - logits - 5 * vector;
    CHECK(lists >= 5 * 4);
    CHECK(lists <= 5 * 4 * (1 + (apart ? 156 : 2 * 156)));  // candidates without their values
  }
}

TEST_CASE(
    "hybrid predict: what is planned is taken to the byte, within the budget, with the results of the host alone") {
  std::mt19937_64 random(59);
  TinySpec spec{.n_layer = 3, .n_ff = 320, .dtype = DType::kQ8_0};
  const auto model = load_tiny(spec);
  const Ids ids = random_tokens(3, 14, 270);
  const TempFile file(predictor_file(random, *model, random_unit_order(random, spec), "low_rank"));
  for (const bool planes : {true, false}) {
    CAPTURE(planes);
    EngineOptions options{
        .n_threads = 1, .n_ctx = 64, .n_batch = 8, .n_sequences = 2, .mode = "predict", .device = "virtual"};
    options.rates = std::make_shared<const MachineRates>(made_up_rates());
    if (planes) options.predictor = "bit_planes:2:0.5";
    options.sidecar = planes ? "none" : file.path();
    const auto host = Engine::create(model, on_host(options, 1));
    const Logits expected = all_logits(host, ids);
    PlanRequest request = request_for(*model, options, uint64_t{1} << 30);
    if (planes) {  // a few units are hot
      request.frequencies.assign(3, std::vector<double>(320));
      for (auto& layer : request.frequencies)
        for (size_t i = 0; i < layer.size(); ++i) layer[i] = i < 32 ? 0.9 : 0.02;
    }
    const uint64_t fixed = placement_problem(model, options, request).fixed_bytes;
    const EnginePlan all = plan_engine(model, options, request);
    const uint64_t everything = all.memory.bytes_on("gpu");
    uint64_t predicted = 0;
    for (const MemoryComponent& each : all.memory.components) predicted += each.name == "predictor" ? each.bytes : 0;
    const uint64_t once = host->info().predictor_bytes_per_token;
    CHECK(predicted >= once);
    if (planes) CHECK(predicted == once);  // nothing of it is on both sides
    int64_t n_split = 0;
    for (uint64_t budget = fixed; budget <= everything + 20000; budget += 20000) {
      CAPTURE(budget);
      request.vram_budget = budget;
      options.vram_budget = budget;
      EnginePlan plan = plan_engine(model, options, request);
      CHECK(plan.memory.bytes_on("gpu") <= budget);
      EngineOptions placed = options;  // the engine knows no frequencies
      placed.placement = std::make_shared<const Placement>(plan.placement);
      const auto engine = Engine::create(model, placed);  // checks what its device has taken
      CHECK(engine->info().device_bytes == plan.memory.bytes_on("gpu"));
      for (const LayerPlacement& layer : plan.placement.layers) n_split += layer.n_hot > 0 && layer.n_hot < spec.n_ff;
      const Logits got = all_logits(engine, ids);
      CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
      check_counts(engine->unit_counts() - UnitCounts{}, host->unit_counts());
      CHECK(Engine::create(model, options)->info().device_bytes <= budget);
    }
    CHECK(n_split > 0);
  }
}

TEST_CASE("hybrid predict: a sidecar is opened once, and its placement is taken in predict mode too") {
  std::mt19937_64 random(61);
  TinySpec spec{.n_layer = 2, .n_ff = 128};
  const auto model = load_tiny(spec);
  auto file = std::make_unique<TempFile>(predictor_file(random, *model, random_unit_order(random, spec), "mlp"));
  EngineOptions options{.n_threads = 1, .n_ctx = 64, .n_batch = 4, .mode = "predict", .device = "virtual"};
  options.vram_budget = uint64_t{1} << 26;
  options.sidecar = file->path();
  const Ids ids = random_tokens(5, 14, 270);
  const Logits expected = all_logits(Engine::create(model, on_host(options, 1)), ids);
  options.opened_sidecar = Sidecar::load(file->path(), model->config(), model->fingerprint());
  file.reset();  // who opens it again fails
  options.n_sequences = 2;
  CHECK(all_logits(Engine::create(model, options), ids) == expected);
  options.opened_sidecar.reset();
  CHECK_THROWS_AS(Engine::create(model, options), Error);
}

}  // namespace
