// Chunks of the AVX2 gemm of Q4_K and Q5_K with few activations (see cpu/block_few.h). Included by cpu/block_k_avx2.cpp
// only. For Q6_K, whose blocks take more work to turn, packed panels are as fast from two activations on.
#pragma once

#include "cpu/block_avx2_few.h"
#include "cpu/block_k_avx2_gemm.h"

namespace hotset::cpu {
namespace {

inline __m256 splat_f16(const std::byte* at) { return _mm256_set1_ps(_cvtsh_ss(load_u16(at))); }

template <>
constexpr int64_t kFewActs<Q6K> = 1;

// A chunk is a super-block. Its 128 bytes of nibbles are pieces of 32 bytes j = 0..3; low nibbles are block 2 j, high
// ones block 2 j + 1. Lane 4 high + j takes its block.
struct Avx2KFew : Avx2Few {
  template <class Format>
  struct Chunk {
    __m256i q[8];  // unsigned
    __m256 d;      // d * scale
    __m256 m;      // dmin * minimum
  };

  static constexpr int8_t kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};   // block of a lane
  static constexpr int8_t kLaneOf[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // lane of a block

  template <class Format>
  HS_INLINE static void unpack(Format, const std::byte* from, Chunk<Format>& to) {
    unpack_nibbles(from + Format::kNibblesAt, to.q);
    if constexpr (Format::kType == kWeightQ5_K) {
      const __m256i up = _mm256_setr_epi32(4, 2, 0, 0, 3, 1, 0, 0), down = _mm256_setr_epi32(0, 0, 0, 2, 0, 0, 1, 3);
      for (int g = 0; g < 8; ++g) {
        const __m256i moved = _mm256_srlv_epi32(_mm256_sllv_epi32(splat_dword(from + Q5K::kHighAt + 4 * g), up), down);
        to.q[g] = _mm256_or_si256(to.q[g], _mm256_and_si256(moved, _mm256_set1_epi8(0x10)));
      }
    }
    const __m128i bytes = _mm_shuffle_epi8(reinterpret_cast<__m128i>(k_scale_bytes(from)),
                                           _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
    to.d = _mm256_mul_ps(splat_f16(from), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)));
    const __m128i minima = _mm_unpackhi_epi64(bytes, bytes);
    to.m = _mm256_mul_ps(splat_f16(from + 2), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(minima)));
  }

  template <class Format>
  static void pack(Format, const int8_t* q, const float* scale, const int32_t* sum, ActChunk<Format, 8>& to) {
    pack_q(q, kOrder, to);
    const __m256i order = vector_of(kOrder);
    const __m256 d = _mm256_permutevar8x32_ps(_mm256_loadu_ps(scale), order);
    const __m256i s = _mm256_permutevar8x32_epi32(load256(sum), order);
    _mm256_store_ps(to.scale, d);
    _mm256_store_ps(to.scaled_sum, _mm256_mul_ps(d, _mm256_cvtepi32_ps(s)));
  }

  template <class Format>
  static __m256 add(Format, const Chunk<Format>& w, const ActChunk<Format, 8>& act, __m256 acc) {
    __m256i s = _mm256_setzero_si256();
    for (int half = 0; half < 2; ++half) {
      __m256i p = _mm256_setzero_si256();  // four pairs of products fit 16 bits: see Avx2K::integer_sums
      for (int g = 4 * half; g < 4 * half + 4; ++g)
        p = _mm256_add_epi16(p, _mm256_maddubs_epi16(w.q[g], load256(act.q[g])));
      s = _mm256_add_epi32(s, _mm256_madd_epi16(p, _mm256_set1_epi16(1)));
    }
    acc = _mm256_fmadd_ps(_mm256_mul_ps(w.d, _mm256_load_ps(act.scale)), _mm256_cvtepi32_ps(s), acc);
    return _mm256_fnmadd_ps(w.m, _mm256_load_ps(act.scaled_sum), acc);
  }

  template <class Format>
  static float reduce(Format, const __m256* acc) {
    const __m256i lanes = vector_of(kLaneOf);
    return reduce_lanes(_mm256_permutevar8x32_ps(acc[0], lanes), _mm256_permutevar8x32_ps(acc[1], lanes));
  }

 private:
  static __m256i vector_of(const int8_t* bytes) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
  }
  static __m256i splat_dword(const std::byte* at) { return Avx2::broadcast(reinterpret_cast<const int8_t*>(at)); }

  HS_INLINE static void unpack_nibbles(const std::byte* from, __m256i* q) {
    const std::byte* halves[8];  // of the pieces: 128-bit lanes of v hold groups g, g + 4
    for (int i = 0; i < 8; ++i) halves[i] = from + kBlock * (i % 4) + 16 * (i / 4);
    __m256i v[4];
    Avx2::transpose(halves, 0, v);
    for (int g = 0; g < 4; ++g) {
      const __m256i low = nibbles(v[g]), high = nibbles(_mm256_srli_epi16(v[g], 4));
      q[g] = _mm256_permute2x128_si256(low, high, 0x20);
      q[4 + g] = _mm256_permute2x128_si256(low, high, 0x31);
    }
  }
};

}  // namespace
}  // namespace hotset::cpu
