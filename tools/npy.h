// Writes a float32 matrix as a NumPy file (`.npy`, format version 1.0), row by row.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "tools/output_file.h"

namespace hotset::cli {

// `path` as OutputFile takes it: a reader sees the whole matrix or nothing.
class NpyWriter {
 public:
  // Throws Error when the file cannot be made.
  NpyWriter(const std::string& path, int64_t n_rows, int64_t n_cols);

  // Appends whole rows.
  void write(std::span<const float> values);

  // Checks that all rows came and makes the file visible.
  void finish();

 private:
  OutputFile file_;
  int64_t n_missing_;  // values still to come
};

}  // namespace hotset::cli
