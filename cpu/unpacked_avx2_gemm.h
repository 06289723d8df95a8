// The AVX2 gemm of the types of core/unpacked_block.h. Included by cpu/unpacked_avx2.cpp only.
//
// Rows are unpacked to the scratch, kRows at a time, as chunks of 8 blocks, turned so that dword l of vector g holds
// elements 4 g .. 4 g + 3 of block l; activations are turned the same way, once per call. A lane then sums one block,
// and a chunk's lanes are canonical lanes: nothing is summed across lanes before the end of the row. What multiplies
// does not know the type, so that there are few instances of it.
//
//   scratch: rows (kRows, n_chunks) of WeightChunk | activations (n_chunks, up to kMaxActs) of ActivationChunk
#pragma once

#include "cpu/block_k_avx2_gemm.h"
#include "cpu/unpacked_avx2_vec.h"

namespace hotset::cpu {
namespace {

// Pairs of products of bytes; kUnsigned: of w that is not negative. |w|, |x| <= 127, so pairs fit 16 bits.
template <bool kUnsigned>
inline __m256i products(__m256i w, __m256i x) {
  if constexpr (kUnsigned) return _mm256_maddubs_epi16(w, x);
  return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}

// Scale of activations where a row has no block: with it a block adds -0 to its lane, which changes none.
constexpr float kMissing = -0.0f;

struct WeightChunk {
  __m256i q[8];
  __m256 d, minus_m;
  __m256i c[2];  // dword l: c[h] of block l twice, as int16
  __m256i k;     // dword l: k[0] and k[1]
};

struct ActivationChunk {
  __m256i q[8];
  __m256 scale;
  __m256i half_sums;  // dword l: sums of the halves of block l, as int16
};

// Dword g of 32 bytes of 8 blocks, at `from` + 32 * block.
inline void turn_bytes(const std::byte* from, __m256i* to) {
  const std::byte* rows[8];
  for (int i = 0; i < 8; ++i) rows[i] = from + i * kBlock;
  Avx2::transpose(rows, 0, to);
  Avx2::transpose(rows, 16, to + 4);
}

inline void unpack_activation(const int8_t* q, const float* scale, ActivationChunk& to) {
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
inline void unpack_weights(const std::byte* at, WeightChunk& to) {
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

// A row of n blocks as chunks.
using UnpackRow = void (*)(const std::byte* row, int64_t n_blocks, WeightChunk* to);

template <class Format>
void unpack_row(const std::byte* row, int64_t n_blocks, WeightChunk* to) {
  constexpr int64_t kEightBytes = 8 / Format::kBlocks * Format::kBytes;
  for (; n_blocks >= 8; n_blocks -= 8, row += kEightBytes) unpack_weights<Format>(row, *to++);
  if (n_blocks == 0) return;
  alignas(32) std::byte last[kEightBytes] = {};
  std::memcpy(last, row, static_cast<size_t>(n_blocks * Format::kBytes));
  unpack_weights<Format>(last, *to);
}

template <bool kHasMinimum>
struct UnpackedGemm {
  static constexpr int64_t kRows = 4, kMaxActs = 64, kTile = 4;

  static void run(const GemmArgs& args, UnpackRow unpack) {
    const int64_t n_blocks = args.w.n / kBlock, n_chunks = (n_blocks + 7) / 8;
    WeightChunk* const rows = reinterpret_cast<WeightChunk*>(args.scratch);
    ActivationChunk* const acts = reinterpret_cast<ActivationChunk*>(rows + kRows * n_chunks);
    for (int64_t begin = 0; begin < args.n_acts; begin += kMaxActs) {
      const int64_t n_acts = least(kMaxActs, args.n_acts - begin);
      for (int64_t a = 0; a < n_acts; ++a) unpack_whole(args.acts[begin + a], n_blocks, acts + a * n_chunks);
      for (int64_t r = 0; r < args.n_rows; r += kRows) {
        const int64_t n_rows = least(kRows, args.n_rows - r);
        for (int64_t i = 0; i < n_rows; ++i)
          unpack(row_at(args.w, args.first_row + r + i), n_blocks, rows + i * n_chunks);
        float* const out = args.out + begin * args.out_stride + r;
        for (int64_t a = 0; a < n_acts; a += kTile)
          for (int64_t i = 0; i < n_rows; ++i)
            dots_for(n_acts - a)(rows + i * n_chunks, acts + a * n_chunks, n_chunks, out + a * args.out_stride + i,
                                 args.out_stride);
      }
    }
  }

 private:
  using Dots = void (*)(const WeightChunk*, const ActivationChunk*, int64_t n_chunks, float* out, int64_t out_stride);

  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  static Dots dots_for(int64_t n_acts) {
    return n_acts >= 4 ? &dots<4> : n_acts == 3 ? &dots<3> : n_acts == 2 ? &dots<2> : &dots<1>;
  }

  static void unpack_whole(const ActivationRow& a, int64_t n_blocks, ActivationChunk* to) {
    int64_t b = 0;
    for (; b + 8 <= n_blocks; b += 8) unpack_activation(a.q + b * kBlock, a.scale + b, *to++);
    if (b == n_blocks) return;
    int8_t q[8 * kBlock] = {};
    float scale[8];
    for (float& each : scale) each = kMissing;
    std::memcpy(q, a.q + b * kBlock, static_cast<size_t>((n_blocks - b) * kBlock));
    std::memcpy(scale, a.scale + b, static_cast<size_t>(n_blocks - b) * sizeof(float));
    unpack_activation(q, scale, *to);
  }

  // One row and N activations, n_chunks apart.
  template <int N>
  static void dots(const WeightChunk* w, const ActivationChunk* acts, int64_t n_chunks, float* out,
                   int64_t out_stride) {
    __m256 acc[2][N];
    for (int a = 0; a < N; ++a) acc[0][a] = acc[1][a] = _mm256_setzero_ps();
    for (int64_t chunk = 0; chunk < n_chunks; ++chunk, ++w) {
      __m256i s[N];
      for (int a = 0; a < N; ++a) s[a] = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g)
        for (int a = 0; a < N; ++a) {
          const __m256i pairs = products<kHasMinimum>(w->q[g], acts[a * n_chunks + chunk].q[g]);
          s[a] = _mm256_add_epi32(s[a], _mm256_madd_epi16(pairs, w->c[g / 4]));
        }
      for (int a = 0; a < N; ++a) {
        const ActivationChunk& act = acts[a * n_chunks + chunk];
        __m256& to = acc[chunk % 2][a];
        to = _mm256_fmadd_ps(_mm256_mul_ps(w->d, act.scale), _mm256_cvtepi32_ps(s[a]), to);
        if constexpr (kHasMinimum) {
          const __m256 sums = _mm256_cvtepi32_ps(_mm256_madd_epi16(act.half_sums, w->k));
          to = _mm256_fmadd_ps(w->minus_m, _mm256_mul_ps(act.scale, sums), to);
        }
      }
    }
    for (int a = 0; a < N; ++a) out[a * out_stride] = reduce_lanes(acc[0][a], acc[1][a]);
  }
};

// One size of scratch serves all types.
static_assert(UnpackedGemm<true>::kRows * sizeof(WeightChunk) +
                  UnpackedGemm<true>::kMaxActs * sizeof(ActivationChunk) <=
              8 * Avx2K::kMaxActs / Avx2K::kTile * Avx2K::kMaxActRecordBytes);

}  // namespace
}  // namespace hotset::cpu
