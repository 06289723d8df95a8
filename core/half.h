// Scalar conversions between float and the two 16-bit formats. Exact where the format allows, round to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

namespace hotset {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// IEEE binary16 to binary32, exact for every input; NaN stays NaN.
inline float f16_to_f32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1f;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    return bits_float(float_bits(magnitude) | sign);
  }
  if (exponent == 31) return bits_float(sign | 0x7f800000u | (mantissa << 13));
  return bits_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// IEEE binary32 to binary16, round to nearest even; overflow becomes infinity, NaN stays a quiet NaN.
inline uint16_t f32_to_f16(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal half: let a float addition do the rounding at 2^-24
    const float scaled = bits_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (float_bits(scaled) - 0x3f000000u));
  }
  magnitude += 0xc8000fffu + ((magnitude >> 13) & 1);  // rebias by -112 and round to nearest even
  return static_cast<uint16_t>(sign | (magnitude >> 13));
}

// bfloat16 to binary32, exact.
inline float bf16_to_f32(uint16_t value) { return bits_float(static_cast<uint32_t>(value) << 16); }

// binary32 to bfloat16, round to nearest even; NaN stays a quiet NaN.
inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

}  // namespace hotset
