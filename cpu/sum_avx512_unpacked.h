// Quads of the types of core/unpacked_block.h (see cpu/sum_avx512_quad.h). Private to cpu/sum_avx512.cpp.
#pragma once

#include "cpu/sum_avx512_quad.h"
#include "cpu/unpacked_avx2_vec.h"

namespace hotset::cpu {
namespace {

// All that adding up needs to know of a type.
template <int32_t kOffsetOf, bool kMinimum, bool kHalves>
struct SumKind {
  static constexpr int32_t kOffset = kOffsetOf;
  static constexpr bool kHasMinimum = kMinimum, kHalfScales = kHalves, kPairs = false;
  static constexpr int half_of(int s, int l) { return kHalves ? 4 * s + l : 2 * l + s; }
};

// Scales of blocks, A, B, C, D of block l in lane l, from 16 bits each.
inline __m512 scales_of(block_format::MXFP4, const uint16_t* exponents) {
  const __m512i e = _mm512_cvtepu16_epi32(load256(exponents));
  const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
  const __m512i subnormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
  const __mmask16 is_subnormal = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
  return _mm512_castsi512_ps(_mm512_mask_blend_epi32(is_subnormal, normal, subnormal));
}
template <class Format>
inline __m512 scales_of(Format, const uint16_t* halves) {
  return _mm512_cvtph_ps(load256(halves));
}

template <class Format, WeightType type>
struct SumUnpacked {
  using Kind = SumKind<Format::kHasMinimum ? 0 : 128, Format::kHasMinimum, kHasHalves<Format>>;
  static constexpr WeightType kType = type;

  static void load(const std::byte* const* rows, int64_t strip, int64_t n_row_blocks, Quad& out) {
    const int64_t block = strip * kStripBlocks, n = n_row_blocks - block;
    const std::byte* at[4];
    for (int u = 0; u < 4; ++u) at[u] = rows[u] + block / Format::kBlocks * Format::kBytes;
    load_integers(at, static_cast<int>(block % Format::kBlocks), n, out);
    if constexpr (kHasHalves<Format>)
      load_half_scales(at, block % Format::kBlocks != 0, out);
    else
      load_scales(at, n < kStripBlocks ? n : kStripBlocks, out);
  }

 private:
  static void load_integers(const std::byte* const* at, int first, int64_t n, Quad& out) {
    const __m256i up = _mm256_set1_epi8(static_cast<char>(Kind::kOffset - kOffset<Format>));
    __m512i q[2][4];
    for (int u = 0; u < 4; ++u) {
      __m256i b[4];
      for (int i = 0; i < 4; ++i)
        b[i] = i < n ? _mm256_add_epi8(load_u(Format{}, at[u], first + i), up) : _mm256_setzero_si256();
      const __m512i low = _mm512_inserti64x4(_mm512_castsi256_si512(b[0]), b[1], 1);
      const __m512i high = _mm512_inserti64x4(_mm512_castsi256_si512(b[2]), b[3], 1);
      q[0][u] = kHasHalves<Format> ? low : _mm512_shuffle_i64x2(low, high, 0x88);
      q[1][u] = kHasHalves<Format> ? high : _mm512_shuffle_i64x2(low, high, 0xdd);
    }
    for (int s = 0; s < 2; ++s) interleave(q[s][0], q[s][1], q[s][2], q[s][3], out.q + 4 * s);
  }

  static void load_scales(const std::byte* const* at, int64_t n, Quad& out) {
    alignas(32) uint16_t d[16] = {}, m[16] = {};
    for (int64_t i = 0; i < n; ++i)
      for (int u = 0; u < 4; ++u) {
        const std::byte* const block = at[u] + i * Format::kBytes;
        d[4 * i + u] = type == kWeightMXFP4 ? static_cast<uint16_t>(*block) : load_u16(block);
        if constexpr (Format::kHasMinimum) m[4 * i + u] = load_u16(block + 2);
      }
    out.d[0] = scales_of(Format{}, d);
    if constexpr (Format::kHasMinimum) out.m[0] = _mm512_xor_ps(scales_of(Format{}, m), _mm512_set1_ps(-0.0f));
  }

  // The half super-block `second`: scale times the integers of each half block.
  static void load_half_scales(const std::byte* const* at, bool second, Quad& out) {
    const auto scaled = [&](const __m128i* bytes, __m512 by, __m512* to) {
      __m128i half[4];
      for (int u = 0; u < 4; ++u) half[u] = second ? _mm_srli_si128(bytes[u], 8) : bytes[u];
      const __m128i ab = _mm_unpacklo_epi8(half[0], half[1]), cd = _mm_unpacklo_epi8(half[2], half[3]);
      to[0] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_unpacklo_epi16(ab, cd))), by);
      to[1] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_unpackhi_epi16(ab, cd))), by);
    };
    const auto halves = [&](int64_t offset) {
      const auto bits = [&](int u) { return static_cast<int>(load_u16(at[u] + offset)); };
      return half_lanes(_mm_setr_epi32(bits(0), bits(1), bits(2), bits(3)));
    };
    __m128i bytes[4];
    for (int u = 0; u < 4; ++u) bytes[u] = load_c(Format{}, at[u]);
    scaled(bytes, halves(Format::kDAt), out.d);
    if constexpr (Format::kHasMinimum) {
      for (int u = 0; u < 4; ++u) bytes[u] = load_k(Format{}, at[u]);
      scaled(bytes, halves(Format::kDAt + 2), out.m);
    }
  }
};

}  // namespace
}  // namespace hotset::cpu
