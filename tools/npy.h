// Writes a float32 matrix as a NumPy file (`.npy`, format version 1.0), row by row.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace hotset::cli {

// Rows go to a temporary file beside `path`, which finish() renames: a reader sees the whole matrix or nothing.
// `-` writes to stdout; an existing `path` that is no regular file (a device, a pipe) is written directly.
class NpyWriter {
 public:
  // Throws Error when the file cannot be made.
  NpyWriter(const std::string& path, int64_t n_rows, int64_t n_cols);

  // Appends whole rows.
  void write(std::span<const float> values);

  // Checks that all rows came and makes the file visible.
  void finish();

 private:
  void write_bytes(const void* data, size_t n_bytes);

  // Closes the descriptor and removes the temporary file, unless finish() came first.
  struct Target {
    explicit Target(const std::string& wanted);
    ~Target();
    Target(const Target&) = delete;
    Target& operator=(const Target&) = delete;

    std::string path;
    std::string temporary;  // "" = written directly
    int fd = -1;            // -1 = stdout
  };

  Target target_;
  int64_t n_missing_;  // values still to come
};

}  // namespace hotset::cli
