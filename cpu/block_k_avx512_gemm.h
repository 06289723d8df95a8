// Packing and multiplication of the AVX-512 gemm of K types (see cpu/block_gemm.h). Included by cpu/block_k_avx512.cpp
// only.
#pragma once

#include "cpu/block_avx512_gemm.h"
#include "cpu/block_k_gemm.h"

namespace hotset::cpu {
namespace {

// k_scale_bytes of four super-blocks, one per 128-bit lane.
inline __m512i k_scale_bytes(__m512i headers) {
  const auto per_lane = [](int a, int b, int c, int d) { return _mm512_set4_epi32(d, c, b, a); };
  const __m512i low = _mm512_srlv_epi32(_mm512_shuffle_epi32(headers, _MM_PERM_DCDB), per_lane(0, 0, 0, 4));
  const __m512i high = _mm512_srli_epi32(_mm512_shuffle_epi32(headers, _MM_PERM_CABA), 2);
  return _mm512_or_si512(_mm512_and_si512(low, per_lane(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f)),
                         _mm512_and_si512(high, per_lane(0, 0x30303030, 0, 0x30303030)));
}

// low | bits of `high` that `mask` selects once it is turned left by `by` bits within each dword. The fields of a byte
// that are moved to another place of it come out right, whatever crosses its borders.
inline __m512i with_high_bits(__m512i low, __m512i high, __m512i by, __m512i mask) {
  return _mm512_ternarylogic_epi32(low, _mm512_rolv_epi32(high, by), mask, 0xf8);
}

// A panel record holds one block of 32 rows: unsigned integers as in Avx512, then per row Q4_K, Q5_K: d * scale and
// dmin * minimum, Q6_K: d and the scales of the two halves, all as floats.
struct Avx512K : Avx512 {
  static constexpr int64_t kRecordBytes = 1024 + 3 * 128;
  static constexpr int64_t kPackBlocks = kSuperBlocks;
  template <class Format>
  using Record = KActRecord<Format, kTile>;
  static constexpr size_t kMaxActRecordBytes = sizeof(Record<Q6K>);

  static void store(std::byte* record, int k_group, __m512i v) { _mm512_store_si512(record + 128 * k_group, v); }
  static void store(std::byte* record, int part, __m512 v) { _mm512_store_ps(record + kScalesAt + 128 * part, v); }
  static __m512 load(const std::byte* record, int part, int half) {
    return _mm512_load_ps(record + kScalesAt + 128 * part + 64 * half);
  }

  // Integers of rows 0..15 of a super-block, block b to record `to` + kRecordBytes * b.
  template <class Format>
  static void pack16(Format, const std::byte* const* rows, int64_t offset, std::byte* to) {
    const __m512i nibble = _mm512_set1_epi8(0xf), bit = _mm512_set1_epi8(0x10);
    __m512i v[8], high[8];
    if constexpr (Format::kType == kWeightQ5_K) transpose_32_bytes(rows, offset + Q5K::kHighAt, high);
    for (int b = 0; b < kSuperBlocks; b += 2, to += 2 * kRecordBytes) {
      transpose_32_bytes(rows, offset + Format::kNibblesAt + 16 * b, v);
      for (int g = 0; g < 8; ++g) {
        __m512i q0 = _mm512_and_si512(v[g], nibble), q1 = _mm512_and_si512(_mm512_srli_epi16(v[g], 4), nibble);
        if constexpr (Format::kType == kWeightQ5_K) {
          q0 = with_high_bits(q0, high[g], _mm512_set1_epi32(4 - b), bit);
          q1 = with_high_bits(q1, high[g], _mm512_set1_epi32(3 - b), bit);
        }
        store(to, g, q0);
        store(to + kRecordBytes, g, q1);
      }
    }
  }

  static void pack16(Q6K, const std::byte* const* rows, int64_t offset, std::byte* to) {
    const __m512i nibble = _mm512_set1_epi8(0xf), pair = _mm512_set1_epi8(0x30);
    __m512i v[8], high[8];
    for (int half = 0; half < 2; ++half, to += 4 * kRecordBytes) {
      transpose_32_bytes(rows, offset + Q6K::kHighAt + kBlock * half, high);
      for (int b = 0; b < 2; ++b) {
        transpose_32_bytes(rows, offset + 64 * half + kBlock * b, v);
        for (int g = 0; g < 8; ++g) {
          const __m512i q0 = _mm512_and_si512(v[g], nibble);
          const __m512i q1 = _mm512_and_si512(_mm512_srli_epi16(v[g], 4), nibble);
          store(to + b * kRecordBytes, g, with_high_bits(q0, high[g], _mm512_set1_epi32(4 - 2 * b), pair));
          store(to + (b + 2) * kRecordBytes, g, with_high_bits(q1, high[g], _mm512_set1_epi32(-2 * b), pair));
        }
      }
    }
  }

  // Scales of rows 0..15 of a super-block.
  template <class Format>
  static void pack16_scales(Format, const std::byte* const* rows, int64_t offset, std::byte* to) {
    __m512i v[4];
    load_16_bytes(rows, offset, v);
    const __m512i both = _mm512_unpacklo_epi64(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpacklo_epi32(v[2], v[3]));
    const __m512 d = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(both));
    const __m512 dmin = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
    for (int j = 0; j < 4; ++j) v[j] = k_scale_bytes(v[j]);
    transpose(v);
    const auto byte = [&](int dword, int b) {
      const __m512i shifted = _mm512_srlv_epi32(v[dword], _mm512_set1_epi32(8 * (b % 4)));
      return _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(0xff)));
    };
    for (int b = 0; b < kSuperBlocks; ++b, to += kRecordBytes) {
      store(to, 0, _mm512_mul_ps(d, byte(b / 4, b)));
      store(to, 1, _mm512_mul_ps(dmin, byte(2 + b / 4, b)));
    }
  }

  static void pack16_scales(Q6K, const std::byte* const* rows, int64_t offset, std::byte* to) {
    alignas(32) uint16_t d_bits[16];
    for (int r = 0; r < 16; ++r) d_bits[r] = load_u16(rows[r] + offset + Q6K::kDAt);
    const __m512 d = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(d_bits)));
    __m512i v[4];
    transpose_16_bytes(rows, offset + Q6K::kScalesAt, v);
    for (int b = 0; b < kSuperBlocks; ++b, to += kRecordBytes) {
      store(to, 0, d);
      for (int half = 0; half < 2; ++half) {
        const __m512i top = _mm512_sllv_epi32(v[b / 2], _mm512_set1_epi32(24 - 8 * (b % 2 * 2 + half)));
        store(to, 1 + half, _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24)));
      }
    }
  }

  template <class Format>
  static void pack_block(const std::byte* const* rows, int64_t block, std::byte* record) {
    const int64_t offset = block / kSuperBlocks * Format::kBytes;
    for (int half = 0; half < 2; ++half) {
      pack16(Format{}, rows + 16 * half, offset, record + 64 * half);
      pack16_scales(Format{}, rows + 16 * half, offset, record + 64 * half);
    }
  }

  template <class Format, int N>
  static void multiply(const std::byte* record, const Record<Format>& act, __m512* sums) {
    if constexpr (Format::kType == kWeightQ6_K)
      multiply_halves<N>(record, act, sums);
    else
      multiply_minimum<N>(record, act, sums);
  }

  // A block of Q4_K or Q5_K: as add_scaled, then the minimum's part.
  template <int N, class ActRecord, class Sum>
  static void add_minimum(const std::byte* record, const ActRecord& act, Sum sum, __m512* sums) {
    const __m512 d[2] = {load(record, 0, 0), load(record, 0, 1)}, m[2] = {load(record, 1, 0), load(record, 1, 1)};
    for (int a = 0; a < N; ++a)
      for (int half = 0; half < 2; ++half) {
        __m512& to = sums[2 * a + half];
        to = _mm512_fmadd_ps(_mm512_mul_ps(d[half], _mm512_set1_ps(act.scale[a])), sum(a, half), to);
        to = _mm512_fnmadd_ps(m[half], _mm512_set1_ps(act.scaled_sum[a]), to);
      }
  }

  // A block of Q6_K: sum(a, half) is the sum over both halves of the block, each times its scale, below 2^24: float
  // operations on such integers are exact. Where it is 0 they may give -0, which changes nothing: lanes start at +0 and
  // never become -0 here.
  template <int N, class ActRecord, class Sum>
  static void add_halves(const std::byte* record, const ActRecord& act, Sum sum, __m512* sums) {
    const __m512 d[2] = {load(record, 0, 0), load(record, 0, 1)};
    add_scaled<N>(d, act, sum, sums);
  }

 private:
  template <int N, class ActRecord>
  static void multiply_minimum(const std::byte* record, const ActRecord& act, __m512* sums) {
    __m512i s[2 * N];
    for (int i = 0; i < 2 * N; ++i) s[i] = _mm512_setzero_si512();
    add_products<N>(record, act, 0, 8, s);
    add_minimum<N>(record, act, [&](int a, int half) { return _mm512_cvtepi32_ps(s[2 * a + half]); }, sums);
  }

  template <int N>
  static void multiply_halves(const std::byte* record, const Record<Q6K>& act, __m512* sums) {
    __m512i s[2 * N];
    __m512 scaled[2 * N];
    for (int half = 0; half < 2; ++half) {
      for (int a = 0; a < N; ++a) s[2 * a] = s[2 * a + 1] = _mm512_set1_epi32(act.start[half][a]);
      add_products<N>(record, act, 4 * half, 4 * half + 4, s);
      const __m512 c[2] = {load(record, 1 + half, 0), load(record, 1 + half, 1)};
      for (int i = 0; i < 2 * N; ++i) {
        const __m512 sum = _mm512_cvtepi32_ps(s[i]);
        scaled[i] = half == 0 ? _mm512_mul_ps(c[i % 2], sum) : _mm512_fmadd_ps(c[i % 2], sum, scaled[i]);
      }
    }
    add_halves<N>(record, act, [&](int a, int half) { return scaled[2 * a + half]; }, sums);
  }
};

static_assert(Avx512K::kRecordBytes >= Avx512::kRecordBytes &&
              Avx512K::kMaxActRecordBytes >= Avx512::kMaxActRecordBytes);  // one size of scratch serves all types

}  // namespace
}  // namespace hotset::cpu
