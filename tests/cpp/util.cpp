#include "tests/cpp/util.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <new>

#include "core/half.h"
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
  out.set_text("general.architecture", "llama");
  out.set_text("general.name", "tiny");
  const auto number = [&](const std::string& key, int64_t value) {
    out.set_u32("llama." + key, static_cast<uint32_t>(value));
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
  out.set_f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  out.set_text("llama.hidden_activation", spec.relu ? "relu" : "silu");
  if (spec.linear_scale != 1) {
    out.set_text("llama.rope.scaling.type", "linear");
    out.set_f32("llama.rope.scaling.factor", spec.linear_scale);
  }
}

}  // namespace

std::string random_matrix(std::mt19937_64& random, DType dtype, int64_t n_in, int64_t n_out) {
  const double spread = std::sqrt(3.0 / static_cast<double>(n_in));
  ByteWriter out;
  if (dtype == DType::kQ8_0 || dtype == DType::kQ4_0) {
    const bool is_q8 = dtype == DType::kQ8_0;
    for (int64_t block = 0; block < n_in * n_out / 32; ++block) {
      const double scale = spread * (1.0 + 0.3 * uniform(random)) / (is_q8 ? 127 : 8);
      out.put(f32_to_f16(static_cast<float>(scale)));
      for (int i = 0; i < (is_q8 ? 32 : 16); ++i) out.put(static_cast<uint8_t>(random() >> 24));
    }
    return out.bytes();
  }
  for (int64_t i = 0; i < n_in * n_out; ++i) {
    const float value = static_cast<float>(spread * uniform(random));
    if (dtype == DType::kF32)
      out.put(value);
    else
      out.put(dtype == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value));
  }
  return out.bytes();
}

GgufWriter tiny_writer(const TinySpec& spec) {
  GgufWriter out;
  add_config(out, spec);
  add_vocabulary(out);
  std::mt19937_64 random(spec.seed);
  const int64_t n_vocab = static_cast<int64_t>(tiny_spm().tokens.size());
  const auto matrix = [&](const std::string& name, int64_t n_in, int64_t n_out) {
    out.tensor(name, {static_cast<uint64_t>(n_in), static_cast<uint64_t>(n_out)}, static_cast<uint32_t>(spec.dtype),
               random_matrix(random, spec.dtype, n_in, n_out));
  };
  const auto vector = [&](const std::string& name, int64_t n, double middle) {
    out.tensor(name, {static_cast<uint64_t>(n)}, 0, random_vector(random, n, middle, 0.2));
  };
  matrix("token_embd.weight", spec.n_embd, n_vocab);
  vector("output_norm.weight", spec.n_embd, 1);
  if (!spec.tied) matrix("output.weight", spec.n_embd, n_vocab);
  if (spec.rope_freqs) vector("rope_freqs.weight", (spec.n_rot > 0 ? spec.n_rot : spec.head_dim) / 2, 2);
  for (int64_t layer = 0; layer < spec.n_layer; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const int64_t n_q = spec.n_head * spec.head_dim, n_kv = spec.n_head_kv * spec.head_dim;
    vector(prefix + "attn_norm.weight", spec.n_embd, 1);
    matrix(prefix + "attn_q.weight", spec.n_embd, n_q);
    matrix(prefix + "attn_k.weight", spec.n_embd, n_kv);
    matrix(prefix + "attn_v.weight", spec.n_embd, n_kv);
    matrix(prefix + "attn_output.weight", n_q, spec.n_embd);
    vector(prefix + "ffn_norm.weight", spec.n_embd, 1);
    matrix(prefix + "ffn_gate.weight", spec.n_embd, spec.n_ff);
    matrix(prefix + "ffn_up.weight", spec.n_embd, spec.n_ff);
    if (spec.neuron_major)
      matrix(prefix + "ffn_down_t.weight", spec.n_embd, spec.n_ff);
    else
      matrix(prefix + "ffn_down.weight", spec.n_ff, spec.n_embd);
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
  return out;
}

std::filesystem::path shared_data() {
  const char* variable = std::getenv("HOTSET_SHARED");
  const std::filesystem::path root = variable ? variable : HOTSET_SOURCE_DIR "/../shared";
  return std::filesystem::exists(root / "data") ? root / "data" : std::filesystem::path();
}

SlowLlama::SlowLlama(const Model& model) : config_(model.config()), tied_(model.weights().tied) {
  const Weights& w = model.weights();
  std::vector<const NamedTensor*> all{&w.token_embd, &w.output_norm, &w.output, &w.rope_freqs};
  for (const LayerWeights& l : w.layers)
    for (const NamedTensor* tensor : {&l.attn_norm, &l.attn_q, &l.attn_k, &l.attn_v, &l.attn_output, &l.ffn_norm,
                                      &l.ffn_gate, &l.ffn_up, &l.ffn_down, &l.ffn_down_t})
      all.push_back(tensor);
  for (const NamedTensor* tensor : all)
    if (*tensor) matrices_[tensor->name] = widen(tensor->view);
  keys_.resize(w.layers.size());
  values_.resize(w.layers.size());
}

SlowLlama::Matrix SlowLlama::widen(const TensorView& view) const {
  const auto type = static_cast<cpu::WeightType>(cpu::weight_type(view.dtype));
  Matrix out{view.n_cols, view.n_rows, {}};
  for (int64_t row = 0; row < view.n_rows; ++row)
    for (int64_t i = 0; i < view.n_cols; ++i) out.values.push_back(cpu::reference::weight_at(type, view.row(row), i));
  return out;
}

SlowLlama::Vector SlowLlama::times(const std::string& name, const Vector& x) const {
  const Matrix& m = matrix(name);
  Vector out(static_cast<size_t>(m.n_out), 0.0);
  for (size_t row = 0; row < out.size(); ++row)
    for (size_t i = 0; i < x.size(); ++i) out[row] += m.values[row * x.size() + i] * x[i];
  return out;
}

SlowLlama::Vector SlowLlama::norm(const std::string& name, const Vector& x) const {
  double squares = 0;
  for (const double each : x) squares += each * each;
  const double root = std::sqrt(squares / static_cast<double>(x.size()) + static_cast<double>(config_.norm_eps));
  Vector out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] / root * matrix(name).values[i];
  return out;
}

// Pairs of neighbours are turned by position / base^(2i / n_rot), as GGUF stores llama's heads.
void SlowLlama::rope(Vector& x, int64_t n_head, int64_t position) const {
  for (int64_t head = 0; head < n_head; ++head)
    for (int64_t i = 0; i < config_.n_rot / 2; ++i) {
      double angle = static_cast<double>(position) / static_cast<double>(config_.rope_scale) /
                     std::pow(static_cast<double>(config_.rope_freq_base),
                              2.0 * static_cast<double>(i) / static_cast<double>(config_.n_rot));
      if (matrices_.count("rope_freqs.weight")) angle /= matrix("rope_freqs.weight").values[static_cast<size_t>(i)];
      double& a = x[static_cast<size_t>(head * config_.head_dim + 2 * i)];
      double& b = x[static_cast<size_t>(head * config_.head_dim + 2 * i + 1)];
      const double turned = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = turned;
    }
}

SlowLlama::Vector SlowLlama::attend(int64_t layer, const Vector& q) const {
  const auto& keys = keys_[static_cast<size_t>(layer)];
  const auto& values = values_[static_cast<size_t>(layer)];
  const size_t dim = static_cast<size_t>(config_.head_dim);
  Vector out(q.size(), 0.0);
  for (size_t head = 0; head < static_cast<size_t>(config_.n_head); ++head) {
    const size_t from = head / static_cast<size_t>(config_.n_head / config_.n_head_kv) * dim;
    Vector scores;
    for (const Vector& key : keys) {
      double dot = 0;
      for (size_t d = 0; d < dim; ++d) dot += q[head * dim + d] * key[from + d];
      scores.push_back(dot / std::sqrt(static_cast<double>(dim)));
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (double& score : scores) total += score = std::exp(score - largest);
    for (size_t t = 0; t < values.size(); ++t)
      for (size_t d = 0; d < dim; ++d) out[head * dim + d] += scores[t] / total * values[t][from + d];
  }
  return out;
}

SlowLlama::Vector SlowLlama::feed_forward(int64_t layer, const Vector& x) const {
  const std::string prefix = "blk." + std::to_string(layer) + ".";
  Vector h = times(prefix + "ffn_gate.weight", x);
  const Vector up = times(prefix + "ffn_up.weight", x);
  for (size_t i = 0; i < h.size(); ++i) {
    const double activated =
        config_.activation == Activation::kRelu ? std::max(h[i], 0.0) : h[i] / (1 + std::exp(-h[i]));
    h[i] = activated * up[i];
  }
  if (!matrices_.count(prefix + "ffn_down_t.weight")) return times(prefix + "ffn_down.weight", h);
  const Matrix& down_t = matrix(prefix + "ffn_down_t.weight");
  Vector out(x.size(), 0.0);
  for (size_t unit = 0; unit < h.size(); ++unit)
    for (size_t i = 0; i < x.size(); ++i) out[i] += h[unit] * down_t.values[unit * x.size() + i];
  return out;
}

std::vector<double> SlowLlama::step(int32_t token) {
  const Matrix& table = matrix("token_embd.weight");
  const auto row = table.values.begin() + token * table.n_in;
  Vector x(row, row + table.n_in);
  const auto add = [&](const Vector& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  };
  for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const Vector in = norm(prefix + "attn_norm.weight", x);
    Vector q = times(prefix + "attn_q.weight", in);
    Vector k = times(prefix + "attn_k.weight", in);
    auto& keys = keys_[static_cast<size_t>(layer)];
    const int64_t position = static_cast<int64_t>(keys.size());
    rope(q, config_.n_head, position);
    rope(k, config_.n_head_kv, position);
    keys.push_back(k);
    values_[static_cast<size_t>(layer)].push_back(times(prefix + "attn_v.weight", in));
    add(times(prefix + "attn_output.weight", attend(layer, q)));
    add(feed_forward(layer, norm(prefix + "ffn_norm.weight", x)));
  }
  return times(tied_ ? "token_embd.weight" : "output.weight", norm("output_norm.weight", x));
}

}  // namespace hotset::test
