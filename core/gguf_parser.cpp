// Parses GGUF bytes. Every length is checked against what is left of the file before it is used or allocated.
#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/gguf.h"
#include "core/mmap_file.h"

namespace hotset {
namespace {

constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxNameBytes = 1024;
constexpr int64_t kMaxElements = int64_t{1} << 48;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;

// Bytes of one element, 0 for strings and arrays.
size_t scalar_bytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool: return 1;
    case GgufType::kU16:
    case GgufType::kI16: return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32: return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64: return 8;
    default: return 0;
  }
}

}  // namespace

class GgufParser {
 public:
  // More bytes are needed than are here.
  struct Cut {
    uint64_t n_needed;
  };

  // `n_here`: bytes of `data` that are those of the file; the others are zeros in their place.
  GgufParser(const std::byte* data, size_t size, size_t n_here, const std::string& name)
      : data_(data), size_(size), n_here_(n_here), name_(name) {}

  // Throws Cut only when not all bytes are here.
  std::shared_ptr<GgufFile> parse() {
    auto file = std::shared_ptr<GgufFile>(new GgufFile());
    file_ = file.get();
    file->name_ = name_;
    file->shard_names_ = {name_};
    file->size_ = size_;
    read_header();
    read_metadata();
    read_tensor_infos();
    place_tensors();
    return file;
  }

 private:
  [[noreturn]] void fail(const std::string& what, const std::string& expected, const std::string& got) const {
    throw ModelFormatError(
        error_text("gguf " + quoted(name_, 200), what, expected, got, "download or convert the file again"));
  }

  // The next n bytes, which lie inside the file, must be here.
  void need(uint64_t n) const {
    if (at_ > n_here_ || n > n_here_ - at_) throw Cut{at_ + n};
  }

  // Room for n entries of at least entry_bytes each, as far as they can be here.
  size_t room(uint64_t n, uint64_t entry_bytes) const {
    const uint64_t n_left = at_ < n_here_ ? n_here_ - at_ : 0;
    return static_cast<size_t>(std::min(n, n_left / entry_bytes));
  }

  template <class T>
  T read(const char* what) {
    if (size_ - at_ < sizeof(T)) fail(what, cat(sizeof(T), " more bytes"), cat("the end of the file at ", size_));
    need(sizeof(T));
    T value;
    std::memcpy(&value, data_ + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }

  std::string_view read_string(const char* what, uint64_t limit) {
    const uint64_t n = read<uint64_t>(what);
    if (n > limit) fail(what, cat("at most ", limit, " bytes of text"), cat(n));
    if (n > size_ - at_) fail(what, cat("text inside the file of ", size_, " bytes"), cat(n, " bytes at ", at_));
    need(n);
    const std::string_view text(reinterpret_cast<const char*>(data_ + at_), n);
    at_ += n;
    return text;
  }

  void read_header() {
    if (size_ < 24) fail("header", "at least 24 bytes", cat(size_));
    need(24);
    const std::string magic(reinterpret_cast<const char*>(data_), 4);
    if (magic != "GGUF" && magic != "PWRI") fail("magic", "\"GGUF\"", quoted(magic));
    file_->powerinfer_ = magic == "PWRI";
    at_ = 4;
    file_->version_ = read<uint32_t>("version");
    const uint32_t version = file_->version_;
    if ((version & 0xffff) == 0 && version != 0) fail("version", "a little-endian file", "a big-endian one");
    if (version != 2 && version != 3) fail("version", "2 or 3", cat(version));
    n_tensors_ = read<uint64_t>("tensor count");
    n_keys_ = read<uint64_t>("key count");
    // The smallest tensor entry takes 8 + 4 + 8 + 4 + 8 bytes, the smallest key 8 + 4 + 1.
    if (n_tensors_ > (size_ - at_) / 32) fail("tensor count", cat("at most ", (size_ - at_) / 32), cat(n_tensors_));
    if (n_keys_ > (size_ - at_) / 13) fail("key count", cat("at most ", (size_ - at_) / 13), cat(n_keys_));
  }

  void read_metadata() {
    file_->metadata_.reserve(room(n_keys_, 13));
    for (uint64_t i = 0; i < n_keys_; ++i) {
      std::string key(read_string("key", kMaxKeyBytes));
      const uint32_t type = read<uint32_t>("value type");
      GgufValue value = read_value(key, type);
      file_->metadata_.emplace_back(std::move(key), std::move(value));
    }
    for (size_t i = 0; i < file_->metadata_.size(); ++i) {
      const std::string& key = file_->metadata_[i].first;
      if (!file_->key_index_.emplace(key, i).second) fail("key " + quoted(key), "each key once", "it twice");
    }
    if (const auto alignment = file_->get_int("general.alignment")) {
      const uint64_t value = static_cast<uint64_t>(*alignment);
      if (*alignment < 8 || (value & (value - 1)) != 0 || value > kMaxAlignment)  // the format asks for multiples of 8
        fail("general.alignment", cat("a power of two from 8 to ", kMaxAlignment), cat(*alignment));
      file_->alignment_ = value;
    }
  }

  GgufValue read_value(const std::string& key, uint32_t type) {
    GgufValue out;
    out.type = static_cast<GgufType>(type);
    switch (out.type) {
      case GgufType::kU8: out.value = uint64_t{read<uint8_t>("value")}; break;
      case GgufType::kU16: out.value = uint64_t{read<uint16_t>("value")}; break;
      case GgufType::kU32: out.value = uint64_t{read<uint32_t>("value")}; break;
      case GgufType::kU64: out.value = read<uint64_t>("value"); break;
      case GgufType::kI8: out.value = int64_t{read<int8_t>("value")}; break;
      case GgufType::kI16: out.value = int64_t{read<int16_t>("value")}; break;
      case GgufType::kI32: out.value = int64_t{read<int32_t>("value")}; break;
      case GgufType::kI64: out.value = read<int64_t>("value"); break;
      case GgufType::kF32: out.value = double{read<float>("value")}; break;
      case GgufType::kF64: out.value = read<double>("value"); break;
      case GgufType::kBool: {
        const uint8_t byte = read<uint8_t>("value");
        if (byte > 1) fail("boolean of " + quoted(key), "0 or 1", cat(int{byte}));
        out.value = byte == 1;
        break;
      }
      case GgufType::kString: out.value = read_string("string value", size_); break;
      case GgufType::kArray: out.value = read_array(key); break;
      default: fail("type of " + quoted(key), "a value type from 0 to 12", cat(type));
    }
    return out;
  }

  GgufArray read_array(const std::string& key) {
    GgufArray out;
    const uint32_t element = read<uint32_t>("array type");
    out.element = static_cast<GgufType>(element);
    out.n = read<uint64_t>("array length");
    const uint64_t left = size_ - at_;
    if (out.element == GgufType::kString) {
      if (out.n > left / 8) fail("array length of " + quoted(key), cat("at most ", left / 8, " strings"), cat(out.n));
      out.strings.reserve(room(out.n, 8));
      for (uint64_t i = 0; i < out.n; ++i) out.strings.push_back(read_string("array text", size_));
      return out;
    }
    const size_t each = element <= 12 ? scalar_bytes(out.element) : 0;
    if (each == 0) fail("array type of " + quoted(key), "numbers, booleans or strings", cat("type ", element));
    if (out.n > left / each) fail("array length of " + quoted(key), cat("at most ", left / each), cat(out.n));
    need(out.n * each);
    out.data = data_ + at_;
    at_ += out.n * each;
    return out;
  }

  void read_tensor_infos() {
    file_->tensors_.reserve(room(n_tensors_, 32));
    for (uint64_t i = 0; i < n_tensors_; ++i) {
      GgufTensor tensor;
      tensor.name = std::string(read_string("tensor name", kMaxNameBytes));
      const uint32_t n_dims = read<uint32_t>("dimension count");
      if (n_dims < 1 || n_dims > 4) fail("dimensions of " + quoted(tensor.name), "1 to 4", cat(n_dims));
      tensor.shape.n_dims = static_cast<int>(n_dims);
      int64_t n_elements = 1;
      for (uint32_t d = 0; d < n_dims; ++d) {
        const uint64_t ne = read<uint64_t>("dimension");
        if (ne < 1 || ne > static_cast<uint64_t>(kMaxElements) || static_cast<int64_t>(ne) > kMaxElements / n_elements)
          fail("size of " + quoted(tensor.name), cat("1 to ", kMaxElements, " elements"), cat("dimension ", ne));
        n_elements *= static_cast<int64_t>(ne);
        tensor.shape.ne[d] = static_cast<int64_t>(ne);
      }
      tensor.type = read<uint32_t>("tensor type");
      tensor.offset = read<uint64_t>("tensor offset");
      file_->tensors_.push_back(std::move(tensor));
    }
  }

  void place_tensors() {
    const uint64_t align = file_->alignment_;
    const uint64_t start = (at_ + align - 1) / align * align;
    file_->index_tensors();
    for (GgufTensor& tensor : file_->tensors_) {
      if (tensor.offset % align != 0)
        fail("offset of " + quoted(tensor.name), cat("a multiple of ", align), cat(tensor.offset));
      if (start > size_ || tensor.offset > size_ - start)
        fail("offset of " + quoted(tensor.name), cat("inside the file of ", size_, " bytes"), cat(tensor.offset));
      tensor.offset += start;
      if (const DTypeInfo* info = find_dtype(tensor.type)) {
        if (tensor.shape.ne[0] % info->block_size != 0)
          fail("row of " + quoted(tensor.name), cat("a multiple of ", info->block_size, " elements"),
               cat(tensor.shape.ne[0]));
        tensor.n_bytes = static_cast<uint64_t>(tensor.shape.n_elements()) / info->block_size * info->block_bytes;
        if (tensor.n_bytes > size_ - tensor.offset)
          fail("data of " + quoted(tensor.name), cat(tensor.n_bytes, " bytes inside the file"),
               cat(size_ - tensor.offset, " bytes up to its end (truncated?)"));
      }
      tensor.data = data_ + tensor.offset;
    }
  }

  const std::byte* data_;
  size_t size_;
  size_t n_here_;
  std::string name_;
  size_t at_ = 0;
  uint64_t n_tensors_ = 0;
  uint64_t n_keys_ = 0;
  GgufFile* file_ = nullptr;
};

void GgufFile::index_keys() {
  key_index_.clear();
  for (size_t i = 0; i < metadata_.size(); ++i) key_index_.emplace(metadata_[i].first, i);
}

void GgufFile::index_tensors() {
  tensor_index_.clear();
  for (size_t i = 0; i < tensors_.size(); ++i)
    if (!tensor_index_.emplace(tensors_[i].name, i).second)
      throw ModelFormatError(error_text("gguf " + quoted(name_, 200), "tensor " + quoted(tensors_[i].name),
                                        "each name once", "it twice", "download or convert the file again"));
}

std::shared_ptr<GgufFile> GgufFile::map_one(const std::string& path) {
  const auto mapping = MmapFile::open(path);
  auto file = GgufParser(mapping->data(), mapping->size(), mapping->size(), path).parse();
  file->mapping_ = mapping;
  return file;
}

std::shared_ptr<const GgufFile> GgufFile::parse(const std::byte* data, size_t size, const std::string& name) {
  return GgufParser(data, size, size, name).parse();
}

GgufStart GgufFile::parse_start(std::span<const std::byte> start, uint64_t file_bytes, const std::string& name) {
  const size_t n_here = std::min<uint64_t>(start.size(), file_bytes);
  if (file_bytes == 0) return {parse(nullptr, 0, name)};  // says what is wrong
  const auto mapping = MmapFile::with_zeros(start.first(n_here), file_bytes);
  try {
    auto file = GgufParser(mapping->data(), file_bytes, n_here, name).parse();
    file->mapping_ = mapping;
    file->has_data_ = false;
    return {std::move(file)};
  } catch (const GgufParser::Cut& cut) {
    return {nullptr, cut.n_needed};
  }
}

}  // namespace hotset
