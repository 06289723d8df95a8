// Block kernels for AVX2, FMA and F16C: Q8_0 and Q4_0 weights with Q8 activations.
#include "cpu/block_avx2_few.h"
#include "cpu/block_format.h"
#include "cpu/canonical.h"
#include "cpu/kernels_fill.h"

namespace hotset::cpu {
namespace {

// ---- activations ----------------------------------------------------------------------------------------------------

uint32_t reduce_max(__m256i v) {
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

int32_t reduce_add(__m128i v) {
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1));
  return _mm_cvtsi128_si32(v);
}

int32_t reduce_add(__m256i v) {
  return reduce_add(_mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}

void quantize_activation(const float* x, int64_t n, int8_t* q, float* scale, int32_t* sum) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // undoes the lanes of the packs
  for (int64_t block = 0; block < n / kBlock; ++block) {
    __m256 v[4];
    __m256i max_bits = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + block * kBlock + 8 * i);
      // As integers magnitudes order like floats, and infinity and NaN come last.
      max_bits = _mm256_max_epu32(max_bits, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    }
    const uint32_t bits = reduce_max(max_bits);
    const float max = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(bits))));
    const bool finite = bits < 0x7f800000u;
    const float inverse = finite && max >= kLeastMax ? 127.0f / max : 0.0f;
    const __m256i keep = _mm256_set1_epi32(finite ? -1 : 0);
    __m256i w[4];
    for (int i = 0; i < 4; ++i)
      w[i] = _mm256_and_si256(_mm256_cvtps_epi32(_mm256_mul_ps(v[i], _mm256_set1_ps(inverse))), keep);
    const __m256i words = _mm256_packs_epi16(_mm256_packs_epi32(w[0], w[1]), _mm256_packs_epi32(w[2], w[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + block * kBlock), _mm256_permutevar8x32_epi32(words, order));
    sum[block] = reduce_add(_mm256_add_epi32(_mm256_add_epi32(w[0], w[1]), _mm256_add_epi32(w[2], w[3])));
    scale[block] = !finite ? __builtin_nanf("") : inverse == 0.0f ? 0.0f : max / 127.0f;
  }
}

// ---- dot_rows -------------------------------------------------------------------------------------------------------
// 8 blocks of one row make 8 exact int32 sums in one register, in the order of their lanes. Products are formed 8 bit
// by 8 bit as |w| * sign(q, w): |w| <= 128 and |q| <= 127, so a pair of products never saturates its 16 bits.

constexpr int kChunk = 8;

// Eight parts of the sum of one Q8_0 block.
inline __m256i block_parts(const std::byte* w, const int8_t* q) {
  const __m256i v = load256(w + 2);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(load256(q), v));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

inline __m256i chunk_sums(Q8, const std::byte* w, const int8_t* q, const int32_t*) {
  __m256i s[kChunk];
  for (int i = 0; i < kChunk; ++i) s[i] = block_parts(w + i * Q8::kBytes, q + i * kBlock);
  const __m256i a = quad_sums(s[0], s[1], s[2], s[3]), b = quad_sums(s[4], s[5], s[6], s[7]);
  return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

inline __m256i chunk_sums(Q4, const std::byte* w, const int8_t* q, const int32_t* act_sum) {
  const __m256i nibble = _mm256_set1_epi8(0xf);
  __m256i s[4];  // four parts of block i in the low lane, of block i + 4 in the high
  for (int i = 0; i < 4; ++i) {
    const __m256i both = load_halves(w + i * Q4::kBytes + 2, w + (i + 4) * Q4::kBytes + 2);
    const __m256i low = _mm256_and_si256(both, nibble);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
    const int8_t *q0 = q + i * kBlock, *q4 = q + (i + 4) * kBlock;
    const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, load_halves(q0, q4)),
                                           _mm256_maddubs_epi16(high, load_halves(q0 + 16, q4 + 16)));
    s[i] = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  const __m256i offset = _mm256_slli_epi32(load256(act_sum), 3);
  return _mm256_sub_epi32(quad_sums(s[0], s[1], s[2], s[3]), offset);
}

// acc[lane] = fma(d_w * d_a, float(s), acc[lane]) for the 8 blocks from `block` on.
template <class Format>
inline __m256 add_chunk(const std::byte* row, const ActivationRow& a, int64_t block, __m256 acc) {
  const std::byte* w = row + block * Format::kBytes;
  const __m256i s = chunk_sums(Format{}, w, a.q + block * kBlock, a.sum + block);
  const __m256 d = _mm256_mul_ps(chunk_scales<Format>(w), _mm256_loadu_ps(a.scale + block));
  return _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(s), acc);
}

inline int32_t block_sum(Q8, const std::byte* w, const int8_t* q, int32_t) { return reduce_add(block_parts(w, q)); }

inline int32_t block_sum(Q4, const std::byte* w, const int8_t* q, int32_t act_sum) {
  const __m128i nibble = _mm_set1_epi8(0xf), both = load128(w + 2);
  const __m128i low = _mm_and_si128(both, nibble), high = _mm_and_si128(_mm_srli_epi16(both, 4), nibble);
  const __m128i pairs = _mm_add_epi16(_mm_maddubs_epi16(low, load128(q)), _mm_maddubs_epi16(high, load128(q + 16)));
  return reduce_add(_mm_madd_epi16(pairs, _mm_set1_epi16(1))) - 8 * act_sum;
}

// The last blocks [begin, n_blocks), fewer than 8, one at a time; then the lane tree.
template <class Format>
float finish_row(const std::byte* row, const ActivationRow& a, int64_t begin, int64_t n_blocks, __m256 acc0,
                 __m256 acc1) {
  alignas(32) float lane[kLanes];
  _mm256_store_ps(lane, acc0);
  _mm256_store_ps(lane + 8, acc1);
  for (int64_t block = begin; block < n_blocks; ++block) {
    const std::byte* w = row + block * Format::kBytes;
    const int32_t s = block_sum(Format{}, w, a.q + block * kBlock, a.sum[block]);
    const float d = _cvtsh_ss(load_u16(w)) * a.scale[block];
    lane[block % kLanes] = fma1(d, static_cast<float>(s), lane[block % kLanes]);
  }
  return reduce_lanes(lane);
}

template <class Format>
void dot_rows(const WeightRows& w, const int32_t* rows, int64_t first_row, int64_t n_rows, const ActivationRow& a,
              float* out) {
  const int64_t n_blocks = w.n / kBlock;
  const int64_t ahead = rows_ahead(n_blocks * Format::kBytes);
  for (int64_t r = 0; r < n_rows; ++r) {
    const std::byte* row = row_at(w, rows ? rows[r] : first_row + r);
    const int64_t next = r + ahead < n_rows ? r + ahead : n_rows - 1;
    const std::byte* coming = row_at(w, rows ? rows[next] : first_row + next);
    __m256 acc0 = _mm256_setzero_ps(), acc1 = _mm256_setzero_ps();
    int64_t block = 0;
    for (; block + 2 * kChunk <= n_blocks; block += 2 * kChunk) {
      prefetch(coming + block * Format::kBytes, 2 * kChunk * Format::kBytes);
      acc0 = add_chunk<Format>(row, a, block, acc0);
      acc1 = add_chunk<Format>(row, a, block + kChunk, acc1);
    }
    prefetch(coming + block * Format::kBytes, (n_blocks - block) * Format::kBytes);
    if (block + kChunk <= n_blocks) {
      acc0 = add_chunk<Format>(row, a, block, acc0);
      block += kChunk;
    }
    out[r] = block < n_blocks ? finish_row<Format>(row, a, block, n_blocks, acc0, acc1) : reduce_lanes(acc0, acc1);
  }
}

template <class Format>
void gemm(const GemmArgs& args) {
  if (args.n_acts == 1) return dot_rows<Format>(args.w, nullptr, args.first_row, args.n_rows, args.acts[0], args.out);
  if (FewGemm<Avx2Few, Format>::serves(args, kFewActs<Format>)) return FewGemm<Avx2Few, Format>::run(args);
  BlockGemm<Avx2>::run<Format>(args);
}

}  // namespace

void fill_block_avx2(Kernels& table) {
  table.quantize_activation = quantize_activation;
  table.dot_rows[kWeightQ8_0] = dot_rows<Q8>;
  table.dot_rows[kWeightQ4_0] = dot_rows<Q4>;
  table.gemm[kWeightQ8_0] = gemm<Q8>;
  table.gemm[kWeightQ4_0] = gemm<Q4>;
  table.gemm_scratch_bytes = BlockGemm<Avx2>::scratch_bytes;
}

}  // namespace hotset::cpu
