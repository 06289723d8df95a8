// Fingerprints: the same for every type and layout of one model, different for another model.
#include <doctest/doctest.h>

#include <functional>
#include <set>

#include "core/gguf.h"
#include "core/quantize_model.h"
#include "core/synth.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;

std::string print_of(const GgufWriter& writer) { return load_bytes(writer.bytes())->fingerprint(); }

TEST_CASE("fingerprint: type, layout and metadata of no account do not change it") {
  GgufWriter writer = tiny_writer({.n_embd = 256, .n_ff = 256, .n_rot = 16, .biases = true});
  const TempFile file(writer.bytes());
  const std::string expected = print_of(writer);
  CHECK(expected.size() == 32);
  CHECK(expected.find_first_not_of("0123456789abcdef") == std::string::npos);
  for (const char* type : {"f16", "q8_0", "q4_0", "q4_k_m"})
    for (const char* layout : {"neuron", "gguf"}) {
      CAPTURE(type);
      CAPTURE(layout);
      const TempFile out("");
      quantize_model(file.path(), out.path(), {.type = type, .layout = layout});
      CHECK(Model::load(out.path())->fingerprint() == expected);
    }
  writer.set_text("general.name", "another name");
  writer.set_u32("llama.context_length", 77);
  CHECK(print_of(writer) == expected);
}

TEST_CASE("fingerprint: any other vector, size, activation or order of units changes it") {
  const TinySpec spec{.biases = true};
  const GgufWriter writer = tiny_writer(spec);
  std::set<std::string> seen{print_of(writer)};
  size_t n = 1;
  const auto is_new = [&](const GgufWriter& changed) {
    seen.insert(print_of(changed));
    CHECK(seen.size() == ++n);
  };
  for (const GgufWriter::Tensor& tensor : writer.tensors()) {
    if (tensor.ne.size() > 1) continue;
    CAPTURE(tensor.name);
    GgufWriter changed = writer;
    changed.tensor(tensor.name).data[5] ^= 1;
    is_new(changed);
  }
  for (const auto& change : std::vector<std::function<void(TinySpec&)>>{
           [](TinySpec& s) { s.n_ff = 128; }, [](TinySpec& s) { s.activation = Activation::kRelu2; },
           [](TinySpec& s) { s.n_head_kv = 1; }, [](TinySpec& s) { s.n_layer = 3; }, [](TinySpec& s) { s.n_rot = 8; }}) {
    TinySpec changed = spec;
    change(changed);
    is_new(tiny_writer(changed));
  }
  GgufWriter ordered = writer;
  for (const std::vector<int32_t>& order : {std::vector<int32_t>{0, 1, 2}, {0, 2, 1}, {0, 2, 1, 3}}) {
    ordered.set_array("hotset.unit_order", GgufType::kI32, order);
    is_new(ordered);
  }
}

TEST_CASE("fingerprint: made-up models differ by their recipe, not by type or layout") {
  SynthSpec spec;
  spec.arch = "llama", spec.type = "q8_0", spec.activation = "relu";
  spec.shape.n_layer = 2, spec.shape.n_embd = 64, spec.shape.n_ff = 96, spec.shape.n_head = 2;
  spec.shape.n_vocab = 512, spec.shape.n_ctx = 64;
  const auto print = [](const SynthSpec& each) { return load_synth(each, {}, {})->fingerprint(); };
  const std::string expected = print(spec);
  SynthSpec other = spec;
  other.type = "f16", other.neuron_major = false, other.pure = true;
  CHECK(print(other) == expected);
  other = spec, other.seed = 2;
  CHECK(print(other) != expected);
  other = spec, other.sparsity = 0.8;
  CHECK(print(other) != expected);
}

}  // namespace
