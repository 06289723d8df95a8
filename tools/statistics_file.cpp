#include "tools/statistics_file.h"

#include <array>
#include <bit>
#include <vector>

#include "core/error.h"
#include "tools/output_file.h"

namespace hotset::cli {
namespace {

static_assert(std::endian::native == std::endian::little, "values are written as they lie in memory");

// Of the polynomial that ZIP uses.
uint32_t crc32(const std::string& bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> out{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = value & 1 ? 0xedb88320u ^ (value >> 1) : value >> 1;
      out[i] = value;
    }
    return out;
  }();
  uint32_t crc = ~0u;
  for (const char c : bytes) crc = table[(crc ^ static_cast<uint8_t>(c)) & 255] ^ (crc >> 8);
  return ~crc;
}

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// An archive of stored entries (PKWARE APPNOTE, 4.3.7, 4.3.12, 4.3.16), each a NumPy array (format 1.0).
class NpzWriter {
 public:
  explicit NpzWriter(const std::string& path) : file_(path) {}

  // `type` as NumPy's descr, `shape` as Python writes a tuple.
  void add(const std::string& name, const std::string& type, const std::string& shape, const std::string& data) {
    std::string dict = "{'descr': '" + type + "', 'fortran_order': False, 'shape': " + shape + ", }";
    constexpr size_t kPrefix = 10;
    dict.append(63 - (kPrefix + dict.size()) % 64, ' ');
    dict += '\n';
    std::string entry("\x93NUMPY\x01\x00", 8);
    put(entry, static_cast<uint16_t>(dict.size()));
    entry += dict + data;
    add_entry(name + ".npy", entry);
  }
  template <class T>
  void add_scalar(const std::string& name, const char* type, T value) {
    std::string data;
    put(data, value);
    add(name, type, "()", data);
  }
  void add_text(const std::string& name, const std::string& ascii) {
    std::string data;
    for (const char c : ascii) put(data, static_cast<uint32_t>(static_cast<uint8_t>(c)));
    add(name, cat("<U", ascii.size()), "()", data);
  }
  template <class T>
  void add_vector(const std::string& name, const char* type, const std::vector<T>& values) {
    add(name, type, cat("(", values.size(), ",)"),
        std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)));
  }

  void finish() {
    const size_t begin = n_written_;
    write(directory_);
    std::string end;
    put(end, 0x06054b50u), put(end, uint32_t{0});
    for (int i = 0; i < 2; ++i) put(end, static_cast<uint16_t>(n_entries_));
    put(end, static_cast<uint32_t>(directory_.size())), put(end, static_cast<uint32_t>(begin)), put(end, uint16_t{0});
    write(end);
    file_.finish();
  }

 private:
  void add_entry(const std::string& name, const std::string& data) {
    // Offsets of a plain archive have 32 bits, numbers of entries 16.
    if (n_written_ + data.size() + directory_.size() > UINT32_MAX - 4096 || n_entries_ == UINT16_MAX)
      throw Error(error_text("statistics", "archive", "less than 4 GiB and 65536 entries", "more",
                             "use `hotset profile`"));
    std::string fields;  // of both headers
    put(fields, uint16_t{20}), put(fields, uint16_t{0}), put(fields, uint16_t{0});  // version, flags, stored
    put(fields, uint16_t{0}), put(fields, uint16_t{0x21});                          // 1980-01-01: equal bytes every day
    put(fields, crc32(data));
    for (int i = 0; i < 2; ++i) put(fields, static_cast<uint32_t>(data.size()));
    put(fields, static_cast<uint16_t>(name.size())), put(fields, uint16_t{0});
    put(directory_, 0x02014b50u), put(directory_, uint16_t{20});
    directory_ += fields;
    directory_.append(10, '\0');
    put(directory_, static_cast<uint32_t>(n_written_));
    directory_ += name;
    std::string header;
    put(header, 0x04034b50u);
    write(header + fields + name);
    write(data);
    ++n_entries_;
  }
  void write(const std::string& bytes) {
    file_.write(bytes.data(), bytes.size());
    n_written_ += bytes.size();
  }

  OutputFile file_;
  std::string directory_;
  size_t n_written_ = 0, n_entries_ = 0;
};

}  // namespace

void write_statistics(const std::string& path, const Model& model, const ActivityCounts& counts) {
  if (counts.n_tokens == 0)
    throw Error(error_text("statistics", "tokens", "at least one", "none", "generate something"));
  NpzWriter out(path);
  out.add_text("format", "hotset-statistics");
  out.add_scalar("version", "<i8", int64_t{1});
  out.add_text("model_fingerprint", model.fingerprint());
  out.add_scalar("n_layer", "<i8", static_cast<int64_t>(counts.layers.size()));
  out.add_scalar("n_tokens", "<i8", static_cast<int64_t>(counts.n_tokens));
  out.add_text("corpora", "[]");
  for (size_t layer = 0; layer < counts.layers.size(); ++layer) {
    const std::string prefix = cat("blk.", layer, ".");
    out.add_vector(prefix + "counts", "<u8", counts.layers[layer]);
    out.add_vector(prefix + "mass", "<f8", std::vector<double>(counts.layers[layer].size()));
    out.add_scalar(prefix + "overlap", "<u8", uint64_t{0});
    out.add_scalar(prefix + "threshold", "<f4", 0.0f);
  }
  out.finish();
}

}  // namespace hotset::cli
