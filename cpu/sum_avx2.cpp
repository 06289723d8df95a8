// Exact sums of units for AVX2. Blocks: S is split into balanced 16-bit words, its limbs: S = sum of limb[i] * 2^(16
// i). Their products with the integers of two units are added up by vpmaddwd in int32, and merged to int64 once a pass.
#include "cpu/sum_avx2_vec.h"
#include "cpu/sum_floats.h"
#include "cpu/unpacked_avx2_vec.h"

namespace hotset::cpu {
namespace {

// |sum of a limb| <= kPassUnits * 128 * 2^15 = 2^29.
constexpr int64_t kPassQuads = kPassUnits / 4;
constexpr int kMostLimbs = 4;

// A block of four rows A, B, C, D: integers as words (A, B) in pair 0, (C, D) in pair 1. Lane l of vector 2 i + j holds
// columns 16 i + 4 j + 8 l .. + 3.
struct Quad {
  __m256i q[2][4];
  __m128 d[2];  // scales of A, B, C, D, of the two halves
  __m128 m[2];  // minima, of types that have one
};

inline float half_value(const std::byte* at) { return _cvtsh_ss(load_u16(at)); }

// The 32 integers of block b of a row, offset included, as bytes; scale and minimum where a block has one.
struct BytesBlock {
  __m256i q;
  float d[2];
  float m[2];
};

inline BytesBlock load_block(Q8, const std::byte* row, int64_t b) {
  const std::byte* const at = row + b * Q8::kBytes;
  const float d = half_value(at);
  return {load256(at + 2), {d, d}, {}};
}

inline BytesBlock load_block(Q4, const std::byte* row, int64_t b) {
  const std::byte* const at = row + b * Q4::kBytes;
  const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 2));
  const __m256i q = low_bits(_mm256_set_m128i(_mm_srli_epi16(both, 4), both), 4);
  const float d = half_value(at);
  return {_mm256_sub_epi8(q, _mm256_set1_epi8(Q4::kOffset)), {d, d}, {}};
}

template <class Format>
inline BytesBlock load_k_block(const std::byte* super, int64_t b) {
  const Dwords packed = k_scale_bytes(super);
  uint8_t scales[2 * kSuperBlocks];
  std::memcpy(scales, &packed, sizeof scales);
  const float d = half_value(super) * static_cast<float>(scales[b]);
  const __m256i both = load256(super + Format::kNibblesAt + b / 2 * kBlock);
  const float m = half_value(super + 2) * static_cast<float>(scales[8 + b]);
  return {low_bits(shift_right(both, b % 2 * 4), 4), {d, d}, {m, m}};
}

inline BytesBlock load_block(Q4K, const std::byte* row, int64_t b) {
  return load_k_block<Q4K>(row + b / kSuperBlocks * Q4K::kBytes, b % kSuperBlocks);
}

inline BytesBlock load_block(Q5K, const std::byte* row, int64_t b) {
  const std::byte* const super = row + b / kSuperBlocks * Q5K::kBytes;
  BytesBlock out = load_k_block<Q5K>(super, b % kSuperBlocks);
  const __m256i high = low_bits(shift_right(load256(super + Q5K::kHighAt), static_cast<int>(b % kSuperBlocks)), 1);
  out.q = _mm256_or_si256(out.q, _mm256_slli_epi16(high, 4));
  return out;
}

inline BytesBlock load_block(Q6K, const std::byte* row, int64_t b) {
  const std::byte* const super = row + b / kSuperBlocks * Q6K::kBytes;
  const int64_t in_super = b % kSuperBlocks, half = in_super / 4;
  const int in_half = static_cast<int>(in_super % 4);
  const __m256i low = low_bits(shift_right(load256(super + 64 * half + kBlock * (in_half % 2)), in_half / 2 * 4), 4);
  const __m256i high = low_bits(shift_right(load256(super + Q6K::kHighAt + kBlock * half), 2 * in_half), 2);
  const __m256i q = _mm256_or_si256(low, _mm256_slli_epi16(high, 4));
  BytesBlock out{_mm256_sub_epi8(q, _mm256_set1_epi8(Q6K::kOffset)), {}, {}};
  const float d = half_value(super + Q6K::kDAt);
  for (int64_t i = 0; i < 2; ++i)
    out.d[i] = d * static_cast<float>(static_cast<int8_t>(super[Q6K::kScalesAt + 2 * in_super + i]));
  return out;
}

// The types of core/unpacked_block.h. Scales are read as plainly as there: the integers are what takes time.
template <class Format>
inline BytesBlock load_block(Format, const std::byte* row, int64_t b) {
  const std::byte* const at = row + b / Format::kBlocks * Format::kBytes;
  const int in_group = static_cast<int>(b % Format::kBlocks);
  UnpackedBlock scales;
  Format::unpack_scales(at, in_group, scales);
  BytesBlock out{load_q(Format{}, at, in_group), {}, {}};
  for (int i = 0; i < 2; ++i) {
    out.d[i] = scales.d * static_cast<float>(scales.c[i]);
    if constexpr (Format::kHasMinimum) out.m[i] = scales.m * static_cast<float>(scales.k[i]);
  }
  return out;
}

template <class Format>
inline void load_quad(const std::byte* const* rows, int64_t b, Quad& out) {
  BytesBlock block[4];
  for (int u = 0; u < 4; ++u) block[u] = load_block(Format{}, rows[u], b);
  for (int pair = 0; pair < 2; ++pair)
    for (int i = 0; i < 2; ++i) {
      const auto words = [&](int u) {
        const __m256i q = block[2 * pair + u].q;
        return _mm256_cvtepi8_epi16(i == 0 ? _mm256_castsi256_si128(q) : _mm256_extracti128_si256(q, 1));
      };
      out.q[pair][2 * i] = _mm256_unpacklo_epi16(words(0), words(1));
      out.q[pair][2 * i + 1] = _mm256_unpackhi_epi16(words(0), words(1));
    }
  for (int i = 0; i < 2; ++i) out.d[i] = _mm_setr_ps(block[0].d[i], block[1].d[i], block[2].d[i], block[3].d[i]);
  for (int i = 0; i < 2; ++i) out.m[i] = _mm_setr_ps(block[0].m[i], block[1].m[i], block[2].m[i], block[3].m[i]);
}

// Dword i: limb i of (A, B), dword 4 + i: limb i of (C, D); of each half's S.
struct Limbs {
  alignas(32) int32_t half[2][8];
};

// What is known of all S of one activation in a block.
struct BlockScales {
  __m128i largest = _mm_setzero_si128();     // of the bits of |h * d|: NaN is larger than all
  __m256i minimum[2] = {};                   // sums of S_m, of the two halves
};

// S of h and d. What does not fit makes `largest` too large; where h is 0 so is S.
inline __m256i to_sums(__m128 h, __m128 d, BlockScales& all) {
  const __m128 p = _mm_and_ps(_mm_mul_ps(h, d), _mm_cmpneq_ps(h, _mm_setzero_ps()));
  const __m128i magnitude = _mm_and_si128(_mm_castps_si128(p), _mm_set1_epi32(0x7fffffff));
  all.largest = _mm_max_epu32(all.largest, magnitude);
  const __m256d whole = _mm256_set1_pd(kWholeNumbers);
  const __m256d near = _mm256_add_pd(_mm256_mul_pd(_mm256_cvtps_pd(p), _mm256_set1_pd(kSumOne)), whole);
  return _mm256_sub_epi64(_mm256_castpd_si256(near), _mm256_castpd_si256(whole));
}

// The limbs of S: words of S + 0x8000.., less 0x8000 each, the highest as it is.
inline void split(__m256i s, int32_t* out) {
  const __m256i bias = _mm256_set1_epi64x(0x0000800080008000);
  const __m256i pairs =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
  const __m256i words = _mm256_xor_si256(_mm256_add_epi64(s, bias), bias);
  _mm256_store_si256(reinterpret_cast<__m256i*>(out), _mm256_shuffle_epi8(words, pairs));
}

template <bool kHalves, bool kMinimum>
inline BlockScales weigh_all(const Quad* quads, int64_t n_units, const float* h, Limbs* out) {
  BlockScales all;
  for (int64_t k = 0; 4 * k < n_units; ++k) {
    const int64_t n = n_units - 4 * k < 4 ? n_units - 4 * k : 4;
    const __m128i last = _mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(n)), _mm_setr_epi32(0, 1, 2, 3));
    const __m128 by = n == 4 ? _mm_loadu_ps(h + 4 * k) : _mm_maskload_ps(h + 4 * k, last);
    for (int i = 0; i < (kHalves ? 2 : 1); ++i) {
      split(to_sums(by, quads[k].d[i], all), out[k].half[i]);
      if constexpr (kMinimum) all.minimum[i] = _mm256_add_epi64(all.minimum[i], to_sums(by, quads[k].m[i], all));
    }
  }
  return all;
}

// Adds the columns of vectors 2 i and 2 i + 1, where S has L limbs, less `minimum`.
template <bool kHalves>
inline void add_half(const Quad* quads, const Limbs* limbs, int64_t n_quads, int n_limbs, int i, __m256i minimum,
                     int64_t* sums) {
  __m256i by[4];  // columns 0, 4, 8, 12 and on of the half
  for (int c = 0; c < 4; ++c) by[c] = _mm256_sub_epi64(_mm256_setzero_si256(), minimum);
  const int half = kHalves ? i : 0;
  for (int limb = 0; limb < n_limbs; ++limb) {
    __m256i a0 = _mm256_setzero_si256(), a1 = a0, b0 = a0, b1 = a0;
    for (int64_t k = 0; k < n_quads; ++k) {
      const __m256i ab = _mm256_set1_epi32(limbs[k].half[half][limb]),
                    cd = _mm256_set1_epi32(limbs[k].half[half][4 + limb]);
      a0 = _mm256_add_epi32(a0, _mm256_madd_epi16(quads[k].q[0][2 * i], ab));
      a1 = _mm256_add_epi32(a1, _mm256_madd_epi16(quads[k].q[0][2 * i + 1], ab));
      b0 = _mm256_add_epi32(b0, _mm256_madd_epi16(quads[k].q[1][2 * i], cd));
      b1 = _mm256_add_epi32(b1, _mm256_madd_epi16(quads[k].q[1][2 * i + 1], cd));
    }
    const __m256i both[2] = {_mm256_add_epi32(a0, b0), _mm256_add_epi32(a1, b1)};
    for (int c = 0; c < 4; ++c) {
      const __m128i four = c < 2 ? _mm256_castsi256_si128(both[c]) : _mm256_extracti128_si256(both[c - 2], 1);
      by[c] = _mm256_add_epi64(by[c], _mm256_sll_epi64(_mm256_cvtepi32_epi64(four), _mm_cvtsi32_si128(16 * limb)));
    }
  }
  for (int c = 0; c < 4; ++c) add_checked(sums + 4 * c, by[c], _mm256_setzero_si256(), 0);
}

// Adds one block of `n_units` units, weighed by h. Not inlined: one for all types whose scales are alike.
template <bool kHalves, bool kMinimum>
[[gnu::noinline]] void sum_block(const Quad* quads, int64_t n_units, const float* h, int64_t* sums) {
  Limbs limbs[kPassQuads];
  const BlockScales all = weigh_all<kHalves, kMinimum>(quads, n_units, h, limbs);
  uint32_t each[4], largest = 0;
  std::memcpy(each, &all.largest, sizeof each);
  for (const uint32_t bits : each) largest = bits > largest ? bits : largest;
  const int n_bits = static_cast<int>(largest >> 23) - 126;  // |h * d| < 2^n_bits
  if (n_bits > 15) {
    for (int64_t i = 0; i < kBlock; ++i) sums[i] = kNoSum;
    return;
  }
  const int n_limbs = n_bits + kSumBits <= 30 ? 2 : n_bits + kSumBits <= 46 ? 3 : kMostLimbs;
  for (int i = 0; i < 2; ++i) {
    int64_t m[4];
    std::memcpy(m, &all.minimum[kHalves ? i : 0], sizeof m);
    const __m256i minimum = _mm256_set1_epi64x(m[0] + m[1] + m[2] + m[3]);
    add_half<kHalves>(quads, limbs, (n_units + 3) / 4, n_limbs, i, minimum, sums + i * kBlock / 2);
  }
}

template <class Format, WeightType type = Format::kType>
void block_sums(const RowSumArgs& args) {
  for_passes(args, [&](SumPass& pass, const SumPass& next) {
    const int64_t n_quads = (pass.n_units + 3) / 4;
    for (int64_t u = pass.n_units; u < 4 * n_quads; ++u) pass.rows[u] = pass.rows[0];
    Ahead<type> ahead(args, next, args.n_cols / kBlock);
    for (int64_t c = 0; c < args.n_cols; c += kBlock) {
      Quad quads[kPassQuads];
      for (int64_t k = 0; k < n_quads; ++k)
        load_quad<Format>(pass.rows + 4 * k, (args.first_col + c) / kBlock, quads[k]);
      ahead.go_on();
      for (int64_t a = 0; a < args.n_acts; ++a)
        sum_block<has_halves(type), has_minimum(type)>(quads, pass.n_units, pass.h + a * args.h_stride,
                                                       args.sums + a * args.sums_stride + c);
    }
  });
}

}  // namespace

void fill_sum_avx2(Kernels& table) {
  fill_float_sums(table);
  table.row_sum[kWeightQ8_0] = block_sums<Q8>;
  table.row_sum[kWeightQ4_0] = block_sums<Q4>;
  table.row_sum[kWeightQ4_K] = block_sums<Q4K>;
  table.row_sum[kWeightQ5_K] = block_sums<Q5K>;
  table.row_sum[kWeightQ6_K] = block_sums<Q6K>;
  for_unpacked_formats([&]<WeightType type, class Format>() { table.row_sum[type] = block_sums<Format, type>; });
}

}  // namespace hotset::cpu
