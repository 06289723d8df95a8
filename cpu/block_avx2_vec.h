// Loads, scales, and sums of integers and of lanes for AVX2 block kernels. Private to cpu/block_*avx2*.
#pragma once

#include <immintrin.h>

#include "cpu/block_format.h"
#include "cpu/vector_loads.h"

namespace hotset::cpu {
namespace {

inline __m256i load_halves(const void* low, const void* high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load128(low)), load128(high), 1);
}

inline __m256i pair_sums(__m256i a, __m256i b) {
  return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
}

// In each 128-bit lane the totals of a, b, c, d.
inline __m256i quad_sums(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i ab = pair_sums(a, b), cd = pair_sums(c, d);
  return _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
}

// The lane tree over lanes 0..7 and 8..15.
inline float reduce_lanes(__m256 acc0, __m256 acc1) {
  const __m256 l8 = _mm256_add_ps(acc0, acc1);
  const __m128 l4 = _mm_add_ps(_mm256_castps256_ps128(l8), _mm256_extractf128_ps(l8, 1));
  const __m128 l2 = _mm_add_ps(l4, _mm_movehl_ps(l4, l4));
  return _mm_cvtss_f32(_mm_add_ss(l2, _mm_movehdup_ps(l2)));
}

// Scales of 8 blocks: number i is 16-bit word i of the load at i * (block bytes - 2), so blends collect them in order.
template <class Format>
inline __m256 chunk_scales(const std::byte* w) {
  constexpr int kStep = Format::kBytes - 2;
  const __m128i d01 = _mm_blend_epi16(load128(w), load128(w + kStep), 1 << 1);
  const __m128i d23 = _mm_blend_epi16(load128(w + 2 * kStep), load128(w + 3 * kStep), 1 << 3);
  const __m128i d45 = _mm_blend_epi16(load128(w + 4 * kStep), load128(w + 5 * kStep), 1 << 5);
  const __m128i d67 = _mm_blend_epi16(load128(w + 6 * kStep), load128(w + 7 * kStep), 1 << 7);
  return _mm256_cvtph_ps(_mm_blend_epi16(_mm_blend_epi16(d01, d23, 0x0c), _mm_blend_epi16(d45, d67, 0xc0), 0xf0));
}

}  // namespace
}  // namespace hotset::cpu
