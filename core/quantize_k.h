// What the encoders of block types share, and the K types: super-blocks of 256 elements, whose sub-blocks have short
// integer scales. docs/FORMATS.md gives the bytes. Private to core/quantize*.cpp.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/half.h"

namespace hotset {

// One super-block each way: 256 finite floats, and the bytes of the type. What has no decoder here is decoded by
// core/unpacked_block.h.
void quantize_q4_k(const float* x, std::byte* out);
void quantize_q5_k(const float* x, std::byte* out);
void quantize_q6_k(const float* x, std::byte* out);
void quantize_q2_k(const float* x, std::byte* out);
void quantize_q3_k(const float* x, std::byte* out);
void quantize_iq4_xs(const float* x, std::byte* out);
void dequantize_q4_k(const std::byte* block, float* out);
void dequantize_q5_k(const std::byte* block, float* out);
void dequantize_q6_k(const std::byte* block, float* out);

// One block of 32.
void quantize_iq4_nl(const float* x, std::byte* out);

inline void store_u16(uint16_t bits, std::byte* at) { std::memcpy(at, &bits, sizeof bits); }

inline uint16_t load_u16(const std::byte* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return bits;
}

// What a scale becomes when it is stored and read again.
inline float through_f16(float value) { return f16_to_f32(f32_to_f16(value)); }

// 1 / value; 0 where that is no finite number, so that everything divided by nothing becomes 0.
inline float inverse_or_zero(float value) {
  const float inverse = 1.0f / value;
  return std::fabs(inverse) <= 3.40282347e38f ? inverse : 0;
}

// Rounds to the nearest integer from low to high, ties to even; NaN becomes `low`. The comparisons are the vector
// instructions min and max, and the sum with 1.5 * 2^23 leaves no bits for a fraction.
inline float round_within(float value, float low, float high) {
  constexpr float kRounder = 12582912.0f;
  value = value > low ? value : low;
  value = value < high ? value : high;
  return (value + kRounder) - kRounder;
}

// A super-block turned on its side: sub-blocks are lanes, so that each step of a search is the same for all lanes of a
// vector, and sums run within a lane in the order of the elements, whatever the length of a vector.
template <int kLength, int kLanes>
struct TurnedBlock {
  explicit TurnedBlock(const float* from) {
    for (int lane = 0; lane < kLanes; ++lane)
      for (int i = 0; i < kLength; ++i) x[i][lane] = from[lane * kLength + i];
  }

  float x[kLength][kLanes];
};

}  // namespace hotset
