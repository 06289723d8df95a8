// Block kernels for AVX2, FMA and F16C: Q4_K, Q5_K and Q6_K weights with Q8 activations.
#include "cpu/block_k_avx2_few.h"
#include "cpu/kernels_fill.h"

namespace hotset::cpu {
namespace {

// ---- dot_rows -------------------------------------------------------------------------------------------------------
// The 8 blocks of a super-block make 8 exact int32 sums in one register, in the order of their lanes. Moves 144, 176 or
// 210 bytes per 256 products, each once.

// s[b]: eight parts of the sum of block b.
template <class Format>
inline void super_parts(Format, const std::byte* super, const int8_t* q, __m256i* s) {
  const __m256i nibble = _mm256_set1_epi8(0xf), bit = _mm256_set1_epi8(0x10), ones = _mm256_set1_epi16(1);
  __m256i high = _mm256_setzero_si256();
  if constexpr (Format::kType == kWeightQ5_K) high = load256(super + Q5K::kHighAt);
  for (int b = 0; b < kSuperBlocks; b += 2) {
    const __m256i both = load256(super + Format::kNibblesAt + 16 * b);
    __m256i w0 = _mm256_and_si256(both, nibble), w1 = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
    if constexpr (Format::kType == kWeightQ5_K) {
      w0 = with_high_bits(w0, high, 4 - b, bit);
      w1 = with_high_bits(w1, high, 3 - b, bit);
    }
    s[b] = _mm256_madd_epi16(_mm256_maddubs_epi16(w0, load256(q + b * kBlock)), ones);
    s[b + 1] = _mm256_madd_epi16(_mm256_maddubs_epi16(w1, load256(q + (b + 1) * kBlock)), ones);
  }
}

// The parts of a Q6_K block times the scales of its halves: |q - 32| <= 32, so pairs of products fit 16 bits.
inline __m256i scaled_parts(__m256i w, const int8_t* q, __m256i scales, int block) {
  const __m256i v = _mm256_sub_epi8(w, _mm256_set1_epi8(Q6K::kOffset));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(load256(q + block * kBlock), v));
  const __m128i first = _mm_set1_epi8(static_cast<char>(2 * block));
  const __m128i second = _mm_set1_epi8(static_cast<char>(2 * block + 1));
  const __m256i spread = _mm256_shuffle_epi8(scales, _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1));
  return _mm256_madd_epi16(pairs, _mm256_srai_epi16(spread, 8));
}

inline void super_parts(Q6K, const std::byte* super, const int8_t* q, __m256i* s) {
  const __m256i nibble = _mm256_set1_epi8(0xf), pair = _mm256_set1_epi8(0x30);
  const __m256i scales = _mm256_broadcastsi128_si256(load128(super + Q6K::kScalesAt));
  for (int half = 0; half < 2; ++half) {
    const __m256i high = load256(super + Q6K::kHighAt + kBlock * half);
    for (int i = 0; i < 2; ++i) {
      const __m256i both = load256(super + 64 * half + kBlock * i);
      const __m256i w0 = with_high_bits(_mm256_and_si256(both, nibble), high, 4 - 2 * i, pair);
      const __m256i w1 = with_high_bits(_mm256_and_si256(_mm256_srli_epi16(both, 4), nibble), high, -2 * i, pair);
      s[4 * half + i] = scaled_parts(w0, q, scales, 4 * half + i);
      s[4 * half + i + 2] = scaled_parts(w1, q, scales, 4 * half + i + 2);
    }
  }
}

// acc[lane] takes in the 8 blocks of the super-block from `block` on.
template <class Format>
inline __m256 add_super(const std::byte* super, const ActivationRow& a, int64_t block, __m256 acc) {
  __m256i s[kSuperBlocks];
  super_parts(Format{}, super, a.q + block * kBlock, s);
  const __m256i low = quad_sums(s[0], s[1], s[2], s[3]), high = quad_sums(s[4], s[5], s[6], s[7]);
  const __m256 sums = _mm256_cvtepi32_ps(
      _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)));
  const __m256 act_scale = _mm256_loadu_ps(a.scale + block);
  if constexpr (Format::kType == kWeightQ6_K) {
    return _mm256_fmadd_ps(_mm256_mul_ps(splat_f16(super + Q6K::kDAt), act_scale), sums, acc);
  } else {
    const __m128i bytes = reinterpret_cast<__m128i>(k_scale_bytes(super));
    const __m256 scale = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    const __m256 minimum = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes)));
    const __m256 act_sum = _mm256_cvtepi32_ps(load256(a.sum + block));
    acc = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_mul_ps(splat_f16(super), scale), act_scale), sums, acc);
    return _mm256_fnmadd_ps(_mm256_mul_ps(splat_f16(super + 2), minimum), _mm256_mul_ps(act_scale, act_sum), acc);
  }
}

template <class Format>
void dot_rows(const WeightRows& w, const int32_t* rows, int64_t first_row, int64_t n_rows, const ActivationRow& a,
              float* out) {
  const int64_t n_supers = w.n / kSuperBlock;
  stream_rows(w, rows, first_row, n_rows, n_supers * Format::kBytes, out,
              [&](const std::byte* row, const std::byte* coming) {
                __m256 acc0 = _mm256_setzero_ps(), acc1 = _mm256_setzero_ps();
                for (int64_t i = 0; i < n_supers; i += 2) {
                  prefetch(coming + i * Format::kBytes, 2 * Format::kBytes);
                  acc0 = add_super<Format>(row + i * Format::kBytes, a, i * kSuperBlocks, acc0);
                  if (i + 1 < n_supers)
                    acc1 = add_super<Format>(row + (i + 1) * Format::kBytes, a, (i + 1) * kSuperBlocks, acc1);
                }
                return reduce_lanes(acc0, acc1);
              });
}

template <class Format>
void gemm(const GemmArgs& args) {
  if (args.n_acts == 1) return dot_rows<Format>(args.w, nullptr, args.first_row, args.n_rows, args.acts[0], args.out);
  if constexpr (kFewActs<Format> > 1)
    if (FewGemm<Avx2KFew, Format>::serves(args, kFewActs<Format>)) return FewGemm<Avx2KFew, Format>::run(args);
  BlockGemm<Avx2K>::run<Format>(args);
}

template <class Format>
void fill(Kernels& table) {
  table.dot_rows[Format::kType] = dot_rows<Format>;
  table.gemm[Format::kType] = gemm<Format>;
}

}  // namespace

void fill_block_k_avx2(Kernels& table) {
  fill<Q4K>(table);
  fill<Q5K>(table);
  fill<Q6K>(table);
  table.gemm_scratch_bytes = BlockGemm<Avx2K>::scratch_bytes;
}

}  // namespace hotset::cpu
