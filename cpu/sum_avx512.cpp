// Exact sums of units for AVX-512. Blocks: S is split into balanced bytes, its limbs: S = sum of limb[i] * 2^(8 i).
// Their products with the integers of four units are added up by vpdpbusd in int32, and merged to int64 once a pass.
#include "cpu/sum_avx512_quad.h"
#include "cpu/sum_avx512_unpacked.h"
#include "cpu/sum_avx512_vec.h"
#include "cpu/sum_floats.h"

namespace hotset::cpu {
namespace {

// ---- blocks ---------------------------------------------------------------------------------------------------------

// Rows that go past the sums together. |sum of a limb| <= 4 * kPassQuads * 255 * 128 < 2^22: two limbs still make an
// int32.
constexpr int64_t kPassQuads = kPassUnits / 4;
constexpr int64_t kHalf = kBlock / 2;

// S of a quad as limbs: set s, lane l, dword i: limb i of A, B, C, D (low), limb 4 + i (high).
struct Limbs {
  __m512i low[2], high[2];
};

// What is known of all S of one activation in a strip.
struct StripScales {
  __m512i largest = _mm512_setzero_si512();  // of the bits of |h * d * 2^kSumBits| as floats: NaN is larger than all
  __m512i total[2][2] = {};                  // sums of S, qwords (A, B, C, D) of lanes 0 and 1, 2 and 3; of Quad::d[..]
  __m512i minimum[2][2] = {};                // the same of S_m; of Quad::m[..]
  uint32_t bad = 0;                          // blocks whose sums are poisoned
};

// The bits of the largest |h * d| that fit a sum, times 2^kSumBits.
constexpr uint32_t kLimitBits = (127u + 15u + kSumBits) << 23;

// The integers of scaled floats: A, B, C, D of lanes 0 and 1 in s[0], of lanes 2 and 3 in s[1].
inline void to_integers(__m512 scaled, __m512i* s) {
  s[0] = _mm512_cvtps_epi64(_mm512_castps512_ps256(scaled));
  s[1] = _mm512_cvtps_epi64(_mm512_extractf32x8_ps(scaled, 1));
}

// S of h and d, h scaled by 2^kSumBits beforehand: the same as after h * d was rounded, but where h * d is subnormal,
// whose S is 0 anyway. Good for nothing if `all.largest` gets too large.
inline void to_sums(__m512 h, __m512 d, StripScales& all, __m512i* s) {
  const __m512 p = _mm512_mul_ps(h, d);
  const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(p), _mm512_set1_epi32(0x7fffffff));
  all.largest = _mm512_max_epu32(all.largest, magnitude);
  to_integers(p, s);
}

// The same with h as it is, for scales of which some do not fit: S of these is 0. Returns which are used.
inline __mmask16 to_fitting_sums(__m512 h, __m512 d, StripScales& all, __m512i* s) {
  const __mmask16 weighs = _mm512_cmp_ps_mask(h, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  const __m512 p = _mm512_maskz_mul_ps(weighs, h, d);
  const __mmask16 fits = _mm512_cmp_ps_mask(_mm512_abs_ps(p), _mm512_set1_ps(kSumLimit), _CMP_LT_OQ);
  const __m512 scaled = _mm512_maskz_mul_ps(fits, p, _mm512_set1_ps(static_cast<float>(kSumOne)));
  all.largest = _mm512_max_epu32(all.largest, _mm512_castps_si512(_mm512_abs_ps(scaled)));
  to_integers(scaled, s);
  return static_cast<__mmask16>(~fits);
}

// The limbs of S: bytes of S + 0x80.., less 0x80 each. Set `set` of `out`; lanes as in `s`.
inline void split(const __m512i* s, int set, Limbs& out) {
  const __m512i bias = _mm512_set1_epi64(0x0080808080808080);
  const __m512i pairs = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
  __m512i z[2];  // 128-bit lanes: A and B, C and D, byte by byte
  for (int i = 0; i < 2; ++i) z[i] = _mm512_shuffle_epi8(_mm512_xor_si512(_mm512_add_epi64(s[i], bias), bias), pairs);
  const __m512i ab = _mm512_shuffle_i64x2(z[0], z[1], 0x88), cd = _mm512_shuffle_i64x2(z[0], z[1], 0xdd);
  out.low[set] = _mm512_unpacklo_epi16(ab, cd);
  out.high[set] = _mm512_unpackhi_epi16(ab, cd);
}

// Blocks of bad scales: four bits of `bad` per lane.
template <class Format>
inline uint32_t bad_blocks(uint32_t bad, int set) {
  uint32_t out = 0;
  for (uint32_t l = 0; l < 4; ++l)
    if (bad >> (4 * l) & 15) out |= 1u << (Format::kHalfScales ? (4 * static_cast<uint32_t>(set) + l) / 2 : l);
  return out;
}

// Low and high pairs of lanes, each lane for the two halves of its block: where Format::half_of puts them.
inline void spread_pairs(__m512i* sets) {
  const __m512i lanes = sets[0];
  sets[0] = _mm512_shuffle_i32x4(lanes, lanes, 0xa0), sets[1] = _mm512_shuffle_i32x4(lanes, lanes, 0xf5);
}

// h of quad k, 0 for units past the last, in every lane.
inline __m512 quad_weights(const float* h, int64_t k, int64_t n_units) {
  const int64_t n = n_units - 4 * k;
  return _mm512_broadcast_f32x4(n < 4 ? _mm_maskz_loadu_ps(static_cast<__mmask8>((1 << n) - 1), h + 4 * k)
                                      : _mm_loadu_ps(h + 4 * k));
}

// The limbs of a quad for one activation; kFitting: with the care that scales ask for of which some do not fit.
template <class Format, bool kFitting>
inline void weigh(const Quad& quad, __m512 h, Limbs& out, StripScales& all) {
  const auto integers = [&](__m512 d, int set, __m512i* s) {
    if constexpr (kFitting)
      all.bad |= bad_blocks<Format>(to_fitting_sums(h, d, all, s), set);
    else
      to_sums(h, d, all, s);
  };
  for (int set = 0; set < (Format::kHalfScales ? 2 : 1); ++set) {
    __m512i s[2];
    integers(quad.d[set], set, s);
    for (int i = 0; Format::kOffset != 0 && i < 2; ++i) all.total[set][i] = _mm512_add_epi64(all.total[set][i], s[i]);
    split(s, set, out);
    if constexpr (Format::kHasMinimum) {
      integers(quad.m[set], set, s);
      for (int i = 0; i < 2; ++i) all.minimum[set][i] = _mm512_add_epi64(all.minimum[set][i], s[i]);
    }
  }
  if constexpr (Format::kPairs) {
    spread_pairs(out.low);
    spread_pairs(out.high);
  }
}

// The same for all quads of a strip.
template <class Format, bool kFitting>
inline StripScales weigh_all(const Quad* quads, int64_t n_units, const float* h, Limbs* out) {
  StripScales all;
  const __m512 one = _mm512_set1_ps(kFitting ? 1.0f : static_cast<float>(kSumOne));
  for (int64_t k = 0; 4 * k < n_units; ++k) {
    weigh<Format, kFitting>(quads[k], _mm512_mul_ps(quad_weights(h, k, n_units), one), out[k], all);
  }
  return all;
}

// From these bits on, of scaled floats as of kLimitBits, S takes more than four limbs.
constexpr uint32_t kWideBits = (127u + 30u) << 23;

// The limbs of S as an int32, A, B, C, D in the dwords of each lane: dword i of a lane is their limb i.
inline __m512i split_narrow(__m512 scaled) {
  const __m512i bias = _mm512_set1_epi32(static_cast<int>(0x80808080));
  const __m512i bytes = _mm512_xor_si512(_mm512_add_epi32(_mm512_cvtps_epi32(scaled), bias), bias);
  return _mm512_shuffle_epi8(
      bytes, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
}

// Sums of limb i in dword i of each lane as qwords whose sum is that of S, laid out as StripScales has them.
inline void widen_total(__m512i limbs, __m512i* out) {
  const __m512i shifts = _mm512_setr_epi64(0, 8, 16, 24, 0, 8, 16, 24);
  out[0] = _mm512_sllv_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(limbs)), shifts);
  out[1] = _mm512_sllv_epi64(_mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(limbs, 1)), shifts);
}

// weigh_all for S of at most four limbs, with S as int32. Good for nothing if `largest` reaches kWideBits.
template <class Format>
inline StripScales weigh_narrow(const Quad* quads, int64_t n_units, const float* h, Limbs* out) {
  constexpr int kSets = Format::kHalfScales ? 2 : 1;
  const __m512 one = _mm512_set1_ps(static_cast<float>(kSumOne));
  const __m512i ones = _mm512_set1_epi8(1);
  StripScales all;
  __m512i total[2] = {}, minimum[2] = {};
  const auto limbs = [&](__m512 weight, __m512 d) {
    const __m512 p = _mm512_mul_ps(weight, d);
    all.largest = _mm512_max_epu32(all.largest, _mm512_castps_si512(_mm512_abs_ps(p)));
    return split_narrow(p);
  };
  for (int64_t k = 0; 4 * k < n_units; ++k) {
    const __m512 weight = _mm512_mul_ps(quad_weights(h, k, n_units), one);
    for (int set = 0; set < kSets; ++set) {
      out[k].low[set] = limbs(weight, quads[k].d[set]);
      if constexpr (Format::kOffset != 0) total[set] = _mm512_dpbusd_epi32(total[set], ones, out[k].low[set]);
      if constexpr (Format::kHasMinimum)
        minimum[set] = _mm512_dpbusd_epi32(minimum[set], ones, limbs(weight, quads[k].m[set]));
    }
    if constexpr (Format::kPairs) spread_pairs(out[k].low);
  }
  for (int set = 0; Format::kOffset != 0 && set < kSets; ++set) widen_total(total[set], all.total[set]);
  for (int set = 0; Format::kHasMinimum && set < kSets; ++set) widen_total(minimum[set], all.minimum[set]);
  return all;
}

// The sum of A, B, C and D of lane l, in out[kTotalAt[l]].
constexpr int kTotalAt[4] = {0, 4, 1, 5};
inline __m512i lane_totals(const __m512i* pair) {
  const __m512i ab_cd =
      _mm512_add_epi64(_mm512_unpacklo_epi64(pair[0], pair[1]), _mm512_unpackhi_epi64(pair[0], pair[1]));
  return _mm512_add_epi64(ab_cd, _mm512_permutex_epi64(ab_cd, 0x4e));
}

// Less what the sums of each block (Q6_K: half block) are too high by: the integers' offset, and the minima. Block
// (half block) i at out[i / 4][kTotalAt[i % 4]].
template <class Format>
inline void find_correction(const StripScales& all, int64_t (*out)[8]) {
  for (int set = 0; set < (Format::kHalfScales ? 2 : 1); ++set) {
    __m512i by = _mm512_setzero_si512();
    if constexpr (Format::kOffset != 0)
      by = _mm512_mullo_epi64(lane_totals(all.total[set]), _mm512_set1_epi64(-Format::kOffset));
    if constexpr (Format::kHasMinimum) by = _mm512_sub_epi64(by, lane_totals(all.minimum[set]));
    _mm512_storeu_si512(out[set], by);
  }
}

// Lane l of the four vectors becomes vector l.
inline void transpose_lanes(__m512i* v) {
  const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
  const __m512i c = _mm512_shuffle_i32x4(v[0], v[1], 0xee), d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
  v[0] = _mm512_shuffle_i32x4(a, b, 0x88), v[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
  v[2] = _mm512_shuffle_i32x4(c, d, 0x88), v[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

// The blocks of a strip that are asked for, and the sums of its first column (which may be before those asked for).
struct StripPart {
  int64_t begin, end;
  int64_t* sums;
};

inline void add_eight(int64_t* sums, __m512i by) {
  const __m512i old = _mm512_loadu_si512(sums);
  const __mmask8 valid = _mm512_cmpneq_epi64_mask(old, _mm512_set1_epi64(kNoSum));
  _mm512_storeu_si512(sums, _mm512_mask_add_epi64(old, valid, old, by));
}

// sum += the products of bytes, those of `u` unsigned. The intrinsic's sums GCC 12 copies back and forth, and spills.
[[gnu::always_inline]] inline void add_dots(__m512i& sum, __m512i u, __m512i limb) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(limb));
}

// Limb i in every dword of a lane.
[[gnu::always_inline]] inline __m512i limb_of(__m512i low, __m512i high, int i) {
  switch (i) {
    case 0: return _mm512_shuffle_epi32(low, static_cast<_MM_PERM_ENUM>(0x00));
    case 1: return _mm512_shuffle_epi32(low, static_cast<_MM_PERM_ENUM>(0x55));
    case 2: return _mm512_shuffle_epi32(low, static_cast<_MM_PERM_ENUM>(0xaa));
    case 3: return _mm512_shuffle_epi32(low, static_cast<_MM_PERM_ENUM>(0xff));
    case 4: return _mm512_shuffle_epi32(high, static_cast<_MM_PERM_ENUM>(0x00));
    case 5: return _mm512_shuffle_epi32(high, static_cast<_MM_PERM_ENUM>(0x55));
    default: return _mm512_shuffle_epi32(high, static_cast<_MM_PERM_ENUM>(0xaa));
  }
}

// Adds one set of a strip's columns, where S has L limbs.
template <class Format, int L>
inline void add_set(const Quad* quads, const Limbs* limbs, int64_t n_quads, int set, const int64_t (*correction)[8],
                    const StripPart& part) {
  constexpr int kPairs = (L + 1) / 2;
  __m512i sums[L][4];
#pragma GCC unroll 8
  for (int i = 0; i < L; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums[i][v] = _mm512_setzero_si512();
  for (int64_t k = 0; k < n_quads; ++k) {
    const int of = Format::kPairs || Format::kHalfScales ? set : 0;
    const __m512i low = limbs[k].low[of], high = limbs[k].high[of];
    const __m512i* const q = quads[k].q + 4 * set;
#pragma GCC unroll 8
    for (int i = 0; i < L; ++i) {
      const __m512i limb = limb_of(low, high, i);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) add_dots(sums[i][v], q[v], limb);
    }
  }
  __m512i pairs[kPairs][4];  // of limbs 2 i and 2 i + 1
#pragma GCC unroll 4
  for (int i = 0; i < kPairs; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      pairs[i][v] = sums[2 * i][v];
      if (2 * i + 1 < L) pairs[i][v] = _mm512_add_epi32(pairs[i][v], _mm512_slli_epi32(sums[2 * i + 1][v], 8));
    }
    transpose_lanes(pairs[i]);
  }
  for (int l = 0; l < 4; ++l) {
    const int half = Format::half_of(set, l);
    if (half / 2 < part.begin || half / 2 >= part.end) continue;
    __m512i by[2];
    const int i = Format::kHalfScales ? half : half / 2;
    by[0] = by[1] = _mm512_set1_epi64(correction[i / 4][kTotalAt[i % 4]]);
    for (int j = 0; j < kPairs; ++j) {
      const __m512i first = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(pairs[j][l]));
      const __m512i second = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(pairs[j][l], 1));
      by[0] = _mm512_add_epi64(by[0], _mm512_slli_epi64(first, 16 * j));
      by[1] = _mm512_add_epi64(by[1], _mm512_slli_epi64(second, 16 * j));
    }
    add_eight(part.sums + half * kHalf, by[0]), add_eight(part.sums + half * kHalf + 8, by[1]);
  }
}

template <class Format, int L>
[[gnu::noinline]] void add_strip(const Quad* quads, const Limbs* limbs, int64_t n_quads, const int64_t (*correction)[8],
                                 const StripPart& part) {
  for (int set = 0; set < 2; ++set) add_set<Format, L>(quads, limbs, n_quads, set, correction, part);
}

// Adds one strip of `n_units` units, weighed by h. `narrow`: whether to expect S of at most four limbs; what they were,
// after it. Not inlined: one for all types of a kind.
template <class Format>
[[gnu::noinline]] void sum_strip(const Quad* quads, int64_t n_units, const float* h, const StripPart& part,
                                 bool& narrow) {
  const int64_t n_quads = (n_units + 3) / 4;
  Limbs limbs[kPassQuads];
  StripScales all;
  uint32_t largest = kWideBits;
  if (narrow) {
    all = weigh_narrow<Format>(quads, n_units, h, limbs);
    largest = _mm512_reduce_max_epu32(all.largest);
  }
  if (largest >= kWideBits) {
    all = weigh_all<Format, false>(quads, n_units, h, limbs);
    largest = _mm512_reduce_max_epu32(all.largest);
  }
  narrow = largest < kWideBits;
  if (largest >= kLimitBits) {
    all = weigh_all<Format, true>(quads, n_units, h, limbs);
    largest = _mm512_reduce_max_epu32(all.largest);
  }
  int64_t correction[2][8];
  find_correction<Format>(all, correction);
  // |S| <= 2^n_bits. L limbs reach at least 0x7f7f.., so up to 2^(8 L - 2) all is well.
  const int n_bits = static_cast<int>(largest >> 23) - 126;
  if (n_bits <= 22)
    add_strip<Format, 3>(quads, limbs, n_quads, correction, part);
  else if (n_bits <= 30)
    add_strip<Format, 4>(quads, limbs, n_quads, correction, part);
  else if (n_bits <= 38)
    add_strip<Format, 5>(quads, limbs, n_quads, correction, part);
  else
    add_strip<Format, 7>(quads, limbs, n_quads, correction, part);
  for (int64_t b = part.begin; b < part.end; ++b)
    if (all.bad >> b & 1)
      for (int64_t i = 0; i < kBlock; ++i) part.sums[b * kBlock + i] = kNoSum;
}

template <class Format>
void sum_pass(const RowSumArgs& args, SumPass& pass, const SumPass& next) {
  const int64_t n_quads = (pass.n_units + 3) / 4, n_row_blocks = args.w.n / kBlock;
  for (int64_t u = pass.n_units; u < 4 * n_quads; ++u) pass.rows[u] = pass.rows[0];
  const int64_t first = args.first_col / kBlock, end = (args.first_col + args.n_cols) / kBlock;
  const int64_t first_strip = first / kStripBlocks, n_strips = (end + kStripBlocks - 1) / kStripBlocks - first_strip;
  Ahead<Format::kType> ahead(args, next, n_strips * n_quads);
  bool narrow = true;
  for (int64_t i = 0; i < n_strips; ++i) {
    Quad quads[kPassQuads];
    for (int64_t k = 0; k < n_quads; ++k) {
      if constexpr (Format::kType > kWeightQ6_K)
        Format::load(pass.rows + 4 * k, first_strip + i, n_row_blocks, quads[k]);
      else
        load_quad<Format>(pass.rows + 4 * k, first_strip + i, n_row_blocks, quads[k]);
      ahead.go_on();
    }
    const int64_t block = (first_strip + i) * kStripBlocks;
    StripPart part{first > block ? first - block : 0, end - block < kStripBlocks ? end - block : kStripBlocks, nullptr};
    for (int64_t a = 0; a < args.n_acts; ++a) {
      part.sums = args.sums + a * args.sums_stride + block * kBlock - args.first_col;
      sum_strip<typename Format::Kind>(quads, pass.n_units, pass.h + a * args.h_stride, part, narrow);
    }
  }
}

template <class Format>
void block_sums(const RowSumArgs& args) {
  for_passes(args, [&](SumPass& pass, const SumPass& next) { sum_pass<Format>(args, pass, next); });
}

}  // namespace

void fill_sum_avx512(Kernels& table) {
  fill_float_sums(table);
  table.row_sum[kWeightQ8_0] = block_sums<SumQ8>;
  table.row_sum[kWeightQ4_0] = block_sums<SumQ4>;
  table.row_sum[kWeightQ4_K] = block_sums<SumQ4K>;
  table.row_sum[kWeightQ5_K] = block_sums<SumQ5K>;
  table.row_sum[kWeightQ6_K] = block_sums<SumQ6K>;
  for_unpacked_formats([&]<WeightType type, class Format>() {
    table.row_sum[type] = block_sums<SumUnpacked<Format, type>>;
  });
}

}  // namespace hotset::cpu
