#include "tests/cpp/util.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <new>

#include "core/half.h"
#include "core/quantize.h"
#include "core/weights.h"
#include "cpu/cpu_program.h"
#include "cpu/reference.h"
#include "tests/cpp/tiny_vocabularies.h"

namespace {

// Of this thread. Plain numbers: operator new runs before and after everything else.
thread_local int64_t live_bytes = 0;
thread_local int64_t most_bytes = 0;

[[gnu::noinline]] void* counted_new(size_t n) {
  void* out = std::malloc(n > 0 ? n : 1);
  if (!out) return nullptr;
  live_bytes += static_cast<int64_t>(malloc_usable_size(out));
  most_bytes = std::max(most_bytes, live_bytes);
  return out;
}

[[gnu::noinline]] void counted_delete(void* at) {
  if (!at) return;
  live_bytes -= static_cast<int64_t>(malloc_usable_size(at));
  std::free(at);
}

}  // namespace

void* operator new(size_t n) {
  if (void* out = counted_new(n)) return out;
  throw std::bad_alloc();
}
void* operator new[](size_t n) { return operator new(n); }
void* operator new(size_t n, const std::nothrow_t&) noexcept { return counted_new(n); }
void* operator new[](size_t n, const std::nothrow_t&) noexcept { return counted_new(n); }
void operator delete(void* at) noexcept { counted_delete(at); }
void operator delete[](void* at) noexcept { counted_delete(at); }
void operator delete(void* at, size_t) noexcept { counted_delete(at); }
void operator delete[](void* at, size_t) noexcept { counted_delete(at); }
void operator delete(void* at, const std::nothrow_t&) noexcept { counted_delete(at); }
void operator delete[](void* at, const std::nothrow_t&) noexcept { counted_delete(at); }

namespace hotset::test {

AllocationMeter::AllocationMeter() : start_(live_bytes) { most_bytes = live_bytes; }
int64_t AllocationMeter::peak_bytes() const { return most_bytes - start_; }

void GgufWriter::set(const std::string& key, GgufType type, const std::string& value_bytes) {
  for (Key& old : keys_)
    if (old.name == key) {
      old = {key, type, value_bytes};
      return;
    }
  keys_.push_back({key, type, value_bytes});
}

void GgufWriter::set_texts(const std::string& key, const std::vector<std::string>& values) {
  ByteWriter out;
  out.put(static_cast<uint32_t>(GgufType::kString)).put<uint64_t>(values.size());
  for (const std::string& value : values) out.text(value);
  set(key, GgufType::kArray, out.bytes());
}

void GgufWriter::erase(const std::string& key) {
  std::erase_if(keys_, [&](const Key& old) { return old.name == key; });
}

void GgufWriter::tensor(const std::string& name, const std::vector<uint64_t>& ne, uint32_t type,
                        const std::string& data) {
  for (Tensor& old : tensors_)
    if (old.name == name) {
      old = {name, ne, type, data};
      return;
    }
  tensors_.push_back({name, ne, type, data});
}

void GgufWriter::erase_tensor(const std::string& name) {
  std::erase_if(tensors_, [&](const Tensor& old) { return old.name == name; });
}

GgufWriter::Tensor& GgufWriter::tensor(const std::string& name) {
  for (Tensor& each : tensors_)
    if (each.name == name) return each;
  throw std::logic_error("no tensor " + name);
}

std::string GgufWriter::bytes() const {
  ByteWriter out;
  out.raw("GGUF").put(version).put<uint64_t>(tensors_.size()).put<uint64_t>(keys_.size());
  for (const Key& key : keys_) out.text(key.name).put(static_cast<uint32_t>(key.type)).raw(key.value);
  uint64_t offset = 0;
  const auto padded = [&](uint64_t n) { return (n + alignment - 1) / alignment * alignment; };
  for (const Tensor& each : tensors_) {
    out.text(each.name).put<uint32_t>(static_cast<uint32_t>(each.ne.size()));
    for (const uint64_t ne : each.ne) out.put(ne);
    out.put(each.type).put(offset);
    offset = padded(offset + each.data.size());
  }
  std::string file = out.bytes();
  for (const Tensor& each : tensors_) {
    file.resize(padded(file.size()));
    file += each.data;
  }
  return file;
}

namespace {

// In [-1, 1), the same on every machine.
double uniform(std::mt19937_64& random) { return static_cast<double>(random() >> 11) * 0x1p-52 - 1.0; }

std::string random_vector(std::mt19937_64& random, int64_t n, double middle, double spread) {
  ByteWriter out;
  for (int64_t i = 0; i < n; ++i) out.put(static_cast<float>(middle + spread * uniform(random)));
  return out.bytes();
}

void add_vocabulary(GgufWriter& out) {
  const TokenizerData data = tiny_spm();
  std::vector<int32_t> types;
  for (const TokenType type : data.types) types.push_back(static_cast<int32_t>(type));
  out.set_text("tokenizer.ggml.model", data.model);
  out.set_texts("tokenizer.ggml.tokens", data.tokens);
  out.set_array("tokenizer.ggml.scores", GgufType::kF32, data.scores);
  out.set_array("tokenizer.ggml.token_type", GgufType::kI32, types);
  out.set_u32("tokenizer.ggml.bos_token_id", 1);
  out.set_u32("tokenizer.ggml.eos_token_id", 2);
  out.set_u32("tokenizer.ggml.unknown_token_id", 0);
}

void add_config(GgufWriter& out, const TinySpec& spec) {
  out.set_text("general.architecture", spec.arch);
  out.set_text("general.name", "tiny");
  const auto number = [&](const std::string& key, int64_t value) {
    out.set_u32(spec.arch + "." + key, static_cast<uint32_t>(value));
  };
  number("block_count", spec.n_layer);
  number("embedding_length", spec.n_embd);
  number("feed_forward_length", spec.n_ff);
  number("attention.head_count", spec.n_head);
  number("attention.head_count_kv", spec.n_head_kv);
  number("attention.key_length", spec.head_dim);
  number("attention.value_length", spec.head_dim);
  number("context_length", spec.n_ctx);
  if (spec.n_rot > 0) number("rope.dimension_count", spec.n_rot);
  const bool is_rms = find_architecture(spec.arch)->norm == NormKind::kRms;
  out.set_f32(spec.arch + (is_rms ? ".attention.layer_norm_rms_epsilon" : ".attention.layer_norm_epsilon"), 1e-5f);
  out.set_text(spec.arch + ".hidden_activation", activation_name(spec.activation));
  if (spec.activation == Activation::kFatRelu)
    out.set_f32(spec.arch + ".hidden_activation_threshold", spec.threshold);
  if (spec.window > 0) number("attention.sliding_window", spec.window);
  if (spec.softcap > 0)
    for (const char* key : {".attn_logit_softcapping", ".final_logit_softcapping"})
      out.set_f32(spec.arch + key, spec.softcap);
  if (spec.linear_scale != 1) {
    out.set_text(spec.arch + ".rope.scaling.type", "linear");
    out.set_f32(spec.arch + ".rope.scaling.factor", spec.linear_scale);
  }
}

// 256 elements, about evenly within +-spread.
std::string random_super_block(std::mt19937_64& random, DType dtype, double spread) {
  ByteWriter out;
  const auto bytes = [&](int n) {
    for (int i = 0; i < n; ++i) out.put(static_cast<uint8_t>(random() >> 24));
  };
  if (dtype == DType::kQ6_K) {
    bytes(128 + 64);
    for (int i = 0; i < 16; ++i) out.put(static_cast<int8_t>((80 + random() % 48) * (random() % 2 ? 1 : -1)));
    return out.put(f32_to_f16(static_cast<float>(spread / (32 * 100)))).bytes();
  }
  const double middle = dtype == DType::kQ4_K ? 7.5 : 15.5;  // of q: minima as large as scales make the mean 0
  const double d = spread / (middle * 50);
  out.put(f32_to_f16(static_cast<float>(d))).put(f32_to_f16(static_cast<float>(d * middle)));
  int scale[8], minimum[8];
  for (int i = 0; i < 8; ++i) scale[i] = 40 + static_cast<int>(random() % 24), minimum[i] = scale[i] ^ (i % 2);
  for (int i = 0; i < 4; ++i) out.put(static_cast<uint8_t>(scale[i] | scale[i + 4] / 16 << 6));
  for (int i = 0; i < 4; ++i) out.put(static_cast<uint8_t>(minimum[i] | minimum[i + 4] / 16 << 6));
  for (int i = 4; i < 8; ++i) out.put(static_cast<uint8_t>(scale[i] % 16 | minimum[i] % 16 << 4));
  bytes(dtype == DType::kQ4_K ? 128 : 32 + 128);
  return out.bytes();
}

}  // namespace

std::string random_matrix(std::mt19937_64& random, DType dtype, int64_t n_in, int64_t n_out) {
  const double spread = std::sqrt(3.0 / static_cast<double>(n_in));
  ByteWriter out;
  if (dtype == DType::kQ4_K || dtype == DType::kQ5_K || dtype == DType::kQ6_K) {
    for (int64_t super = 0; super < n_in * n_out / 256; ++super) out.raw(random_super_block(random, dtype, spread));
    return out.bytes();
  }
  if (dtype == DType::kQ8_0 || dtype == DType::kQ4_0) {
    const bool is_q8 = dtype == DType::kQ8_0;
    for (int64_t block = 0; block < n_in * n_out / 32; ++block) {
      const double scale = spread * (1.0 + 0.3 * uniform(random)) / (is_q8 ? 127 : 8);
      out.put(f32_to_f16(static_cast<float>(scale)));
      for (int i = 0; i < (is_q8 ? 32 : 16); ++i) out.put(static_cast<uint8_t>(random() >> 24));
    }
    return out.bytes();
  }
  std::vector<float> values(static_cast<size_t>(n_in * n_out));
  for (float& value : values) value = static_cast<float>(spread * uniform(random));
  std::string bytes(row_bytes(dtype, n_in * n_out), '\0');
  quantize_row(dtype, values.data(), n_in * n_out, reinterpret_cast<std::byte*>(bytes.data()));
  return bytes;
}

GgufWriter tiny_writer(const TinySpec& spec) {
  GgufWriter out;
  add_config(out, spec);
  add_vocabulary(out);
  std::mt19937_64 random(spec.seed);
  const int64_t n_vocab = static_cast<int64_t>(tiny_spm().tokens.size());
  const Architecture& arch = *find_architecture(spec.arch);
  const auto matrix = [&](const std::string& name, int64_t n_in, int64_t n_out) {
    out.tensor(name, {static_cast<uint64_t>(n_in), static_cast<uint64_t>(n_out)}, static_cast<uint32_t>(spec.dtype),
               random_matrix(random, spec.dtype, n_in, n_out));
  };
  const auto vector = [&](const std::string& name, int64_t n, double middle) {
    out.tensor(name, {static_cast<uint64_t>(n)}, 0, random_vector(random, n, middle, 0.2));
  };
  const auto norm = [&](const std::string& name) {
    vector(name + ".weight", spec.n_embd, 1);
    if (arch.norm == NormKind::kLayer) vector(name + ".bias", spec.n_embd, 0);
  };
  const auto linear = [&](const std::string& name, int64_t n_in, int64_t n_out) {
    matrix(name + ".weight", n_in, n_out);
    if (spec.biases) vector(name + ".bias", n_out, 0);
  };
  const int64_t n_embd_in = spec.norms_after ? spec.n_ff : spec.n_embd;  // whole blocks of every type
  matrix("token_embd.weight", n_embd_in, n_vocab);
  if (spec.norms_after) matrix("token_embd_proj.weight", n_embd_in, spec.n_embd);
  if (spec.norms_after) matrix("output_proj.weight", spec.n_embd, n_embd_in);
  if (arch.positions == Positions::kLearned) matrix("position_embd.weight", spec.n_embd, spec.n_ctx);
  if (!spec.norms_after) norm("output_norm");
  if (!spec.tied) matrix("output.weight", n_embd_in, n_vocab);
  if (spec.rope_freqs) vector("rope_freqs.weight", (spec.n_rot > 0 ? spec.n_rot : spec.head_dim) / 2, 2);
  for (int64_t layer = 0; layer < spec.n_layer; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const int64_t n_q = spec.n_head * spec.head_dim, n_kv = spec.n_head_kv * spec.head_dim;
    norm(prefix + (spec.norms_after ? "attn_output_norm" : "attn_norm"));
    if (arch.is_parallel && spec.own_ffn_norm) norm(prefix + "attn_norm_2");
    if (arch.has_fused_qkv) {
      linear(prefix + "attn_qkv", spec.n_embd, n_q + 2 * n_kv);
    } else {
      linear(prefix + "attn_q", spec.n_embd, n_q);
      linear(prefix + "attn_k", spec.n_embd, n_kv);
      linear(prefix + "attn_v", spec.n_embd, n_kv);
    }
    linear(prefix + "attn_output", n_q, spec.n_embd);
    if (!arch.is_parallel) norm(prefix + (spec.norms_after ? "layer_output_norm" : "ffn_norm"));
    if (arch.has_head_norms)
      for (const char* name : {"attn_q_norm.weight", "attn_k_norm.weight"}) vector(prefix + name, spec.head_dim, 1);
    if (arch.has_post_norms)
      for (const char* name : {"post_attention_norm.weight", "post_ffw_norm.weight"})
        vector(prefix + name, spec.n_embd, 1);
    if (arch.gated) linear(prefix + "ffn_gate", spec.n_embd, spec.n_ff);
    linear(prefix + "ffn_up", spec.n_embd, spec.n_ff);
    if (spec.neuron_major)
      matrix(prefix + "ffn_down_t.weight", spec.n_embd, spec.n_ff);
    else
      matrix(prefix + "ffn_down.weight", spec.n_ff, spec.n_embd);
    if (spec.biases) vector(prefix + "ffn_down.bias", spec.n_embd, 0);
  }
  return out;
}

TempFile::TempFile(const std::string& bytes) {
  std::string name = (std::filesystem::temp_directory_path() / "hotset-test-XXXXXX").string();
  const int fd = ::mkstemp(name.data());
  if (fd < 0) throw std::runtime_error("no temporary file");
  ::close(fd);
  path_ = name;
  std::ofstream(path_, std::ios::binary) << bytes;
}

TempFile::~TempFile() {
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

std::shared_ptr<const Model> load_bytes(const std::string& bytes, const ModelOptions& options) {
  return Model::load(TempFile(bytes).path(), options);  // the mapping outlives the name
}

ParsedBytes parse_bytes(const std::string& bytes) {
  ParsedBytes out;
  out.bytes = std::make_unique<std::byte[]>(bytes.size());
  if (!bytes.empty()) std::memcpy(out.bytes.get(), bytes.data(), bytes.size());
  out.file = GgufFile::parse(out.bytes.get(), bytes.size(), "test.gguf");
  return out;
}

double nmse(std::span<const float> got, const std::vector<double>& expected) {
  if (got.size() != expected.size()) return HUGE_VAL;
  double error = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - expected[i];
    error += difference * difference;
    size += expected[i] * expected[i];
  }
  return std::isfinite(error) && size > 0 ? error / size : HUGE_VAL;
}

std::vector<int32_t> random_tokens(uint64_t seed, size_t n, int32_t n_vocab) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> out{1};
  while (out.size() < n) out.push_back(3 + static_cast<int32_t>(random() % static_cast<uint64_t>(n_vocab - 3)));
  return out;
}

std::vector<std::string> isas() {
  std::vector<std::string> out;
  for (const char* isa : {"generic", "avx2", "avx512"}) {
    out.push_back(isa);
    if (std::string(cpu::best_isa()) == isa) break;
  }
  try {
    cpu::kernels_for("amx");
    out.push_back("amx");
  } catch (const DeviceError&) {  // most machines
  }
  return out;
}

std::filesystem::path shared_data() {
  const char* variable = std::getenv("HOTSET_SHARED");
  const std::filesystem::path root = variable ? variable : HOTSET_SOURCE_DIR "/../shared";
  return std::filesystem::exists(root / "data") ? root / "data" : std::filesystem::path();
}

}  // namespace hotset::test
