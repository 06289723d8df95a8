#include "core/fingerprint.h"

#include <algorithm>
#include <cstdio>
#include <string_view>
#include <vector>

#include "core/gguf.h"
#include "core/model_config.h"

namespace hotset {
namespace {

// FNV-1a of 128 bits (Fowler, Noll, Vo): h = (h xor byte) * (2^88 + 0x13b), h in two words.
class Hash {
 public:
  void bytes(const void* data, size_t n) {
    const auto* at = static_cast<const unsigned char*>(data);
    for (size_t i = 0; i < n; ++i) {
      low_ ^= at[i];
      multiply();
    }
  }
  void number(uint64_t value) {
    unsigned char little[8];
    for (size_t i = 0; i < 8; ++i) little[i] = static_cast<unsigned char>(value >> (8 * i));
    bytes(little, 8);
  }
  void text(std::string_view text) {
    number(text.size());
    bytes(text.data(), text.size());
  }
  std::string hex() const {
    char out[33];
    std::snprintf(out, sizeof out, "%016llx%016llx", static_cast<unsigned long long>(high_),
                  static_cast<unsigned long long>(low_));
    return out;
  }

 private:
  void multiply() {
    constexpr uint64_t kSmall = 0x13b;
    const uint64_t low_part = (low_ & 0xffffffff) * kSmall, high_part = (low_ >> 32) * kSmall;
    const uint64_t sum = (low_part >> 32) + high_part;  // bits 32 and up of low_ * kSmall
    high_ = high_ * kSmall + (sum >> 32) + (low_ << 24);
    low_ = (sum << 32) | (low_part & 0xffffffff);
  }

  uint64_t high_ = 0x6c62272e07bb0142u, low_ = 0x62b821756295c58du;
};

void add_key(Hash& hash, const GgufFile& file, const std::string& key) {
  const GgufValue* value = file.find(key);
  if (!value) return;
  hash.text(key);
  if (const auto* text = std::get_if<std::string_view>(&value->value)) return hash.text(*text);
  if (const auto numbers = value->type == GgufType::kArray ? file.get_int_array(key) : std::nullopt) {
    hash.number(numbers->size());
    for (const int64_t number : *numbers) hash.number(static_cast<uint64_t>(number));
    return;
  }
  hash.text(gguf_value_text(*value));
}

}  // namespace

std::string fingerprint(const GgufFile& file, const ModelConfig& config) {
  Hash hash;
  hash.text(config.arch_name);
  hash.text(activation_name(config.activation));
  for (const int64_t size : {config.n_layer, config.n_embd, config.n_ff, config.n_head, config.n_head_kv,
                             config.head_dim, config.n_rot, config.n_vocab})
    hash.number(static_cast<uint64_t>(size));
  std::vector<const GgufTensor*> vectors;
  for (const GgufTensor& tensor : file.tensors())
    if (tensor.type == static_cast<uint32_t>(DType::kF32) && tensor.shape.n_elements() == tensor.shape.ne[0])
      vectors.push_back(&tensor);
  std::sort(vectors.begin(), vectors.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
  for (const GgufTensor* vector : vectors) {
    hash.text(vector->name);
    hash.number(vector->n_bytes);
    hash.bytes(vector->data, vector->n_bytes);
  }
  if (config.activation == Activation::kFatRelu)
    hash.bytes(&config.activation_threshold, sizeof config.activation_threshold);
  add_key(hash, file, "hotset.synth");
  add_key(hash, file, "hotset.unit_order");
  return hash.hex();
}

}  // namespace hotset
