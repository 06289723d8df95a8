// Chunks of the AVX-512 gemm with few activations (see cpu/block_few.h). Included by cpu/block_avx512.cpp and, for what
// K types share, cpu/block_k_avx512_few.h.
#pragma once

#include "cpu/block_avx512_gemm.h"
#include "cpu/block_few.h"

namespace hotset::cpu {
namespace {

// The most activations with which FewGemm is the faster one.
template <class Format>
constexpr int64_t kFewActs = Format::kType == kWeightQ4_K ? 7 : kMaxFewActs;

struct Avx512Few {
  using Float = __m512;
  static constexpr int kWidth = 16;

  template <class Format>
  struct Chunk {
    __m512i q[8];  // unsigned: the offset is in
    __m512 d;
  };

  HS_INLINE static void unpack(Q8, const std::byte* from, Chunk<Q8>& to) {
    turn(from + 2, Q8::kBytes, nullptr, to.q);
    for (int g = 0; g < 8; ++g) to.q[g] = _mm512_xor_si512(to.q[g], _mm512_set1_epi8(static_cast<char>(0x80)));
    to.d = block_scales(Q8{}, from, Extent<false>{16});
  }

  HS_INLINE static void unpack(Q4, const std::byte* from, Chunk<Q4>& to) {
    const std::byte* blocks[16];
    for (int i = 0; i < 16; ++i) blocks[i] = from + i * Q4::kBytes + 2;
    __m512i v[4];
    Avx512::transpose_16_bytes(blocks, 0, v);
    for (int g = 0; g < 4; ++g) to.q[g] = nibbles(v[g]), to.q[4 + g] = nibbles(_mm512_srli_epi16(v[g], 4));
    to.d = block_scales(Q4{}, from, Extent<false>{16});
  }

  template <class Format>
  static void pack(Format, const int8_t* q, const float* scale, const int32_t* sum, ActChunk<Format, 16>& to) {
    pack_q(q, nullptr, to);
    _mm512_store_ps(to.scale, _mm512_loadu_ps(scale));
    const __m512i offset = _mm512_slli_epi32(load512(sum), Format::kOffset == 128 ? 7 : 3);
    _mm512_store_si512(to.start[0], _mm512_sub_epi32(_mm512_setzero_si512(), offset));
  }

  template <class Format>
  static __m512 add(Format, const Chunk<Format>& w, const ActChunk<Format, 16>& act, __m512 acc) {
    const __m512i s = products(w.q, act, _mm512_load_si512(act.start[0]));
    return _mm512_fmadd_ps(_mm512_mul_ps(w.d, _mm512_load_ps(act.scale)), _mm512_cvtepi32_ps(s), acc);
  }

  template <class Format>
  static float reduce(Format, const __m512* acc) {
    return reduce_lanes(*acc);
  }

 protected:
  // v[g] = dword g of 16 blocks of 32 bytes; lane i has the block number order[i], or i without an order.
  static void turn(const std::byte* from, int64_t distance, const int8_t* order, __m512i* v) {
    const std::byte* blocks[16];
    for (int i = 0; i < 16; ++i) blocks[i] = from + (order ? order[i] : i) * distance;
    Avx512::transpose_32_bytes(blocks, 0, v);
  }

  template <class Record>
  static void pack_q(const int8_t* q, const int8_t* order, Record& to) {
    __m512i v[8];
    turn(reinterpret_cast<const std::byte*>(q), kBlock, order, v);
    for (int g = 0; g < 8; ++g) _mm512_store_si512(to.q[g], v[g]);
  }

  // s plus the products of groups [4 half, 4 half + 4).
  template <class Record>
  static __m512i half_products(const __m512i* w, const Record& act, int half, __m512i s) {
    for (int g = 4 * half; g < 4 * half + 4; ++g) s = _mm512_dpbusd_epi32(s, w[g], _mm512_load_si512(act.q[g]));
    return s;
  }

  // s plus the products of all, in two chains: one alone is twice as long to wait for.
  template <class Record>
  static __m512i products(const __m512i* w, const Record& act, __m512i s) {
    return _mm512_add_epi32(half_products(w, act, 0, s), half_products(w, act, 1, _mm512_setzero_si512()));
  }
};

static_assert(kMaxRecordBytes<Q4> <= BlockGemm<Avx512>::scratch_bytes(0));  // one size of scratch serves both ways

}  // namespace
}  // namespace hotset::cpu
