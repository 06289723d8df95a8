// Weighted sums of rows: the down pass of the FFN, and the values of attention. Needs a float_vec_*.h.
#pragma once

#include "cpu/float_k_weights.h"

namespace hotset::cpu {
namespace {

constexpr int64_t kSumUnits = 64;   // units widened at a time for many activations
constexpr int64_t kSumColumns = 64; // columns widened at a time; kSumUnits x kSumColumns floats stay in L1
constexpr int64_t kPassUnits = 8;   // units per pass over acc for one activation

// `n_rows` rows from `row` on, `row_bytes` apart, and the weights of row u: h[a * h_stride + u].
struct SumRows {
  const std::byte* row;
  size_t row_bytes;
  int64_t n_rows;
  const float* h;
  int64_t h_stride;
};

// acc[a * acc_stride + c] += sum over rows, in order, for A activations and V Vecs of columns from `column` on.
template <class T, int A, int V>
inline void sum_tile(const SumRows& rows, int64_t column, float* acc, int64_t acc_stride) {
  Vec sums[A][V];
  for (int a = 0; a < A; ++a)
    for (int v = 0; v < V; ++v) sums[a][v] = load(acc + a * acc_stride + v * kWidth);
  const std::byte* row = rows.row;
  for (int64_t u = 0; u < rows.n_rows; ++u, row += rows.row_bytes) {
    Vec w[V];
    for (int v = 0; v < V; ++v) w[v] = T::load_vec(row, column + v * kWidth);
    for (int a = 0; a < A; ++a) {
      const Vec h = splat(rows.h[a * rows.h_stride + u]);
      for (int v = 0; v < V; ++v) sums[a][v] = fused(h, w[v], sums[a][v]);
    }
  }
  for (int a = 0; a < A; ++a)
    for (int v = 0; v < V; ++v) store(acc + a * acc_stride + v * kWidth, sums[a][v]);
}

// The same for `n_cols` columns.
template <class T, int A>
inline void sum_columns(const SumRows& rows, int64_t n_cols, float* acc, int64_t acc_stride) {
  int64_t c = 0;
  for (; c + kSumVecs * kWidth <= n_cols; c += kSumVecs * kWidth)
    sum_tile<T, A, kSumVecs>(rows, c, acc + c, acc_stride);
  for (; c + kWidth <= n_cols; c += kWidth) sum_tile<T, A, 1>(rows, c, acc + c, acc_stride);
  for (; c < n_cols; ++c)
    for (int a = 0; a < A; ++a)
      for (int64_t u = 0; u < rows.n_rows; ++u)
        acc[a * acc_stride + c] = fma1(rows.h[a * rows.h_stride + u],
                                       T::load_one(rows.row + static_cast<size_t>(u) * rows.row_bytes, c),
                                       acc[a * acc_stride + c]);
}

// The same for any number of activations.
template <class T>
inline void sum_rows(SumRows rows, int64_t n_acts, int64_t n_cols, float* acc, int64_t acc_stride) {
  const float* h = rows.h;
  int64_t a = 0;
  for (; a + kSumActs <= n_acts; a += kSumActs) {
    rows.h = h + a * rows.h_stride;
    sum_columns<T, kSumActs>(rows, n_cols, acc + a * acc_stride, acc_stride);
  }
  if constexpr (kSumActs > 2) {
    for (; a + 4 <= n_acts; a += 4) {
      rows.h = h + a * rows.h_stride;
      sum_columns<T, 4>(rows, n_cols, acc + a * acc_stride, acc_stride);
    }
    for (; a + 2 <= n_acts; a += 2) {
      rows.h = h + a * rows.h_stride;
      sum_columns<T, 2>(rows, n_cols, acc + a * acc_stride, acc_stride);
    }
  }
  for (; a < n_acts; ++a) {
    rows.h = h + a * rows.h_stride;
    sum_columns<T, 1>(rows, n_cols, acc + a * acc_stride, acc_stride);
  }
}

inline const std::byte* unit_row(const RowSumArgs& args, int64_t i) {
  const int64_t unit = args.list != nullptr ? args.list[i] : args.first_unit + i;
  return args.w.data + static_cast<size_t>(unit) * args.w.stride;
}

// Asks for the kSumColumns columns of unit u + i that will be wanted two strips after column c: in its own row, or,
// past the last column, in the row that takes its place in the next block of units. 64 rows are too many streams for
// the hardware to follow. Always inline: gcc 12 drops calls of functions that do nothing but prefetch.
template <class T>
[[gnu::always_inline]] inline void prefetch_strip(const RowSumArgs& args, int64_t u, int64_t i, int64_t c) {
  int64_t column = c + 2 * kSumColumns;
  if (column >= args.n_cols) {
    column -= (args.n_cols + kSumColumns - 1) / kSumColumns * kSumColumns;
    u += kSumUnits;
    if (u + i >= args.n_units || column < 0 || column >= args.n_cols) return;
  }
  const std::byte* from = unit_row(args, u + i) + T::offset(args.first_col + column);
  for (int64_t byte = 0; byte < T::offset(kSumColumns); byte += 64) __builtin_prefetch(from + byte, 0, 2);
}

// Many activations: 64 units x 64 columns are widened into L1 once and used by every activation.
template <class T>
void row_sum_many(const RowSumArgs& args) {
  alignas(64) float tile[kSumUnits * kSumColumns];
  for (int64_t u = 0; u < args.n_units; u += kSumUnits) {
    const int64_t n_units = args.n_units - u < kSumUnits ? args.n_units - u : kSumUnits;
    const SumRows rows = {reinterpret_cast<const std::byte*>(tile), kSumColumns * sizeof(float), n_units, args.h + u,
                          args.h_stride};
    for (int64_t c = 0; c < args.n_cols; c += kSumColumns) {
      const int64_t n_cols = args.n_cols - c < kSumColumns ? args.n_cols - c : kSumColumns;
      for (int64_t i = 0; i < n_units; ++i) {
        prefetch_strip<T>(args, u, i, c);
        widen<T>(unit_row(args, u + i), args.first_col + c, n_cols, tile + i * kSumColumns);
      }
      sum_rows<WeightF32>(rows, args.n_acts, n_cols, args.acc + c, args.acc_stride);
    }
  }
}

// Up to kPassUnits rows on their way past acc, and the rows that are read after them.
template <class T>
struct Pass {
  BlockReader<T> readers[kPassUnits];  // opened beforehand: scales are then broadcast from memory, without shuffles
  const std::byte* ahead[kPassUnits];
  const float* h;
  int64_t n_units;
};

// Adds the rows to 32 * B columns of acc; the next rows are prefetched meanwhile.
template <class T, int B>
inline void sum_pass(const Pass<T>& pass, int64_t column, float* acc) {
  constexpr int kVecs = B * kBlockVecs;
  if constexpr (BlockReader<T>::kSuperBlocks) column = as_multiple_of<B * kBlock>(column);
  Vec sums[kVecs];
  for (int v = 0; v < kVecs; ++v) sums[v] = load(acc + v * kWidth);
  for (int64_t u = 0; u < pass.n_units; ++u) {
    const std::byte* ahead = pass.ahead[u] + T::offset(column);
    for (int64_t i = 0; i < T::offset(B * kBlock); i += 64) __builtin_prefetch(ahead + i, 0, 2);
    const Vec weight = splat(pass.h[u]);
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      Vec w[kBlockVecs];
      pass.readers[u].load(column + b * kBlock, w);
      for (int v = 0; v < kBlockVecs; ++v) sums[b * kBlockVecs + v] = fused(weight, w[v], sums[b * kBlockVecs + v]);
    }
  }
  for (int v = 0; v < kVecs; ++v) store(acc + v * kWidth, sums[v]);
}

// The same for whole blocks, n_cols columns that the readers reach.
template <class T>
inline void sum_passes(const Pass<T>& pass, int64_t column, int64_t n_cols, float* acc) {
  int64_t c = 0;
  if constexpr (BlockReader<T>::kSuperBlocks)  // whose passes start at multiples of their width
    for (; (column + c) % (kPassBlocks * kBlock) != 0 && c < n_cols; c += kBlock)
      sum_pass<T, 1>(pass, column + c, acc + c);
  for (; c + kPassBlocks * kBlock <= n_cols; c += kPassBlocks * kBlock)
    sum_pass<T, kPassBlocks>(pass, column + c, acc + c);
  for (; c < n_cols; c += kBlock) sum_pass<T, 1>(pass, column + c, acc + c);
}

// One activation: kPassUnits rows stream past acc, which stays in L1; the next rows are prefetched meanwhile.
template <class T>
void row_sum_one(const RowSumArgs& args) {
  const int64_t n_whole = args.n_cols / kBlock * kBlock;
  for (int64_t u = 0; u < args.n_units; u += kPassUnits) {
    Pass<T> pass;
    pass.n_units = args.n_units - u < kPassUnits ? args.n_units - u : kPassUnits;
    pass.h = args.h + u;
    const std::byte* rows[kPassUnits];
    for (int64_t i = 0; i < pass.n_units; ++i) {
      rows[i] = unit_row(args, u + i);
      pass.ahead[i] = unit_row(args, u + kPassUnits + i < args.n_units ? u + kPassUnits + i : args.n_units - 1);
    }
    int64_t c = 0;
    while (c < n_whole) {
      const int64_t column = args.first_col + c, n_reached = BlockReader<T>::n_blocks(column) * kBlock;
      const int64_t n_cols = n_whole - c < n_reached ? n_whole - c : n_reached;
      for (int64_t i = 0; i < pass.n_units; ++i) pass.readers[i].open(rows[i], column, n_cols);
      sum_passes<T>(pass, column, n_cols, args.acc + c);
      c += n_cols;
    }
    if constexpr (kHasTail<T>)
      for (; c < args.n_cols; ++c)
        for (int64_t i = 0; i < pass.n_units; ++i)
          args.acc[c] = fma1(pass.h[i], T::load_one(rows[i], args.first_col + c), args.acc[c]);
  }
}

template <class T>
void row_sum(const RowSumArgs& args) {
  if (args.n_acts == 1)
    row_sum_one<T>(args);
  else
    row_sum_many<T>(args);
}

}  // namespace
}  // namespace hotset::cpu
