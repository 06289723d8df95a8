// Units in another order: every row goes where it should, in any type and layout, and the model computes the same.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <random>
#include <tuple>

#include "core/error.h"
#include "core/quantize_model.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;
using UnitOrder = std::vector<std::vector<int32_t>>;

UnitOrder some_order(size_t n_layer, int64_t n_ff, uint64_t seed) {
  std::mt19937_64 random(seed);
  UnitOrder out(n_layer, std::vector<int32_t>(static_cast<size_t>(n_ff)));
  for (std::vector<int32_t>& layer : out) {
    std::iota(layer.begin(), layer.end(), 0);
    for (size_t i = layer.size(); i > 1; --i) std::swap(layer[i - 1], layer[random() % i]);
  }
  return out;
}

QuantizeOptions options_of(const std::string& type, const std::string& layout, const UnitOrder& order) {
  QuantizeOptions out;
  out.type = type, out.layout = layout, out.unit_order = order, out.n_threads = 2;
  return out;
}

std::shared_ptr<const Model> quantized(const std::string& path, const QuantizeOptions& options) {
  const TempFile out("");
  quantize_model(path, out.path(), options);
  return Model::load(out.path());
}

std::string bytes_of(const Model& model, const std::string& name) {
  const GgufTensor* tensor = model.file().find_tensor(name);
  REQUIRE(tensor != nullptr);
  return {reinterpret_cast<const char*>(tensor->data), tensor->n_bytes};
}

std::vector<float> logits_of(const std::shared_ptr<const Model>& model) {
  const auto engine = Engine::create(model, {.n_threads = 1, .mode = "dense"});
  Session session = engine->open_session();
  const std::vector<int32_t> ids = random_tokens(3, 12, 270);
  const Engine::Entry entry{&session, ids, true};
  engine->advance({&entry, 1});
  return {session.all_logits().begin(), session.all_logits().end()};
}

TinySpec spec_of(const char* arch) {
  return {.arch = arch, .n_embd = 256, .n_ff = 512, .n_rot = 16, .activation = Activation::kRelu, .biases = true};
}

TEST_CASE("unit order: rows of units and elements of their biases move, nothing else") {
  for (const char* arch : {"llama", "arcee"}) {
    const TempFile in(tiny_writer(spec_of(arch)).bytes());
    const UnitOrder order = some_order(2, 512, 1);
    for (const char* type : {"f32", "f16", "q8_0", "q4_k_m"}) {
      CAPTURE(arch);
      CAPTURE(type);
      const auto plain = quantized(in.path(), options_of(type, "neuron", {}));
      const auto ordered = quantized(in.path(), options_of(type, "neuron", order));
      CHECK(plain->fingerprint() != ordered->fingerprint());
      for (const GgufTensor& tensor : plain->file().tensors()) {
        CAPTURE(tensor.name);
        const size_t layer = tensor.name.starts_with("blk.1.") ? 1 : 0;
        const std::string from = bytes_of(*plain, tensor.name), got = bytes_of(*ordered, tensor.name);
        const bool moves = tensor.name.find("ffn_gate") != std::string::npos ||
                           tensor.name.find("ffn_up") != std::string::npos ||
                           tensor.name.find("ffn_down_t.weight") != std::string::npos;
        std::string expected = from;
        for (size_t i = 0; moves && i < 512; ++i)
          expected.replace(i * from.size() / 512, from.size() / 512, from,
                           static_cast<size_t>(order[layer][i]) * from.size() / 512, from.size() / 512);
        CHECK(got == expected);
        CHECK((got != from) == moves);
      }
    }
  }
}

TEST_CASE("unit order: the model computes the same, in both layouts") {
  const TempFile in(tiny_writer(spec_of("llama")).bytes());
  const UnitOrder order = some_order(2, 512, 2);
  const std::vector<float> expected = logits_of(Model::load(in.path()));
  const std::vector<double> wanted(expected.begin(), expected.end());
  for (const std::string layout : {"neuron", "gguf"}) {
    const std::vector<float> got = logits_of(quantized(in.path(), options_of("f32", layout, order)));
    CHECK((got == expected) == (layout == "neuron"));  // else dots over units, in another order
    CHECK(nmse(got, wanted) <= 1e-10);
  }
}

TEST_CASE("unit order: the key has the numbers of the first file, also after a second order") {
  const TempFile in(tiny_writer(spec_of("llama")).bytes()), once("");
  const UnitOrder first = some_order(2, 512, 3), second = some_order(2, 512, 4);
  quantize_model(in.path(), once.path(), options_of("f32", "neuron", first));
  const auto twice = quantized(once.path(), options_of("f32", "neuron", second));
  const auto key = twice->file().get_int_array("hotset.unit_order");
  REQUIRE(key);
  REQUIRE(key->size() == 1024);
  const std::string from = bytes_of(*Model::load(in.path()), "blk.1.ffn_up.weight");
  const std::string got = bytes_of(*twice, "blk.1.ffn_up.weight");
  const size_t each = from.size() / 512;
  for (size_t i = 0; i < 512; ++i)
    CHECK(got.compare(i * each, each, from, static_cast<size_t>((*key)[512 + i]) * each, each) == 0);
  // Back again: the inverse of both gives the bytes of the first file.
  UnitOrder inverse(2, std::vector<int32_t>(512));
  for (size_t i = 0; i < 1024; ++i) inverse[i / 512][static_cast<size_t>((*key)[i])] = static_cast<int32_t>(i % 512);
  const TempFile twice_file(""), back("");
  quantize_model(once.path(), twice_file.path(), options_of("f32", "neuron", second));
  const auto restored = quantized(twice_file.path(), options_of("f32", "neuron", inverse));
  CHECK(bytes_of(*restored, "blk.1.ffn_up.weight") == from);
}

TEST_CASE("unit order: comes from a sidecar of the same model") {
  const TempFile in(tiny_writer(spec_of("llama")).bytes());
  const UnitOrder order = some_order(2, 512, 6);
  const auto sidecar = [&](auto change) {
    GgufWriter writer;
    writer.set_text("general.architecture", "hotset-sidecar");
    writer.set_text("hotset.model_fingerprint", Model::load(in.path())->fingerprint());
    for (size_t layer = 0; layer < 2; ++layer)
      writer.tensor("blk." + std::to_string(layer) + ".unit_of_slot", {512}, static_cast<uint32_t>(DType::kI32),
                    {reinterpret_cast<const char*>(order[layer].data()), 512 * sizeof(int32_t)});
    change(writer);
    const TempFile file(writer.bytes());
    return read_unit_order(file.path(), in.path());
  };
  CHECK(sidecar([](GgufWriter&) {}) == order);
  CHECK_THROWS_AS(sidecar([](GgufWriter& w) { w.set_text("hotset.model_fingerprint", "another"); }), Error);
  CHECK_THROWS_AS(sidecar([](GgufWriter& w) { w.erase("hotset.model_fingerprint"); }), Error);
  CHECK_THROWS_AS(sidecar([](GgufWriter& w) { w.erase_tensor("blk.1.unit_of_slot"); }), ModelFormatError);
  CHECK_THROWS_AS(sidecar([](GgufWriter& w) { w.tensor("blk.1.unit_of_slot").type = 0; }), ModelFormatError);
  CHECK_THROWS_AS(sidecar([](GgufWriter& w) { w.tensor("blk.1.unit_of_slot").ne = {256, 2}; }), ModelFormatError);
}

TEST_CASE("unit order: what is no order of this model is refused, and nothing is written") {
  const TempFile in(tiny_writer(spec_of("llama")).bytes());
  const auto refused = [&](const UnitOrder& order, const std::string& path) {
    const std::string out = path + ".out";
    CHECK_THROWS(quantize_model(path, out, options_of("q8_0", "neuron", order)));
    CHECK_FALSE(std::filesystem::exists(out));
  };
  const UnitOrder right = some_order(2, 512, 5);
  for (const int kind : {0, 1, 2, 3, 4, 5}) {
    UnitOrder wrong = right;
    if (kind == 0) wrong.pop_back();
    if (kind == 1) wrong.push_back(wrong[0]);
    if (kind == 2) wrong[1].pop_back();
    if (kind == 3) wrong[1][3] = wrong[1][4];
    if (kind == 4) wrong[0][0] = -1;
    if (kind == 5) wrong[0][0] = 512;
    CAPTURE(kind);
    refused(wrong, in.path());
  }
  TinySpec standard = spec_of("llama");
  standard.neuron_major = false;
  const TempFile standard_file(tiny_writer(standard).bytes());
  refused(right, standard_file.path());
  for (const auto& [ne, type, n_bytes] : {std::tuple{std::vector<uint64_t>{512}, 8u, size_t{544}},
                                          {std::vector<uint64_t>{16, 16, 2}, 0u, size_t{2048}},
                                          {std::vector<uint64_t>{511}, 0u, size_t{2044}}}) {
    GgufWriter odd = tiny_writer(spec_of("llama"));
    odd.tensor("blk.0.ffn_up.bias", ne, type, std::string(n_bytes, '\0'));
    const TempFile odd_file(odd.bytes());
    refused(right, odd_file.path());
  }
  GgufWriter writer = tiny_writer(spec_of("llama"));
  writer.set_array("hotset.unit_order", GgufType::kI32, std::vector<int32_t>{1, 0});
  const TempFile wrong_key(writer.bytes());
  refused(right, wrong_key.path());
}

}  // namespace
