// Typed look-ups in a parsed GGUF file.
#include "core/gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/mmap_file.h"

namespace hotset {
namespace {

[[noreturn]] void fail_type(const GgufFile& file, const std::string& key, const std::string& expected,
                            const std::string& got) {
  throw ModelFormatError(error_text("gguf " + quoted(file.name(), 200), "key " + quoted(key), expected, got,
                                    "download or convert the file again"));
}

// Element i of a packed array, widened; the array is known to hold numbers.
template <class T>
T load(const std::byte* data, uint64_t i) {
  T value;
  std::memcpy(&value, data + i * sizeof(T), sizeof value);
  return value;
}

bool int_element(const GgufArray& array, uint64_t i, int64_t& out) {
  switch (array.element) {
    case GgufType::kU8:
    case GgufType::kBool: out = load<uint8_t>(array.data, i); return true;
    case GgufType::kI8: out = load<int8_t>(array.data, i); return true;
    case GgufType::kU16: out = load<uint16_t>(array.data, i); return true;
    case GgufType::kI16: out = load<int16_t>(array.data, i); return true;
    case GgufType::kU32: out = load<uint32_t>(array.data, i); return true;
    case GgufType::kI32: out = load<int32_t>(array.data, i); return true;
    case GgufType::kI64: out = load<int64_t>(array.data, i); return true;
    case GgufType::kU64: {
      const uint64_t value = load<uint64_t>(array.data, i);
      out = static_cast<int64_t>(value);
      return value <= static_cast<uint64_t>(INT64_MAX);
    }
    default: return false;
  }
}

std::string number_text(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

std::string element_text(const GgufArray& array, uint64_t i) {
  if (array.element == GgufType::kString) return quoted(std::string(array.strings[i]), 24);
  if (array.element == GgufType::kF32) return number_text(load<float>(array.data, i));
  if (array.element == GgufType::kF64) return number_text(load<double>(array.data, i));
  int64_t value = 0;
  return int_element(array, i, value) ? cat(value) : cat(load<uint64_t>(array.data, i));
}

}  // namespace

const char* gguf_type_name(GgufType type) {
  static const char* const kNames[] = {"u8",   "i8",  "u16", "i16", "u32", "i32", "f32",
                                       "bool", "str", "arr", "u64", "i64", "f64"};
  return static_cast<uint32_t>(type) <= 12 ? kNames[static_cast<uint32_t>(type)] : "?";
}

const GgufValue* GgufFile::find(const std::string& key) const {
  const auto at = key_index_.find(key);
  return at == key_index_.end() ? nullptr : &metadata_[at->second].second;
}

const GgufTensor* GgufFile::find_tensor(const std::string& name) const {
  const auto at = tensor_index_.find(name);
  return at == tensor_index_.end() ? nullptr : &tensors_[at->second];
}

std::optional<int64_t> GgufFile::get_int(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  if (const auto* i = std::get_if<int64_t>(&value->value)) return *i;
  if (const auto* u = std::get_if<uint64_t>(&value->value)) {
    if (*u > static_cast<uint64_t>(INT64_MAX)) fail_type(*this, key, "an integer below 2^63", cat(*u));
    return static_cast<int64_t>(*u);
  }
  fail_type(*this, key, "an integer", gguf_type_name(value->type));
}

std::optional<double> GgufFile::get_float(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  const auto* number = std::get_if<double>(&value->value);
  if (!number) fail_type(*this, key, "a float", gguf_type_name(value->type));
  if (!std::isfinite(*number)) fail_type(*this, key, "a finite number", cat(*number));
  return *number;
}

std::optional<bool> GgufFile::get_bool(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  if (const auto* flag = std::get_if<bool>(&value->value)) return *flag;
  fail_type(*this, key, "a boolean", gguf_type_name(value->type));
}

std::optional<std::string> GgufFile::get_string(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  if (const auto* text = std::get_if<std::string_view>(&value->value)) return std::string(*text);
  fail_type(*this, key, "a string", gguf_type_name(value->type));
}

std::optional<std::vector<int64_t>> GgufFile::get_int_array(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  const auto* array = std::get_if<GgufArray>(&value->value);
  if (!array || array->element == GgufType::kString)
    fail_type(*this, key, "an array of integers", gguf_type_name(value->type));
  std::vector<int64_t> out(array->n);
  for (uint64_t i = 0; i < array->n; ++i)
    if (!int_element(*array, i, out[i])) fail_type(*this, key, "an array of integers", gguf_type_name(array->element));
  return out;
}

std::optional<std::vector<float>> GgufFile::get_float_array(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  const auto* array = std::get_if<GgufArray>(&value->value);
  const bool single = array && array->element == GgufType::kF32;
  if (!single && !(array && array->element == GgufType::kF64))
    fail_type(*this, key, "an array of floats", gguf_type_name(array ? array->element : value->type));
  std::vector<float> out(array->n);
  for (uint64_t i = 0; i < array->n; ++i)
    out[i] = single ? load<float>(array->data, i) : static_cast<float>(load<double>(array->data, i));
  return out;
}

std::optional<std::vector<std::string>> GgufFile::get_string_array(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  const auto* array = std::get_if<GgufArray>(&value->value);
  if (!array || array->element != GgufType::kString)
    fail_type(*this, key, "an array of strings", gguf_type_name(array ? array->element : value->type));
  return std::vector<std::string>(array->strings.begin(), array->strings.end());
}

std::string gguf_value_text(const GgufValue& value) {
  if (const auto* u = std::get_if<uint64_t>(&value.value)) return cat(*u);
  if (const auto* i = std::get_if<int64_t>(&value.value)) return cat(*i);
  if (const auto* number = std::get_if<double>(&value.value)) return number_text(*number);
  if (const auto* flag = std::get_if<bool>(&value.value)) return *flag ? "true" : "false";
  if (const auto* text = std::get_if<std::string_view>(&value.value)) return quoted(std::string(*text), 120);
  const auto& array = std::get<GgufArray>(value.value);
  std::string out = "[";
  for (uint64_t i = 0; i < array.n && i < 6; ++i) out += (i ? ", " : "") + element_text(array, i);
  return out + (array.n > 6 ? cat(", ...] (", array.n, ")") : "]");
}

void GgufFile::drop_pages(const TensorView& view) const {
  if (mapping_) mapping_->drop_pages(view.data, view.size_bytes());
  for (const auto& shard : shards_) shard->drop_pages(view);
}

void GgufFile::drop_all_pages() const {
  for (const auto& shard : shards_) shard->drop_all_pages();
  if (!mapping_ || tensors_.empty()) return;
  const std::byte* first = tensors_.front().data;
  for (const GgufTensor& each : tensors_) first = std::min(first, each.data);
  mapping_->drop_pages(first, static_cast<size_t>(mapping_->data() + mapping_->size() - first));
}

void GgufFile::prefer_large_pages() const {
  if (mapping_) mapping_->prefer_large_pages();
  for (const auto& shard : shards_) shard->prefer_large_pages();
}

}  // namespace hotset
