// Writer of GGUF v3 files of any size: what is in the file is declared first, then its data comes piece by piece.
// Layout: docs/FORMATS.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "core/gguf.h"

namespace hotset {

class AtomicFile;

// The GGUF type of a C++ number.
template <class T>
constexpr GgufType gguf_type_of() {
  static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
  constexpr bool is_signed = std::is_signed_v<T>;
  if (std::is_floating_point_v<T>) return sizeof(T) == 4 ? GgufType::kF32 : GgufType::kF64;
  switch (sizeof(T)) {
    case 1: return is_signed ? GgufType::kI8 : GgufType::kU8;
    case 2: return is_signed ? GgufType::kI16 : GgufType::kU16;
    case 4: return is_signed ? GgufType::kI32 : GgufType::kU32;
    default: return is_signed ? GgufType::kI64 : GgufType::kU64;
  }
}

// One file being written, as AtomicFile does it: the target changes in finish(). Keeps only the declarations in memory.
// Not thread-safe.
//
//   GgufWriter writer("model.gguf");
//   writer.set_text("general.architecture", "llama");
//   writer.add_tensor("token_embd.weight", DType::kQ8_0, shape_of(n_embd, n_vocab));
//   writer.start();
//   for (...) writer.write(rows);   // tensors in the order of their declaration, in pieces of any size
//   writer.finish();
class GgufWriter {
 public:
  // Touches no file.
  explicit GgufWriter(std::string path);
  // Removes what was written, unless finish() was reached.
  ~GgufWriter();
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  // Metadata, before start(). Keys keep the order of their first setting; a later one replaces the value.
  // "general.alignment" (u32) sets the alignment of tensors, 32 without it.
  void set(const std::string& key, const GgufValue& value);  // copied; what the value views may go away
  void set_text(const std::string& key, const std::string& text);
  void set_texts(const std::string& key, const std::vector<std::string>& texts);
  void set_bool(const std::string& key, bool flag);
  void set_u32(const std::string& key, uint32_t number) { set_number(key, number); }
  void set_f32(const std::string& key, float number) { set_number(key, number); }
  template <class T>
  void set_number(const std::string& key, T number) {
    set_bytes(key, gguf_type_of<T>(), bytes_of(number));
  }
  template <class T>
  void set_array(const std::string& key, std::span<const T> numbers) {
    GgufArray array{gguf_type_of<T>(), numbers.size(), reinterpret_cast<const std::byte*>(numbers.data()), {}};
    set(key, GgufValue{GgufType::kArray, std::move(array)});
  }

  // A tensor, before start(). Throws std::invalid_argument for a name twice and rows that are no whole blocks.
  void add_tensor(const std::string& name, DType type, const Shape& shape);

  // Creates the file and writes everything up to the data. Throws Error when that fails.
  void start();

  // The next bytes of the current tensor, not beyond its end; padding is written by itself. Throws Error on a full disk
  // and any other failure, after which only destruction is left.
  void write(std::span<const std::byte> bytes);

  // In place of write(), before any: the data stays a hole that reads as zeros and takes no room where the system keeps
  // files with holes. Throws Error.
  void leave_data_out();

  // Gives the file its name, once all its bytes are on the disk. Throws Error.
  void finish();

  uint64_t data_bytes() const { return data_bytes_; }  // of the declared tensors, padding included
  uint64_t n_written() const { return n_written_; }    // bytes of the file so far

 private:
  struct Key {
    std::string name;
    std::string entry;  // type and value as in the file
  };
  struct Tensor {
    std::string name;
    DType type;
    Shape shape;
    uint64_t n_bytes;
  };

  template <class T>
  static std::string bytes_of(T value) {
    return std::string(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void set_bytes(const std::string& key, GgufType type, const std::string& bytes);
  std::string header() const;
  uint64_t aligned(uint64_t n) const { return (n + alignment_ - 1) / alignment_ * alignment_; }
  void put(const void* data, size_t n);
  void pad();

  std::string path_;
  std::unique_ptr<AtomicFile> file_;  // between start() and finish()
  uint64_t alignment_ = 32;
  std::vector<Key> keys_;
  std::unordered_map<std::string, size_t> key_index_;  // into keys_
  std::vector<Tensor> tensors_;
  uint64_t data_bytes_ = 0;
  uint64_t n_written_ = 0;
  size_t current_ = 0;         // tensor that write() continues
  uint64_t n_in_current_ = 0;  // its bytes so far
};

}  // namespace hotset
