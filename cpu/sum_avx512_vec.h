// What cpu/sum_floats.h asks for, for AVX-512: 8 doubles or int64.
#pragma once

#include <immintrin.h>

#include "cpu/kernels.h"

namespace hotset::cpu {
namespace {

constexpr int64_t kDoubles = 8;
typedef __m512d Doubles;
typedef __m512i Sums;

// Rounding is part of each instruction.
struct RoundDown {};

inline Doubles splat_double(double x) { return _mm512_set1_pd(x); }
inline Doubles load_doubles(const double* from) { return _mm512_loadu_pd(from); }
inline void store_doubles(double* to, Doubles x) { _mm512_storeu_pd(to, x); }
inline Doubles mul(Doubles a, Doubles b) { return _mm512_mul_pd(a, b); }
inline Doubles fma_down(Doubles a, Doubles b, Doubles c) {
  return _mm512_fmadd_round_pd(a, b, c, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
inline Doubles max_magnitude(Doubles most, Doubles x) {  // NaN stays
  return _mm512_castsi512_pd(_mm512_max_epu64(_mm512_castpd_si512(most), _mm512_castpd_si512(_mm512_abs_pd(x))));
}
inline Sums bits_of(Doubles x) { return _mm512_castpd_si512(x); }
inline Sums splat_sum(int64_t x) { return _mm512_set1_epi64(x); }
inline Sums add(Sums a, Sums b) { return _mm512_add_epi64(a, b); }
inline Sums sub(Sums a, Sums b) { return _mm512_sub_epi64(a, b); }
inline Sums or_differences(Sums so_far, Sums a, Sums b) { return _mm512_ternarylogic_epi64(so_far, a, b, 0xf6); }

// sums += by, but INT64_MIN where `bad` has a bit of `mask`, and where it was.
inline void add_checked(int64_t* sums, Sums by, Sums bad, int64_t mask) {
  const Sums none = _mm512_set1_epi64(INT64_MIN), old = _mm512_loadu_si512(sums);
  const __mmask8 valid = _mm512_cmpneq_epi64_mask(old, none);
  const Sums sum = _mm512_mask_add_epi64(old, valid, old, by);
  _mm512_storeu_si512(sums, _mm512_mask_mov_epi64(sum, _mm512_test_epi64_mask(bad, _mm512_set1_epi64(mask)), none));
}

inline Doubles load_weights_f32(const std::byte* at) {
  return _mm512_cvtps_pd(_mm256_loadu_ps(reinterpret_cast<const float*>(at)));
}
inline Doubles load_weights_f16(const std::byte* at) {
  return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}
inline Doubles load_weights_bf16(const std::byte* at) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
}

}  // namespace
}  // namespace hotset::cpu
