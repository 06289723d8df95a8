// The formats of core/unpacked_block.h for AVX2: integers of a block, and the scales of 8 of them. Private to cpu/.
//
// `at` is a super-block, or 8 blocks in a row. Bytes are only read within them.
#pragma once

#include <immintrin.h>

#include "cpu/block_avx2_vec.h"
#include "cpu/unpacked_format.h"

namespace hotset::cpu {
namespace {

// Integers that scale the halves of 8 blocks, as int16: halves of blocks 0..3 in [0], of 4..7 in [1], in both lanes.
struct HalfScales {
  __m256i of[2];
};

inline HalfScales half_scales(__m128i bytes) {
  return {{_mm256_broadcastsi128_si256(_mm_cvtepi8_epi16(bytes)),
           _mm256_broadcastsi128_si256(_mm_cvtepi8_epi16(_mm_srli_si128(bytes, 8)))}};
}

inline __m256i low_bits(__m256i v, int n) {
  return _mm256_and_si256(v, _mm256_set1_epi8(static_cast<char>((1 << n) - 1)));
}
inline __m256i shift_right(__m256i v, int n) { return _mm256_srl_epi16(v, _mm_cvtsi32_si128(n)); }

// 16 bytes of nibbles, elements 0..15 low, 16..31 high.
inline __m256i load_nibbles(const std::byte* at) {
  const __m128i both = load128(at);
  return low_bits(_mm256_set_m128i(_mm_srli_epi16(both, 4), both), 4);
}

inline __m256i look_up(const int8_t* values, __m256i codes) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(values)), codes);
}

// 0x10 in the bytes whose bits are set.
inline __m256i fifth_bits(const std::byte* at) {
  int32_t bits;
  std::memcpy(&bits, at, sizeof bits);
  const __m256i of_byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i mask = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  const __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), of_byte), mask);
  return _mm256_and_si256(_mm256_cmpeq_epi8(spread, mask), _mm256_set1_epi8(0x10));
}

// ---- the integers of block b ----------------------------------------------------------------------------------------
// load_u: plus kOffset, which makes them unsigned; of IQ4_NL, IQ4_XS and MXFP4, whose bytes are looked up, as they are.

template <class Format>
constexpr int kOffset = 0;
template <>
constexpr int kOffset<block_format::Q5_0> = 16;
template <>
constexpr int kOffset<block_format::Q3_K> = 4;

template <class Format>
constexpr bool kUnsigned = Format::kHasMinimum || kOffset<Format> != 0;

inline __m256i load_u(block_format::Q4_1, const std::byte* at, int b) {
  return load_nibbles(at + b * block_format::Q4_1::kBytes + 4);
}

inline __m256i load_u(block_format::Q5_0, const std::byte* at, int b) {
  at += b * block_format::Q5_0::kBytes;
  return _mm256_or_si256(load_nibbles(at + 6), fifth_bits(at + 2));
}

inline __m256i load_u(block_format::Q5_1, const std::byte* at, int b) {
  at += b * block_format::Q5_1::kBytes;
  return _mm256_or_si256(load_nibbles(at + 8), fifth_bits(at + 4));
}

inline __m256i load_u(block_format::IQ4_NL, const std::byte* at, int b) {
  return look_up(block_format::kIq4Values, load_nibbles(at + b * block_format::IQ4_NL::kBytes + 2));
}

inline __m256i load_u(block_format::MXFP4, const std::byte* at, int b) {
  return look_up(block_format::kMxfp4Values, load_nibbles(at + b * block_format::MXFP4::kBytes + 1));
}

inline __m256i load_u(block_format::Q2_K, const std::byte* at, int b) {
  return low_bits(shift_right(load256(at + block_format::Q2_K::kQAt + b / 4 * 32), b % 4 * 2), 2);
}

inline __m256i load_u(block_format::Q3_K, const std::byte* at, int b) {
  const __m256i low = low_bits(shift_right(load256(at + block_format::Q3_K::kQAt + b / 4 * 32), b % 4 * 2), 2);
  const __m256i high = low_bits(shift_right(load256(at), b), 1);
  return _mm256_or_si256(low, _mm256_slli_epi16(high, 2));
}

inline __m256i load_u(block_format::IQ4_XS, const std::byte* at, int b) {
  return look_up(block_format::kIq4Values, load_nibbles(at + block_format::IQ4_XS::kQAt + 16 * b));
}

template <class Format>
inline __m256i load_q(Format, const std::byte* at, int b) {
  const __m256i u = load_u(Format{}, at, b);
  return kOffset<Format> == 0 ? u : _mm256_sub_epi8(u, _mm256_set1_epi8(static_cast<char>(kOffset<Format>)));
}

// ---- scales of 8 blocks ---------------------------------------------------------------------------------------------

inline __m256 splat_half(const std::byte* at) { return _mm256_set1_ps(_cvtsh_ss(load_u16(at))); }

template <class Format>
inline __m256 load_d(Format, const std::byte* at) {
  return chunk_scales<Format>(at);
}
inline __m256 load_d(block_format::Q2_K, const std::byte* at) { return splat_half(at + block_format::Q2_K::kDAt); }
inline __m256 load_d(block_format::Q3_K, const std::byte* at) { return splat_half(at + block_format::Q3_K::kDAt); }
inline __m256 load_d(block_format::IQ4_XS, const std::byte* at) { return splat_half(at); }
inline __m256 load_d(block_format::MXFP4, const std::byte* at) {
  alignas(8) uint8_t bytes[8];
  for (int b = 0; b < 8; ++b) bytes[b] = static_cast<uint8_t>(at[b * block_format::MXFP4::kBytes]);
  const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
  const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
  const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
  return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
}

// -m, which is what the types of one block store.
template <class Format>
inline __m256 load_minus_m(Format, const std::byte* at) {
  return chunk_scales<Format>(at + 2);
}
inline __m256 load_minus_m(block_format::Q2_K, const std::byte* at) {
  return _mm256_xor_ps(splat_half(at + block_format::Q2_K::kDAt + 2), _mm256_set1_ps(-0.0f));
}

// Integers c and k of the 16 halves, as bytes; only of types whose are not all 1.
template <class Format>
constexpr bool kHasHalves = Format::kBlocks > 1;

inline __m128i load_c(block_format::Q2_K, const std::byte* at) { return _mm_and_si128(load128(at), _mm_set1_epi8(15)); }
inline __m128i load_k(block_format::Q2_K, const std::byte* at) {
  return _mm_and_si128(_mm_srli_epi16(load128(at), 4), _mm_set1_epi8(15));
}
inline __m128i load_c(block_format::Q3_K, const std::byte* at) {
  const std::byte* const scales = at + block_format::Q3_K::kScalesAt;
  const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales));
  const __m128i low = _mm_and_si128(_mm_unpacklo_epi64(eight, _mm_srli_epi16(eight, 4)), _mm_set1_epi8(15));
  int32_t four;
  std::memcpy(&four, scales + 8, sizeof four);
  const __m128i pairs = _mm_srlv_epi32(_mm_set1_epi32(four), _mm_setr_epi32(0, 2, 4, 6));
  const __m128i high = _mm_slli_epi16(_mm_and_si128(pairs, _mm_set1_epi8(3)), 4);
  return _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32));
}
inline __m128i load_c(block_format::IQ4_XS, const std::byte* at) {
  int32_t four;
  std::memcpy(&four, at + 4, sizeof four);
  const __m128i packed = _mm_cvtsi32_si128(four);
  const __m128i low = _mm_and_si128(_mm_unpacklo_epi8(packed, _mm_srli_epi16(packed, 4)), _mm_set1_epi8(15));
  const __m128i up = _mm_setr_epi16(1 << 14, 1 << 12, 1 << 10, 1 << 8, 1 << 6, 1 << 4, 1 << 2, 1);
  const __m128i pairs =
      _mm_srli_epi16(_mm_mullo_epi16(_mm_set1_epi16(static_cast<int16_t>(load_u16(at + 2))), up), 14);
  const __m128i high = _mm_slli_epi16(_mm_packus_epi16(pairs, pairs), 4);
  const __m128i c = _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32));
  return _mm_unpacklo_epi8(c, c);
}

// Pairs of products of bytes; kNonNegative: of w that is so. |w|, |x| <= 127, so pairs fit 16 bits.
template <bool kNonNegative>
inline __m256i products(__m256i w, __m256i x) {
  if constexpr (kNonNegative) return _mm256_maddubs_epi16(w, x);
  return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}

}  // namespace
}  // namespace hotset::cpu
