// Chunks of the AVX-512 gemm of K types with few activations (see cpu/block_few.h). Included by cpu/block_k_avx512.cpp
// only.
#pragma once

#include "cpu/block_avx512_few.h"
#include "cpu/block_k_avx512_gemm.h"

namespace hotset::cpu {
namespace {

// A chunk is two super-blocks. Both have 128 bytes of nibbles, which hold pieces of 32 bytes (v, p), v = 0..3 the
// 64-byte loads of both, p = 0, 1; low nibbles are one block, high ones another. Lane 8 high + 4 p + v takes its block,
// which is block order[lane] of the chunk.
struct Avx512KFew : Avx512Few {
  template <class Format>
  struct Chunk {
    __m512i q[8];  // unsigned
    __m512 d;      // Q4_K, Q5_K: d * scale; Q6_K: d
    __m512 c[2];   // Q4_K, Q5_K: dmin * minimum; Q6_K: the scales of the two halves
  };

  // Nibbles (v, p) are blocks 2 (2 v + p), low, and the one after, high.
  template <class Format>
  struct Order {
    static constexpr int8_t of[16] = {0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15};
    static constexpr int8_t lane[16] = {0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15};  // of a block
  };

  template <class Format>
  HS_INLINE static void unpack(Format, const std::byte* from, Chunk<Format>& to) {
    const std::byte *first = from, *second = from + Format::kBytes;
    unpack_nibbles(first + Format::kNibblesAt, second + Format::kNibblesAt, to.q);
    if constexpr (Format::kType == kWeightQ5_K) {
      const __m512i high = _mm512_inserti64x4(_mm512_castsi256_si512(load256(first + Q5K::kHighAt)),
                                              load256(second + Q5K::kHighAt), 1);
      const __m512i by = _mm512_setr_epi32(4, 0, 4, 0, 2, -2, 2, -2, 3, -1, 3, -1, 1, -3, 1, -3);  // 4 - block % 8
      const __m512i at = _mm512_set4_epi32(8, 8, 0, 0);
      for (int g = 0; g < 8; ++g) {
        const __m512i own = _mm512_permutexvar_epi32(_mm512_add_epi32(at, _mm512_set1_epi32(g)), high);
        to.q[g] = with_high_bits(to.q[g], own, by, _mm512_set1_epi8(0x10));
      }
    }
    // Bytes in the order of lanes: the pairs (block, block + 4) of both super-blocks alternate.
    const __m256i headers = _mm256_inserti128_si256(_mm256_castsi128_si256(load128(first)), load128(second), 1);
    const __m128i order = _mm_setr_epi8(0, 4, 2, 6, 1, 5, 3, 7, 8, 12, 10, 14, 9, 13, 11, 15);
    const __m256i bytes = _mm256_shuffle_epi8(_mm512_castsi512_si256(k_scale_bytes(_mm512_castsi256_si512(headers))),
                                              _mm256_broadcastsi128_si256(order));
    const __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
    const auto floats = [](__m128i v) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(v)); };
    to.d = _mm512_mul_ps(spread_halves(first, second), floats(_mm_unpacklo_epi16(low, high)));
    to.c[0] = _mm512_mul_ps(spread_halves(first + 2, second + 2), floats(_mm_unpackhi_epi16(low, high)));
  }

  HS_INLINE static void unpack(Q6K, const std::byte* from, Chunk<Q6K>& to) {
    const std::byte *first = from, *second = from + Q6K::kBytes;
    unpack_nibbles(first, second, to.q);
    const __m512i high0 = load512(first + Q6K::kHighAt), high1 = load512(second + Q6K::kHighAt);
    const __m512i by = _mm512_setr_epi32(4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0, -2, -2, -2, -2);
    const __m512i at = _mm512_set4_epi32(24, 16, 8, 0);
    for (int g = 0; g < 8; ++g) {
      const __m512i own = _mm512_permutex2var_epi32(high0, _mm512_add_epi32(at, _mm512_set1_epi32(g)), high1);
      to.q[g] = with_high_bits(to.q[g], own, by, _mm512_set1_epi8(0x30));
    }
    const __m128i order = _mm_setr_epi8(0, 8, 2, 10, 4, 12, 6, 14, 1, 9, 3, 11, 5, 13, 7, 15);
    const __m128i low = _mm_shuffle_epi8(load128(first + Q6K::kScalesAt), order);
    const __m128i high = _mm_shuffle_epi8(load128(second + Q6K::kScalesAt), order);
    to.c[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_unpacklo_epi16(low, high)));
    to.c[1] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_unpackhi_epi16(low, high)));
    to.d = spread_halves(first + Q6K::kDAt, second + Q6K::kDAt);
  }

  template <class Format>
  static void pack(Format, const int8_t* q, const float* scale, const int32_t* sum, ActChunk<Format, 16>& to) {
    pack_q(q, Order<Format>::of, to);
    const __m512 d = _mm512_permutexvar_ps(vector_of(Order<Format>::of), _mm512_loadu_ps(scale));
    _mm512_store_ps(to.scale, d);
    if constexpr (Format::kType == kWeightQ6_K) {
      for (int half = 0; half < 2; ++half) {
        __m512i s = _mm512_setzero_si512();
        for (int g = 4 * half; g < 4 * half + 4; ++g)
          s = _mm512_dpbusd_epi32(s, _mm512_set1_epi8(Q6K::kOffset), _mm512_load_si512(to.q[g]));
        _mm512_store_si512(to.start[half], _mm512_sub_epi32(_mm512_setzero_si512(), s));
      }
    } else {
      const __m512i s = _mm512_permutexvar_epi32(vector_of(Order<Format>::of), load512(sum));
      _mm512_store_ps(to.scaled_sum, _mm512_mul_ps(d, _mm512_cvtepi32_ps(s)));
    }
  }

  template <class Format>
  static __m512 add(Format, const Chunk<Format>& w, const ActChunk<Format, 16>& act, __m512 acc) {
    const __m512i s = products(w.q, act, _mm512_setzero_si512());
    acc = _mm512_fmadd_ps(_mm512_mul_ps(w.d, _mm512_load_ps(act.scale)), _mm512_cvtepi32_ps(s), acc);
    return _mm512_fnmadd_ps(w.c[0], _mm512_load_ps(act.scaled_sum), acc);
  }

  // Exact in float, and -0 for 0 does no harm: see Avx512K::add_halves.
  static __m512 add(Q6K, const Chunk<Q6K>& w, const ActChunk<Q6K, 16>& act, __m512 acc) {
    const __m512i s0 = half_products(w.q, act, 0, _mm512_load_si512(act.start[0]));
    const __m512i s1 = half_products(w.q, act, 1, _mm512_load_si512(act.start[1]));
    const __m512 scaled =
        _mm512_fmadd_ps(w.c[1], _mm512_cvtepi32_ps(s1), _mm512_mul_ps(w.c[0], _mm512_cvtepi32_ps(s0)));
    return _mm512_fmadd_ps(_mm512_mul_ps(w.d, _mm512_load_ps(act.scale)), scaled, acc);
  }

  template <class Format>
  static float reduce(Format, const __m512* acc) {
    return reduce_lanes(_mm512_permutexvar_ps(vector_of(Order<Format>::lane), *acc));
  }

 private:
  static __m512i vector_of(const int8_t* bytes) { return _mm512_cvtepi8_epi32(load128(bytes)); }

  static void unpack_nibbles(const std::byte* first, const std::byte* second, __m512i* q) {
    __m512i v[4] = {load512(first), load512(first + 64), load512(second), load512(second + 64)};
    Avx512::transpose(v);  // v[g], 128-bit lanes: groups g, g + 4 of p = 0, then of p = 1
    for (int g = 0; g < 4; ++g) {
      const __m512i low = nibbles(v[g]), high = nibbles(_mm512_srli_epi16(v[g], 4));
      q[g] = _mm512_shuffle_i32x4(low, high, 0x88);
      q[4 + g] = _mm512_shuffle_i32x4(low, high, 0xdd);
    }
  }

  // The halves at `first` and `second`, to the lanes of their super-blocks.
  static __m512 spread_halves(const std::byte* first, const std::byte* second) {
    const uint64_t both = load_u16(first) | static_cast<uint64_t>(load_u16(second)) << 32;
    return _mm512_cvtph_ps(_mm256_set1_epi64x(static_cast<long long>(both | both << 16)));
  }
};

// Nibbles (v, p) are blocks 4 v + p, low, and two after, high.
template <>
struct Avx512KFew::Order<Q6K> {
  static constexpr int8_t of[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  static constexpr int8_t lane[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
};

}  // namespace
}  // namespace hotset::cpu
