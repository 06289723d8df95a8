// Loads, scales, and sums of integers and of lanes for AVX-512 block kernels. Private to cpu/block_*avx512*.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC bug 105593: false alarms from inside avx512fintrin.h
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "cpu/block_format.h"
#include "cpu/vector_loads.h"

namespace hotset::cpu {
namespace {

inline __m512i load512(const void* at) { return _mm512_loadu_si512(at); }
inline __m512i nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(0xf)); }

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

// Words of the load at word `first` that belong to a row part of `n_words` words.
inline __mmask32 words_mask(int64_t n_words, int64_t first) {
  const int64_t left = n_words - first;
  return left <= 0 ? 0u : left >= 32 ? 0xffffffffu : (1u << left) - 1u;
}

// The blocks [0, n) of a chunk that exist; full chunks are the case kTail = false, with no masks left.
template <bool kTail>
struct Extent {
  int n;  // blocks, 1..16

  __mmask16 blocks() const { return kTail ? static_cast<__mmask16>((1u << n) - 1u) : 0xffff; }

  __m512i words(const std::byte* from, int64_t n_words, int64_t first) const {
    if constexpr (kTail) return _mm512_maskz_loadu_epi16(words_mask(n_words, first), from + 2 * first);
    return _mm512_loadu_si512(from + 2 * first);
  }
};

// Scales of a chunk of 16 blocks. They sit 17 (Q8_0) or 9 (Q4_0) 16-bit words apart, so in consecutive 64-byte loads
// they have distinct word positions: blends collect all 16 of them and one permutation puts them in order.
template <bool kTail>
inline __m512 block_scales(Q8, const std::byte* w, Extent<kTail> extent) {
  const int64_t n_words = extent.n * (Q8::kBytes / 2);
  __m512i z[8];  // z[k] holds the scale of block 2k in dword k and of block 2k + 1 in the high half of dword 8 + k
  for (int k = 0; k < 8; ++k) z[k] = extent.words(w, n_words, 32 * k);
  for (int k = 0; k < 8; k += 2) z[k] = _mm512_mask_blend_epi32(0xaaaa, z[k], z[k + 1]);
  for (int k = 0; k < 8; k += 4) z[k] = _mm512_mask_blend_epi32(0xcccc, z[k], z[k + 2]);
  const __m512i d = _mm512_mask_blend_epi32(0xf0f0, z[0], z[4]);
  const __m512i pick = _mm512_setr_epi32(0 | 17 << 16, 2 | 19 << 16, 4 | 21 << 16, 6 | 23 << 16, 8 | 25 << 16,
                                         10 | 27 << 16, 12 | 29 << 16, 14 | 31 << 16, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m256i halfs = _mm512_castsi512_si256(_mm512_permutexvar_epi16(pick, d));
  return _mm512_cvtph_ps(halfs);
}

template <bool kTail>
inline __m512 block_scales(Q4, const std::byte* w, Extent<kTail> extent) {
  const int64_t n_words = extent.n * (Q4::kBytes / 2);
  // Scale of block i is word 9 i. The last load steps back by 16 words so as to end with the chunk.
  __m512i d = extent.words(w, n_words, 0);
  d = _mm512_mask_blend_epi16(1u << 4 | 1u << 13 | 1u << 22 | 1u << 31, d, extent.words(w, n_words, 32));
  d = _mm512_mask_blend_epi16(1u << 8 | 1u << 17 | 1u << 26, d, extent.words(w, n_words, 64));
  d = _mm512_mask_blend_epi16(1u << 3 | 1u << 12 | 1u << 21 | 1u << 30, d, extent.words(w, n_words, 96));
  d = _mm512_mask_blend_epi16(1u << 23, d, extent.words(w, n_words, 112));
  const __m512i pick = _mm512_setr_epi32(0 | 9 << 16, 18 | 27 << 16, 4 | 13 << 16, 22 | 31 << 16, 8 | 17 << 16,
                                         26 | 3 << 16, 12 | 21 << 16, 30 | 23 << 16, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m256i halfs = _mm512_castsi512_si256(_mm512_permutexvar_epi16(pick, d));
  return _mm512_cvtph_ps(halfs);
}

}  // namespace
}  // namespace hotset::cpu
