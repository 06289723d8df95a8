// Block kernels for AVX-512 (F, BW, DQ, VL, VNNI): Q4_K, Q5_K and Q6_K weights with Q8 activations.
#include "cpu/block_k_avx512_few.h"
#include "cpu/kernels_fill.h"

namespace hotset::cpu {
namespace {

// ---- dot_rows -------------------------------------------------------------------------------------------------------
// Two super-blocks of one row make 16 exact int32 sums in one register, lane = block % 16. Blocks lie in 64-byte pieces
// of nibbles, two or four to a piece. Moves 144, 176 or 210 bytes per 256 products, each
// once. A last super-block without a partner stands in for it too, and the mask leaves its second half out.

struct SuperPair {
  const std::byte* super[2];
  const int8_t* q[2];  // activations of each
};

// A dword in each half of a register.
inline __m512i halves(int low, int high) {
  return _mm512_inserti64x4(_mm512_set1_epi32(low), _mm256_set1_epi32(high), 1);
}

// s[0..3]: eight parts each of the sums of blocks 0 and 2, 1 and 3, 4 and 6, 5 and 7.
template <class Format>
inline void add_super(Format, const std::byte* super, const int8_t* q, __m512i* s) {
  __m512i high = _mm512_setzero_si512();
  if constexpr (Format::kType == kWeightQ5_K) high = _mm512_broadcast_i64x4(load256(super + Q5K::kHighAt));
  for (int j = 0; j < 2; ++j) {
    const __m512i both = load512(super + Format::kNibblesAt + 64 * j);
    const __m512i a0 = load512(q + 128 * j), a1 = load512(q + 128 * j + 64);
    __m512i w0 = nibbles(both), w1 = nibbles(_mm512_srli_epi16(both, 4));
    if constexpr (Format::kType == kWeightQ5_K) {
      const __m512i bit = _mm512_set1_epi8(0x10);
      w0 = with_high_bits(w0, high, halves(4 - 4 * j, 2 - 4 * j), bit);
      w1 = with_high_bits(w1, high, halves(3 - 4 * j, 1 - 4 * j), bit);
    }
    s[2 * j] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w0, _mm512_shuffle_i64x2(a0, a1, 0x44));
    s[2 * j + 1] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w1, _mm512_shuffle_i64x2(a0, a1, 0xee));
  }
}

// acc[lane] takes in the 16 blocks of the pair, `keep` of them; act_scale and act_sum are theirs.
template <class Format>
inline __m512 add_pair(Format, const SuperPair& pair, __m512 act_scale, __m512 act_sum, __mmask16 keep, __m512 acc) {
  __m512i s[8];
  add_super(Format{}, pair.super[0], pair.q[0], s);
  add_super(Format{}, pair.super[1], pair.q[1], s + 4);
  const __m512i p = quad_sums(s[0], s[1], s[2], s[3]), r = quad_sums(s[4], s[5], s[6], s[7]);
  const __m512i mixed = _mm512_add_epi32(_mm512_shuffle_i32x4(p, r, 0x88), _mm512_shuffle_i32x4(p, r, 0xdd));
  // mixed: blocks 0 1 4 5 | 2 3 6 7 | 8 9 12 13 | 10 11 14 15
  const __m512i order = _mm512_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  const __m512 sums = _mm512_cvtepi32_ps(_mm512_permutexvar_epi32(order, mixed));

  const __m256i headers =
      _mm256_inserti128_si256(_mm256_castsi128_si256(load128(pair.super[0])), load128(pair.super[1]), 1);
  const __m512 d = _mm512_cvtph_ps(_mm256_shuffle_epi8(headers, _mm256_set1_epi16(0x0100)));
  const __m512 dmin = _mm512_cvtph_ps(_mm256_shuffle_epi8(headers, _mm256_set1_epi16(0x0302)));
  const __m256i bytes = _mm512_castsi512_si256(k_scale_bytes(_mm512_castsi256_si512(headers)));
  const __m128i first = _mm256_castsi256_si128(bytes), second = _mm256_extracti128_si256(bytes, 1);
  const __m512 scale = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi64(first, second)));
  const __m512 minimum = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_unpackhi_epi64(first, second)));

  acc = _mm512_mask3_fmadd_ps(_mm512_mul_ps(_mm512_mul_ps(d, scale), act_scale), sums, acc, keep);
  return _mm512_mask3_fnmadd_ps(_mm512_mul_ps(dmin, minimum), _mm512_mul_ps(act_scale, act_sum), acc, keep);
}

// Of each 128-bit lane l: 4 l + 0, 1 the parts of elements [16 l, 16 l + 16) of the first 64 of this half of the
// super-block, 2, 3 those of its other 64; all times their scales.
inline __m512i scaled_parts(const std::byte* super, const int8_t* q, int half, __m512i scales) {
  const __m512i both = load512(super + 64 * half), pair = _mm512_set1_epi8(0x30), offset = _mm512_set1_epi8(32);
  const __m512i high = _mm512_broadcast_i64x4(load256(super + Q6K::kHighAt + kBlock * half));
  const __m512i w0 = with_high_bits(nibbles(both), high, halves(4, 2), pair);
  const __m512i w1 = with_high_bits(nibbles(_mm512_srli_epi16(both, 4)), high, halves(0, -2), pair);
  const __m512i a0 = load512(q + 128 * half), a1 = load512(q + 128 * half + 64), zero = _mm512_setzero_si512();
  const __m512i s0 = _mm512_sub_epi32(_mm512_dpbusd_epi32(zero, w0, a0), _mm512_dpbusd_epi32(zero, offset, a0));
  const __m512i s1 = _mm512_sub_epi32(_mm512_dpbusd_epi32(zero, w1, a1), _mm512_dpbusd_epi32(zero, offset, a1));
  // Four products of |q - 32| <= 32 and |a| <= 127 fit 16 bits.
  return _mm512_madd_epi16(_mm512_packs_epi32(s0, s1), scales);
}

// The same for both halves, two parts of each block left: lane l has blocks (0 or 1), (2 or 3), (4 or 5), (6 or 7), the
// even ones in lanes 0 and 1.
inline __m512i super_parts(const std::byte* super, const int8_t* q) {
  const __m512i scales = _mm512_castsi256_si512(_mm256_cvtepi8_epi16(load128(super + Q6K::kScalesAt)));
  const __m512i spread =
      _mm512_set_epi16(7, 7, 7, 7, 3, 3, 3, 3, 6, 6, 6, 6, 2, 2, 2, 2, 5, 5, 5, 5, 1, 1, 1, 1, 4, 4, 4, 4, 0, 0, 0, 0);
  const __m512i m0 = scaled_parts(super, q, 0, _mm512_permutexvar_epi16(spread, scales));
  const __m512i m1 =
      scaled_parts(super, q, 1, _mm512_permutexvar_epi16(_mm512_add_epi16(spread, _mm512_set1_epi16(8)), scales));
  const __m512 f0 = _mm512_castsi512_ps(m0), f1 = _mm512_castsi512_ps(m1);
  return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(f0, f1, 0x88)),
                          _mm512_castps_si512(_mm512_shuffle_ps(f0, f1, 0xdd)));
}

inline __m512 add_pair(Q6K, const SuperPair& pair, __m512 act_scale, __m512, __mmask16 keep, __m512 acc) {
  const __m512i p = super_parts(pair.super[0], pair.q[0]), r = super_parts(pair.super[1], pair.q[1]);
  const __m512i mixed = _mm512_add_epi32(_mm512_shuffle_i32x4(p, r, 0x88), _mm512_shuffle_i32x4(p, r, 0xdd));
  // mixed: blocks 0 2 4 6 | 1 3 5 7 | 8 10 12 14 | 9 11 13 15
  const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  const __m512 sums = _mm512_cvtepi32_ps(_mm512_permutexvar_epi32(order, mixed));
  const auto d_of = [](const std::byte* super) {
    return _mm_set1_epi16(static_cast<short>(load_u16(super + Q6K::kDAt)));
  };
  const __m512 d =
      _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(d_of(pair.super[0])), d_of(pair.super[1]), 1));
  return _mm512_mask3_fmadd_ps(_mm512_mul_ps(d, act_scale), sums, acc, keep);
}

// acc takes in super-block i of the row and, if kPair, the next one.
template <class Format, bool kPair>
inline __m512 add_supers(const std::byte* row, const std::byte* coming, const ActivationRow& a, int64_t i, __m512 acc) {
  constexpr int64_t kSecond = kPair ? 1 : 0;
  constexpr __mmask16 kKeep = kPair ? 0xffff : 0xff;
  prefetch(coming + i * Format::kBytes, (1 + kSecond) * Format::kBytes);
  const SuperPair pair = {{row + i * Format::kBytes, row + (i + kSecond) * Format::kBytes},
                          {a.q + i * kSuperBlock, a.q + (i + kSecond) * kSuperBlock}};
  const int64_t block = i * kSuperBlocks;
  const __m512 act_sum = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(kKeep, a.sum + block));
  return add_pair(Format{}, pair, _mm512_maskz_loadu_ps(kKeep, a.scale + block), act_sum, kKeep, acc);
}

template <class Format>
void dot_rows(const WeightRows& w, const int32_t* rows, int64_t first_row, int64_t n_rows, const ActivationRow& a,
              float* out) {
  const int64_t n_supers = w.n / kSuperBlock;
  stream_rows(w, rows, first_row, n_rows, n_supers * Format::kBytes, out,
              [&](const std::byte* row, const std::byte* coming) {
                __m512 acc = _mm512_setzero_ps();
                int64_t i = 0;
                for (; i + 2 <= n_supers; i += 2) acc = add_supers<Format, true>(row, coming, a, i, acc);
                if (i < n_supers) acc = add_supers<Format, false>(row, coming, a, i, acc);
                return reduce_lanes(acc);
              });
}

template <class Format>
void gemm(const GemmArgs& args) {
  if (args.n_acts == 1) return dot_rows<Format>(args.w, nullptr, args.first_row, args.n_rows, args.acts[0], args.out);
  if (FewGemm<Avx512KFew, Format>::serves(args, kFewActs<Format>)) return FewGemm<Avx512KFew, Format>::run(args);
  BlockGemm<Avx512K>::run<Format>(args);
}

template <class Format>
void fill(Kernels& table) {
  table.dot_rows[Format::kType] = dot_rows<Format>;
  table.gemm[Format::kType] = gemm<Format>;
}

}  // namespace

void fill_block_k_avx512(Kernels& table) {
  fill<Q4K>(table);
  fill<Q5K>(table);
  fill<Q6K>(table);
  table.gemm_scratch_bytes = BlockGemm<Avx512K>::scratch_bytes;
}

}  // namespace hotset::cpu
