// Sidecars: what is read, what is refused, and that predictors in them run.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "core/quantize.h"
#include "core/sidecar.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;

constexpr int64_t kLayers = 2, kEmbd = 64, kUnits = 96, kRank = 32;

std::shared_ptr<const Model> tiny(Activation activation = Activation::kRelu) {
  return load_tiny({.n_layer = kLayers, .n_embd = kEmbd, .n_ff = kUnits, .activation = activation, .seed = 3});
}

std::string bytes_of(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// Slot s holds unit (7 s + layer) mod 96.
std::vector<int32_t> units_by_slot(int64_t layer) {
  std::vector<int32_t> out;
  for (int64_t slot = 0; slot < kUnits; ++slot) out.push_back(static_cast<int32_t>((7 * slot + layer) % kUnits));
  return out;
}

GgufWriter sidecar_of(const Model& model) {
  GgufWriter out;
  out.set_text("general.architecture", "hotset-sidecar");
  out.set_u32("hotset.version", 1);
  out.set_text("hotset.model_fingerprint", model.fingerprint());
  out.set_text("hotset.unit_kind", "ffn");
  out.set_u32("hotset.n_layer", kLayers);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    std::vector<float> frequencies;
    for (int64_t slot = 0; slot < kUnits; ++slot) frequencies.push_back(1.0f / static_cast<float>(slot + 1));
    const std::vector<int32_t> units = units_by_slot(layer);
    out.tensor(cat("blk.", layer, ".unit_freq"), {kUnits}, 0, bytes_of(frequencies));
    out.tensor(cat("blk.", layer, ".unit_of_slot"), {kUnits}, 26,
               {reinterpret_cast<const char*>(units.data()), units.size() * 4});
  }
  return out;
}

void add_planes(GgufWriter& out, const std::vector<float>& thresholds, uint32_t n_bits = 2) {
  out.set_text("hotset.predictor.kind", "bit_planes");
  out.set_u32("hotset.predictor.bits", n_bits);
  out.set_array("hotset.predictor.thresholds", GgufType::kF32, thresholds);
  out.set_f32("hotset.predictor.recall", 0.99f);
}

// A factor of full rank is the gate itself: fc1 one to one, fc2 the gate's rows in slot order.
void add_full_rank(GgufWriter& out, const Model& model, const std::string& kind, float threshold) {
  out.set_text("hotset.predictor.kind", kind);
  out.set_array("hotset.predictor.thresholds", GgufType::kF32, std::vector<float>{threshold, threshold});
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    std::vector<float> one(static_cast<size_t>(kEmbd * kEmbd)), fc2, bias;
    for (size_t i = 0; i < kEmbd; ++i) one[i * (kEmbd + 1)] = 1;
    std::vector<float> row(kEmbd);
    const TensorView& gate = model.weights().layers[static_cast<size_t>(layer)].ffn_gate.view;
    for (const int32_t unit : units_by_slot(layer)) {
      dequantize_row(gate.dtype, gate.row(unit), kEmbd, row.data());
      fc2.insert(fc2.end(), row.begin(), row.end());
      bias.push_back(unit == 5 ? 1000.0f : unit == 6 ? -1000.0f : 0.0f);  // always and never a candidate
    }
    const std::string prefix = cat("blk.", layer, ".predictor.");
    out.tensor(prefix + "fc1.weight", {kEmbd, kEmbd}, 0, bytes_of(one));
    out.tensor(prefix + "fc2.weight", {kEmbd, kUnits}, 0, bytes_of(fc2));
    out.tensor(prefix + "bias", {kUnits}, 0, bytes_of(bias));
  }
}

std::shared_ptr<const Sidecar> read(const std::string& bytes, const Model& model, ParsedBytes& keep) {
  keep = parse_bytes(bytes);
  return Sidecar::read(keep.file, model.config(), model.fingerprint());
}

TEST_CASE("sidecar: everything that is in it, and nothing where it is absent") {
  const auto model = tiny();
  ParsedBytes keep;
  GgufWriter writer = sidecar_of(*model);
  auto sidecar = read(writer.bytes(), *model, keep);
  CHECK(sidecar->units_by_slot(1) == units_by_slot(1));
  CHECK(sidecar->frequencies(0).view.n_cols == kUnits);
  CHECK_FALSE(sidecar->predictor());
  CHECK_FALSE(sidecar->placement());
  add_planes(writer, {0.5f, -1.0f}, 3);
  writer.set_text("hotset.somebody.elses", "ignored");
  writer.tensor("blk.0.unknown", {1}, 0, bytes_of({1}));
  writer.set("hotset.placement.vram_budget", GgufType::kU64, ByteWriter().put<uint64_t>(8ull << 30).bytes());
  writer.set_u32("hotset.placement.n_ctx", 4096);
  writer.set_text("hotset.placement.machine", "a card");
  writer.set_array("hotset.placement.n_hot", GgufType::kU32, std::vector<uint32_t>{10, 96});
  writer.set_texts("hotset.placement.detect", {"device", "split"});
  writer.set_texts("hotset.placement.attention", {"host", "device"});
  writer.set_text("hotset.placement.head", "device");
  writer.set_f32("hotset.placement.predicted_tg_ts", 12.5f);
  sidecar = read(writer.bytes(), *model, keep);
  REQUIRE(sidecar->predictor());
  CHECK(sidecar->predictor()->n_bits == 3);
  CHECK(sidecar->predictor()->thresholds == std::vector<float>{0.5f, -1.0f});
  CHECK(*sidecar->predictor()->quality.recall == doctest::Approx(0.99));
  CHECK_FALSE(sidecar->predictor()->quality.kld);
  REQUIRE(sidecar->placement());
  CHECK(sidecar->placement()->vram_budget == 8ull << 30);
  CHECK(sidecar->placement()->n_hot == std::vector<int64_t>{10, 96});
  CHECK(sidecar->placement()->detect[1] == "split");
  CHECK(sidecar->placement()->predicted_tg_ts == 12.5);
  GgufWriter bare = sidecar_of(*model);
  for (const char* name : {"blk.0.unit_freq", "blk.0.unit_of_slot", "blk.1.unit_freq", "blk.1.unit_of_slot"})
    bare.erase_tensor(name);
  CHECK(read(bare.bytes(), *model, keep)->units_by_slot(0).empty());
}

TEST_CASE("sidecar: what contradicts itself or the model is refused") {
  const auto model = tiny();
  const auto refuses = [&](const char* what, auto change) {
    CAPTURE(what);
    GgufWriter writer = sidecar_of(*model);
    add_full_rank(writer, *model, "mlp", 0);
    change(writer);
    ParsedBytes keep;
    try {
      read(writer.bytes(), *model, keep);
      CHECK_MESSAGE(false, "was read");
    } catch (const ModelFormatError& error) {
      CHECK(std::string(error.what()).find(what) != std::string::npos);
    }
  };
  refuses("hotset-sidecar", [](GgufWriter& w) { w.set_text("general.architecture", "llama"); });
  refuses("hotset.version", [](GgufWriter& w) { w.set_u32("hotset.version", 2); });
  refuses("another model", [](GgufWriter& w) { w.set_text("hotset.model_fingerprint", "00"); });
  refuses("hotset.model_fingerprint", [](GgufWriter& w) { w.erase("hotset.model_fingerprint"); });
  refuses("hotset.unit_kind", [](GgufWriter& w) { w.set_text("hotset.unit_kind", "expert"); });
  refuses("hotset.n_layer", [](GgufWriter& w) { w.set_u32("hotset.n_layer", 3); });
  refuses("unit_freq", [](GgufWriter& w) { w.tensor("blk.0.unit_freq", {95}, 0, std::string(95 * 4, '\0')); });
  refuses("unit_of_slot", [](GgufWriter& w) { w.tensor("blk.1.unit_of_slot", {96}, 26, std::string(96 * 4, '\0')); });
  refuses("unit_of_slot", [](GgufWriter& w) { w.tensor("blk.1.unit_of_slot", {96}, 26, std::string(96 * 4, '\7')); });
  refuses("unit_of_slot", [](GgufWriter& w) { w.tensor("blk.1.unit_of_slot", {96}, 0, std::string(96 * 4, '\0')); });
  refuses("unit_of_slot", [](GgufWriter& w) { w.erase_tensor("blk.1.unit_of_slot"); });
  refuses("predictor.kind", [](GgufWriter& w) { w.set_text("hotset.predictor.kind", "oracle"); });
  refuses("thresholds", [](GgufWriter& w) { w.erase("hotset.predictor.thresholds"); });
  refuses("thresholds",
          [](GgufWriter& w) { w.set_array("hotset.predictor.thresholds", GgufType::kF32, std::vector<float>{1}); });
  refuses("NaN", [](GgufWriter& w) {
    w.set_array("hotset.predictor.thresholds", GgufType::kF32, std::vector<float>{1, std::nanf("")});
  });
  refuses("bits", [](GgufWriter& w) { add_planes(w, {0, 0}, 4); });
  refuses("fc2", [](GgufWriter& w) { w.erase_tensor("blk.0.predictor.fc2.weight"); });
  refuses("fc2", [](GgufWriter& w) {
    w.tensor("blk.0.predictor.fc2.weight", {kEmbd, 95}, 0, std::string(kEmbd * 95 * 4, '\0'));
  });
  refuses("fc1", [](GgufWriter& w) {
    w.tensor("blk.0.predictor.fc1.weight", {63, kEmbd}, 0, std::string(63 * kEmbd * 4, '\0'));
  });
  refuses("type of tensor", [](GgufWriter& w) {
    w.tensor("blk.0.predictor.fc1.weight", {kEmbd, kEmbd}, 24, std::string(kEmbd * kEmbd, '\0'));
  });
  refuses("n_hot", [](GgufWriter& w) {
    w.set("hotset.placement.vram_budget", GgufType::kU64, ByteWriter().put<uint64_t>(1).bytes());
    w.set_u32("hotset.placement.n_ctx", 4096);
    w.set_text("hotset.placement.machine", "");
    w.set_array("hotset.placement.n_hot", GgufType::kU32, std::vector<uint32_t>{10, 97});
  });
  GgufWriter whole = sidecar_of(*model);
  add_full_rank(whole, *model, "mlp", 0);
  const std::string bytes = whole.bytes();
  for (size_t n = 0; n < bytes.size(); n += 997) CHECK_THROWS_AS(parse_bytes(bytes.substr(0, n)), ModelFormatError);
}

struct Outcome {
  std::vector<float> logits;
  UnitCounts counts;
  EngineInfo info;
};

Outcome run(const std::shared_ptr<const Model>& model, const EngineOptions& options, size_t piece) {
  const auto engine = Engine::create(model, options);
  Session session = engine->open_session();
  const std::vector<int32_t> ids = random_tokens(9, 24, 270);
  Outcome out;
  for (size_t at = 0; at < ids.size(); at += piece) {
    const Engine::Entry entry{&session, std::span(ids).subspan(at, std::min(piece, ids.size() - at)), true};
    engine->advance({&entry, 1});
    out.logits.insert(out.logits.end(), session.all_logits().begin(), session.all_logits().end());
  }
  out.counts = engine->unit_counts();
  out.info = engine->info();
  return out;
}

EngineOptions with(const std::string& sidecar, int32_t n_threads = 2) {
  EngineOptions out{.n_threads = n_threads, .mode = "predict"};
  out.sidecar = sidecar;
  return out;
}

TEST_CASE("sidecar: a factor in slot order proposes units in unit order") {
  const auto model = tiny();
  GgufWriter writer = sidecar_of(*model);
  add_full_rank(writer, *model, "low_rank", 0);
  const TempFile file(writer.bytes());
  const Outcome exact = run(model, {.n_threads = 1, .mode = "exact"}, 24);
  const Outcome got = run(model, with(file.path()), 5);
  CHECK(got.info.predictor == "low_rank");
  // Of the active units all but unit 6 are found; besides them only unit 5 is proposed.
  CHECK(got.counts.candidates <= got.counts.active + 2 * 24);
  CHECK(got.counts.candidates >= got.counts.active);
  CHECK(got.counts.active + 2 * 24 >= exact.counts.active);
  CHECK(got.counts.active < exact.counts.active);
  for (const size_t piece : {1, 24}) CHECK(run(model, with(file.path(), 3), piece).logits == got.logits);
  add_full_rank(writer, *model, "low_rank", 1e9f);
  CHECK(run(model, with(TempFile(writer.bytes()).path()), 24).logits == exact.logits);
  // With the activation between, a full-rank factor sees only the positive half of its input.
  add_full_rank(writer, *model, "mlp", 0);
  const Outcome mlp = run(model, with(TempFile(writer.bytes()).path()), 24);
  CHECK(mlp.info.predictor == "mlp");
  CHECK(mlp.logits != got.logits);
}

TEST_CASE("sidecar: a layer without a predictor runs exactly") {
  const auto model = tiny();
  GgufWriter writer = sidecar_of(*model);
  add_full_rank(writer, *model, "low_rank", -1e9f);
  for (const char* part : {"fc1.weight", "fc2.weight", "bias"}) writer.erase_tensor(cat("blk.1.predictor.", part));
  const Outcome got = run(model, with(TempFile(writer.bytes()).path()), 24);
  CHECK(got.counts.candidates == 24 * kUnits);  // none of layer 0, all of layer 1
  for (const char* part : {"fc1.weight", "fc2.weight", "bias"}) writer.erase_tensor(cat("blk.0.predictor.", part));
  const Outcome none = run(model, with(TempFile(writer.bytes()).path()), 24);
  CHECK(none.logits == run(model, {.n_threads = 1, .mode = "exact"}, 24).logits);
}

TEST_CASE("sidecar: the one beside the model is found, a wrong one is an error") {
  CHECK(Sidecar::path_beside("a/b.gguf") == "a/b.hotset.gguf");
  CHECK(Sidecar::path_beside("model") == "model.hotset.gguf");
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / "hotset_test_sidecar";
  std::filesystem::create_directories(folder);
  const auto write = [&](const char* name, const std::string& bytes) {
    std::ofstream(folder / name, std::ios::binary) << bytes;
  };
  write("m.gguf", tiny_writer({.n_layer = kLayers, .n_embd = kEmbd, .n_ff = kUnits, .seed = 3}).bytes());
  const auto model = Model::load((folder / "m.gguf").string());
  CHECK_THROWS_AS(Engine::create(model, with("auto")), Error);
  GgufWriter writer = sidecar_of(*model);
  write("m.hotset.gguf", writer.bytes());
  CHECK_THROWS_AS(Engine::create(model, with("auto")), Error);  // no predictor in it
  add_planes(writer, {0.25f, 0.5f});
  write("m.hotset.gguf", writer.bytes());
  CHECK(Engine::create(model, with("auto"))->info().predictor == "bit_planes:2");
  CHECK_THROWS_AS(Engine::create(model, with("none")), Error);
  CHECK_THROWS_AS(Engine::create(model, with((folder / "absent.gguf").string())), Error);
  CHECK_THROWS_AS(Engine::create(model, with((folder / "m.gguf").string())), ModelFormatError);
  writer.set_text("hotset.model_fingerprint", std::string(32, '0'));
  write("m.hotset.gguf", writer.bytes());
  CHECK_THROWS_AS(Engine::create(model, with("auto")), ModelFormatError);
  std::filesystem::remove_all(folder);
}

}  // namespace
