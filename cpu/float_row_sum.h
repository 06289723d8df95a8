// Weighted sums of rows: the values of attention. Needs a float_vec_*.h.
#pragma once

#include "cpu/float_k_weights.h"

namespace hotset::cpu {
namespace {

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

}  // namespace
}  // namespace hotset::cpu
