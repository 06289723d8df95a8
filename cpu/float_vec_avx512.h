// `Vec` of 16 floats for AVX-512 (F, BW, DQ, VL). Names and meanings: float_vec_generic.h.
#pragma once

// gcc 12 takes the "any value" operand inside its own AVX-512 intrinsics for an uninitialised variable.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/canonical.h"

namespace hotset::cpu {
namespace {

using Vec = __m512;

constexpr int kWidth = 16;
constexpr int kParts = 1;
// 32 registers: 24 accumulators and up to 5 operands.
constexpr int kDotRows = 4;
constexpr int kDotActs = 6;
constexpr int kTileRows = 8;
constexpr int kTileActs = 3;
constexpr int kStreamTile = 4;
constexpr int kSumActs = 6;
constexpr int kSumVecs = 4;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec splat(float value) { return _mm512_set1_ps(value); }
inline Vec load(const void* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Vec value) { _mm512_storeu_ps(to, value); }

inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
inline Vec load_some(const float* from, int64_t count) { return _mm512_maskz_loadu_ps(first_lanes(count), from); }
inline void store_some(float* to, Vec value, int64_t count) { _mm512_mask_storeu_ps(to, first_lanes(count), value); }

inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec fused(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }

inline float lane_tree(const Vec* lanes) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(lanes[0]), _mm512_extractf32x8_ps(lanes[0], 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// The lane trees of four dots at once: the first steps of two dots share one addition.
inline void lane_trees4(const Vec* a, const Vec* b, const Vec* c, const Vec* d, float* out) {
  const Vec ab = _mm512_add_ps(_mm512_shuffle_f32x4(*a, *b, 0x44), _mm512_shuffle_f32x4(*a, *b, 0xee));
  const Vec cd = _mm512_add_ps(_mm512_shuffle_f32x4(*c, *d, 0x44), _mm512_shuffle_f32x4(*c, *d, 0xee));
  Vec each = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  each = _mm512_add_ps(each, _mm512_permute_ps(each, 0x4e));
  each = _mm512_add_ps(each, _mm512_permute_ps(each, 0xb1));
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, each)));
}

inline Vec scale_pow2(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }

inline Vec load_f16(const std::byte* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline Vec load_bf16(const std::byte* from) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline float half_value(const std::byte* from) {
  uint16_t half;
  std::memcpy(&half, from, sizeof half);
  return _cvtsh_ss(half);
}

inline Vec splat_half(const std::byte* from) {
  int16_t half;
  std::memcpy(&half, from, sizeof half);
  return _mm512_cvtph_ps(_mm256_set1_epi16(half));
}

inline Vec splat_halves(const std::byte* from, uint32_t flip) {
  uint32_t halves;
  std::memcpy(&halves, from, sizeof halves);
  return _mm512_cvtph_ps(_mm256_set1_epi32(static_cast<int>(halves ^ flip)));
}

inline __m512i load_32_again(const std::byte* from, size_t) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline Vec load_i8(const std::byte* from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

// A table of the 16 scaled values, looked up by the low four bits of each element.
inline void load_nibbles(const std::byte* from, Vec scale, Vec* out) {
  const Vec values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const Vec scaled = mul(scale, values);
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  out[0] = _mm512_permutexvar_ps(bytes, scaled);
  out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), scaled);
}

// Likewise, a table of the 16 results: on Zen 5 a Q4_K block from cache took 4.1 cycles without it and takes 3.
inline void load_4_bits(const std::byte* from, unsigned shift, Vec scale, Vec minimum, Vec* out) {
  const Vec values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  *out = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, shift), fused(scale, values, minimum));
}

inline void store_f16(uint16_t* to, Vec value) {
  const __m256i half = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), half);
}

inline void pin(Vec& value) { __asm__("" : "+v"(value)); }

inline float square_root(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

}  // namespace
}  // namespace hotset::cpu
