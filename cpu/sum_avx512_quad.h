// Four rows at a time as AVX-512 sums units of block types: their integers and scales. Private to cpu/sum_avx512.cpp.
//
// Strips of a row are four blocks, 128 columns; blocks of a strip are its halves times 16 columns. Eight vectors hold
// the integers of a strip of four units A, B, C, D as unsigned bytes, (A, B, C, D) of a column in each dword: what
// vpdpbusd multiplies. Lane l of vector 4 s + v has columns 4 v .. 4 v + 3 of one half block, which the format's
// half_of(s, l) names.
#pragma once

#include "cpu/block_avx512_vec.h"
#include "cpu/block_k_format.h"

namespace hotset::cpu {
namespace {

constexpr int64_t kStripBlocks = 4;
constexpr int kLanesOf512 = 4;

struct Quad {
  __m512i q[8];
  __m512 d[2];  // lane l: scales of A, B, C, D in block l; of types whose halves have their own in half block 4 s + l
  __m512 m[2];  // minima, laid out as d; of Q4_K and Q5_K the first only
};

// Bytes (A, B, C, D) of every dword from four vectors; vector v: dwords of bytes 4 v .. 4 v + 3 of each lane.
inline void interleave(__m512i a, __m512i b, __m512i c, __m512i d, __m512i* out) {
  const __m512i ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
  const __m512i cd_low = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
  out[0] = _mm512_unpacklo_epi16(ab_low, cd_low);
  out[1] = _mm512_unpackhi_epi16(ab_low, cd_low);
  out[2] = _mm512_unpacklo_epi16(ab_high, cd_high);
  out[3] = _mm512_unpackhi_epi16(ab_high, cd_high);
}

inline __m512i high_nibbles(__m512i v) { return nibbles(_mm512_srli_epi16(v, 4)); }

// ---- Q8_0, Q4_0: one scale per block, vector 4 s + v holds half s of block l in lane l ------------------------------

// The scales of four units from vectors that hold those of unit u in words 4 l + u.
inline __m512 join_scales(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_mask_blend_epi16(0x2222, a, b), cd = _mm512_mask_blend_epi16(0x8888, c, d);
  return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_mask_blend_epi16(0xcccc, ab, cd)));
}

struct SumQ4 : Q4 {
  using Kind = SumQ4;
  static constexpr int64_t kStripBytes = kStripBlocks * kBytes;
  static constexpr bool kHasMinimum = false, kHalfScales = false, kPairs = false;
  static constexpr int half_of(int s, int l) { return 2 * l + s; }

  // `strip`: where the strip starts in each row; n: blocks of it that the rows have.
  static void load(const std::byte* const* strip, int64_t n, Quad& out) {
    const __mmask32 first = words_mask(9 * n, 0), rest = words_mask(9 * n, 32);
    const __m512i pick =
        _mm512_setr_epi32(1 | 2 << 16, 3 | 4 << 16, 5 | 6 << 16, 7 | 8 << 16, 10 | 11 << 16, 12 | 13 << 16,
                          14 | 15 << 16, 16 | 17 << 16, 19 | 20 << 16, 21 | 22 << 16, 23 | 24 << 16, 25 | 26 << 16,
                          28 | 29 << 16, 30 | 31 << 16, 32 | 33 << 16, 34 | 35 << 16);
    const __m512i scales = _mm512_setr_epi32(0, 0, 9 | 9 << 16, 9 | 9 << 16, 18 | 18 << 16, 18 | 18 << 16,
                                             27 | 27 << 16, 27 | 27 << 16, 0, 0, 0, 0, 0, 0, 0, 0);
    __m512i q[4], d[4];
    for (int u = 0; u < 4; ++u) {
      const __m512i x = _mm512_maskz_loadu_epi16(first, strip[u]);
      const __m128i y = _mm_maskz_loadu_epi16(static_cast<__mmask8>(rest), strip[u] + 64);
      q[u] = _mm512_permutex2var_epi16(x, pick, _mm512_castsi128_si512(y));
      d[u] = _mm512_permutexvar_epi16(scales, x);
    }
    out.d[0] = join_scales(d[0], d[1], d[2], d[3]);
    interleave(q[0], q[1], q[2], q[3], out.q);
    for (int v = 0; v < 4; ++v) {
      out.q[4 + v] = high_nibbles(out.q[v]);
      out.q[v] = nibbles(out.q[v]);
    }
  }
};

struct SumQ8 : Q8 {
  using Kind = SumQ8;
  static constexpr int64_t kStripBytes = kStripBlocks * kBytes;
  static constexpr bool kHasMinimum = false, kHalfScales = false, kPairs = false;
  static constexpr int half_of(int s, int l) { return 2 * l + s; }

  static void load(const std::byte* const* strip, int64_t n, Quad& out) {
    __mmask8 has[4];
    for (int64_t l = 0; l < 4; ++l) has[l] = l < n ? 0xf : 0;
    const __m512i scales = _mm512_setr_epi32(0, 0, 17 | 17 << 16, 17 | 17 << 16, 32 | 32 << 16, 32 | 32 << 16,
                                             49 | 49 << 16, 49 | 49 << 16, 0, 0, 0, 0, 0, 0, 0, 0);
    const __mmask32 low = words_mask(17 * n, 0), high = words_mask(17 * n - 34, 0);
    __m512i q[2][4], d[4];
    for (int u = 0; u < 4; ++u) {
      const std::byte* const at = strip[u];
      __m512i b[2];
      for (int i = 0; i < 2; ++i) {
        const __m256i even = _mm256_maskz_loadu_epi64(has[2 * i], at + 2 * i * kBytes + 2);
        b[i] = _mm512_inserti64x4(_mm512_castsi256_si512(even),
                                  _mm256_maskz_loadu_epi64(has[2 * i + 1], at + (2 * i + 1) * kBytes + 2), 1);
        b[i] = _mm512_xor_si512(b[i], _mm512_set1_epi8(static_cast<char>(0x80)));
      }
      q[0][u] = _mm512_shuffle_i64x2(b[0], b[1], 0x88);
      q[1][u] = _mm512_shuffle_i64x2(b[0], b[1], 0xdd);
      d[u] = _mm512_permutex2var_epi16(_mm512_maskz_loadu_epi16(low, at), scales,
                                       _mm512_maskz_loadu_epi16(high, at + 2 * kBytes));
    }
    out.d[0] = join_scales(d[0], d[1], d[2], d[3]);
    for (int s = 0; s < 2; ++s) interleave(q[s][0], q[s][1], q[s][2], q[s][3], out.q + 4 * s);
  }
};

// ---- K types: a strip is half a super-block -------------------------------------------------------------------------

// f16 values of dwords' low halves, of A, B, C, D, in every lane.
inline __m512 half_lanes(__m128i dwords) {
  const __m128i shorts =
      _mm_shuffle_epi8(dwords, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1));
  return _mm512_broadcast_f32x4(_mm_cvtph_ps(shorts));
}

// Where a strip of a super-block is: strip i of a row is half i % 2 of super-block i / 2.
struct KStrip {
  const std::byte* super[4];
  int half;
};

// Scales and minima of four Q4_K or Q5_K super-blocks, in the half that the strip is (see cpu/k_scales.h).
inline void load_k_scales(const KStrip& at, Quad& out) {
  __m512i header = _mm512_castsi128_si512(load128(at.super[0]));
  header = _mm512_inserti32x4(header, load128(at.super[1]), 1);
  header = _mm512_inserti32x4(header, load128(at.super[2]), 2);
  header = _mm512_inserti32x4(header, load128(at.super[3]), 3);
  const __m512i low =
      _mm512_srlv_epi32(_mm512_shuffle_epi32(header, static_cast<_MM_PERM_ENUM>(0xed)), _mm512_set4_epi32(4, 0, 0, 0));
  const __m512i high =
      _mm512_srli_epi32(_mm512_maskz_shuffle_epi32(0xaaaa, header, static_cast<_MM_PERM_ENUM>(2 << 6 | 1 << 2)), 2);
  const __m512i bytes =
      _mm512_or_si512(_mm512_and_si512(low, _mm512_set4_epi32(0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f)),
                      _mm512_and_si512(high, _mm512_set1_epi32(0x30303030)));
  const __m512i pick = _mm512_add_epi32(_mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 4, 8, 12, 0, 4, 8, 12),
                                        _mm512_set1_epi32(at.half));
  const __m512i picked = _mm512_permutexvar_epi32(pick, bytes);  // lane 0: scales of A, B, C, D; lane 1: minima
  const __m512i by_block = _mm512_shuffle_epi8(
      picked, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
  const __m512i d =
      _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), header);
  const __m128i halfs = _mm512_castsi512_si128(d);
  const auto scaled = [](__m128i scale_bytes, __m512 by) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(scale_bytes)), by);
  };
  out.d[0] = scaled(_mm512_castsi512_si128(by_block), half_lanes(halfs));
  out.m[0] = scaled(_mm512_extracti32x4_epi32(by_block, 1), half_lanes(_mm_srli_epi32(halfs, 16)));
}

// Adds two bits above the nibbles of four units: bits shift_0 .. of the bytes in the first two lanes, shift_1 .. in the
// others, moved to bit 4.
template <class Format>
inline void add_high_bits(const KStrip& at, int s, const __m512i* high, __m512i* q) {
  const auto left = [&](int i) { return (4 - Format::high_shift(at.half, s, i)) & 63; };
  const __m512i by = _mm512_setr_epi64(left(0), left(0), left(0), left(0), left(1), left(1), left(1), left(1));
  const __m512i mask = _mm512_set1_epi8(Format::kHighMask);
  for (int v = 0; v < 4; ++v)  // q | (moved & mask)
    q[v] = _mm512_ternarylogic_epi64(q[v], _mm512_rolv_epi64(high[v], by), mask, 0xf8);
}

template <class Format>
inline void load_k_integers(const KStrip& at, int64_t nibbles_at, int64_t high_at, Quad& out) {
  const auto from = [&](int u) { return load512(at.super[u] + nibbles_at); };
  interleave(from(0), from(1), from(2), from(3), out.q);
  for (int v = 0; v < 4; ++v) {
    out.q[4 + v] = high_nibbles(out.q[v]);
    out.q[v] = nibbles(out.q[v]);
  }
  if constexpr (Format::kHighMask != 0) {
    const auto high = [&](int u) { return _mm512_broadcast_i64x4(load256(at.super[u] + high_at)); };
    __m512i bits[4];
    interleave(high(0), high(1), high(2), high(3), bits);
    for (int s = 0; s < 2; ++s) add_high_bits<Format>(at, s, bits, out.q + 4 * s);
  }
}

struct SumQ4K : Q4K {
  using Kind = SumQ4K;
  static constexpr int32_t kOffset = 0;
  static constexpr int kHighMask = 0;
  static constexpr bool kHasMinimum = true, kHalfScales = false, kPairs = true;
  static constexpr int half_of(int s, int l) { return l / 2 * 4 + 2 * s + l % 2; }
  static void load(const KStrip& at, Quad& out) {
    load_k_scales(at, out);
    load_k_integers<SumQ4K>(at, kNibblesAt + 64 * at.half, 0, out);
  }
};

struct SumQ5K : Q5K {
  using Kind = SumQ5K;
  static constexpr int32_t kOffset = 0;
  static constexpr int kHighMask = 0x10;
  static constexpr bool kHasMinimum = true, kHalfScales = false, kPairs = true;
  static constexpr int half_of(int s, int l) { return SumQ4K::half_of(s, l); }
  static constexpr int high_shift(int half, int s, int i) { return 4 * half + 2 * i + s; }
  static void load(const KStrip& at, Quad& out) {
    load_k_scales(at, out);
    load_k_integers<SumQ5K>(at, kNibblesAt + 64 * at.half, kHighAt, out);
  }
};

struct SumQ6K : Q6K {
  using Kind = SumQ6K;
  static constexpr int kHighMask = 0x30;
  static constexpr bool kHasMinimum = false, kHalfScales = true, kPairs = false;
  static constexpr int half_of(int s, int l) { return 4 * s + l; }
  static constexpr int high_shift(int, int s, int i) { return 4 * s + 2 * i; }
  static void load(const KStrip& at, Quad& out) {
    const auto bytes = [&](int u) {
      return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at.super[u] + kScalesAt + 8 * at.half));
    };
    const auto d = [&](int u) { return static_cast<int>(load_u16(at.super[u] + kDAt)); };
    const __m128i ab = _mm_unpacklo_epi8(bytes(0), bytes(1)), cd = _mm_unpacklo_epi8(bytes(2), bytes(3));
    const __m512 by = half_lanes(_mm_setr_epi32(d(0), d(1), d(2), d(3)));
    const __m128i scales[2] = {_mm_unpacklo_epi16(ab, cd), _mm_unpackhi_epi16(ab, cd)};
    for (int s = 0; s < 2; ++s) out.d[s] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(scales[s])), by);
    load_k_integers<SumQ6K>(at, 64 * at.half, kHighAt + 32 * at.half, out);
  }
};

// Loads strip `i` of four rows.
template <class Format>
inline void load_quad(const std::byte* const* rows, int64_t i, int64_t n_row_blocks, Quad& out) {
  if constexpr (Format::kType >= kWeightQ4_K) {
    KStrip at;
    for (int u = 0; u < 4; ++u) at.super[u] = rows[u] + i / 2 * Format::kBytes;
    at.half = static_cast<int>(i % 2);
    Format::load(at, out);
  } else {
    const std::byte* strip[4];
    for (int u = 0; u < 4; ++u) strip[u] = rows[u] + i * Format::kStripBytes;
    const int64_t n = n_row_blocks - i * kStripBlocks;
    Format::load(strip, n < kStripBlocks ? n : kStripBlocks, out);
  }
}

}  // namespace
}  // namespace hotset::cpu
