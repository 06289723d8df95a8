// Chunks of the AVX2 gemm with few activations (see cpu/block_few.h). Included by cpu/block_avx2.cpp and, for what K
// types share, cpu/block_k_avx2_few.h.
#pragma once

#include "cpu/block_avx2_gemm.h"
#include "cpu/block_few.h"

namespace hotset::cpu {
namespace {

// The most activations with which FewGemm is the faster one.
template <class Format>
constexpr int64_t kFewActs = kMaxFewActs;

// Products are formed 8 bit by 8 bit as |w| * sign(x, w), or w * x where w is unsigned, as in Avx2.
struct Avx2Few {
  using Float = __m256;
  static constexpr int kWidth = 8;

  template <class Format>
  struct Chunk {
    __m256i q[8];  // Q8_0: signed; Q4_0: the nibbles 0..15
    __m256 d;
  };

  HS_INLINE static void unpack(Q8, const std::byte* from, Chunk<Q8>& to) {
    turn(from + 2, Q8::kBytes, nullptr, to.q);
    to.d = chunk_scales<Q8>(from);
  }

  HS_INLINE static void unpack(Q4, const std::byte* from, Chunk<Q4>& to) {
    const std::byte* blocks[8];
    for (int i = 0; i < 8; ++i) blocks[i] = from + i * Q4::kBytes + 2;
    __m256i v[4];
    Avx2::transpose(blocks, 0, v);
    for (int g = 0; g < 4; ++g) to.q[g] = nibbles(v[g]), to.q[4 + g] = nibbles(_mm256_srli_epi16(v[g], 4));
    to.d = chunk_scales<Q4>(from);
  }

  template <class Format>
  static void pack(Format, const int8_t* q, const float* scale, const int32_t* sum, ActChunk<Format, 8>& to) {
    pack_q(q, nullptr, to);
    _mm256_store_ps(to.scale, _mm256_loadu_ps(scale));
    if constexpr (Format::kType == kWeightQ4_0)
      store256(to.start[0], _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(load256(sum), 3)));
  }

  static __m256 add(Q8, const Chunk<Q8>& w, const ActChunk<Q8, 8>& act, __m256 acc) {
    __m256i s = _mm256_setzero_si256();
    for (int g = 0; g < 8; ++g) {
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w.q[g]), _mm256_sign_epi8(load256(act.q[g]), w.q[g]));
      s = _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return _mm256_fmadd_ps(_mm256_mul_ps(w.d, _mm256_load_ps(act.scale)), _mm256_cvtepi32_ps(s), acc);
  }

  // Eight pairs of nibble products fit 16 bits.
  static __m256 add(Q4, const Chunk<Q4>& w, const ActChunk<Q4, 8>& act, __m256 acc) {
    __m256i p = _mm256_setzero_si256();
    for (int g = 0; g < 8; ++g) p = _mm256_add_epi16(p, _mm256_maddubs_epi16(w.q[g], load256(act.q[g])));
    const __m256i s = _mm256_add_epi32(_mm256_madd_epi16(p, _mm256_set1_epi16(1)), load256(act.start[0]));
    return _mm256_fmadd_ps(_mm256_mul_ps(w.d, _mm256_load_ps(act.scale)), _mm256_cvtepi32_ps(s), acc);
  }

  template <class Format>
  static float reduce(Format, const __m256* acc) {
    return reduce_lanes(acc[0], acc[1]);
  }

 protected:
  static __m256i nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(0xf)); }
  static void store256(void* to, __m256i v) { _mm256_store_si256(static_cast<__m256i*>(to), v); }

  // v[g] = dword g of 8 blocks of 32 bytes; lane i has the block number order[i], or i without an order.
  HS_INLINE static void turn(const std::byte* from, int64_t distance, const int8_t* order, __m256i* v) {
    const std::byte* blocks[8];
    for (int i = 0; i < 8; ++i) blocks[i] = from + (order ? order[i] : i) * distance;
    Avx2::transpose(blocks, 0, v);
    Avx2::transpose(blocks, 16, v + 4);
  }

  template <class Record>
  static void pack_q(const int8_t* q, const int8_t* order, Record& to) {
    __m256i v[8];
    turn(reinterpret_cast<const std::byte*>(q), kBlock, order, v);
    for (int g = 0; g < 8; ++g) store256(to.q[g], v[g]);
  }
};

static_assert(kMaxRecordBytes<Q4> <= BlockGemm<Avx2>::scratch_bytes(0));  // one size of scratch serves both ways

}  // namespace
}  // namespace hotset::cpu
