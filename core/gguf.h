// Reader of GGUF v2/v3 model files. Treats every byte as hostile; see docs/FORMATS.md for the layout.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "core/tensor.h"

namespace hotset {

class MmapFile;

// Value types, numbered as in the file.
enum class GgufType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

// "u32", "str", ... as messages and `inspect` print them.
const char* gguf_type_name(GgufType type);

// An array value: fixed-size elements stay in the mapping, strings are views into it.
struct GgufArray {
  GgufType element = GgufType::kU8;
  uint64_t n = 0;
  const std::byte* data = nullptr;        // n packed little-endian elements; nullptr for strings
  std::vector<std::string_view> strings;  // n views when element is kString
};

struct GgufValue {
  GgufType type = GgufType::kU8;
  std::variant<uint64_t, int64_t, double, bool, std::string_view, GgufArray> value;
};

struct GgufTensor {
  std::string name;
  uint32_t type = 0;  // raw type number; may be one this build does not know
  Shape shape;
  uint64_t offset = 0;   // from the start of the file
  uint64_t n_bytes = 0;  // 0 when the type is unknown
  const std::byte* data = nullptr;
};

// A parsed file. Views point into the memory it was parsed from, which must outlive it (GgufFile::open keeps a
// mapping).
class GgufFile {
 public:
  // Maps and parses a file. Throws Error (cannot be opened, a directory), ModelFormatError (anything wrong inside).
  static std::shared_ptr<const GgufFile> open(const std::string& path);

  // Parses bytes that the caller keeps alive; `name` is for messages. Allocates at most a few times `size`.
  static std::shared_ptr<const GgufFile> parse(const std::byte* data, size_t size, const std::string& name);

  const std::string& name() const { return name_; }
  uint32_t version() const { return version_; }
  uint64_t alignment() const { return alignment_; }
  uint64_t size_bytes() const { return size_; }
  bool is_powerinfer() const { return powerinfer_; }  // magic `PWRI`

  // Keys and tensors in file order.
  const std::vector<std::pair<std::string, GgufValue>>& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }

  const GgufValue* find(const std::string& key) const;
  const GgufTensor* find_tensor(const std::string& name) const;

  // Typed look-ups. nullopt when the key is absent; ModelFormatError when it has another type, is out of range for the
  // return type, or (floats) is not finite. Integers of any width and sign are accepted where the value fits.
  std::optional<int64_t> get_int(const std::string& key) const;
  std::optional<double> get_float(const std::string& key) const;
  std::optional<bool> get_bool(const std::string& key) const;
  std::optional<std::string> get_string(const std::string& key) const;
  // Arrays of any integer (or float) type, widened.
  std::optional<std::vector<int64_t>> get_int_array(const std::string& key) const;
  std::optional<std::vector<float>> get_float_array(const std::string& key) const;
  std::optional<std::vector<std::string>> get_string_array(const std::string& key) const;

  // Takes a tensor's data out of this process's memory where it is mapped from a file; it is read again when touched.
  void drop_pages(const TensorView& view) const;
  void drop_all_pages() const;          // of all tensors
  void prefer_large_pages() const;  // see MmapFile; nothing for what is no mapped file

 private:
  friend class GgufParser;
  GgufFile() = default;

  std::shared_ptr<const MmapFile> mapping_;  // when open() made one
  std::string name_;
  uint32_t version_ = 0;
  uint64_t alignment_ = 32;
  uint64_t size_ = 0;
  bool powerinfer_ = false;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> key_index_;
  std::unordered_map<std::string_view, size_t> tensor_index_;
};

// One line of text for a value: scalars in full, strings quoted and cut, arrays as their first elements and count.
std::string gguf_value_text(const GgufValue& value);

}  // namespace hotset
