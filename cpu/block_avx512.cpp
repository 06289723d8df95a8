// Block kernels for AVX-512 (F, BW, DQ, VL, VNNI): Q8_0 and Q4_0 weights with Q8 activations.
#include "cpu/block_avx512_few.h"
#include "cpu/block_format.h"
#include "cpu/kernels_fill.h"

namespace hotset::cpu {
namespace {

// ---- activations ----------------------------------------------------------------------------------------------------

void quantize_activation(const float* x, int64_t n, int8_t* q, float* scale, int32_t* sum) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t block = 0; block < n / kBlock; ++block) {
    const __m512 x0 = _mm512_loadu_ps(x + block * kBlock);
    const __m512 x1 = _mm512_loadu_ps(x + block * kBlock + 16);
    const __m512i a0 = _mm512_and_epi32(_mm512_castps_si512(x0), magnitude);
    const __m512i a1 = _mm512_and_epi32(_mm512_castps_si512(x1), magnitude);
    // As integers magnitudes order like floats, and infinity and NaN come last.
    const uint32_t max_bits = _mm512_reduce_max_epu32(_mm512_max_epu32(a0, a1));
    const float max = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(max_bits))));
    const bool finite = max_bits < 0x7f800000u;
    const float inverse = finite && max >= kLeastMax ? 127.0f / max : 0.0f;
    const __mmask16 keep = finite ? 0xffff : 0;  // 0 * infinity would be NaN
    const __m512 by = _mm512_set1_ps(inverse);
    const __m512i q0 = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(keep, x0, by));
    const __m512i q1 = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(keep, x1, by));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + block * kBlock), _mm512_cvtepi32_epi8(q0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + block * kBlock + 16), _mm512_cvtepi32_epi8(q1));
    sum[block] = _mm512_reduce_add_epi32(_mm512_add_epi32(q0, q1));
    scale[block] = !finite ? __builtin_nanf("") : inverse == 0.0f ? 0.0f : max / 127.0f;
  }
}

// ---- dot_rows -------------------------------------------------------------------------------------------------------
// 16 blocks of one row make 16 exact int32 sums in one register, lane = block % 16. Moves 34 or 18 bytes per 32
// products, each once.

// Integer sums and weight scales of one chunk.
struct ChunkSums {
  __m512i sums;   // with the unsigned offset still in
  __m512 scales;
};

template <bool kTail>
inline __m512i load_q8_pair(const std::byte* w, int pair, int n) {
  const std::byte* first = w + 2 * pair * Q8::kBytes + 2;
  const __mmask8 low = !kTail || 2 * pair < n ? 0xf : 0, high = !kTail || 2 * pair + 1 < n ? 0xf : 0;
  __m256i a, b;
  if constexpr (kTail) {
    a = _mm256_maskz_loadu_epi64(low, first);
    b = _mm256_maskz_loadu_epi64(high, first + Q8::kBytes);
  } else {
    a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
    b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first + Q8::kBytes));
  }
  const __m512i q = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
  return _mm512_xor_si512(q, _mm512_set1_epi8(static_cast<char>(0x80)));
}

template <bool kTail>
inline ChunkSums chunk_sums(Q8, const std::byte* w, const int8_t* q, Extent<kTail> extent) {
  const int64_t n_act_words = extent.n * (kBlock / 2);
  __m512i s[8];
  for (int i = 0; i < 8; ++i) {
    const __m512i act = extent.words(reinterpret_cast<const std::byte*>(q), n_act_words, 32 * i);
    s[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), load_q8_pair<kTail>(w, i, extent.n), act);
  }
  const __m512i p = quad_sums(s[0], s[1], s[2], s[3]), r = quad_sums(s[4], s[5], s[6], s[7]);
  const __m512i halves = _mm512_add_epi32(_mm512_shuffle_i32x4(p, r, 0x88), _mm512_shuffle_i32x4(p, r, 0xdd));
  // halves: blocks 0 2 4 6 | 1 3 5 7 | 8 10 12 14 | 9 11 13 15
  const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  return {_mm512_permutexvar_epi32(order, halves), block_scales(Q8{}, w, extent)};
}

template <bool kTail>
inline __m128i load_q4_block(const std::byte* w, int block, int n) {
  const std::byte* at = w + block * Q4::kBytes + 2;
  if constexpr (kTail) return _mm_maskz_loadu_epi64(block < n ? 3 : 0, at);
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
}

template <bool kTail>
inline __m512i load_q4_quad(const std::byte* w, int first, int n) {
  __m512i q = _mm512_castsi128_si512(load_q4_block<kTail>(w, first, n));
  q = _mm512_inserti32x4(q, load_q4_block<kTail>(w, first + 1, n), 1);
  q = _mm512_inserti32x4(q, load_q4_block<kTail>(w, first + 2, n), 2);
  return _mm512_inserti32x4(q, load_q4_block<kTail>(w, first + 3, n), 3);
}

template <bool kTail>
inline ChunkSums chunk_sums(Q4, const std::byte* w, const int8_t* q, Extent<kTail> extent) {
  const int64_t n_act_words = extent.n * (kBlock / 2);
  const __m512i nibble = _mm512_set1_epi8(0xf);
  __m512i s[4];  // s[i], 128-bit lane j: four parts of block 4i + j
  for (int i = 0; i < 4; ++i) {
    const __m512i both = load_q4_quad<kTail>(w, 4 * i, extent.n);
    const __m512i low = _mm512_and_si512(both, nibble);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    const std::byte* act = reinterpret_cast<const std::byte*>(q);
    const __m512i a0 = extent.words(act, n_act_words, 64 * i), a1 = extent.words(act, n_act_words, 64 * i + 32);
    s[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, _mm512_shuffle_i32x4(a0, a1, 0x88));
    s[i] = _mm512_dpbusd_epi32(s[i], high, _mm512_shuffle_i32x4(a0, a1, 0xdd));
  }
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i sums = _mm512_permutexvar_epi32(order, quad_sums(s[0], s[1], s[2], s[3]));
  return {sums, block_scales(Q4{}, w, extent)};
}

// acc[lane] = fma(d_w * d_a, float(s), acc[lane]) for the chunk that starts at block `block`.
template <class Format, bool kTail>
inline __m512 add_chunk(const std::byte* w, const ActivationRow& a, int64_t block, Extent<kTail> extent, __m512 acc) {
  const ChunkSums chunk = chunk_sums(Format{}, w + block * Format::kBytes, a.q + block * kBlock, extent);
  const __mmask16 keep = extent.blocks();
  const __m512i act_sum = _mm512_maskz_loadu_epi32(keep, a.sum + block);
  const __m512i offset = _mm512_slli_epi32(act_sum, Format::kOffset == 128 ? 7 : 3);
  const __m512 s = _mm512_cvtepi32_ps(_mm512_sub_epi32(chunk.sums, offset));
  const __m512 d = _mm512_mul_ps(chunk.scales, _mm512_maskz_loadu_ps(keep, a.scale + block));
  if constexpr (kTail) return _mm512_mask3_fmadd_ps(d, s, acc, keep);
  return _mm512_fmadd_ps(d, s, acc);
}

template <class Format>
void dot_rows(const WeightRows& w, const int32_t* rows, int64_t first_row, int64_t n_rows, const ActivationRow& a,
              float* out) {
  const int64_t n_blocks = w.n / kBlock, n_whole = n_blocks / kLanes * kLanes;
  const int64_t ahead = rows_ahead(n_blocks * Format::kBytes);
  for (int64_t r = 0; r < n_rows; ++r) {
    const std::byte* row = row_at(w, rows ? rows[r] : first_row + r);
    const int64_t next = r + ahead < n_rows ? r + ahead : n_rows - 1;
    const std::byte* coming = row_at(w, rows ? rows[next] : first_row + next);
    __m512 acc = _mm512_setzero_ps();
    for (int64_t block = 0; block < n_whole; block += kLanes) {
      prefetch(coming + block * Format::kBytes, kLanes * Format::kBytes);
      acc = add_chunk<Format>(row, a, block, Extent<false>{kLanes}, acc);
    }
    if (n_whole < n_blocks) {
      const int n_tail = static_cast<int>(n_blocks - n_whole);
      prefetch(coming + n_whole * Format::kBytes, n_tail * Format::kBytes);
      acc = add_chunk<Format>(row, a, n_whole, Extent<true>{n_tail}, acc);
    }
    out[r] = reduce_lanes(acc);
  }
}

template <class Format>
void gemm(const GemmArgs& args) {
  if (args.n_acts == 1) return dot_rows<Format>(args.w, nullptr, args.first_row, args.n_rows, args.acts[0], args.out);
  if (FewGemm<Avx512Few, Format>::serves(args, kFewActs<Format>)) return FewGemm<Avx512Few, Format>::run(args);
  BlockGemm<Avx512>::run<Format>(args);
}

}  // namespace

void fill_block_avx512(Kernels& table) {
  table.quantize_activation = quantize_activation;
  table.dot_rows[kWeightQ8_0] = dot_rows<Q8>;
  table.dot_rows[kWeightQ4_0] = dot_rows<Q4>;
  table.gemm[kWeightQ8_0] = gemm<Q8>;
  table.gemm[kWeightQ4_0] = gemm<Q4>;
  table.gemm_scratch_bytes = BlockGemm<Avx512>::scratch_bytes;
}

}  // namespace hotset::cpu
