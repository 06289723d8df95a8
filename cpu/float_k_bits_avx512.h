// 16 elements of a K block to float, for AVX-512. What each function does: float_k_bits.h. Bytes are spread to dwords
// first, which blocks that share them do once: Zen 5 has one shuffle of 512 bits a cycle, and tables looked up by
// shuffles were a third slower.
#pragma once

namespace hotset::cpu {
namespace {

inline __m512i spread_bytes(const std::byte* from) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline __m512i shift_bits(const std::byte* from, unsigned from_bit, unsigned to_bit) {
  const __m512i v = spread_bytes(from);
  return from_bit >= to_bit ? _mm512_srli_epi32(v, from_bit - to_bit) : _mm512_slli_epi32(v, to_bit - from_bit);
}

inline Vec scale_dwords(__m512i q, int mask, Vec scale, Vec minimum) {
  return fused(scale, _mm512_cvtepi32_ps(_mm512_and_si512(q, _mm512_set1_epi32(mask))), minimum);
}

inline void load_4_bits(const std::byte* low, unsigned shift, Vec scale, Vec minimum, Vec* out) {
  *out = scale_dwords(shift_bits(low, shift, 0), 0xf, scale, minimum);
}

// The low four bits of `low` below the others of `high`.
inline __m512i join_bits(__m512i low, __m512i high) {
  return _mm512_ternarylogic_epi32(_mm512_set1_epi32(0xf), low, high, 0xca);
}

inline void load_5_bits(const std::byte* low, unsigned shift, const std::byte* high, unsigned high_shift, Vec scale,
                        Vec minimum, Vec* out) {
  const __m512i q = join_bits(shift_bits(low, shift, 0), shift_bits(high, high_shift, 4));
  *out = scale_dwords(q, 0x1f, scale, minimum);
}

// A float of 2^23 + q has q in its lowest bits.
inline void load_6_bits(const std::byte* low, unsigned shift, const std::byte* high, unsigned high_shift, Vec scale,
                        Vec* out) {
  const __m512i q = join_bits(shift_bits(low, shift, 0), shift_bits(high, high_shift, 4));
  const __m512i bits = _mm512_ternarylogic_epi32(q, _mm512_set1_epi32(0x3f), _mm512_set1_epi32(0x4b000000), 0xea);
  *out = mul(scale, sub(_mm512_castsi512_ps(bits), splat(8388608.0f + 32.0f)));
}

}  // namespace
}  // namespace hotset::cpu
