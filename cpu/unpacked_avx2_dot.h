// dot_rows of the types of core/unpacked_block.h for AVX2, which AVX-512 uses too. Private to cpu/unpacked_*.
//
// 8 blocks make 8 exact int32 sums in one register, in the order of their lanes. Moves each byte of a row once.
#pragma once

#include "cpu/unpacked_avx2_vec.h"

namespace hotset::cpu {
namespace {

// The int32 sums of 8 vectors of 8 parts.
inline __m256i sums_of(const __m256i* parts) {
  const __m256i a = quad_sums(parts[0], parts[1], parts[2], parts[3]);
  const __m256i b = quad_sums(parts[4], parts[5], parts[6], parts[7]);
  return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

// The scales of the halves of block b, each in all of its lane.
inline __m256i spread(const HalfScales& scales, int b) {
  const auto pair = [](int i) { return _mm_set1_epi16(static_cast<int16_t>(2 * i | (2 * i + 1) << 8)); };
  const __m256i order = _mm256_set_m128i(pair(b % 4 * 2 + 1), pair(b % 4 * 2));
  return _mm256_shuffle_epi8(scales.of[b / 4], order);
}

// Sums of the halves of the 8 blocks of an activation: dword l has those of block l, as int16.
inline __m256i half_sums(const int8_t* q) {
  __m256i parts[8];
  for (int b = 0; b < 8; ++b)
    parts[b] = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), load256(q + b * kBlock)),
                                 _mm256_set1_epi16(1));
  const __m256i low = quad_sums(parts[0], parts[1], parts[2], parts[3]);  // a half in each lane
  const __m256i high = quad_sums(parts[4], parts[5], parts[6], parts[7]);
  const __m256i first = _mm256_permute2x128_si256(low, high, 0x20), second = _mm256_permute2x128_si256(low, high, 0x31);
  return _mm256_blend_epi16(first, _mm256_slli_epi32(second, 16), 0xaa);
}

// Whether a type needs half_sums: for its minima, or to take its offset back.
template <class Format>
constexpr bool kNeedsHalves = kHasHalves<Format> && kUnsigned<Format>;

// 8 blocks of an activation; `halves` are its half_sums where the type needs them.
struct Eight {
  const int8_t* q;
  const float* scale;
  const int32_t* sum;
  __m256i halves;
};

// acc[lane] takes in 8 blocks of a row.
template <class Format>
inline __m256 add_eight(const std::byte* at, const Eight& a, __m256 acc) {
  __m128i c_bytes;
  HalfScales c;
  if constexpr (kHasHalves<Format>) c_bytes = load_c(Format{}, at), c = half_scales(c_bytes);
  __m256i parts[8];
#pragma GCC unroll 8
  for (int b = 0; b < 8; ++b) {
    const __m256i pairs = products<kUnsigned<Format>>(load_u(Format{}, at, b), load256(a.q + b * kBlock));
    parts[b] = _mm256_madd_epi16(pairs, kHasHalves<Format> ? spread(c, b) : _mm256_set1_epi16(1));
  }
  __m256i s = sums_of(parts);
  if constexpr (kOffset<Format> != 0) {
    __m256i sums = load256(a.sum);
    if constexpr (kHasHalves<Format>) sums = _mm256_madd_epi16(a.halves, _mm256_cvtepi8_epi16(c_bytes));
    s = _mm256_sub_epi32(s, _mm256_mullo_epi32(sums, _mm256_set1_epi32(kOffset<Format>)));
  }
  const __m256 scale = _mm256_loadu_ps(a.scale);
  acc = _mm256_fmadd_ps(_mm256_mul_ps(load_d(Format{}, at), scale), _mm256_cvtepi32_ps(s), acc);
  if constexpr (Format::kHasMinimum) {
    __m256i s_m = load256(a.sum);
    if constexpr (kHasHalves<Format>) s_m = _mm256_madd_epi16(a.halves, _mm256_cvtepi8_epi16(load_k(Format{}, at)));
    acc = _mm256_fmadd_ps(load_minus_m(Format{}, at), _mm256_mul_ps(scale, _mm256_cvtepi32_ps(s_m)), acc);
  }
  return acc;
}

// The last blocks of a row, fewer than 8.
template <class Format>
[[gnu::noinline]] __m256 add_last(const std::byte* at, const ActivationRow& a, int64_t block, int64_t n, __m256 acc) {
  alignas(32) std::byte weights[8 * Format::kBytes] = {};
  int8_t q[8 * kBlock] = {};
  float scale[8];
  for (float& each : scale) each = kMissing;
  int32_t sum[8] = {};
  std::memcpy(weights, at, static_cast<size_t>(n * Format::kBytes));
  std::memcpy(q, a.q + block * kBlock, static_cast<size_t>(n * kBlock));
  std::memcpy(scale, a.scale + block, static_cast<size_t>(n) * sizeof(float));
  std::memcpy(sum, a.sum + block, static_cast<size_t>(n) * sizeof(int32_t));
  return add_eight<Format>(weights, {q, scale, sum, _mm256_setzero_si256()}, acc);
}

// half_sums are kept for rows of up to so many elements, and made anew for every row of longer ones.
constexpr int64_t kMostKept = 32768;

template <class Format>
void dot_rows(const WeightRows& w, const int32_t* rows, int64_t first_row, int64_t n_rows, const ActivationRow& a,
              float* out) {
  constexpr int64_t kEightBytes = 8 / Format::kBlocks * Format::kBytes;
  const int64_t n_blocks = w.n / kBlock, ahead = rows_ahead(n_blocks / Format::kBlocks * Format::kBytes);
  __m256i kept[kNeedsHalves<Format> ? kMostKept / kSuperBlock : 1];
  if (kNeedsHalves<Format> && w.n <= kMostKept)
    for (int64_t b = 0; b < n_blocks; b += 8) kept[b / 8] = half_sums(a.q + b * kBlock);
  for (int64_t r = 0; r < n_rows; ++r) {
    const int64_t next = r + ahead < n_rows ? r + ahead : n_rows - 1;
    const std::byte* at = row_at(w, rows ? rows[r] : first_row + r);
    const std::byte* coming = row_at(w, rows ? rows[next] : first_row + next);
    __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    int64_t b = 0;
    for (; b + 8 <= n_blocks; b += 8, at += kEightBytes, coming += kEightBytes) {
      prefetch(coming, kEightBytes);
      Eight eight{a.q + b * kBlock, a.scale + b, a.sum + b, _mm256_setzero_si256()};
      if constexpr (kNeedsHalves<Format>) eight.halves = w.n <= kMostKept ? kept[b / 8] : half_sums(eight.q);
      acc[b / 8 % 2] = add_eight<Format>(at, eight, acc[b / 8 % 2]);
    }
    if constexpr (Format::kBlocks == 1)
      if (b < n_blocks) acc[b / 8 % 2] = add_last<Format>(at, a, b, n_blocks - b, acc[b / 8 % 2]);
    out[r] = reduce_lanes(acc[0], acc[1]);
  }
}

}  // namespace
}  // namespace hotset::cpu
