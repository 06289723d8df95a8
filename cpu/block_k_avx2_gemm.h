// Packing and multiplication of the AVX2 gemm of K types (see cpu/block_gemm.h). Included by cpu/block_k_avx2.cpp only.
#pragma once

#include "cpu/block_avx2_gemm.h"
#include "cpu/block_k_gemm.h"
#include "cpu/k_scales.h"

namespace hotset::cpu {
namespace {

// low | bits of `high` that `mask` selects once it is moved `by` bits up, or down if negative, within each byte.
inline __m256i with_high_bits(__m256i low, __m256i high, int by, __m256i mask) {
  const __m256i moved = by >= 0 ? _mm256_slli_epi16(high, by) : _mm256_srli_epi16(high, -by);
  return _mm256_or_si256(low, _mm256_and_si256(moved, mask));
}

// A panel record holds one block of 16 rows: integers as in Avx2, unsigned but for Q6_K; then per row Q4_K, Q5_K:
// d * scale and dmin * minimum as floats; Q6_K: d as float and the scale of each half twice as int16.
struct Avx2K : Avx2 {
  static constexpr int64_t kRecordBytes = 512 + 3 * 64;
  static constexpr int64_t kPackBlocks = kSuperBlocks;
  template <class Format>
  using Record = KActRecord<Format, kTile>;
  static constexpr size_t kMaxActRecordBytes = sizeof(Record<Q6K>);

  static std::byte* part(std::byte* record, int i) { return record + kScalesAt + 64 * i; }
  static __m256 load_floats(const std::byte* record, int i, int half) {
    return _mm256_load_ps(reinterpret_cast<const float*>(record + kScalesAt + 64 * i + 32 * half));
  }
  static void store(std::byte* to, __m256i v) { Avx2::store(to, v); }
  static void store(std::byte* to, __m256 v) { _mm256_store_ps(reinterpret_cast<float*>(to), v); }

  static void transpose_32_bytes(const std::byte* const* rows, int64_t offset, __m256i* t) {
    transpose(rows, offset, t);
    transpose(rows, offset + 16, t + 4);
  }

  // Integers of rows 0..7 of a super-block, block b to record `to` + kRecordBytes * b.
  template <class Format>
  static void pack8(Format, const std::byte* const* rows, int64_t offset, std::byte* to) {
    const __m256i nibble = _mm256_set1_epi8(0xf), bit = _mm256_set1_epi8(0x10);
    __m256i t[8], high[8] = {};
    if constexpr (Format::kType == kWeightQ5_K) transpose_32_bytes(rows, offset + Q5K::kHighAt, high);
    for (int b = 0; b < kSuperBlocks; b += 2, to += 2 * kRecordBytes) {
      transpose_32_bytes(rows, offset + Format::kNibblesAt + 16 * b, t);
      for (int g = 0; g < 8; ++g) {
        __m256i q0 = _mm256_and_si256(t[g], nibble), q1 = _mm256_and_si256(_mm256_srli_epi16(t[g], 4), nibble);
        if constexpr (Format::kType == kWeightQ5_K) {
          q0 = with_high_bits(q0, high[g], 4 - b, bit);
          q1 = with_high_bits(q1, high[g], 3 - b, bit);
        }
        store(to + 64 * g, q0);
        store(to + kRecordBytes + 64 * g, q1);
      }
    }
  }

  static void pack8(Q6K, const std::byte* const* rows, int64_t offset, std::byte* to) {
    const __m256i nibble = _mm256_set1_epi8(0xf), pair = _mm256_set1_epi8(0x30);
    const __m256i less = _mm256_set1_epi8(Q6K::kOffset);
    __m256i t[8], high[8];
    for (int half = 0; half < 2; ++half, to += 4 * kRecordBytes) {
      transpose_32_bytes(rows, offset + Q6K::kHighAt + kBlock * half, high);
      for (int b = 0; b < 2; ++b) {
        transpose_32_bytes(rows, offset + 64 * half + kBlock * b, t);
        for (int g = 0; g < 8; ++g) {
          const __m256i q0 = _mm256_and_si256(t[g], nibble);
          const __m256i q1 = _mm256_and_si256(_mm256_srli_epi16(t[g], 4), nibble);
          const __m256i w0 = with_high_bits(q0, high[g], 4 - 2 * b, pair),
                        w1 = with_high_bits(q1, high[g], -2 * b, pair);
          store(to + b * kRecordBytes + 64 * g, _mm256_sub_epi8(w0, less));
          store(to + (b + 2) * kRecordBytes + 64 * g, _mm256_sub_epi8(w1, less));
        }
      }
    }
  }

  // The halves at `offset` of rows 0..7.
  static __m256 load_f16(const std::byte* const* rows, int64_t offset) {
    alignas(16) uint16_t bits[8];
    for (int r = 0; r < 8; ++r) bits[r] = load_u16(rows[r] + offset);
    return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(bits)));
  }

  // Scales of rows 0..7 of a super-block.
  template <class Format>
  static void pack8_scales(Format, const std::byte* const* rows, int64_t offset, std::byte* to) {
    const __m256 d = load_f16(rows, offset), dmin = load_f16(rows, offset + 2);
    Dwords bytes[8];
    const std::byte* byte_rows[8];
    for (int r = 0; r < 8; ++r) {
      bytes[r] = k_scale_bytes(rows[r] + offset);
      byte_rows[r] = reinterpret_cast<const std::byte*>(&bytes[r]);
    }
    __m256i t[4];
    transpose(byte_rows, 0, t);
    const auto byte = [&](int dword, int b) {
      const __m256i shifted = _mm256_srli_epi32(t[dword], 8 * (b % 4));
      return _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(0xff)));
    };
    for (int b = 0; b < kSuperBlocks; ++b, to += kRecordBytes) {
      store(part(to, 0), _mm256_mul_ps(d, byte(b / 4, b)));
      store(part(to, 1), _mm256_mul_ps(dmin, byte(2 + b / 4, b)));
    }
  }

  static void pack8_scales(Q6K, const std::byte* const* rows, int64_t offset, std::byte* to) {
    const __m256 d = load_f16(rows, offset + Q6K::kDAt);
    __m256i t[4];
    transpose(rows, offset + Q6K::kScalesAt, t);
    for (int b = 0; b < kSuperBlocks; ++b, to += kRecordBytes) {
      store(part(to, 0), d);
      for (int half = 0; half < 2; ++half) {
        const __m256i top = _mm256_slli_epi32(t[b / 2], 24 - 8 * (b % 2 * 2 + half));
        const __m256i high = _mm256_srai_epi32(top, 24);
        store(part(to, 1 + half), _mm256_blend_epi16(high, _mm256_slli_epi32(high, 16), 0xaa));
      }
    }
  }

  template <class Format>
  static void pack_block(const std::byte* const* rows, int64_t block, std::byte* record) {
    const int64_t offset = block / kSuperBlocks * Format::kBytes;
    for (int half = 0; half < 2; ++half) {
      pack8(Format{}, rows + 8 * half, offset, record + 32 * half);
      pack8_scales(Format{}, rows + 8 * half, offset, record + 32 * half);
    }
  }

  template <class Format>
  static __m256i products(Format, __m256i w, __m256i x) {
    return _mm256_maddubs_epi16(w, x);
  }
  static __m256i products(Q6K, __m256i w, __m256i x) {
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  }

  // s[2 a], s[2 a + 1] = integer sums of activation a with rows 0..7 and 8..15; for Q6_K halves times their scales.
  // Four pairs of products, at most 8 * 31 * 127 = 31496 or 8 * 32 * 127 = 32512, fit 16 bits.
  template <class Format, int N>
  static void integer_sums(const std::byte* record, const Record<Format>& act, __m256i* s) {
    for (int i = 0; i < 2 * N; ++i) s[i] = _mm256_setzero_si256();
    for (int half = 0; half < 2; ++half) {
      __m256i p[2 * N];
      for (int i = 0; i < 2 * N; ++i) p[i] = _mm256_setzero_si256();
      for (int g = 4 * half; g < 4 * half + 4; ++g) {
        const __m256i w0 = load(record + 64 * g), w1 = load(record + 64 * g + 32);
        for (int a = 0; a < N; ++a) {
          const __m256i x = broadcast(act.q[a] + 4 * g);
          p[2 * a] = _mm256_add_epi16(p[2 * a], products(Format{}, w0, x));
          p[2 * a + 1] = _mm256_add_epi16(p[2 * a + 1], products(Format{}, w1, x));
        }
      }
      __m256i c[2] = {_mm256_set1_epi16(1), _mm256_set1_epi16(1)};
      if constexpr (Format::kType == kWeightQ6_K)
        for (int i = 0; i < 2; ++i) c[i] = load(record + kScalesAt + 64 * (1 + half) + 32 * i);
      for (int i = 0; i < 2 * N; ++i) s[i] = _mm256_add_epi32(s[i], _mm256_madd_epi16(p[i], c[i % 2]));
    }
  }

  template <class Format, int N>
  static void multiply(const std::byte* record, const Record<Format>& act, __m256* sums) {
    __m256i s[2 * N];
    integer_sums<Format, N>(record, act, s);
    for (int i = 0; i < 2 * N; ++i) {
      const __m256 scale = _mm256_mul_ps(load_floats(record, 0, i % 2), _mm256_set1_ps(act.scale[i / 2]));
      sums[i] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(s[i]), sums[i]);
      if constexpr (Format::kType != kWeightQ6_K)
        sums[i] = _mm256_fnmadd_ps(load_floats(record, 1, i % 2), _mm256_set1_ps(act.scaled_sum[i / 2]), sums[i]);
    }
  }
};

static_assert(Avx2K::kRecordBytes >= Avx2::kRecordBytes &&
              Avx2K::kMaxActRecordBytes >= Avx2::kMaxActRecordBytes);  // one size of scratch serves all types

}  // namespace
}  // namespace hotset::cpu
