// Packing and multiplication of the AVX-512 block gemm (see cpu/block_gemm.h). Included by cpu/block_avx512.cpp only.
#pragma once

#include <immintrin.h>

#include "cpu/block_gemm.h"

namespace hotset::cpu {
namespace {

// A panel record holds one block of 32 rows: for k-group g = 0..7 the unsigned bytes 4g..4g+3 of rows 0..15, then of
// rows 16..31 (2 x 64 bytes), then 32 f16 scales.
struct Avx512 {
  using Float = __m512;
  static constexpr int kRows = 32;
  static constexpr int kTile = 6;  // 12 independent integer sums hide the latency of vpdpbusd
  static constexpr int kMaxActs = 132;
  static constexpr int64_t kScalesAt = 1024;
  static constexpr int64_t kRecordBytes = 1088;
  template <class Format>
  static constexpr int32_t kStartOffset = Format::kOffset;

  // In each 128-bit lane the 4 x 4 transpose of the dwords of v[0..3].
  static void transpose(__m512i* v) {
    const __m512i ab_low = _mm512_unpacklo_epi32(v[0], v[1]), ab_high = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i cd_low = _mm512_unpacklo_epi32(v[2], v[3]), cd_high = _mm512_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi64(ab_low, cd_low);
    v[1] = _mm512_unpackhi_epi64(ab_low, cd_low);
    v[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
    v[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
  }

  // Writes the integers of rows 0..15 of one block: their dword g goes to `to` + 128 g.
  static void pack16(Q8, const std::byte* const* rows, int64_t offset, std::byte* to) {
    const auto load = [&](int row) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[row] + offset));
    };
    const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
    __m512i low[4], high[4];  // transposed, 128-bit lanes: rows 0..3 k-group g, g + 4; rows 4..7 (high: 8..15) g, g + 4
    for (int j = 0; j < 4; ++j) {
      low[j] = _mm512_inserti64x4(_mm512_castsi256_si512(load(j)), load(j + 4), 1);
      high[j] = _mm512_inserti64x4(_mm512_castsi256_si512(load(j + 8)), load(j + 12), 1);
    }
    transpose(low);
    transpose(high);
    for (int g = 0; g < 4; ++g) {
      const __m512i a = _mm512_xor_si512(low[g], flip), b = _mm512_xor_si512(high[g], flip);
      _mm512_store_si512(to + 128 * g, _mm512_shuffle_i32x4(a, b, 0x88));
      _mm512_store_si512(to + 128 * (4 + g), _mm512_shuffle_i32x4(a, b, 0xdd));
    }
  }

  static void pack16(Q4, const std::byte* const* rows, int64_t offset, std::byte* to) {
    const auto load = [&](int row) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + offset));
    };
    const __m512i nibble = _mm512_set1_epi8(0xf);
    __m512i v[4];  // 128-bit lane l of v[j]: row 4 l + j
    for (int j = 0; j < 4; ++j) {
      v[j] = _mm512_inserti32x4(_mm512_castsi128_si512(load(j)), load(j + 4), 1);
      v[j] = _mm512_inserti32x4(v[j], load(j + 8), 2);
      v[j] = _mm512_inserti32x4(v[j], load(j + 12), 3);
    }
    transpose(v);
    for (int g = 0; g < 4; ++g) {
      _mm512_store_si512(to + 128 * g, _mm512_and_si512(v[g], nibble));
      _mm512_store_si512(to + 128 * (4 + g), _mm512_and_si512(_mm512_srli_epi16(v[g], 4), nibble));
    }
  }

  template <class Format>
  static void pack_block(const std::byte* const* rows, int64_t block, std::byte* record) {
    const int64_t offset = block * Format::kBytes;
    pack16(Format{}, rows, offset + 2, record);
    pack16(Format{}, rows + 16, offset + 2, record + 64);
    for (int r = 0; r < kRows; ++r) std::memcpy(record + kScalesAt + 2 * r, rows[r] + offset, 2);
  }

  template <class, int N>
  static void multiply(const std::byte* record, const ActRecord<kTile>& act, __m512* sums) {
    __m512i s[2 * N];
    for (int a = 0; a < N; ++a) s[2 * a] = s[2 * a + 1] = _mm512_set1_epi32(act.start[a]);
    for (int g = 0; g < 8; ++g) {
      const __m512i w0 = _mm512_load_si512(record + 128 * g), w1 = _mm512_load_si512(record + 128 * g + 64);
      for (int a = 0; a < N; ++a) {
        int32_t four;
        std::memcpy(&four, act.q[a] + 4 * g, sizeof four);
        const __m512i x = _mm512_set1_epi32(four);
        s[2 * a] = _mm512_dpbusd_epi32(s[2 * a], w0, x);
        s[2 * a + 1] = _mm512_dpbusd_epi32(s[2 * a + 1], w1, x);
      }
    }
    const __m256i* scales = reinterpret_cast<const __m256i*>(record + kScalesAt);
    const __m512 d[2] = {_mm512_cvtph_ps(_mm256_load_si256(scales)), _mm512_cvtph_ps(_mm256_load_si256(scales + 1))};
    for (int i = 0; i < 2 * N; ++i) {
      const __m512 scale = _mm512_mul_ps(d[i % 2], _mm512_set1_ps(act.scale[i / 2]));
      sums[i] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(s[i]), sums[i]);
    }
  }
};

}  // namespace
}  // namespace hotset::cpu
