// Engines split over the host and a pretend card, at random: shared by the tests of every mode.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "core/devices.h"
#include "core/placement.h"
#include "tests/cpp/cards.h"
#include "tests/cpp/families.h"

namespace hotset::test {

inline constexpr Family kFamilies[] = {{"llama", Activation::kRelu},     {"llama", Activation::kSilu},
                                       {"llama", Activation::kDRelu},    {"arcee", Activation::kRelu2},
                                       {"nemotron", Activation::kRelu2}, {"opt", Activation::kRelu},
                                       // Layers of other kinds, whose differences are in no kernel of a weight type.
                                       {"qwen3", Activation::kFatRelu},  {"gemma2", Activation::kGeluTanh},
                                       {"gemma3", Activation::kRelu},    {"falcon", Activation::kRelu},
                                       {"falcon", Activation::kRelu, true}, {"opt", Activation::kRelu, true}};

// Whether a family's layers are plain; one weight type is enough for the others.
inline bool is_plain_layer(const Family& family) { return &family < kFamilies + 6; }

// Whatever a placement may say of a model whose units can be detected (or, dense, must not be).
inline Placement random_placement(std::mt19937_64& random, const TinySpec& spec, bool is_dense) {
  Placement out;
  const auto pick = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  for (int64_t i = 0; i < spec.n_layer; ++i) {
    const int64_t n_hot = pick(5) == 0 ? 0 : pick(5) == 0 ? spec.n_ff : pick(spec.n_ff + 1);
    DetectPlace detect = n_hot == 0 ? DetectPlace::kHost : DetectPlace::kSplit;
    if (!is_dense && pick(2)) detect = DetectPlace::kDevice;
    // Whether there is a predictor or not.
    const bool apart = !is_dense && detect != DetectPlace::kDevice && n_hot < spec.n_ff && pick(2);
    if (apart) detect = DetectPlace::kSplit;
    const Place attention = pick(4) ? Place::kDevice : Place::kHost;
    out.layers.push_back({n_hot, detect, attention, apart, attention == Place::kDevice && pick(3) == 0});
  }
  out.head = pick(2) ? Place::kDevice : Place::kHost;
  return out;
}

// Logits of every position of two sequences that go on together, a prompt first, then mixed steps.
inline Logits all_logits(const std::shared_ptr<Engine>& engine, const Ids& ids) {
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

inline EngineOptions hybrid_options(std::mt19937_64& random, const TinySpec& spec, const std::string& mode) {
  EngineOptions out{
      .n_threads = 1 + static_cast<int32_t>(random() % 3), .n_sequences = 2, .mode = mode, .device = "virtual"};
  out.placement = std::make_shared<const Placement>(random_placement(random, spec, mode == "dense"));
  out.units_by_slot = std::make_shared<const std::vector<std::vector<int32_t>>>(random_unit_order(random, spec));
  VirtualDeviceOptions card;
  card.max_delay_us = random() % 3 == 0 ? 20 : 0;
  card.seed = random();
  choose_card(out, card, random(), spec.dtype);
  // Prompts with the cold rows brought to the card, in chunks of a few units to all of a layer's, or without.
  out.stream_from_rows = static_cast<int64_t>(random() % 5) - 1;
  if (out.stream_from_rows == 1) out.stream_from_rows = 2;
  if (random() % 4) out.stream_bytes = 256 << (random() % 8);
  out.virtual_device = std::make_shared<const VirtualDeviceOptions>(card);
  return out;
}

// The number of random steps; HOTSET_HYBRID_STEPS asks for more.
inline int64_t n_random_steps(int64_t otherwise = 400) {
  const char* const asked = std::getenv("HOTSET_HYBRID_STEPS");
  return asked != nullptr ? std::atoll(asked) : otherwise;
}

// The seed of a random run; HOTSET_HYBRID_SEED is added to it, so that a long run can be made of several short ones.
inline uint64_t random_steps_seed(uint64_t otherwise) {
  const char* const asked = std::getenv("HOTSET_HYBRID_SEED");
  return otherwise + (asked != nullptr ? std::strtoull(asked, nullptr, 10) * 1000 : 0);
}

// Sessions of one engine that are driven by the same numbers as those of another.
struct Driven {
  explicit Driven(std::shared_ptr<Engine> made) : engine(std::move(made)) {
    for (int i = 0; i < 3; ++i) sessions.push_back(engine->open_session());
  }
  Logits step(std::mt19937_64 random) {
    std::vector<Ids> ids(sessions.size());
    std::vector<Engine::Entry> entries;
    for (size_t i = 0; i < sessions.size(); ++i) {
      if (i > 0 && random() % 2 == 0) continue;
      if (sessions[i].n_past() > 40) sessions[i].truncate(static_cast<int64_t>(random() % 40));
      ids[i] = random_tokens(random(), 1 + (random() % 4 == 0 ? random() % 9 : 0), 270);
      entries.push_back({&sessions[i], ids[i], random() % 2 == 0});
    }
    engine->advance(entries);
    Logits out;
    for (const Engine::Entry& entry : entries)
      out.insert(out.end(), entry.session->all_logits().begin(), entry.session->all_logits().end());
    return out;
  }
  std::shared_ptr<Engine> engine;
  std::vector<Session> sessions;
};

inline std::string floats(std::mt19937_64& random, int64_t n, float size) {
  std::normal_distribution<float> normal(0, size);
  std::string out;
  for (int64_t i = 0; i < n; ++i) {
    const float value = normal(random);
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  return out;
}

// A sidecar with an order of units and, of a kind other than bit planes, random factors of rank 32; the last of several
// layers has none.
inline std::string predictor_file(std::mt19937_64& random, const Model& model,
                                  const std::vector<std::vector<int32_t>>& order, const std::string& kind) {
  const ModelConfig& config = model.config();
  GgufWriter out;
  out.set_text("general.architecture", "hotset-sidecar");
  out.set_u32("hotset.version", 1);
  out.set_text("hotset.model_fingerprint", model.fingerprint());
  out.set_text("hotset.unit_kind", "ffn");
  out.set_u32("hotset.n_layer", static_cast<uint32_t>(config.n_layer));
  out.set_text("hotset.predictor.kind", kind);
  std::vector<float> thresholds;
  const uint64_t n_embd = static_cast<uint64_t>(config.n_embd), n_ff = static_cast<uint64_t>(config.n_ff);
  for (int64_t layer = 0; layer < config.n_layer; ++layer) {
    thresholds.push_back(static_cast<float>(random() % 3) - 0.5f);
    const std::vector<int32_t>& units = order[static_cast<size_t>(layer)];
    out.tensor(cat("blk.", layer, ".unit_of_slot"), {n_ff}, 26,
               {reinterpret_cast<const char*>(units.data()), units.size() * 4});
    if (layer > 0 && layer + 1 == config.n_layer) continue;
    const std::string prefix = cat("blk.", layer, ".predictor.");
    const bool blocks = n_embd % 32 == 0;  // the first factor alone, so that both types are met
    out.tensor(
        prefix + "fc1.weight", {n_embd, 32}, blocks ? 8 : 0,
        blocks ? random_matrix(random, DType::kQ8_0, config.n_embd, 32) : floats(random, config.n_embd * 32, 0.2f));
    out.tensor(prefix + "fc2.weight", {32, n_ff}, 0, floats(random, 32 * config.n_ff, 0.2f));
    if (layer == 0) out.tensor(prefix + "bias", {n_ff}, 0, floats(random, config.n_ff, 0.5f));
  }
  out.set_array("hotset.predictor.thresholds", GgufType::kF32, thresholds);
  return out.bytes();
}

}  // namespace hotset::test
