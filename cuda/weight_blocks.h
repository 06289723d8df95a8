// Rows of weights as kernels read them: integers of a block four at a time, its scales, and single elements. Layouts:
// cpu/block_format.h and cpu/block_k_format.h. Host and device; checked against cpu/reference.h.
#pragma once

#include "core/dtype.h"
#include "cuda/arith.h"

namespace hotset::cuda {

// Weight rows in memory that the lane can read. Rows need 2-byte alignment, float rows that of their type.
struct Matrix {
  const std::byte* data = nullptr;
  size_t stride = 0;  // bytes
  int64_t n_cols = 0, n_rows = 0;
  DType dtype = DType::kF32;
  HS_DEVICE const std::byte* row(int64_t i) const { return data + static_cast<size_t>(i) * stride; }
};

HS_DEVICE constexpr bool is_block_type(DType type) {
  return type != DType::kF32 && type != DType::kF16 && type != DType::kBF16;
}

template <class T>
HS_DEVICE inline T load(const std::byte* at) {
#if defined(__CUDA_ARCH__)
  return *reinterpret_cast<const T*>(at);
#else
  T out;
  std::memcpy(&out, at, sizeof out);
  return out;
#endif
}

// Four bytes that need only 2-byte alignment.
HS_DEVICE inline uint32_t load_4(const std::byte* at) {
#if defined(__CUDA_ARCH__)
  if ((reinterpret_cast<uintptr_t>(at) & 2) == 0) return load<uint32_t>(at);
#endif
  return load<uint16_t>(at) | static_cast<uint32_t>(load<uint16_t>(at + 2)) << 16;
}

HS_DEVICE inline uint32_t byte_at(const std::byte* at, int64_t i) { return static_cast<uint32_t>(at[i]); }

// Each byte of x, which is below 128, less `by`, also below 128.
HS_DEVICE inline uint32_t less_bytes(uint32_t x, uint32_t by) {
  return ((x | 0x80808080u) - by * 0x01010101u) ^ 0x80808080u;
}

// What scales a block: element i is d * c[i / 16] * q - d_m; c is 1 but for Q6_K.
struct Scales {
  float d, d_m;
  int32_t c[2];
};

// Per block type: words(row, b, j), elements 4 j .. 4 j + 3 of block b as signed bytes, and scales(row, b).
template <DType type>
struct Blocks;

template <>
struct Blocks<DType::kQ8_0> {
  static constexpr bool kHasMinimum = false, kHasHalves = false;
  HS_DEVICE static uint32_t word(const std::byte* row, int64_t b, int j) { return load_4(row + b * 34 + 2 + 4 * j); }
  HS_DEVICE static Scales scales(const std::byte* row, int64_t b) {
    return {half_to_float(load<uint16_t>(row + b * 34)), 0.0f, {1, 1}};
  }
};

template <>
struct Blocks<DType::kQ4_0> {
  static constexpr bool kHasMinimum = false, kHasHalves = false;
  HS_DEVICE static uint32_t word(const std::byte* row, int64_t b, int j) {
    return less_bytes(load_4(row + b * 18 + 2 + 4 * (j % 4)) >> (j / 4 * 4) & 0x0f0f0f0fu, 8);
  }
  HS_DEVICE static Scales scales(const std::byte* row, int64_t b) {
    return {half_to_float(load<uint16_t>(row + b * 18)), 0.0f, {1, 1}};
  }
};

// The 6-bit scales and minima of Q4_K and Q5_K.
struct KScales {
  static constexpr bool kHasMinimum = true, kHasHalves = false;
  HS_DEVICE static Scales read(const std::byte* super, int64_t b) {
    uint32_t scale, minimum;
    if (b < 4) {
      scale = byte_at(super, 4 + b) & 63, minimum = byte_at(super, 8 + b) & 63;
    } else {
      const uint32_t low = byte_at(super, 8 + b);
      scale = (low & 15) | byte_at(super, b) >> 6 << 4;
      minimum = low >> 4 | byte_at(super, 4 + b) >> 6 << 4;
    }
    return {half_to_float(load<uint16_t>(super)) * static_cast<float>(scale),
            half_to_float(load<uint16_t>(super + 2)) * static_cast<float>(minimum), {1, 1}};
  }
};

template <>
struct Blocks<DType::kQ4_K> : KScales {
  HS_DEVICE static uint32_t word(const std::byte* row, int64_t b, int j) {
    const std::byte* const super = row + b / 8 * 144;
    return load_4(super + 16 + b % 8 / 2 * 32 + 4 * j) >> (b % 2 * 4) & 0x0f0f0f0fu;
  }
  HS_DEVICE static Scales scales(const std::byte* row, int64_t b) { return read(row + b / 8 * 144, b % 8); }
};

template <>
struct Blocks<DType::kQ5_K> : KScales {
  HS_DEVICE static uint32_t word(const std::byte* row, int64_t b, int j) {
    const std::byte* const super = row + b / 8 * 176;
    const uint32_t low = load_4(super + 48 + b % 8 / 2 * 32 + 4 * j) >> (b % 2 * 4) & 0x0f0f0f0fu;
    return low | (load_4(super + 16 + 4 * j) >> (b % 8) & 0x01010101u) << 4;
  }
  HS_DEVICE static Scales scales(const std::byte* row, int64_t b) { return read(row + b / 8 * 176, b % 8); }
};

template <>
struct Blocks<DType::kQ6_K> {
  static constexpr bool kHasMinimum = false, kHasHalves = true;
  HS_DEVICE static uint32_t word(const std::byte* row, int64_t b, int j) {
    const std::byte* const super = row + b / 8 * 210;
    const int64_t half = b % 8 / 4, quarter = b % 4;
    const uint32_t low = load_4(super + 64 * half + 32 * (quarter % 2) + 4 * j) >> (quarter / 2 * 4) & 0x0f0f0f0fu;
    const uint32_t high = load_4(super + 128 + 32 * half + 4 * j) >> (2 * quarter) & 0x03030303u;
    return less_bytes(low | high << 4, 32);
  }
  HS_DEVICE static Scales scales(const std::byte* row, int64_t b) {
    const std::byte* const super = row + b / 8 * 210;
    const int64_t at = 192 + 2 * (b % 8);
    return {half_to_float(load<uint16_t>(super + 208)), 0.0f,
            {static_cast<int8_t>(byte_at(super, at)), static_cast<int8_t>(byte_at(super, at + 1))}};
  }
};

HS_DEVICE inline float bf16_value(const std::byte* at) {
  return float_of(static_cast<uint32_t>(load<uint16_t>(at)) << 16);
}

// Element i of a row of floats.
template <DType type>
HS_DEVICE inline float float_at(const std::byte* row, int64_t i) {
  if constexpr (type == DType::kF32) return load<float>(row + 4 * i);
  if constexpr (type == DType::kF16) return half_to_float(load<uint16_t>(row + 2 * i));
  return bf16_value(row + 2 * i);
}

// Element i of a row of blocks, as Kernels::dequantize_row gives it.
template <DType type>
HS_DEVICE inline float block_element(const std::byte* row, int64_t i) {
  using B = Blocks<type>;
  const int64_t b = i / kBlock, at = i % kBlock;
  const Scales scales = B::scales(row, b);
  const float q = static_cast<float>(static_cast<int8_t>(B::word(row, b, static_cast<int>(at / 4)) >> (at % 4 * 8)));
  if (B::kHasMinimum) return fused(scales.d, q, -scales.d_m);
  return scales.d * static_cast<float>(at < 16 ? scales.c[0] : scales.c[1]) * q;
}

// The same for a type known at run time.
HS_DEVICE inline float element(DType type, const std::byte* row, int64_t i) {
  switch (type) {
    case DType::kF32: return float_at<DType::kF32>(row, i);
    case DType::kF16: return float_at<DType::kF16>(row, i);
    case DType::kBF16: return float_at<DType::kBF16>(row, i);
    case DType::kQ8_0: return block_element<DType::kQ8_0>(row, i);
    case DType::kQ4_0: return block_element<DType::kQ4_0>(row, i);
    case DType::kQ4_K: return block_element<DType::kQ4_K>(row, i);
    case DType::kQ5_K: return block_element<DType::kQ5_K>(row, i);
    default: return block_element<DType::kQ6_K>(row, i);
  }
}

}  // namespace hotset::cuda
