// Layout of quantised blocks and of the packed operands of block gemms. Private to cpu/block_*.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/kernels.h"

namespace hotset::cpu {
namespace {

// Q8_0 block: f16 scale d, then 32 int8. Value = q * d.
struct Q8 {
  static constexpr WeightType kType = kWeightQ8_0;
  static constexpr int64_t kBytes = 34;
  static constexpr int32_t kOffset = 128;  // what turns q into the unsigned operand of a dot instruction
};

// Q4_0 block: f16 scale d, then 16 bytes, low nibbles elements 0..15, high nibbles 16..31. Value = (nibble - 8) * d.
struct Q4 {
  static constexpr WeightType kType = kWeightQ4_0;
  static constexpr int64_t kBytes = 18;
  static constexpr int32_t kOffset = 8;
};

// Lanes of the canonical sum: block b belongs to lane b % kLanes.
constexpr int64_t kLanes = 16;

// Below this max|x| the inverse 127 / max|x| overflows: the block counts as all zero.
constexpr float kLeastMax = 127.0f / 3.40282346e38f;

inline uint16_t load_u16(const std::byte* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return bits;
}

inline const std::byte* row_at(const WeightRows& w, int64_t row) {
  return w.data + static_cast<size_t>(row) * w.stride;
}

// How many rows ahead a streaming kernel prefetches: about kAheadBytes, whole rows, at least one.
constexpr int64_t kAheadBytes = 8192;
inline int64_t rows_ahead(int64_t row_bytes) { return 1 + kAheadBytes / row_bytes; }

// Asks for the cache lines of [from, from + n_bytes). Never faults.
[[gnu::always_inline]] inline void prefetch(const std::byte* from, int64_t n_bytes) {
  for (int64_t at = 0; at < n_bytes; at += 64) __builtin_prefetch(from + at, 0, 3);
}

}  // namespace
}  // namespace hotset::cpu
