#include "tools/npy.h"

#include <bit>

#include "core/error.h"

namespace hotset::cli {
namespace {

static_assert(std::endian::native == std::endian::little, "values are written as they lie in memory");

// Magic, version, length, then a Python dictionary padded so that the data starts at a multiple of 64.
std::string npy_header(int64_t n_rows, int64_t n_cols) {
  std::string dict = cat("{'descr': '<f4', 'fortran_order': False, 'shape': (", n_rows, ", ", n_cols, "), }");
  constexpr size_t kPrefix = 10;
  dict.append(63 - (kPrefix + dict.size()) % 64, ' ');
  dict += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(dict.size() & 0xff);
  header += static_cast<char>(dict.size() >> 8);
  return header + dict;
}

}  // namespace

NpyWriter::NpyWriter(const std::string& path, int64_t n_rows, int64_t n_cols)
    : file_(path), n_missing_(n_rows * n_cols) {
  const std::string header = npy_header(n_rows, n_cols);
  file_.write(header.data(), header.size());
}

void NpyWriter::write(std::span<const float> values) {
  n_missing_ -= static_cast<int64_t>(values.size());
  HS_CHECK(n_missing_ >= 0, "npy");
  file_.write(values.data(), values.size_bytes());
}

void NpyWriter::finish() {
  HS_CHECK(n_missing_ == 0, "npy");
  file_.finish();
}

}  // namespace hotset::cli
