// Reader of GGUF v2/v3 model files. Treats every byte as hostile; see docs/FORMATS.md for the layout.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "core/tensor.h"

namespace hotset {

class MmapFile;
struct GgufStart;

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
  uint64_t offset = 0;   // from the start of the file, or of the shard that has it
  uint64_t n_bytes = 0;  // 0 when the type is unknown
  const std::byte* data = nullptr;
};

// A parsed file. Views point into the memory it was parsed from, which must outlive it (GgufFile::open keeps a
// mapping).
class GgufFile {
 public:
  // Maps and parses a file, and with the first of several shards (NAME-00001-of-00003.gguf, `split.count` 3) the others
  // beside it, as one. Throws Error (cannot be opened, a directory, a shard missing), ModelFormatError (anything wrong
  // inside, shards that do not belong together, a shard that is not the first).
  static std::shared_ptr<const GgufFile> open(const std::string& path);

  // Parses bytes that the caller keeps alive; `name` is for messages. Allocates at most a few times `size`.
  static std::shared_ptr<const GgufFile> parse(const std::byte* data, size_t size, const std::string& name);

  // Parses the first bytes of a file of file_bytes that is not here, or tells how many more bytes that takes; its
  // tensors are all zeros. Takes memory for `start` alone, and address space for the file. Throws ModelFormatError as
  // open(), OutOfMemoryError.
  static GgufStart parse_start(std::span<const std::byte> start, uint64_t file_bytes, const std::string& name);

  // One file of all shards of a model in their order: the first one's metadata, the tensors of all.
  // Throws ModelFormatError when they do not belong together. One shard is returned as it is.
  static std::shared_ptr<const GgufFile> join(const std::vector<std::shared_ptr<const GgufFile>>& shards);

  const std::string& name() const { return name_; }  // of the first shard
  const std::vector<std::string>& shard_names() const { return shard_names_; }  // of all; name() alone without shards
  bool has_data() const { return has_data_; }  // false: of parse_start()
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
  void drop_all_pages() const;      // of all tensors
  void prefer_large_pages() const;  // see MmapFile; nothing for what is no mapped file

 private:
  friend class GgufParser;
  friend class PlainFileMaker;
  GgufFile() = default;
  static std::shared_ptr<GgufFile> map_one(const std::string& path);
  void index_keys();
  void index_tensors();  // throws ModelFormatError for a name twice

  std::shared_ptr<const MmapFile> mapping_;              // when open() made one
  std::vector<std::shared_ptr<const GgufFile>> shards_;  // when join() made this of them
  std::string name_;
  std::vector<std::string> shard_names_;
  bool has_data_ = true;
  uint32_t version_ = 0;
  uint64_t alignment_ = 32;
  uint64_t size_ = 0;
  bool powerinfer_ = false;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> key_index_;
  std::unordered_map<std::string_view, size_t> tensor_index_;
};

// What parse_start gives: a file, or the number of its first bytes that are needed at least.
struct GgufStart {
  std::shared_ptr<const GgufFile> file;
  uint64_t n_needed = 0;
};

// One line of text for a value: scalars in full, strings quoted and cut, arrays as their first elements and count.
std::string gguf_value_text(const GgufValue& value);

}  // namespace hotset
