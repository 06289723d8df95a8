// Sums of integers and of lanes for AVX-512 block kernels. Private to cpu/block_*avx512*.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC bug 105593: false alarms from inside avx512fintrin.h
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

namespace hotset::cpu {
namespace {

// [a0+a2, b0+b2, a1+a3, b1+b3] in each 128-bit lane.
inline __m512i pair_sums(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}

// In each 128-bit lane the totals of a, b, c, d.
inline __m512i quad_sums(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = pair_sums(a, b), cd = pair_sums(c, d);
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

// The lane tree.
inline float reduce_lanes(__m512 acc) {
  const __m256 l8 = _mm256_add_ps(_mm512_castps512_ps256(acc), _mm512_extractf32x8_ps(acc, 1));
  const __m128 l4 = _mm_add_ps(_mm256_castps256_ps128(l8), _mm256_extractf128_ps(l8, 1));
  const __m128 l2 = _mm_add_ps(l4, _mm_movehl_ps(l4, l4));
  return _mm_cvtss_f32(_mm_add_ss(l2, _mm_movehdup_ps(l2)));
}

}  // namespace
}  // namespace hotset::cpu
