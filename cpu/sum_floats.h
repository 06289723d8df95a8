// Exact sums of units of float weights over vectors of doubles. h * w and a number C whose ulp is 1 make one fused
// multiply-add, rounded down: C + floor(h * w), whose bits less those of C are the integer, as long as it stays in C's
// binade. Needs a sum_*_vec.h.
#pragma once

#include "cpu/sum_passes.h"

namespace hotset::cpu {
namespace {

constexpr int64_t kBinade = INT64_MIN | int64_t{0x7ff} << 52;  // the bits that all of [2^52, 2^53) share
constexpr int64_t kColumns = 4 * kDoubles;                     // that one activation's rows go past at a time

inline int64_t whole_bits() {
  int64_t bits;
  std::memcpy(&bits, &kWholeNumbers, sizeof bits);
  return bits;
}

template <WeightType type>
inline Doubles load_weights(const std::byte* row, int64_t i) {
  const std::byte* const at = row + i * sum_block_bytes(type);
  if constexpr (type == kWeightF32) return load_weights_f32(at);
  if constexpr (type == kWeightF16) return load_weights_f16(at);
  return load_weights_bf16(at);
}

// The columns that fill no vector.
template <WeightType type>
inline void sum_rest(const RowSumArgs& args, const SumPass& pass, int64_t c, int64_t a) {
  for (; c < args.n_cols; ++c)
    for (int64_t u = 0; u < pass.n_units; ++u) {
      const float h = pass.h[a * args.h_stride + u];
      int64_t& sum = args.sums[a * args.sums_stride + c];
      if (h != 0.0f) add_float(h, float_weight(type, pass.rows[u], args.first_col + c), sum);
    }
}

// Adds a pass to V vectors of columns from c on. Every product is looked at: none of h is 0.
template <WeightType type, int V>
inline void sum_columns_one(const RowSumArgs& args, const SumPass& pass, int64_t c) {
  const Doubles whole = splat_double(kWholeNumbers);
  Sums sums[V], bad[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) sums[v] = bad[v] = splat_sum(0);
  for (int64_t u = 0; u < pass.n_units; ++u) {
    const Doubles h = splat_double(static_cast<double>(pass.h[u]) * kSumOne);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Sums t = bits_of(fma_down(h, load_weights<type>(pass.rows[u], args.first_col + c + v * kDoubles), whole));
      sums[v] = add(sums[v], t);
      bad[v] = or_differences(bad[v], t, bits_of(whole));
    }
  }
  const Sums too_much =
      splat_sum(static_cast<int64_t>(static_cast<uint64_t>(pass.n_units) * static_cast<uint64_t>(whole_bits())));
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) add_checked(args.sums + c + v * kDoubles, sub(sums[v], too_much), bad[v], kBinade);
}

template <WeightType type>
void float_sum_one(const RowSumArgs& args, const SumPass& pass, const SumPass& next) {
  Ahead<type> ahead(args, next, (args.n_cols + kColumns - 1) / kColumns);
  int64_t c = 0;
  {
    [[maybe_unused]] const RoundDown mode;
    for (; c + kColumns <= args.n_cols; c += kColumns) sum_columns_one<type, 4>(args, pass, c), ahead.go_on();
    for (; c + kDoubles <= args.n_cols; c += kDoubles) sum_columns_one<type, 1>(args, pass, c);
  }
  sum_rest<type>(args, pass, c, 0);
}

// The largest of `most`; NaN when there is one.
inline double largest_of(Doubles most) {
  double each[kDoubles], out = 0.0;
  store_doubles(each, most);
  for (const double x : each)
    if (x > out || x != x) out = x;
  return out;
}

// A pass widened for many activations: n_units rows of 2 vectors, their largest magnitude, and h times 2^kSumBits.
struct FloatTile {
  alignas(64) double w[kPassUnits][2 * kDoubles];
  double largest;
};

template <WeightType type>
inline void widen_tile(const RowSumArgs& args, const SumPass& pass, int64_t c, FloatTile& out) {
  Doubles most = splat_double(0.0);
  for (int64_t u = 0; u < pass.n_units; ++u)
    for (int64_t v = 0; v < 2; ++v) {
      const Doubles w = load_weights<type>(pass.rows[u], args.first_col + c + v * kDoubles);
      most = max_magnitude(most, w);
      store_doubles(out.w[u] + v * kDoubles, w);
    }
  out.largest = largest_of(most);
}

// Adds a tile for A activations, whose products are known to stay in the binade together.
template <int A>
inline void sum_tile(const FloatTile& tile, const SumPass& pass, const double (*h)[kPassUnits], int64_t* sums,
                     int64_t stride) {
  const Doubles whole = splat_double(kWholeNumbers);
  Doubles acc[A][2];
#pragma GCC unroll 4
  for (int a = 0; a < A; ++a) acc[a][0] = acc[a][1] = whole;
  for (int64_t u = 0; u < pass.n_units; ++u) {
    const Doubles first = load_doubles(tile.w[u]), second = load_doubles(tile.w[u] + kDoubles);
#pragma GCC unroll 4
    for (int a = 0; a < A; ++a) {
      const Doubles by = splat_double(h[a][u]);
      acc[a][0] = fma_down(by, first, acc[a][0]);
      acc[a][1] = fma_down(by, second, acc[a][1]);
    }
  }
#pragma GCC unroll 4
  for (int a = 0; a < A; ++a)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v)
      add_checked(sums + a * stride + v * kDoubles, sub(bits_of(acc[a][v]), bits_of(whole)), splat_sum(0), 0);
}

// h of up to 4 activations from a on, scaled; the largest magnitude of it.
inline double scale_h(const RowSumArgs& args, const SumPass& pass, int64_t a, int64_t n, double (*out)[kPassUnits]) {
  Doubles most = splat_double(0.0);
  for (int64_t i = 0; i < n; ++i) {
    const float* const from = pass.h + (a + i) * args.h_stride;
    int64_t u = 0;
    for (; u + kDoubles <= pass.n_units; u += kDoubles) {
      const Doubles h = mul(load_weights_f32(reinterpret_cast<const std::byte*>(from + u)), splat_double(kSumOne));
      most = max_magnitude(most, h);
      store_doubles(out[i] + u, h);
    }
    for (; u < pass.n_units; ++u) {
      out[i][u] = static_cast<double>(from[u]) * kSumOne;
      most = max_magnitude(most, splat_double(out[i][u]));
    }
  }
  return largest_of(most);
}

// Adds a tile for activations [a, a + n), n <= 4.
template <WeightType type>
inline void sum_acts(const RowSumArgs& args, const SumPass& pass, int64_t c, int64_t a, int64_t n,
                     const FloatTile& tile) {
  double h[4][kPassUnits];
  const double most = scale_h(args, pass, a, n, h) * tile.largest;  // of a product, nearly
  int64_t* const sums = args.sums + a * args.sums_stride + c;
  if (most < kFloatLimit / static_cast<double>(2 * kPassUnits)) {
    [[maybe_unused]] const RoundDown mode;
    if (n == 4) return sum_tile<4>(tile, pass, h, sums, args.sums_stride);
    for (int64_t i = 0; i < n; ++i) sum_tile<1>(tile, pass, h + i, sums + i * args.sums_stride, 0);
    return;
  }
  RowSumArgs part = args;
  part.n_cols = c + 2 * kDoubles;
  for (int64_t i = 0; i < n; ++i) sum_rest<type>(part, pass, c, a + i);
}

template <WeightType type>
void float_sum_many(const RowSumArgs& args, const SumPass& pass, const SumPass& next) {
  Ahead<type> ahead(args, next, (args.n_cols + 2 * kDoubles - 1) / (2 * kDoubles));
  FloatTile tile;
  int64_t c = 0;
  for (; c + 2 * kDoubles <= args.n_cols; c += 2 * kDoubles) {
    widen_tile<type>(args, pass, c, tile);
    ahead.go_on();
    for (int64_t a = 0; a < args.n_acts; a += 4)
      sum_acts<type>(args, pass, c, a, args.n_acts - a < 4 ? args.n_acts - a : 4, tile);
  }
  for (int64_t a = 0; a < args.n_acts; ++a) sum_rest<type>(args, pass, c, a);
}

template <WeightType type>
void float_sums(const RowSumArgs& args) {
  for_passes(args, [&](SumPass& pass, const SumPass& next) {
    if (args.n_acts == 1)
      float_sum_one<type>(args, pass, next);
    else
      float_sum_many<type>(args, pass, next);
  });
}

inline void fill_float_sums(Kernels& table) {
  table.row_sum[kWeightF32] = float_sums<kWeightF32>;
  table.row_sum[kWeightF16] = float_sums<kWeightF16>;
  table.row_sum[kWeightBF16] = float_sums<kWeightBF16>;
}

}  // namespace
}  // namespace hotset::cpu
