#include "core/gguf_writer.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "core/atomic_file.h"
#include "core/error.h"

namespace hotset {
namespace {

constexpr uint32_t kVersion = 3;

template <class T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void append_text(std::string& out, std::string_view text) {
  append<uint64_t>(out, text.size());
  out.append(text);
}

// Bytes of one element of a packed array.
size_t element_bytes(GgufType type) {
  switch (type) {
    case GgufType::kU16:
    case GgufType::kI16: return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32: return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64: return 8;
    default: return 1;
  }
}

void append_array(std::string& out, const GgufArray& array) {
  append(out, static_cast<uint32_t>(array.element));
  append<uint64_t>(out, array.n);
  if (array.element == GgufType::kString)
    for (const std::string_view text : array.strings) append_text(out, text);
  else if (array.n > 0)
    out.append(reinterpret_cast<const char*>(array.data), array.n * element_bytes(array.element));
}

// Integers in the width of their type: the low bytes, little-endian.
void append_integer(std::string& out, GgufType type, uint64_t bits) {
  out.append(reinterpret_cast<const char*>(&bits), element_bytes(type));
}

std::string value_bytes(const GgufValue& value) {
  std::string out;
  if (const auto* array = std::get_if<GgufArray>(&value.value)) {
    append_array(out, *array);
  } else if (const auto* text = std::get_if<std::string_view>(&value.value)) {
    append_text(out, *text);
  } else if (const auto* number = std::get_if<double>(&value.value)) {
    if (value.type == GgufType::kF32)
      append(out, static_cast<float>(*number));
    else
      append(out, *number);
  } else if (const auto* flag = std::get_if<bool>(&value.value)) {
    append<uint8_t>(out, *flag ? 1 : 0);
  } else if (const auto* integer = std::get_if<int64_t>(&value.value)) {
    append_integer(out, value.type, static_cast<uint64_t>(*integer));
  } else {
    append_integer(out, value.type, std::get<uint64_t>(value.value));
  }
  return out;
}

}  // namespace

GgufWriter::GgufWriter(std::string path) : path_(std::move(path)) {}

GgufWriter::~GgufWriter() = default;

void GgufWriter::set(const std::string& key, const GgufValue& value) { set_bytes(key, value.type, value_bytes(value)); }

void GgufWriter::set_text(const std::string& key, const std::string& text) {
  set(key, GgufValue{GgufType::kString, std::string_view(text)});
}

void GgufWriter::set_texts(const std::string& key, const std::vector<std::string>& texts) {
  GgufArray array{GgufType::kString, texts.size(), nullptr, {texts.begin(), texts.end()}};
  set(key, GgufValue{GgufType::kArray, std::move(array)});
}

void GgufWriter::set_bool(const std::string& key, bool flag) { set(key, GgufValue{GgufType::kBool, flag}); }

void GgufWriter::set_bytes(const std::string& key, GgufType type, const std::string& bytes) {
  HS_CHECK(!file_, "gguf_writer");
  if (key == "general.alignment") {
    HS_CHECK(type == GgufType::kU32, "gguf_writer");
    uint32_t alignment;
    std::memcpy(&alignment, bytes.data(), sizeof alignment);
    HS_CHECK(alignment >= 8 && (alignment & (alignment - 1)) == 0, "gguf_writer");
    alignment_ = alignment;
  }
  std::string entry;
  append(entry, static_cast<uint32_t>(type));
  entry += bytes;
  const auto [at, is_new] = key_index_.emplace(key, keys_.size());
  if (is_new)
    keys_.push_back({key, std::move(entry)});
  else
    keys_[at->second].entry = std::move(entry);
}

void GgufWriter::add_tensor(const std::string& name, DType type, const Shape& shape) {
  HS_CHECK(!file_ && shape.n_dims >= 1 && shape.n_dims <= 4 && shape.n_elements() > 0, "gguf_writer");
  const DTypeInfo& info = dtype_info(type);
  if (shape.ne[0] % info.block_size != 0)
    throw std::invalid_argument(error_text("gguf_writer", "row of tensor " + quoted(name),
                                           cat("a multiple of ", info.block_size, " elements for ", info.name),
                                           cat(shape.ne[0]), "choose another type"));
  tensors_.push_back({name, type, shape, row_bytes(type, shape.n_elements())});
}

// Everything before the data, without the padding that follows.
std::string GgufWriter::header() const {
  std::string out = "GGUF";
  append(out, kVersion);
  append<uint64_t>(out, tensors_.size());
  append<uint64_t>(out, keys_.size());
  for (const Key& key : keys_) {
    append_text(out, key.name);
    out += key.entry;
  }
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    append_text(out, tensor.name);
    append(out, static_cast<uint32_t>(tensor.shape.n_dims));
    for (int d = 0; d < tensor.shape.n_dims; ++d)
      append(out, static_cast<uint64_t>(tensor.shape.ne[static_cast<size_t>(d)]));
    append(out, static_cast<uint32_t>(tensor.type));
    append(out, offset);
    offset += aligned(tensor.n_bytes);
  }
  return out;
}

void GgufWriter::start() {
  HS_CHECK(!file_, "gguf_writer");
  std::vector<std::string_view> names;
  for (const Tensor& tensor : tensors_) {
    names.push_back(tensor.name);
    data_bytes_ += aligned(tensor.n_bytes);
  }
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end())
    throw std::invalid_argument(error_text("gguf_writer", "tensor " + quoted(std::string(*twice)), "each name once",
                                           "it twice", "give each tensor a name of its own"));
  const std::string bytes = header();
  file_ = std::make_unique<AtomicFile>(path_);
  put(bytes.data(), bytes.size());
  pad();
}

void GgufWriter::put(const void* data, size_t n) {
  n_written_ += n;
  file_->write(data, n);
}

// Zeros up to the next multiple of the alignment.
void GgufWriter::pad() {
  const std::string zeros(aligned(n_written_) - n_written_, '\0');
  put(zeros.data(), zeros.size());
}

void GgufWriter::write(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  HS_CHECK(file_ && current_ < tensors_.size(), "gguf_writer");
  HS_CHECK(bytes.size() <= tensors_[current_].n_bytes - n_in_current_, "gguf_writer");
  put(bytes.data(), bytes.size());
  n_in_current_ += bytes.size();
  if (n_in_current_ < tensors_[current_].n_bytes) return;
  pad();
  ++current_;
  n_in_current_ = 0;
}

void GgufWriter::leave_data_out() {
  HS_CHECK(file_ && current_ == 0 && n_in_current_ == 0, "gguf_writer");
  n_written_ += data_bytes_;
  file_->grow_to(n_written_);
  current_ = tensors_.size();
}

void GgufWriter::finish() {
  HS_CHECK(file_ && current_ == tensors_.size(), "gguf_writer");
  file_->finish();
  file_.reset();
}

}  // namespace hotset
