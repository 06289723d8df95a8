// Packing and multiplication of the AVX-512 block gemm (see cpu/block_gemm.h). Included by cpu/block_avx512.cpp and,
// for what K types share, cpu/block_k_avx512_gemm.h.
#pragma once

#include "cpu/block_avx512_vec.h"
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
  static constexpr int64_t kPackBlocks = 1;
  template <class Format>
  using Record = ActRecord<kTile, Format::kOffset>;
  static constexpr size_t kMaxActRecordBytes = kTile * (kBlock + 8);

  // In each 128-bit lane the 4 x 4 transpose of the dwords of v[0..3].
  static void transpose(__m512i* v) {
    const __m512i ab_low = _mm512_unpacklo_epi32(v[0], v[1]), ab_high = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i cd_low = _mm512_unpacklo_epi32(v[2], v[3]), cd_high = _mm512_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi64(ab_low, cd_low);
    v[1] = _mm512_unpackhi_epi64(ab_low, cd_low);
    v[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
    v[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
  }

  // v[g] = dword g of the 16 bytes at `offset` of rows 0..15.
  static void transpose_16_bytes(const std::byte* const* rows, int64_t offset, __m512i* v) {
    load_16_bytes(rows, offset, v);
    transpose(v);
  }

  // 128-bit lane l of v[j]: the 16 bytes at `offset` of row 4 l + j.
  static void load_16_bytes(const std::byte* const* rows, int64_t offset, __m512i* v) {
    const auto load = [&](int row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + offset)); };
    for (int j = 0; j < 4; ++j) {
      v[j] = _mm512_inserti32x4(_mm512_castsi128_si512(load(j)), load(j + 4), 1);
      v[j] = _mm512_inserti32x4(v[j], load(j + 8), 2);
      v[j] = _mm512_inserti32x4(v[j], load(j + 12), 3);
    }
  }

  // v[g] = dword g of the 32 bytes at `offset` of rows 0..15.
  static void transpose_32_bytes(const std::byte* const* rows, int64_t offset, __m512i* v) {
    const auto load = [&](int row) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[row] + offset));
    };
    __m512i low[4], high[4];  // transposed, 128-bit lanes: rows 0..3 k-group g, g + 4; rows 4..7 (high: 8..15) g, g + 4
    for (int j = 0; j < 4; ++j) {
      low[j] = _mm512_inserti64x4(_mm512_castsi256_si512(load(j)), load(j + 4), 1);
      high[j] = _mm512_inserti64x4(_mm512_castsi256_si512(load(j + 8)), load(j + 12), 1);
    }
    transpose(low);
    transpose(high);
    for (int g = 0; g < 4; ++g) {
      v[g] = _mm512_shuffle_i32x4(low[g], high[g], 0x88);
      v[4 + g] = _mm512_shuffle_i32x4(low[g], high[g], 0xdd);
    }
  }

  // Writes the integers of rows 0..15 of one block: their dword g goes to `to` + 128 g.
  static void pack16(Q8, const std::byte* const* rows, int64_t offset, std::byte* to) {
    __m512i v[8];
    transpose_32_bytes(rows, offset, v);
    for (int g = 0; g < 8; ++g)
      _mm512_store_si512(to + 128 * g, _mm512_xor_si512(v[g], _mm512_set1_epi8(static_cast<char>(0x80))));
  }

  static void pack16(Q4, const std::byte* const* rows, int64_t offset, std::byte* to) {
    const __m512i nibble = _mm512_set1_epi8(0xf);
    __m512i v[4];
    transpose_16_bytes(rows, offset, v);
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

  // s[2 a], s[2 a + 1] += products of k-groups [begin, end) of rows 0..15 and 16..31 with activation a.
  template <int N, class Record>
  static void add_products(const std::byte* record, const Record& act, int begin, int end, __m512i* s) {
    for (int g = begin; g < end; ++g) {
      const __m512i w0 = _mm512_load_si512(record + 128 * g), w1 = _mm512_load_si512(record + 128 * g + 64);
      for (int a = 0; a < N; ++a) {
        int32_t four;
        std::memcpy(&four, act.q[a] + 4 * g, sizeof four);
        const __m512i x = _mm512_set1_epi32(four);
        s[2 * a] = _mm512_dpbusd_epi32(s[2 * a], w0, x);
        s[2 * a + 1] = _mm512_dpbusd_epi32(s[2 * a + 1], w1, x);
      }
    }
  }

  // sums[2 a + half] += d[half] * scale of activation a * sum(a, half), an integer as a float.
  template <int N, class ActRecord, class Sum>
  static void add_scaled(const __m512* d, const ActRecord& act, Sum sum, __m512* sums) {
    for (int a = 0; a < N; ++a)
      for (int half = 0; half < 2; ++half) {
        __m512& to = sums[2 * a + half];
        to = _mm512_fmadd_ps(_mm512_mul_ps(d[half], _mm512_set1_ps(act.scale[a])), sum(a, half), to);
      }
  }

  template <int N, class ActRecord, class Sum>
  static void add_block(const std::byte* record, const ActRecord& act, Sum sum, __m512* sums) {
    const __m256i* scales = reinterpret_cast<const __m256i*>(record + kScalesAt);
    const __m512 d[2] = {_mm512_cvtph_ps(_mm256_load_si256(scales)), _mm512_cvtph_ps(_mm256_load_si256(scales + 1))};
    add_scaled<N>(d, act, sum, sums);
  }

  template <class Format, int N>
  static void multiply(const std::byte* record, const Record<Format>& act, __m512* sums) {
    __m512i s[2 * N];
    for (int a = 0; a < N; ++a) s[2 * a] = s[2 * a + 1] = _mm512_set1_epi32(act.start[a]);
    add_products<N>(record, act, 0, 8, s);
    add_block<N>(record, act, [&](int a, int half) { return _mm512_cvtepi32_ps(s[2 * a + half]); }, sums);
  }
};

}  // namespace
}  // namespace hotset::cpu
