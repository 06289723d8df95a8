// Chunks of the AVX2 gemm of the types of core/unpacked_block.h (see cpu/unpacked_gemm.h). Private to cpu/unpacked_*.
#pragma once

#include "cpu/block_avx2_gemm.h"
#include "cpu/unpacked_avx2_vec.h"
#include "cpu/unpacked_gemm.h"

namespace hotset::cpu {
namespace {

struct UnpackedAvx2 {
  static constexpr int64_t kWidth = 8;

  struct Weights {
    __m256i q[8];
    __m256 d, minus_m;
    __m256i c[2];  // dword l: c[h] of block l twice, as int16
    __m256i k;     // dword l: k[0] and k[1]
  };

  struct Activations {
    __m256i q[8];
    __m256 scale;
    __m256i half_sums;  // dword l: sums of the halves of block l, as int16
  };

  static void unpack_activation(const int8_t* q, const float* scale, Activations& to) {
    turn_bytes(reinterpret_cast<const std::byte*>(q), to.q);
    to.scale = _mm256_loadu_ps(scale);
    __m256i halves[2];
    for (int h = 0; h < 2; ++h) {
      halves[h] = _mm256_setzero_si256();
      for (int g = 4 * h; g < 4 * h + 4; ++g)
        halves[h] = _mm256_add_epi16(halves[h], _mm256_maddubs_epi16(_mm256_set1_epi8(1), to.q[g]));
      halves[h] = _mm256_madd_epi16(halves[h], _mm256_set1_epi16(1));
    }
    to.half_sums = _mm256_blend_epi16(halves[0], _mm256_slli_epi32(halves[1], 16), 0xaa);
  }

  template <class Format>
  static void unpack_weights(const std::byte* at, Weights& to) {
    alignas(32) std::byte q[8 * kBlock];
#pragma GCC unroll 8
    for (int b = 0; b < 8; ++b)
      _mm256_store_si256(reinterpret_cast<__m256i*>(q + b * kBlock), load_q(Format{}, at, b));
    turn_bytes(q, to.q);
    to.d = load_d(Format{}, at);
    to.c[0] = to.c[1] = to.k = _mm256_set1_epi16(1);
    if constexpr (kHasHalves<Format>) {  // c of a block's halves are two words: each twice in a dword
      const __m256i c = _mm256_cvtepi8_epi16(load_c(Format{}, at));
      const __m256i low = _mm256_and_si256(c, _mm256_set1_epi32(0xffff)), high = _mm256_srli_epi32(c, 16);
      to.c[0] = _mm256_or_si256(low, _mm256_slli_epi32(low, 16));
      to.c[1] = _mm256_or_si256(high, _mm256_slli_epi32(high, 16));
    }
    to.minus_m = _mm256_setzero_ps();
    if constexpr (Format::kHasMinimum) to.minus_m = load_minus_m(Format{}, at);
    if constexpr (kHasHalves<Format> && Format::kHasMinimum) to.k = _mm256_cvtepi8_epi16(load_k(Format{}, at));
  }

  template <bool kMinimum, int N>
  static void dots(const Weights* w, const Activations* acts, int64_t n_chunks, float* out, int64_t out_stride) {
    __m256 acc[2][N];
    for (int a = 0; a < N; ++a) acc[0][a] = acc[1][a] = _mm256_setzero_ps();
    for (int64_t chunk = 0; chunk < n_chunks; ++chunk, ++w) {
      __m256i s[N];
      for (int a = 0; a < N; ++a) s[a] = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g)
        for (int a = 0; a < N; ++a) {
          const __m256i pairs = products<kMinimum>(w->q[g], acts[a * n_chunks + chunk].q[g]);
          s[a] = _mm256_add_epi32(s[a], _mm256_madd_epi16(pairs, w->c[g / 4]));
        }
      for (int a = 0; a < N; ++a) {
        const Activations& act = acts[a * n_chunks + chunk];
        __m256& to = acc[chunk % 2][a];
        to = _mm256_fmadd_ps(_mm256_mul_ps(w->d, act.scale), _mm256_cvtepi32_ps(s[a]), to);
        if constexpr (kMinimum) {
          const __m256 sums = _mm256_cvtepi32_ps(_mm256_madd_epi16(act.half_sums, w->k));
          to = _mm256_fmadd_ps(w->minus_m, _mm256_mul_ps(act.scale, sums), to);
        }
      }
    }
    for (int a = 0; a < N; ++a) out[a * out_stride] = reduce_lanes(acc[0][a], acc[1][a]);
  }

 private:
  // Dword g of 32 bytes of 8 blocks, at `from` + 32 * block.
  static void turn_bytes(const std::byte* from, __m256i* to) {
    const std::byte* rows[8];
    for (int i = 0; i < 8; ++i) rows[i] = from + i * kBlock;
    Avx2::transpose(rows, 0, to);
    Avx2::transpose(rows, 16, to + 4);
  }
};

// One size of scratch serves all types: a block of it is an eighth of a chunk, and what BlockGemm has for the sums of
// its tiles makes up for a last chunk that is not whole.
static_assert(UnpackedGemm<UnpackedAvx2>::kChunkBytes / 8 <= Avx2::kMaxActs / Avx2::kTile * Avx2::kMaxActRecordBytes &&
              UnpackedGemm<UnpackedAvx2>::kChunkBytes <= BlockGemm<Avx2>::scratch_bytes(0));

}  // namespace
}  // namespace hotset::cpu
