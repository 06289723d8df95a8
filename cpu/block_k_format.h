// Layout of K super-blocks: 256 elements, 8 blocks of 32. Private to cpu/block_k_*.cpp.
#pragma once

#include "cpu/block_format.h"

namespace hotset::cpu {
namespace {

// Q4_K and Q5_K begin with f16 d, f16 dmin and 12 bytes: 8 scales and 8 minima of 6 bits (cpu/k_scales.h).
constexpr int64_t kKHeaderBytes = 16;

// Q4_K: header, then 4 x 32 bytes; byte i of the j-th holds element i of block 2 j low and of block 2 j + 1 high.
// Value = d * scale * q - dmin * minimum.
struct Q4K {
  static constexpr WeightType kType = kWeightQ4_K;
  static constexpr int64_t kBytes = 144;
  static constexpr int64_t kNibblesAt = kKHeaderBytes;
};

// Q5_K: header, 32 bytes whose byte i holds bit 4 of element i of all blocks, block b at bit b, then nibbles as in
// Q4_K.
struct Q5K {
  static constexpr WeightType kType = kWeightQ5_K;
  static constexpr int64_t kBytes = 176;
  static constexpr int64_t kHighAt = kKHeaderBytes;
  static constexpr int64_t kNibblesAt = kHighAt + 32;
};

// Q6_K: two halves of 4 blocks. Half h has 64 bytes of nibbles, the low ones blocks 4 h and 4 h + 1, the high ones the
// next two; then for both halves 32 bytes whose byte i holds bits 4 and 5 of element i of the half's block b at bit
// 2 b; 16 int8 scales, one per 16 elements; f16 d. Value = d * scale * (q - 32).
struct Q6K {
  static constexpr WeightType kType = kWeightQ6_K;
  static constexpr int64_t kBytes = 210;
  static constexpr int64_t kHighAt = 128;
  static constexpr int64_t kScalesAt = 192;
  static constexpr int64_t kDAt = 208;
  static constexpr int32_t kOffset = 32;
};

constexpr int64_t kSuperBlocks = kSuperBlock / kBlock;  // blocks of a super-block

// out[r] = dot(row, coming) for the rows that dot_rows is asked for; `coming` is the row to prefetch meanwhile.
template <class Dot>
inline void stream_rows(const WeightRows& w, const int32_t* rows, int64_t first_row, int64_t n_rows, int64_t row_bytes,
                        float* out, Dot dot) {
  const int64_t ahead = rows_ahead(row_bytes);
  for (int64_t r = 0; r < n_rows; ++r) {
    const int64_t next = r + ahead < n_rows ? r + ahead : n_rows - 1;
    out[r] = dot(row_at(w, rows ? rows[r] : first_row + r), row_at(w, rows ? rows[next] : first_row + next));
  }
}

}  // namespace
}  // namespace hotset::cpu
