// A view of a tensor's bytes. Owns nothing; whoever made the memory (mapping, arena, device) must outlive it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/dtype.h"

namespace hotset {

// Dimensions in GGUF order: ne[0] is the contiguous one, so a weight of a linear layer is (n_in, n_out).
struct Shape {
  std::array<int64_t, 4> ne{1, 1, 1, 1};
  int n_dims = 0;

  int64_t n_elements() const { return ne[0] * ne[1] * ne[2] * ne[3]; }
  bool operator==(const Shape& other) const { return ne == other.ne; }
};

inline Shape shape_of(int64_t ne0) { return Shape{{ne0, 1, 1, 1}, 1}; }
inline Shape shape_of(int64_t ne0, int64_t ne1) { return Shape{{ne0, ne1, 1, 1}, 2}; }

// "(256, 1024)" as messages and `inspect` print it.
inline std::string shape_text(const Shape& shape) {
  std::string out = "(";
  for (int i = 0; i < shape.n_dims; ++i) out += (i ? ", " : "") + std::to_string(shape.ne[static_cast<size_t>(i)]);
  return out + ")";
}

// Rows of `n_cols` elements, `row_stride` bytes apart. data may be nullptr for "no such tensor".
struct TensorView {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  int64_t n_cols = 0;
  int64_t n_rows = 0;
  size_t row_stride = 0;

  explicit operator bool() const { return data != nullptr; }
  const std::byte* row(int64_t index) const { return data + static_cast<size_t>(index) * row_stride; }
  size_t size_bytes() const { return static_cast<size_t>(n_rows) * row_stride; }
};

}  // namespace hotset
