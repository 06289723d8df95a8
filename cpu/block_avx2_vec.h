// Loads, and sums of integers and of lanes for AVX2 block kernels. Private to cpu/block_*avx2*.
#pragma once

#include <immintrin.h>

namespace hotset::cpu {
namespace {

inline __m256i load256(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
inline __m128i load128(const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); }

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

}  // namespace
}  // namespace hotset::cpu
