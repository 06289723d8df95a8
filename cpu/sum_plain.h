// Exact sums of units in plain code: the generic kernels, and what vector kernels leave over. Private to cpu/sum_*.cpp.
// Blocks are the 32 columns that a poisoned contribution takes along, in every block type.
#pragma once

#include "core/half.h"
#include "core/op.h"
#include "cpu/block_k_format.h"
#include "cpu/k_scales.h"
#include "cpu/kernels_fill.h"
#include "cpu/unpacked_format.h"

namespace hotset::cpu {
namespace {

constexpr double kSumOne = static_cast<double>(int64_t{1} << kSumBits);
constexpr float kSumLimit = 0x1p15f;                        // of |h * d|
constexpr double kFloatLimit = 0x1p51;                      // of a float weight's contribution
constexpr double kWholeNumbers = 1.5 * (int64_t{1} << 52);  // whose ulp is 1, and so of all within kFloatLimit

inline const std::byte* unit_row(const RowSumArgs& args, int64_t i) {
  return row_at(args.w, args.list != nullptr ? args.list[i] : args.first_unit + i);
}

// Whether h * d is small enough for a sum, rounded to `s`.
inline bool to_sum(float h, float d, int64_t& s) {
  const float p = h * d;
  if (!(__builtin_fabsf(p) < kSumLimit)) return false;
  s = static_cast<int64_t>(static_cast<double>(p) * kSumOne + kWholeNumbers - kWholeNumbers);
  return true;
}

// Modulo 2^64, and INT64_MIN stays.
inline void add_sum(int64_t& sum, int64_t by) {
  if (sum != kNoSum) sum = static_cast<int64_t>(static_cast<uint64_t>(sum) + static_cast<uint64_t>(by));
}

// 32 integers of a row, offset included, and what scales them: element i's scale is d[i / 16].
struct SumBlock {
  int32_t q[kBlock];
  float d[2];
  float minimum[2];  // 0 but for types that have one
};

inline int32_t sum_byte(const std::byte* at, int64_t i) { return static_cast<int32_t>(at[i]); }

inline SumBlock read_block(Q8, const std::byte* row, int64_t b) {
  const std::byte* const at = row + b * Q8::kBytes;
  SumBlock out;
  for (int64_t i = 0; i < kBlock; ++i) out.q[i] = static_cast<int8_t>(at[2 + i]);
  out.d[0] = out.d[1] = f16_to_f32(load_u16(at));
  out.minimum[0] = out.minimum[1] = 0.0f;
  return out;
}

inline SumBlock read_block(Q4, const std::byte* row, int64_t b) {
  const std::byte* const at = row + b * Q4::kBytes;
  SumBlock out;
  for (int64_t i = 0; i < kBlock; ++i) out.q[i] = (sum_byte(at, 2 + i % 16) >> (i < 16 ? 0 : 4) & 15) - Q4::kOffset;
  out.d[0] = out.d[1] = f16_to_f32(load_u16(at));
  out.minimum[0] = out.minimum[1] = 0.0f;
  return out;
}

// The nibbles and scales of Q4_K and Q5_K.
template <class Format>
inline SumBlock read_k_block(const std::byte* super, int64_t b) {
  SumBlock out;
  const std::byte* const at = super + Format::kNibblesAt + b / 2 * kBlock;
  for (int64_t i = 0; i < kBlock; ++i) out.q[i] = sum_byte(at, i) >> (b % 2 * 4) & 15;
  const Dwords packed = k_scale_bytes(super);
  uint8_t scales[2 * kSuperBlocks];
  std::memcpy(scales, &packed, sizeof scales);
  out.d[0] = out.d[1] = f16_to_f32(load_u16(super)) * static_cast<float>(scales[b]);
  out.minimum[0] = out.minimum[1] = f16_to_f32(load_u16(super + 2)) * static_cast<float>(scales[kSuperBlocks + b]);
  return out;
}

inline SumBlock read_block(Q4K, const std::byte* row, int64_t b) {
  return read_k_block<Q4K>(row + b / kSuperBlocks * Q4K::kBytes, b % kSuperBlocks);
}

inline SumBlock read_block(Q5K, const std::byte* row, int64_t b) {
  const std::byte* const super = row + b / kSuperBlocks * Q5K::kBytes;
  SumBlock out = read_k_block<Q5K>(super, b % kSuperBlocks);
  for (int64_t i = 0; i < kBlock; ++i) out.q[i] += (sum_byte(super, Q5K::kHighAt + i) >> b % kSuperBlocks & 1) << 4;
  return out;
}

inline SumBlock read_block(Q6K, const std::byte* row, int64_t b) {
  const std::byte* const super = row + b / kSuperBlocks * Q6K::kBytes;
  const int64_t in_super = b % kSuperBlocks, half = in_super / 4, in_half = in_super % 4;
  const std::byte* const low = super + 64 * half + kBlock * (in_half % 2);
  const std::byte* const high = super + Q6K::kHighAt + kBlock * half;
  const float d = f16_to_f32(load_u16(super + Q6K::kDAt));
  SumBlock out;
  for (int64_t i = 0; i < kBlock; ++i)
    out.q[i] =
        ((sum_byte(low, i) >> in_half / 2 * 4 & 15) | (sum_byte(high, i) >> 2 * in_half & 3) << 4) - Q6K::kOffset;
  for (int64_t i = 0; i < 2; ++i)
    out.d[i] = d * static_cast<float>(static_cast<int8_t>(super[Q6K::kScalesAt + 2 * in_super + i]));
  out.minimum[0] = out.minimum[1] = 0.0f;
  return out;
}

// The types of core/unpacked_block.h.
template <class Format>
inline SumBlock read_block(Format, const std::byte* row, int64_t b) {
  UnpackedBlock from;
  unpack_block(Format{}, row, b, from);
  SumBlock out;
  for (int64_t i = 0; i < kBlock; ++i) out.q[i] = from.q[i];
  for (int64_t i = 0; i < 2; ++i) {
    out.d[i] = from.d * static_cast<float>(from.c[i]);
    out.minimum[i] = Format::kHasMinimum ? from.m * static_cast<float>(from.k[i]) : 0.0f;
  }
  return out;
}

// Adds h times a block to 32 sums.
inline void add_block(const SumBlock& block, float h, int64_t* sums) {
  int64_t s[2], s_m[2];
  const bool fits = to_sum(h, block.d[0], s[0]) && to_sum(h, block.d[1], s[1]) && to_sum(h, block.minimum[0], s_m[0]) &&
                    to_sum(h, block.minimum[1], s_m[1]);
  if (fits) {
    for (int64_t i = 0; i < kBlock; ++i) add_sum(sums[i], s[i / 16] * block.q[i] - s_m[i / 16]);
  } else {
    for (int64_t i = 0; i < kBlock; ++i) sums[i] = kNoSum;
  }
}

template <class Format>
void plain_block_sums(const RowSumArgs& args) {
  for (int64_t i = 0; i < args.n_units; ++i) {
    const std::byte* const row = unit_row(args, i);
    for (int64_t c = 0; c < args.n_cols; c += kBlock) {
      const SumBlock block = read_block(Format{}, row, (args.first_col + c) / kBlock);
      for (int64_t a = 0; a < args.n_acts; ++a) {
        const float h = args.h[a * args.h_stride + i];
        if (h != 0.0f) add_block(block, h, args.sums + a * args.sums_stride + c);
      }
    }
  }
}

inline float float_weight(WeightType type, const std::byte* row, int64_t i) {
  float out;
  if (type == kWeightF16) return f16_to_f32(load_u16(row + 2 * i));
  if (type == kWeightBF16) {
    const uint32_t bits = static_cast<uint32_t>(load_u16(row + 2 * i)) << 16;
    std::memcpy(&out, &bits, sizeof out);
  } else {
    std::memcpy(&out, row + 4 * i, sizeof out);
  }
  return out;
}

// Adds h * w to a sum. h is finite or not, and not 0.
inline void add_float(float h, float w, int64_t& sum) {
  const double exact = static_cast<double>(h) * kSumOne * static_cast<double>(w);
  if (!(exact >= -kFloatLimit && exact < kFloatLimit)) {
    sum = kNoSum;
    return;
  }
  const double nearest = exact + kWholeNumbers - kWholeNumbers;
  add_sum(sum, static_cast<int64_t>(nearest) - (nearest > exact));
}

template <WeightType type>
void plain_float_sums(const RowSumArgs& args) {
  for (int64_t i = 0; i < args.n_units; ++i) {
    const std::byte* const row = unit_row(args, i);
    for (int64_t a = 0; a < args.n_acts; ++a) {
      const float h = args.h[a * args.h_stride + i];
      if (h == 0.0f) continue;
      int64_t* const sums = args.sums + a * args.sums_stride;
      for (int64_t c = 0; c < args.n_cols; ++c) add_float(h, float_weight(type, row, args.first_col + c), sums[c]);
    }
  }
}

inline void fill_plain_sums(Kernels& table) {
  table.row_sum[kWeightF32] = plain_float_sums<kWeightF32>;
  table.row_sum[kWeightF16] = plain_float_sums<kWeightF16>;
  table.row_sum[kWeightBF16] = plain_float_sums<kWeightBF16>;
  table.row_sum[kWeightQ8_0] = plain_block_sums<Q8>;
  table.row_sum[kWeightQ4_0] = plain_block_sums<Q4>;
  table.row_sum[kWeightQ4_K] = plain_block_sums<Q4K>;
  table.row_sum[kWeightQ5_K] = plain_block_sums<Q5K>;
  table.row_sum[kWeightQ6_K] = plain_block_sums<Q6K>;
  for_unpacked_formats([&]<WeightType type, class Format>() { table.row_sum[type] = plain_block_sums<Format>; });
}

}  // namespace
}  // namespace hotset::cpu
