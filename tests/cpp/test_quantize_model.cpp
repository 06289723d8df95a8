// quantize_model on tiny models: threads, stop, progress, layouts, wrong input. Types and
// bytes are compared with other programs in tests/python/test_quantize.py.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "core/error.h"
#include "core/quantize.h"
#include "core/quantize_mixture.h"
#include "core/quantize_model.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;

std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

QuantizeOptions options_of(const std::string& type, int32_t n_threads = 1) {
  QuantizeOptions options;
  options.type = type;
  options.n_threads = n_threads;
  return options;
}

std::string quantized(const std::string& model, const QuantizeOptions& options) {
  const TempFile in(model), out("");
  const QuantizeResult result = quantize_model(in.path(), out.path(), options);
  const std::string bytes = contents(out.path());
  CHECK(result.input_bytes == model.size());
  CHECK(result.output_bytes == bytes.size());
  return bytes;
}

// Several chunks a tensor: 1504 * 1024 elements; a row of ffn_down is no whole number of K blocks.
TinySpec wide() {
  TinySpec spec;
  spec.n_embd = 1024;
  spec.n_ff = 1504;
  spec.n_head = 8;
  spec.head_dim = 128;
  spec.n_rot = 2;
  spec.n_layer = 1;
  spec.neuron_major = false;
  return spec;
}

TEST_CASE("quantize_model: any number of threads writes the same bytes") {
  const std::string model = tiny_writer(wide()).bytes();
  for (const char* type : {"f16", "q8_0", "q4_k_m"}) {
    CAPTURE(type);
    const std::string expected = quantized(model, options_of(type, 1));
    for (const int32_t n_threads : {2, 3, 8}) CHECK(quantized(model, options_of(type, n_threads)) == expected);
  }
}

TEST_CASE("quantize_model: layouts are turned into each other without loss") {
  TinySpec spec;
  spec.neuron_major = false;
  const std::string standard = tiny_writer(spec).bytes();
  spec.neuron_major = true;
  const std::string neuron = tiny_writer(spec).bytes();
  QuantizeOptions options = options_of("f32");
  const auto tensor = [](const std::string& bytes, const char* name) {
    const ParsedBytes parsed = parse_bytes(bytes);
    const GgufTensor* found = parsed.file->find_tensor(name);
    REQUIRE(found != nullptr);
    return std::string(reinterpret_cast<const char*>(found->data), found->n_bytes);
  };
  const std::string turned = quantized(standard, options);
  options.layout = "gguf";
  CHECK(tensor(quantized(turned, options), "blk.1.ffn_down.weight") == tensor(standard, "blk.1.ffn_down.weight"));
  CHECK(tensor(turned, "blk.1.ffn_up.weight") == tensor(standard, "blk.1.ffn_up.weight"));
  options.layout = "neuron";
  CHECK(tensor(quantized(neuron, options), "blk.0.ffn_down_t.weight") == tensor(neuron, "blk.0.ffn_down_t.weight"));
}

TEST_CASE("quantize_model: progress reaches the end, a stop leaves the target as it was") {
  const std::string model = tiny_writer(wide()).bytes();
  const TempFile in(model), out("old");
  QuantizeOptions options = options_of("q8_0", 2);
  uint64_t last = 0, total = 0;
  options.progress = [&](uint64_t done, uint64_t all) {
    CHECK(done > last);
    last = done;
    total = all;
  };
  int n_asked = 0;
  options.stop = [&] { return ++n_asked > 3; };
  CHECK_THROWS_AS(quantize_model(in.path(), out.path(), options), CancelledError);
  CHECK(contents(out.path()) == "old");
  CHECK(last < total);
  options.stop = {};
  last = 0;
  const QuantizeResult result = quantize_model(in.path(), out.path(), options);
  CHECK(last == total);
  CHECK(total == result.n_params);
}

TEST_CASE("quantize_model: progress reaches the end where blocks are copied") {
  TinySpec spec = wide();
  spec.n_ff = 4512;  // 4.7 MiB a matrix: more than a chunk, which ends within a block
  spec.dtype = DType::kQ8_0;
  const TempFile in(tiny_writer(spec).bytes()), out("");
  QuantizeOptions options = options_of("q8_0", 2);
  options.layout = "gguf";
  uint64_t last = 0, total = 0;
  options.progress = [&](uint64_t done, uint64_t all) { last = done, total = all; };
  const QuantizeResult result = quantize_model(in.path(), out.path(), options);
  CHECK(last == total);
  CHECK(total == result.n_params);
}

TEST_CASE("quantize_model: wrong options are the caller's mistake") {
  const TempFile in(tiny_writer({}).bytes()), out("");
  CHECK_THROWS_AS(quantize_model(in.path(), out.path(), options_of("q9")), std::invalid_argument);
  CHECK_THROWS_AS(quantize_model(in.path(), out.path(), options_of("q8_0", -1)), std::invalid_argument);
  CHECK_THROWS_AS(quantize_model(in.path(), in.path(), options_of("q8_0")), std::invalid_argument);
  QuantizeOptions options = options_of("q8_0");
  options.layout = "wide";
  CHECK_THROWS_AS(quantize_model(in.path(), out.path(), options), std::invalid_argument);
}

TEST_CASE("quantize_model: what cannot be one model is refused") {
  const TempFile out("");
  const auto check_refused = [&](const std::string& bytes) {
    const TempFile in(bytes);
    CHECK_THROWS_AS(quantize_model(in.path(), out.path(), options_of("q8_0")), Error);
  };
  GgufWriter writer = tiny_writer({});
  const std::string bytes = writer.bytes();
  check_refused(bytes.substr(0, bytes.size() - 1));
  writer.set("split.count", GgufType::kU16, ByteWriter().put<uint16_t>(2).bytes());
  check_refused(writer.bytes());
  check_refused(GgufWriter().bytes());  // no tensors
}

TEST_CASE("quantize_mixture: families and sizes with rules of their own") {
  const Mixture& mixture = *find_mixture("Q4_K_M");
  MixtureModel falcon{"falcon", 32, 1, false, false};
  CHECK(mixture_type(mixture, falcon, "output.weight") == DType::kQ8_0);
  CHECK(mixture_type(mixture, falcon, "blk.1.ffn_down.weight") == DType::kQ6_K);
  CHECK(mixture_type(mixture, falcon, "blk.2.ffn_down.weight") == DType::kQ5_K);
  CHECK(mixture_type(mixture, falcon, "blk.4.ffn_down_t.weight") == DType::kQ4_K);
  CHECK(mixture_type(mixture, falcon, "blk.0.attn_qkv.weight") == DType::kQ6_K);
  MixtureModel large{"llama", 80, 8, false, false};
  CHECK(mixture_type(mixture, large, "blk.10.attn_v.weight") == DType::kQ5_K);
  CHECK(mixture_type(mixture, large, "blk.10.ffn_down_t.weight") == DType::kQ4_K);
  for (const char* name : {"q2_k", "q3_k_s", "q3_k_m", "q3_k_l"})
    CHECK(mixture_type(*find_mixture(name), large, "blk.10.attn_v.weight") == DType::kQ5_K);
  const MixtureModel grouped{"llama", 32, 4, false, false};
  CHECK(mixture_type(*find_mixture("q2_k"), grouped, "blk.10.attn_v.weight") == DType::kQ4_K);
  CHECK(mixture_type(*find_mixture("iq4_xs"), grouped, "blk.10.attn_v.weight") == DType::kQ5_K);
  CHECK(mixture_type(*find_mixture("q3_k_m"), falcon, "blk.2.ffn_down.weight") == DType::kQ4_K);
  CHECK(mixture_type(*find_mixture("q3_k_m"), falcon, "blk.4.ffn_down.weight") == DType::kQ3_K);
  large.pure = true;
  CHECK(mixture_type(mixture, large, "output.weight") == DType::kQ4_K);
  CHECK(fitting_type(DType::kQ6_K, 4096) == DType::kQ6_K);
  CHECK(fitting_type(DType::kQ6_K, 96) == DType::kQ8_0);
  CHECK(fitting_type(DType::kQ4_0, 40) == DType::kF16);
  CHECK(fitting_type(DType::kF32, 7) == DType::kF32);
}

}  // namespace
