// Prompts whose cold units the accelerator computes, from rows that are brought to it meanwhile.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/devices.h"
#include "core/engine_plan.h"
#include "core/error.h"
#include "core/hybrid_planner.h"
#include "core/stream_choice.h"
#include "tests/cpp/families.h"
#include "tests/cpp/placed_plans.h"

namespace {

using namespace hotset;
using namespace hotset::test;

constexpr Family kFamilies[] = {{"llama", Activation::kRelu},
                                {"llama", Activation::kSilu},
                                {"nemotron", Activation::kRelu2},
                                {"opt", Activation::kRelu}};

// A ring that is never touched, with places for about so many units of the model's layers.
struct FakeRing {
  FakeRing(const PlacedWeights& weights, int64_t n_units) {
    for (const PlacedLayer& layer : weights.layers)
      if (layer.n_units > layer.place.n_hot)
        ring.place_bytes = std::max(ring.place_bytes, least_place_bytes(layer) * static_cast<size_t>(n_units));
    memory.resize(ring.size_bytes() + StreamRing::kAlignment);
    ring.data = memory.data();
  }
  StreamRing ring;
  std::vector<std::byte> memory;
};

TEST_CASE("stream: chunks have every cold unit once, in places that take turns") {
  for (const Family& family : kFamilies) {
    const auto model = load_tiny(spec_of(family, DType::kQ8_0));
    const int64_t n_units = model->config().n_ff;
    for (const LayerPlacement& place : layer_choices(n_units, true)) {
      if (place.n_hot == n_units) continue;
      const PlacedWeights weights = place_weights(*model, Layers(static_cast<size_t>(model->config().n_layer), place), kHost);
      const PlacedLayer& layer = weights.layers[0];
      for (const int64_t n : {1, 7, 40, 1000}) {
        const FakeRing fake(weights, n);
        const std::vector<StreamedChunk> chunks = stream_units(layer, fake.ring, 1);
        int64_t slot = place.n_hot;
        for (size_t i = 0; i < chunks.size(); ++i) {
          const UnitRows& rows = chunks[i].rows;
          REQUIRE(rows.n > 0);
          CHECK(rows.down_t.view.n_rows == rows.n);
          CHECK(rows.up.view.n_rows == rows.n);
          CHECK(static_cast<bool>(rows.gate) == model->config().arch->gated);
          CHECK(rows.down_t.name.ends_with(cat("[", slot, ":", slot + rows.n, "]")));
          const std::byte* const at = fake.ring.data + ((i + 1) % 2) * fake.ring.place_bytes;
          size_t n_bytes = 0;
          for (const StreamedChunk::Move& move : chunks[i].moves) {
            CHECK(move.to.view.data >= at);
            CHECK(move.to.view.data + move.to.view.size_bytes() <= at + fake.ring.place_bytes);
            CHECK(move.to.view.size_bytes() == move.from.view.size_bytes());
            n_bytes += move.to.view.size_bytes();
          }
          CHECK(n_bytes > 0);
          const NamedTensor& down = layer.host.ffn_down_t;
          CHECK(chunks[i].moves.back().from.view.data == down.view.row(slot - place.n_hot));
          slot += rows.n;
        }
        CHECK(slot == n_units);
        if (n == 1000) CHECK(chunks.size() == 1);
        if (n == 1 && n_units - place.n_hot > 10) CHECK(chunks.size() > 1);
      }
    }
  }
}

// Calls check(plan) for plans that stream, of every family, mode and placement.
template <class F>
void for_all_plans(F check) {
  for (const Family& family : kFamilies)
    for (const bool exact : {true, false}) {
      if (kFewCases && family.activation != Activation::kRelu2) continue;
      if (exact && !is_sparse(family.activation)) continue;
      TinySpec spec = spec_of(family, DType::kF32);
      spec.n_layer = 3;
      const auto model = load_tiny(spec);
      for (const Variant& variant : variants(model->config().n_ff, exact)) {
        INFO(cat(family.arch, " ", activation_name(family.activation), exact ? " exact: " : " dense: "),
             text_of(variant));
        const PlacedWeights weights = place_weights(*model, variant.layers, variant.head);
        const FakeRing fake(weights, 40);
        PlanOptions options = options_of(exact);
        options.stream = &fake.ring;
        check(build_plan(model->config(), weights, options));
      }
    }
}

TEST_CASE("stream: every step and flag of every plan is needed") {
  int64_t n_fetches = 0;
  for_all_plans([&](const Plan& plan) {
    CHECK(lint(plan).empty());
    for (size_t i = 0; i < plan.steps.size(); i += kFewCases ? 3 : 1) {
      n_fetches += std::holds_alternative<op::Fetch>(plan.steps[i].op);
      if (lint(without_step(plan, i)).empty() != works_in_place(plan.steps[i]))
        FAIL_CHECK("step ", i, ": ", dump_of(plan, i));
    }
    for (size_t i = 0; i < plan.flags.size(); ++i)
      if (lint(without_flag(plan, static_cast<int32_t>(i))).empty()) FAIL_CHECK("flag ", plan.flags[i]);
  });
  CHECK(n_fetches > (kFewCases ? 30 : 1000));
}

TEST_CASE("stream: lint sees places that are taken too early and rows that are read too early") {
  int64_t n_moved = 0;
  for_all_plans([&](const Plan& plan) {
    for (size_t i = 0; i + 1 < plan.steps.size(); ++i) {
      if (plan.steps[i].lane != kCopyLane || plan.steps[i + 1].lane != kCopyLane) continue;
      const bool is_flag = std::holds_alternative<op::Wait>(plan.steps[i].op) ||
                           std::holds_alternative<op::Signal>(plan.steps[i + 1].op);
      if (!is_flag) continue;
      Plan moved = plan;
      std::swap(moved.steps[i].op, moved.steps[i + 1].op);
      if (lint(moved).empty()) FAIL_CHECK("step ", i, ": ", dump_of(plan, i));
      ++n_moved;
    }
    for (size_t i = 0; i < plan.steps.size(); ++i) {
      const auto* fetch = std::get_if<op::Fetch>(&plan.steps[i].op);
      if (!fetch) continue;
      Plan wrong = plan;
      wrong.steps[i].lane = kDeviceLane;
      CHECK_FALSE(lint(wrong).empty());
      wrong = plan;
      --wrong.weights[static_cast<size_t>(fetch->to.index)].view.n_rows;
      CHECK_FALSE(lint(wrong).empty());
      break;
    }
  });
  CHECK(n_moved > 100);
}

EngineOptions streaming_options(const TinySpec& spec, const LayerPlacement& layer, const std::string& mode) {
  EngineOptions out{.n_threads = 1, .n_ctx = 64, .n_batch = 12, .n_sequences = 1, .mode = mode, .device = "virtual"};
  Placement placement;
  placement.layers.assign(static_cast<size_t>(spec.n_layer), layer);
  placement.head = Place::kDevice;
  out.placement = std::make_shared<const Placement>(placement);
  out.stream_from_rows = 4, out.stream_bytes = 9000;
  return out;
}

Logits logits_of(const std::shared_ptr<Engine>& engine, std::initializer_list<size_t> steps) {
  Session session = engine->open_session();
  Logits out;
  uint64_t seed = 1;
  for (const size_t n : steps) {
    const Ids ids = random_tokens(seed++, n, 270);
    const Engine::Entry entry{&session, ids, true};
    engine->advance({&entry, 1});
    out.insert(out.end(), session.all_logits().begin(), session.all_logits().end());
  }
  return out;
}

TEST_CASE("stream: steps of many rows bring every cold byte once, those of few none, and all give the host's bits") {
  for (const Family& family : kFamilies)
    for (const char* mode : {"exact", "dense"}) {
      if (!is_sparse(family.activation) && std::string(mode) == "exact") continue;
      TinySpec spec = spec_of(family, DType::kQ8_0);
      spec.n_layer = 2;
      const auto model = load_tiny(spec);
      const Logits expected = logits_of(Engine::create(model, {.n_threads = 1, .mode = "dense"}), {3, 20, 1, 4});
      for (const DetectPlace detect : {DetectPlace::kSplit, DetectPlace::kDevice}) {
        CAPTURE(family.arch);
        CAPTURE(mode);
        const EngineOptions options = streaming_options(spec, {31, detect, Place::kDevice}, mode);
        const auto engine = Engine::create(model, options);
        const Logits got = logits_of(engine, {3, 20, 1, 4});
        REQUIRE(got.size() == expected.size());
        CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
        // 20 rows in steps of at most 12: three of these steps have at least 4 rows.
        const LayerWeights& w = model->weights().layers[0];
        const bool detects_there = detect == DetectPlace::kDevice && std::string(mode) == "exact";
        size_t unit = w.ffn_up.view.row_stride;  // ffn_down_t's rows are as long
        if (w.ffn_gate) unit += detects_there ? w.ffn_up.view.row_stride : 2 * w.ffn_up.view.row_stride;
        if (!w.ffn_gate && !detects_there) unit += w.ffn_up.view.row_stride;
        if (w.ffn_gate_b && !detects_there) unit += sizeof(float);
        if (w.ffn_up_b && (w.ffn_gate || !detects_there)) unit += sizeof(float);
        const uint64_t cold = 2 * static_cast<uint64_t>(model->config().n_ff - 31) * unit;
        CHECK(engine->traffic().fetched == 3 * cold);
      }
    }
}

TEST_CASE("stream: what it takes is planned to the byte") {
  TinySpec spec{.n_layer = 2, .n_ff = 320, .dtype = DType::kQ8_0};
  const auto model = load_tiny(spec);
  EngineOptions options{.n_threads = 1, .n_ctx = 64, .n_batch = 12, .n_sequences = 1, .mode = "exact", .device = "virtual"};
  options.stream_from_rows = 4;
  options.rates = std::make_shared<const MachineRates>(made_up_rates());
  const uint64_t fixed = placement_problem(model, options, request_for(*model, options, 1 << 28)).fixed_bytes;
  for (const uint64_t more : {40'000, 80'000, 120'000}) {
    options.vram_budget = fixed + more;
    const auto engine = Engine::create(model, options);
    const EnginePlan plan = plan_engine(model, options, request_for(*model, options, fixed + more));
    CHECK(engine->info().device_bytes == plan.memory.bytes_on("gpu"));
    CHECK(engine->info().device_bytes <= fixed + more);
    engine->open_session().prefill(random_tokens(1, 20, 270));
    CHECK(engine->traffic().fetched > 0);
    CHECK(plan.steps.find("\nsteps of 4 rows and more:\n") != std::string::npos);
  }
}

TEST_CASE("stream: it pays where the bus is fast against the host's arithmetic") {
  const auto model = load_tiny({.n_layer = 2, .n_ff = 320, .dtype = DType::kQ8_0});
  const auto choose = [&](double bus_gbps, int32_t n_threads, int64_t n_hot, double frequency) {
    MachineRates rates;
    rates.pcie = PcieRates{bus_gbps, bus_gbps};
    rates.handoff_us = 10;
    const PlacedWeights weights = place_weights(*model, Layers(2, {n_hot, DetectPlace::kSplit, kDevice}), kDevice);
    const std::vector<std::vector<double>> frequencies(2, std::vector<double>(320, frequency));
    return choose_stream(weights, {rates, n_threads, 1 << 20, true, frequencies});
  };
  const StreamChoice slow = choose(0.01, 4, 160, 1), fast = choose(0.1, 4, 160, 1);
  CHECK(slow.from_rows > fast.from_rows);
  CHECK(choose(0.01, 8, 160, 1).from_rows > slow.from_rows);
  CHECK(choose(0.01, 4, 160, 0.1).from_rows > slow.from_rows);
  CHECK(choose(1e5, 1, 160, 1).from_rows >= 32);  // decode steps stay with the host
  CHECK(choose(1, 4, 320, 1).from_rows == 0);     // nothing is cold
  for (const StreamChoice& each : {slow, fast}) {
    CHECK(each.place_bytes % StreamRing::kAlignment == 0);
    CHECK(each.place_bytes > 0);
    CHECK(2 * each.place_bytes <= (1 << 20) / 8);
  }
}

TEST_CASE("stream: a fault while rows are brought ends the step, not the process") {
  TinySpec spec{.n_layer = 2, .n_ff = 96};
  const auto model = load_tiny(spec);
  for (int64_t phase = 1; phase < 120; phase += 7) {
    CAPTURE(phase);
    EngineOptions options = streaming_options(spec, {31, DetectPlace::kSplit, Place::kDevice}, "exact");
    VirtualDeviceOptions card;
    card.fail_phase = phase;
    options.virtual_device = std::make_shared<const VirtualDeviceOptions>(card);
    const auto engine = Engine::create(model, options);
    Session session = engine->open_session();
    CHECK_THROWS_AS(session.prefill(random_tokens(1, 12, 270)), DeviceError);
    CHECK(session.n_past() == 0);
    session.prefill(random_tokens(1, 12, 270));  // an injected fault comes once
    CHECK(session.n_past() == 12);
  }
}

}  // namespace
