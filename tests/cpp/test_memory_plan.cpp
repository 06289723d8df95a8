// The memory account against real engines, and placements of whole models.
#include <doctest/doctest.h>

#include <cmath>
#include <stdexcept>

#include "core/engine_plan.h"
#include "core/error.h"
#include "core/weights.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;

MachineRates made_up_rates() {
  MachineRates rates;
  rates.read = {{"normal", 1, 50, 1, {{64, 0.02, 20}, {64, 0.1, 25}, {1024, 0.02, 30}, {1024, 0.1, 35}}}};
  rates.gpu = GpuRates{"G", uint64_t{1} << 40, 900, {{64, 0.1, 300}, {1024, 0.1, 500}}};
  rates.pcie = PcieRates{25, 25};
  rates.handoff_us = 0.01;
  return rates;
}

uint64_t part(const MemoryPlan& plan, const std::string& name, const std::string& device) {
  uint64_t out = 0;
  for (const MemoryComponent& each : plan.components)
    if (each.name == name && each.device == device) out += each.bytes;
  return out;
}

uint64_t weights_of(const MemoryPlan& plan) {
  uint64_t out = 0;
  for (const char* name : {"embeddings", "attention", "detect", "units", "head", "relayout"})
    out += part(plan, name, "cpu") + part(plan, name, "gpu");
  return out;
}

EngineOptions options_of(const std::string& mode) {
  EngineOptions options;
  options.n_threads = 1;
  options.n_ctx = 100;
  options.mode = mode;
  return options;
}

TEST_CASE("memory plan: every weight is counted once, and buffers and relayout are those of a real engine") {
  for (const char* arch : {"llama", "arcee", "opt"})
    for (const DType dtype : {DType::kF32, DType::kQ8_0})
      for (const bool neuron_major : {true, false})
        for (const bool tied : {true, false})
          for (const std::string mode : {"exact", "dense"}) {
            CAPTURE(arch);
            CAPTURE(neuron_major);
            CAPTURE(tied);
            CAPTURE(mode);
            TinySpec spec;
            spec.arch = arch, spec.dtype = dtype, spec.neuron_major = neuron_major, spec.tied = tied,
            spec.biases = true;
            spec.n_ff = 160;
            const auto model = load_tiny(spec);
            EngineOptions options = options_of(mode);
            const EnginePlan plan = plan_engine(model, options, {});
            CHECK(!plan.placement.uses_device());
            CHECK(plan.memory.bytes_on("gpu") == 0);
            const EngineInfo real = Engine::create(model, options)->info();
            // A table this small is wholly in memory but for the expectation of a rounding.
            const double table = static_cast<double>(model->weights().token_embd.view.size_bytes());
            const double all = static_cast<double>(model->size_bytes());
            CHECK(static_cast<double>(weights_of(plan.memory)) >= all - table);
            CHECK(static_cast<double>(weights_of(plan.memory)) <= all);
            if (tied) CHECK(weights_of(plan.memory) == model->size_bytes());
            // The step has 100 rows; one row of logits is touched.
            const uint64_t logits_row = 4 * static_cast<uint64_t>(model->config().n_vocab + spec.n_embd);
            CHECK(part(plan.memory, "compute", "cpu") == real.buffer_bytes - 99 * logits_row);
            CHECK(part(plan.memory, "kv", "cpu") == real.kv_bytes_per_position * 128);  // whole blocks
            const uint64_t relayout = part(plan.memory, "relayout", "cpu");
            CHECK((relayout > 0) == (mode == "exact" && !neuron_major));
            CHECK(relayout <= real.relayout_bytes);
            CHECK(real.relayout_bytes < relayout + 4096 * 2);  // a part of a page in each of two layers
          }
}

TEST_CASE("memory plan: what is on the device is what the placement counted, and no weight is lost on the way") {
  for (const std::string mode : {"exact", "dense"})
    for (const bool tied : {true, false}) {
      CAPTURE(mode);
      CAPTURE(tied);
      TinySpec spec;
      spec.tied = tied, spec.n_ff = 320, spec.n_layer = 3;
      const auto model = load_tiny(spec);
      EngineOptions options = options_of(mode);
      options.n_batch = 8;
      PlanRequest request;
      request.rates = made_up_rates();
      for (int l = 0; l < 3; ++l) {
        request.frequencies.emplace_back();
        for (int i = 0; i < 320; ++i) request.frequencies.back().push_back(std::pow(1.0 - i / 320.0, 4));
      }
      const EnginePlan host = plan_engine(model, options, request);
      request.vram_budget = uint64_t{1} << 30;
      const uint64_t fixed = placement_problem(model, options, request).fixed_bytes;
      const uint64_t everything = plan_engine(model, options, request).memory.bytes_on("gpu");
      double last = 0;
      for (uint64_t budget = fixed; budget <= everything + 10000; budget += 9000) {
        CAPTURE(budget);
        request.vram_budget = budget;
        const EnginePlan plan = plan_engine(model, options, request);
        CHECK(plan.memory.bytes_on("gpu") == plan.placement.device_bytes);
        CHECK(plan.memory.bytes_on("gpu") <= budget);
        CHECK(*plan.tg_ts >= last * (1 - 1e-4));
        last = *plan.tg_ts;
        const bool copied = tied && plan.placement.head == Place::kDevice;
        CHECK(weights_of(plan.memory) ==
              weights_of(host.memory) + (copied ? model->weights().token_embd.view.size_bytes() : 0));
      }
      CHECK(last > *host.tg_ts);
    }
}

TEST_CASE("memory plan: with a card the host's buffers, shared memory and cold units are those of a real engine") {
  int64_t n_split = 0, n_streamed = 0;
  for (const std::string mode : {"exact", "dense"})
    for (const int64_t stream_from_rows : {0, 4}) {
      CAPTURE(mode);
      CAPTURE(stream_from_rows);
      TinySpec spec{.n_layer = 3, .n_ff = 320, .dtype = DType::kQ8_0};
      const auto model = load_tiny(spec);
      EngineOptions options{.n_threads = 1, .n_ctx = 64, .n_batch = 8, .n_sequences = 2, .mode = mode};
      options.device = "virtual", options.stream_from_rows = stream_from_rows;
      MachineRates rates = made_up_rates();
      rates.read = {{"huge", 1, 50, 1, {}}}, rates.gpu = GpuRates{"G", 0, 500, {}};  // with which layers are split
      options.rates = std::make_shared<const MachineRates>(rates);
      PlanRequest request;
      request.rates = rates, request.vram_budget = 1 << 30;
      const uint64_t fixed = placement_problem(model, options, request).fixed_bytes;
      for (uint64_t budget = fixed; budget <= fixed + 200000; budget += 20000) {
        CAPTURE(budget);
        request.vram_budget = budget, options.vram_budget = budget;
        const EnginePlan plan = plan_engine(model, options, request);
        if (!plan.placement.uses_device()) continue;
        const EngineInfo real = Engine::create(model, options)->info();
        // Each of two sequences asks for a row: of the others' logits, and what is normed for them, nothing is touched.
        const bool is_streamed = stream_from_rows > 0 && plan.steps.find("rows and more") != std::string::npos;
        n_streamed += is_streamed;
        const uint64_t n_unasked = is_streamed ? (8 - 2) + (3 - 2) : 8 - 2;
        const Placement& at = plan.placement;
        const bool ends_there = at.head == Place::kDevice && at.layers[2].attention == Place::kDevice;
        const uint64_t logits_row = 4 * static_cast<uint64_t>(model->config().n_vocab + (ends_there ? 0 : spec.n_embd));
        CHECK(part(plan.memory, "compute", "cpu") + part(plan.memory, "handoff", "cpu") ==
              real.host_buffer_bytes + real.shared_bytes - n_unasked * logits_row);
        // All cold units of split layers are copied, as any of them may become hot; tensors begin at multiples of 256.
        uint64_t cold = 0;
        for (size_t i = 0; i < 3; ++i) {
          const uint64_t n_cold = static_cast<uint64_t>(320 - at.layers[i].n_hot);
          if (mode == "dense" || n_cold == 0 || n_cold == 320) continue;
          const LayerBytes bytes = layer_bytes(model->weights(), i, true);
          cold += n_cold * (bytes.unit_rows + (at.layers[i].detect == DetectPlace::kDevice ? 0 : bytes.detect_row));
          ++n_split;
        }
        CHECK(real.arena_bytes >= cold);
        CHECK(real.arena_bytes <= cold + 3 * 3 * 256);
      }
    }
  CHECK(n_split > 0);
  CHECK(n_streamed > 0);
}

TEST_CASE("memory plan: frequencies count in exact mode only") {
  TinySpec spec;
  const auto model = load_tiny(spec);
  PlanRequest request;
  request.rates = made_up_rates();
  const double unknown = *plan_engine(model, options_of("exact"), request).tg_ts;
  const double dense = *plan_engine(model, options_of("dense"), request).tg_ts;
  request.frequencies.assign(2, std::vector<double>(96, 0.05));
  CHECK(*plan_engine(model, options_of("dense"), request).tg_ts == dense);
  CHECK(*plan_engine(model, options_of("exact"), request).tg_ts > unknown);
  CHECK(unknown == doctest::Approx(dense));  // all units active: the same bytes
}

TEST_CASE("memory plan: requests that make no sense are refused") {
  const auto model = load_tiny({});
  const EngineOptions options = options_of("exact");
  PlanRequest request;
  CHECK(!plan_engine(model, options, request).tg_ts);  // no rates, no prediction
  request.vram_budget = 1 << 28;
  CHECK_THROWS_AS(plan_engine(model, options, request), Error);
  request.rates = made_up_rates();
  CHECK_NOTHROW(plan_engine(model, options, request));
  for (const int missing : {0, 1, 2}) {
    PlanRequest less = request;
    if (missing == 0) less.rates->gpu.reset();
    if (missing == 1) less.rates->pcie.reset();
    if (missing == 2) less.rates->handoff_us.reset();
    CHECK_THROWS_AS(plan_engine(model, options, less), Error);
    apply({missing == 0 ? std::optional(500.0) : std::nullopt, missing == 1 ? std::optional(20.0) : std::nullopt,
           missing == 2 ? std::optional(5.0) : std::nullopt},
          *less.rates);
    CHECK_NOTHROW(plan_engine(model, options, less));
  }
  MachineRates rates = made_up_rates();
  CHECK_THROWS_AS(apply({NAN, {}, {}}, rates), std::invalid_argument);
  CHECK_THROWS_AS(apply({{}, 0.0, {}}, rates), std::invalid_argument);
  CHECK_THROWS_AS(apply({{}, {}, -1.0}, rates), std::invalid_argument);
  for (const uint64_t budget : {uint64_t{1}, uint64_t{1} << 41, UINT64_MAX}) {
    request.vram_budget = budget;
    CHECK_THROWS_AS(plan_engine(model, options, request), std::invalid_argument);
  }
  request.vram_budget = 0;
  request.frequencies.assign(2, std::vector<double>(95, 0.5));
  CHECK_THROWS_AS(plan_engine(model, options, request), std::invalid_argument);
  request.frequencies.assign(3, std::vector<double>(96, 0.5));
  CHECK_THROWS_AS(plan_engine(model, options, request), std::invalid_argument);
  request.frequencies.assign(2, std::vector<double>(96, NAN));
  CHECK_THROWS_AS(plan_engine(model, options, request), std::invalid_argument);
}

TEST_CASE("memory plan: frequencies of a sidecar") {
  const auto model = load_tiny({});
  hotset::test::GgufWriter writer;
  writer.set_text("general.architecture", "hotset-sidecar");
  writer.set_u32("hotset.version", 1);
  writer.set_text("hotset.model_fingerprint", model->fingerprint());
  writer.set_text("hotset.unit_kind", "ffn");
  writer.set_u32("hotset.n_layer", 2);
  const auto read = [&] { return sidecar_frequencies(TempFile(writer.bytes()).path(), *model); };
  CHECK(read().empty());
  const std::vector<float> values(96, 0.25f);
  const std::string bytes(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  writer.tensor("blk.0.unit_freq", {96}, 0, bytes);
  CHECK_THROWS_AS(read(), ModelFormatError);  // the second layer has none
  writer.tensor("blk.1.unit_freq", {96}, 0, bytes);
  CHECK(read() == std::vector<std::vector<double>>(2, std::vector<double>(96, 0.25)));
  writer.tensor("blk.1.unit_freq", {48}, 0, bytes.substr(0, 192));
  CHECK_THROWS_AS(read(), ModelFormatError);
  writer.tensor("blk.1.unit_freq", {96}, 26, bytes);
  CHECK_THROWS_AS(read(), ModelFormatError);
  for (const float bad : {NAN, 2.0f, -1.0f, 0.5f}) {
    std::vector<float> spoiled = values;
    spoiled[7] = bad;
    writer.tensor("blk.1.unit_freq", {96}, 0,
                  std::string(reinterpret_cast<const char*>(spoiled.data()), spoiled.size() * sizeof(float)));
    CHECK_THROWS_AS(read(), ModelFormatError);
  }
  writer.tensor("blk.1.unit_freq", {96}, 0, bytes);
  writer.set_u32("hotset.version", 2);
  CHECK_THROWS_AS(read(), ModelFormatError);
  writer.set_u32("hotset.version", 1);
  writer.set_text("general.architecture", "llama");
  CHECK_THROWS_AS(read(), ModelFormatError);
  CHECK_THROWS_AS(sidecar_frequencies("/nonexistent", *model), Error);
}

}  // namespace
