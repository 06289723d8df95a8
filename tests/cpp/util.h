// What the tests of the core share: a writer of GGUF bytes, tiny random models, a slow double-precision forward pass,
// and a meter of allocations.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "core/engine.h"
#include "core/gguf.h"
#include "core/model.h"

namespace hotset::test {

// Little-endian bytes, one value after the other.
class ByteWriter {
 public:
  template <class T>
  ByteWriter& put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  ByteWriter& raw(const std::string& bytes) {
    bytes_ += bytes;
    return *this;
  }
  // A GGUF string: 64-bit length, then the bytes.
  ByteWriter& text(const std::string& text) { return put<uint64_t>(text.size()).raw(text); }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

// Builds GGUF files key by key and tensor by tensor; what is set twice is replaced in place.
class GgufWriter {
 public:
  struct Tensor {
    std::string name;
    std::vector<uint64_t> ne;
    uint32_t type;
    std::string data;
  };

  uint32_t version = 3;
  uint64_t alignment = 32;  // of tensor data; the key general.alignment is set apart

  void set(const std::string& key, GgufType type, const std::string& value_bytes);
  void set_u32(const std::string& key, uint32_t value) { set(key, GgufType::kU32, ByteWriter().put(value).bytes()); }
  void set_f32(const std::string& key, float value) { set(key, GgufType::kF32, ByteWriter().put(value).bytes()); }
  void set_bool(const std::string& key, bool value) {
    set(key, GgufType::kBool, ByteWriter().put<uint8_t>(value).bytes());
  }
  void set_text(const std::string& key, const std::string& value) {
    set(key, GgufType::kString, ByteWriter().text(value).bytes());
  }
  void set_texts(const std::string& key, const std::vector<std::string>& values);
  template <class T>
  void set_array(const std::string& key, GgufType element, const std::vector<T>& values) {
    ByteWriter out;
    out.put(static_cast<uint32_t>(element)).template put<uint64_t>(values.size());
    for (const T value : values) out.put(value);
    set(key, GgufType::kArray, out.bytes());
  }
  void erase(const std::string& key);

  void tensor(const std::string& name, const std::vector<uint64_t>& ne, uint32_t type, const std::string& data);
  void erase_tensor(const std::string& name);
  Tensor& tensor(const std::string& name);
  const std::vector<Tensor>& tensors() const { return tensors_; }

  // The file. It ends with the last tensor's last byte, so that no shorter file can be whole.
  std::string bytes() const;

 private:
  struct Key {
    std::string name;
    GgufType type;
    std::string value;
  };
  std::vector<Key> keys_;
  std::vector<Tensor> tensors_;
};

// A model of a few thousand random weights.
struct TinySpec {
  std::string arch = "llama";
  int64_t n_layer = 2, n_embd = 64, n_ff = 96, n_head = 4, n_head_kv = 2, head_dim = 16;
  int64_t n_rot = 0;  // 0 = head_dim
  int64_t n_ctx = 1024;
  DType dtype = DType::kF32;  // of all matrices
  bool neuron_major = true;   // ffn_down_t, else ffn_down
  bool tied = false;
  Activation activation = Activation::kRelu;
  bool biases = false;  // of every matrix that may have one; LayerNorms have theirs anyway
  bool rope_freqs = false;
  float linear_scale = 1;
  int64_t window = 0;
  float softcap = 0;  // of scores and logits
  float threshold = 0;       // of Activation::kFatRelu
  bool own_ffn_norm = false;  // parallel families only
  bool norms_after = false;   // opt only, with an embedding of another width
  uint64_t seed = 1;
};

// Weight types that models may have.
constexpr DType kModelTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0, DType::kQ4_0,  DType::kQ4_1,
                                 DType::kQ5_0, DType::kQ5_1, DType::kQ2_K, DType::kQ3_K, DType::kQ4_K,  DType::kQ5_K,
                                 DType::kQ6_K, DType::kIQ4_NL, DType::kIQ4_XS, DType::kMXFP4};

// Types that differ from another one, Q2_K or IQ4_NL, in how blocks are read alone: slow tests leave them out.
inline bool shares_kernels(DType dtype) {
  for (const DType other : {DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ3_K, DType::kIQ4_XS, DType::kMXFP4})
    if (dtype == other) return true;
  return false;
}

inline bool is_block_type(DType dtype) { return dtype_info(dtype).block_size > 1; }

// Makes rows whole super-blocks where the type has them.
inline void widen_for(DType dtype, TinySpec& spec) {
  if (dtype_info(dtype).block_size == 256) spec.n_embd = 256, spec.n_ff = 256, spec.head_dim = 64;
}

// The vocabulary is tiny_spm() of tiny_vocabularies.h.
GgufWriter tiny_writer(const TinySpec& spec);

// Bytes of a random (n_in, n_out) matrix whose products with unit-variance vectors have about unit variance.
std::string random_matrix(std::mt19937_64& random, DType dtype, int64_t n_in, int64_t n_out);

// A file that is there while the object lives.
class TempFile {
 public:
  explicit TempFile(const std::string& bytes);
  ~TempFile();
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

std::shared_ptr<const Model> load_bytes(const std::string& bytes, const ModelOptions& options = {});
inline std::shared_ptr<const Model> load_tiny(const TinySpec& spec) { return load_bytes(tiny_writer(spec).bytes()); }

// A parsed file and the bytes it views, which are exactly as long as the file: a step too far is seen by sanitizers.
struct ParsedBytes {
  std::unique_ptr<std::byte[]> bytes;
  std::shared_ptr<const GgufFile> file;
};
ParsedBytes parse_bytes(const std::string& bytes);

// Sum of squared differences over sum of squares of `expected`; infinite when anything is not finite.
double nmse(std::span<const float> got, const std::vector<double>& expected);

// Ids that are no control tokens, from a fixed sequence.
std::vector<int32_t> random_tokens(uint64_t seed, size_t n, int32_t n_vocab);

// Names of the instruction sets of this machine.
std::vector<std::string> isas();

// Bytes that operator new gave out on this thread since construction and that were not given back: the most at a time.
class AllocationMeter {
 public:
  AllocationMeter();
  int64_t peak_bytes() const;

 private:
  int64_t start_;
};

// The folder of shared test data; empty when this machine has none.
std::filesystem::path shared_data();

}  // namespace hotset::test
