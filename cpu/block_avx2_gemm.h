// Packing and multiplication of the AVX2 block gemm (see cpu/block_gemm.h). Included by cpu/block_avx2.cpp and, for
// what K types share, cpu/block_k_avx2_gemm.h.
#pragma once

#include "cpu/block_avx2_vec.h"
#include "cpu/block_gemm.h"

namespace hotset::cpu {
namespace {

// A panel record holds one block of 16 rows: for k-group g = 0..7 the bytes 4g..4g+3 of rows 0..7, then of rows 8..15
// (2 x 32 bytes; Q8_0 signed as stored, Q4_0 the nibbles 0..15), then 16 f16 scales.
struct Avx2 {
  using Float = __m256;
  static constexpr int kRows = 16;
  static constexpr int kTile = 4;
  static constexpr int kMaxActs = 128;
  static constexpr int64_t kScalesAt = 512;
  static constexpr int64_t kRecordBytes = 544;
  static constexpr int64_t kPackBlocks = 1;
  template <class Format>
  using Record = ActRecord<kTile, Format::kType == kWeightQ4_0 ? Q4::kOffset : 0>;
  static constexpr size_t kMaxActRecordBytes = kTile * (kBlock + 8);

  // The 16 bytes at `offset` of rows j and j + 4, one per 128-bit lane.
  static __m256i load_rows(const std::byte* const* rows, int j, int64_t offset) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[j] + offset));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[j + 4] + offset));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  }

  // t[g] = dword g of the 16 bytes at `offset` of rows 0..7: a 4 x 4 transpose within the lanes.
  static void transpose(const std::byte* const* rows, int64_t offset, __m256i* t) {
    const __m256i a = load_rows(rows, 0, offset), b = load_rows(rows, 1, offset);
    const __m256i c = load_rows(rows, 2, offset), d = load_rows(rows, 3, offset);
    const __m256i ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
    const __m256i cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
    t[0] = _mm256_unpacklo_epi64(ab_low, cd_low);
    t[1] = _mm256_unpackhi_epi64(ab_low, cd_low);
    t[2] = _mm256_unpacklo_epi64(ab_high, cd_high);
    t[3] = _mm256_unpackhi_epi64(ab_high, cd_high);
  }

  static void store(std::byte* to, __m256i v) { _mm256_store_si256(reinterpret_cast<__m256i*>(to), v); }
  static __m256i load(const std::byte* from) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(from)); }

  static void pack8(Q8, const std::byte* const* rows, int64_t offset, std::byte* to) {
    __m256i t[4];
    for (int half = 0; half < 2; ++half) {
      transpose(rows, offset + 16 * half, t);
      for (int g = 0; g < 4; ++g) store(to + 64 * (4 * half + g), t[g]);
    }
  }

  static void pack8(Q4, const std::byte* const* rows, int64_t offset, std::byte* to) {
    const __m256i nibble = _mm256_set1_epi8(0xf);
    __m256i t[4];
    transpose(rows, offset, t);
    for (int g = 0; g < 4; ++g) {
      store(to + 64 * g, _mm256_and_si256(t[g], nibble));
      store(to + 64 * (4 + g), _mm256_and_si256(_mm256_srli_epi16(t[g], 4), nibble));
    }
  }

  template <class Format>
  static void pack_block(const std::byte* const* rows, int64_t block, std::byte* record) {
    const int64_t offset = block * Format::kBytes;
    pack8(Format{}, rows, offset + 2, record);
    pack8(Format{}, rows + 8, offset + 2, record + 32);
    for (int r = 0; r < kRows; ++r) std::memcpy(record + kScalesAt + 2 * r, rows[r] + offset, 2);
  }

  static __m256i broadcast(const int8_t* four_bytes) {
    int32_t four;
    std::memcpy(&four, four_bytes, sizeof four);
    return _mm256_set1_epi32(four);
  }

  // s[2 a], s[2 a + 1] = integer sums of activation a with rows 0..7 and 8..15. |w| * sign(q, w) never saturates.
  template <int N>
  static void integer_sums(Q8, const std::byte* record, const Record<Q8>& act, __m256i* s) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int i = 0; i < 2 * N; ++i) s[i] = _mm256_setzero_si256();
    for (int g = 0; g < 8; ++g) {
      const __m256i w0 = load(record + 64 * g), w1 = load(record + 64 * g + 32);
      const __m256i m0 = _mm256_abs_epi8(w0), m1 = _mm256_abs_epi8(w1);
      for (int a = 0; a < N; ++a) {
        const __m256i x = broadcast(act.q[a] + 4 * g);
        const __m256i p0 = _mm256_maddubs_epi16(m0, _mm256_sign_epi8(x, w0));
        const __m256i p1 = _mm256_maddubs_epi16(m1, _mm256_sign_epi8(x, w1));
        s[2 * a] = _mm256_add_epi32(s[2 * a], _mm256_madd_epi16(p0, ones));
        s[2 * a + 1] = _mm256_add_epi32(s[2 * a + 1], _mm256_madd_epi16(p1, ones));
      }
    }
  }

  // As above. Eight pairs of nibble products, at most 8 * 2 * 15 * 127 = 30480, fit 16 bits.
  template <int N>
  static void integer_sums(Q4, const std::byte* record, const Record<Q4>& act, __m256i* s) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int i = 0; i < 2 * N; ++i) s[i] = _mm256_setzero_si256();
    for (int g = 0; g < 8; ++g) {
      const __m256i w0 = load(record + 64 * g), w1 = load(record + 64 * g + 32);
      for (int a = 0; a < N; ++a) {
        const __m256i x = broadcast(act.q[a] + 4 * g);
        s[2 * a] = _mm256_add_epi16(s[2 * a], _mm256_maddubs_epi16(w0, x));
        s[2 * a + 1] = _mm256_add_epi16(s[2 * a + 1], _mm256_maddubs_epi16(w1, x));
      }
    }
    for (int i = 0; i < 2 * N; ++i)
      s[i] = _mm256_add_epi32(_mm256_madd_epi16(s[i], ones), _mm256_set1_epi32(act.start[i / 2]));
  }

  template <class Format, int N>
  static void multiply(const std::byte* record, const Record<Format>& act, __m256* sums) {
    __m256i s[2 * N];
    integer_sums<N>(Format{}, record, act, s);
    const __m128i* scales = reinterpret_cast<const __m128i*>(record + kScalesAt);
    const __m256 d[2] = {_mm256_cvtph_ps(_mm_load_si128(scales)), _mm256_cvtph_ps(_mm_load_si128(scales + 1))};
    for (int i = 0; i < 2 * N; ++i) {
      const __m256 scale = _mm256_mul_ps(d[i % 2], _mm256_set1_ps(act.scale[i / 2]));
      sums[i] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(s[i]), sums[i]);
    }
  }
};

}  // namespace
}  // namespace hotset::cpu
