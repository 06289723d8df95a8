// `Vec` of 8 floats for AVX2, FMA and F16C. Names and meanings: float_vec_generic.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/canonical.h"

namespace hotset::cpu {
namespace {

using Vec = __m256;

constexpr int kWidth = 8;
constexpr int kParts = 2;
// 16 registers: 2 rows x 3 activations x 2 parts, 6 activations x 2 Vecs, or the 8 Vecs of 2 blocks leave room for the
// operands.
constexpr int kDotRows = 2;
constexpr int kDotActs = 3;
constexpr int kTileRows = 4;
constexpr int kTileActs = 3;
constexpr int kStreamTile = 3;
constexpr int kSumActs = 6;
constexpr int kSumVecs = 2;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec splat(float value) { return _mm256_set1_ps(value); }
inline Vec load(const void* from) { return _mm256_loadu_ps(static_cast<const float*>(from)); }
inline void store(float* to, Vec value) { _mm256_storeu_ps(to, value); }

inline __m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Vec load_some(const float* from, int64_t count) { return _mm256_maskload_ps(from, first_lanes(count)); }
inline void store_some(float* to, Vec value, int64_t count) { _mm256_maskstore_ps(to, first_lanes(count), value); }

inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec fused(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }

inline float tree8(__m256 eight) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float lane_tree(const Vec* lanes) { return tree8(_mm256_add_ps(lanes[0], lanes[1])); }

// The lane trees of four dots at once: two dots share an addition.
inline void lane_trees4(const Vec* a, const Vec* b, const Vec* c, const Vec* d, float* out) {
  const Vec a8 = _mm256_add_ps(a[0], a[1]);
  const Vec b8 = _mm256_add_ps(b[0], b[1]);
  const Vec c8 = _mm256_add_ps(c[0], c[1]);
  const Vec d8 = _mm256_add_ps(d[0], d[1]);
  const Vec ab = _mm256_add_ps(_mm256_permute2f128_ps(a8, b8, 0x20), _mm256_permute2f128_ps(a8, b8, 0x31));
  const Vec cd = _mm256_add_ps(_mm256_permute2f128_ps(c8, d8, 0x20), _mm256_permute2f128_ps(c8, d8, 0x31));
  const Vec two = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));  // a c | b d
  const Vec one = _mm256_add_ps(two, _mm256_permute_ps(two, 0xb1));
  const __m128 ac = _mm256_castps256_ps128(one);
  const __m128 bd = _mm256_extractf128_ps(one, 1);
  _mm_storeu_ps(out, _mm_shuffle_ps(_mm_unpacklo_ps(ac, bd), _mm_unpackhi_ps(ac, bd), 0x44));
}

inline Vec scale_pow2(Vec x, Vec n) {
  const Vec round = splat(12582912.0f);
  const Vec half = sub(add(mul(n, splat(0.5f)), round), round);
  const Vec bias = splat(8388608.0f + 127.0f);
  const __m256i first = _mm256_slli_epi32(_mm256_castps_si256(add(half, bias)), 23);
  const __m256i second = _mm256_slli_epi32(_mm256_castps_si256(add(sub(n, half), bias)), 23);
  return mul(mul(x, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}

inline Vec load_f16(const std::byte* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline Vec load_bf16(const std::byte* from) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

inline float half_value(const std::byte* from) {
  uint16_t half;
  std::memcpy(&half, from, sizeof half);
  return _cvtsh_ss(half);
}

inline Vec splat_half(const std::byte* from) {
  int16_t half;
  std::memcpy(&half, from, sizeof half);
  return _mm256_cvtph_ps(_mm_set1_epi16(half));
}

inline Vec splat_halves(const std::byte* from, uint32_t flip) {
  uint32_t halves;
  std::memcpy(&halves, from, sizeof halves);
  return _mm256_cvtph_ps(_mm_set1_epi32(static_cast<int>(halves ^ flip)));
}

inline __m256i load_32_again(const std::byte* from, size_t) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

inline Vec load_i8(const std::byte* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

inline void load_nibbles(const std::byte* from, Vec scale, Vec* out) {
  for (int v = 0; v < 2; ++v) {
    const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * v)));
    const __m256i low = _mm256_and_si256(bytes, _mm256_set1_epi32(15));
    const __m256i high = _mm256_srli_epi32(bytes, 4);
    out[v] = mul(scale, _mm256_cvtepi32_ps(_mm256_sub_epi32(low, _mm256_set1_epi32(8))));
    out[v + 2] = mul(scale, _mm256_cvtepi32_ps(_mm256_sub_epi32(high, _mm256_set1_epi32(8))));
  }
}

inline void load_4_bits(const std::byte* from, unsigned shift, Vec scale, Vec minimum, Vec* out) {
  for (int v = 0; v < 2; ++v) {
    const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * v)));
    const __m256i q = _mm256_and_si256(_mm256_srli_epi32(bytes, static_cast<int>(shift)), _mm256_set1_epi32(15));
    out[v] = fused(scale, _mm256_cvtepi32_ps(q), minimum);
  }
}

inline void store_f16(uint16_t* to, Vec value) {
  const __m128i half = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), half);
}

inline void pin(Vec& value) { __asm__("" : "+x"(value)); }

inline float square_root(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

}  // namespace
}  // namespace hotset::cpu
