// What cpu/sum_floats.h asks for, for AVX2: 4 doubles or int64. What each does is said in sum_avx512_vec.h.
#pragma once

#include <immintrin.h>

#include "cpu/kernels.h"

namespace hotset::cpu {
namespace {

constexpr int64_t kDoubles = 4;
typedef __m256d Doubles;
typedef __m256i Sums;

// Rounds down while it lives. The compiler does not know; but what it rounds is read from memory after the mode was
// set, and written before it is set back: both are barriers for memory.
class RoundDown {
 public:
  RoundDown() : before_(_mm_getcsr()) { set((before_ & ~0x6000u) | 0x2000u); }
  ~RoundDown() { set(before_); }
  RoundDown(const RoundDown&) = delete;
  RoundDown& operator=(const RoundDown&) = delete;

 private:
  static void set(unsigned mode) { __asm__ volatile("ldmxcsr %0" : : "m"(mode) : "memory"); }
  const unsigned before_;
};

inline Doubles splat_double(double x) { return _mm256_set1_pd(x); }
inline Doubles load_doubles(const double* from) { return _mm256_loadu_pd(from); }
inline void store_doubles(double* to, Doubles x) { _mm256_storeu_pd(to, x); }
inline Doubles mul(Doubles a, Doubles b) { return _mm256_mul_pd(a, b); }
inline Doubles fma_down(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
inline Sums bits_of(Doubles x) { return _mm256_castpd_si256(x); }
inline Sums splat_sum(int64_t x) { return _mm256_set1_epi64x(x); }
inline Sums add(Sums a, Sums b) { return _mm256_add_epi64(a, b); }
inline Sums sub(Sums a, Sums b) { return _mm256_sub_epi64(a, b); }
inline Sums or_differences(Sums so_far, Sums a, Sums b) { return _mm256_or_si256(so_far, _mm256_xor_si256(a, b)); }
inline Doubles max_magnitude(Doubles most, Doubles x) {  // magnitudes order like signed integers
  const Sums a = bits_of(most), b = _mm256_and_si256(bits_of(x), _mm256_set1_epi64x(INT64_MAX));
  return _mm256_castsi256_pd(_mm256_blendv_epi8(a, b, _mm256_cmpgt_epi64(b, a)));
}

inline void add_checked(int64_t* sums, Sums by, Sums bad, int64_t mask) {
  const Sums none = _mm256_set1_epi64x(INT64_MIN), zero = _mm256_setzero_si256();
  __m256i* const at = reinterpret_cast<__m256i*>(sums);
  const Sums old = _mm256_loadu_si256(at);
  const Sums sum = _mm256_add_epi64(old, _mm256_andnot_si256(_mm256_cmpeq_epi64(old, none), by));
  const Sums good = _mm256_cmpeq_epi64(_mm256_and_si256(bad, _mm256_set1_epi64x(mask)), zero);
  _mm256_storeu_si256(at, _mm256_blendv_epi8(none, sum, good));
}

inline Doubles load_weights_f32(const std::byte* at) {
  return _mm256_cvtps_pd(_mm_loadu_ps(reinterpret_cast<const float*>(at)));
}
inline Doubles load_weights_f16(const std::byte* at) {
  return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
}
inline Doubles load_weights_bf16(const std::byte* at) {
  const __m128i wide = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
  return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(wide, 16)));
}

}  // namespace
}  // namespace hotset::cpu
