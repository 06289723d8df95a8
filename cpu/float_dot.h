// Dots of float weights: of rows with one activation (decode), and tiles of them. Needs float_weights.h.
#pragma once

#include "cpu/float_weights.h"

namespace hotset::cpu {
namespace {

// The 16 lanes of R x A dots, in registers.
template <int R, int A>
struct Lanes {
  Vec of[R][A][kParts];
};

template <int R, int A>
inline void clear(Lanes<R, A>& lanes) {
  for (int r = 0; r < R; ++r)
    for (int a = 0; a < A; ++a)
      for (int p = 0; p < kParts; ++p) lanes.of[r][a][p] = zero();
}

// Adds the products of elements [begin, end), a multiple of 16 each. When `ahead` is given, row r of the next tile is
// ahead[r]: it is prefetched byte for byte as this tile is read.
template <class T, int R, int A>
inline void accumulate(const std::byte* const* rows, const float* const* x, int64_t begin, int64_t end,
                       Lanes<R, A>& lanes, const std::byte* const* ahead) {
  for (int64_t k = begin; k < end; k += 16) {
    if (ahead != nullptr)
      for (int r = 0; r < R; ++r) __builtin_prefetch(ahead[r] + T::offset(k), 0, 2);
    for (int p = 0; p < kParts; ++p) {
      Vec w[R];
      for (int r = 0; r < R; ++r) w[r] = T::load_vec(rows[r], k + p * kWidth);
      for (int a = 0; a < A; ++a) {
        const Vec v = load(x[a] + k + p * kWidth);
        for (int r = 0; r < R; ++r) lanes.of[r][a][p] = fused(w[r], v, lanes.of[r][a][p]);
      }
    }
  }
}

// Adds the last n % 16 products of a dot to its lanes and runs the lane tree.
template <class T>
inline float tail_and_tree(const std::byte* row, const float* x, int64_t n, const Vec* lanes) {
  float spilled[16];
  for (int p = 0; p < kParts; ++p) store(spilled + p * kWidth, lanes[p]);
  const int64_t rest = n / 16 * 16;
  for (int64_t i = rest; i < n; ++i) spilled[i - rest] = fma1(T::load_one(row, i), x[i], spilled[i - rest]);
  return reduce_lanes(spilled);
}

// Adds the last n % 16 products and runs the lane trees: out[a * out_stride + r].
template <class T, int R, int A>
inline void finish(const std::byte* const* rows, const float* const* x, int64_t n, Lanes<R, A>& lanes, float* out,
                   int64_t out_stride) {
  const bool tail = n % 16 != 0;
  for (int a = 0; a < A; ++a) {
    float* const to = out + a * out_stride;
    if (R == 4 && !tail) {
      lane_trees4(lanes.of[0][a], lanes.of[1 % R][a], lanes.of[2 % R][a], lanes.of[3 % R][a], to);
      continue;
    }
    for (int r = 0; r < R; ++r)
      to[r] = tail ? tail_and_tree<T>(rows[r], x[a], n, lanes.of[r][a]) : lane_tree(lanes.of[r][a]);
  }
}

// out[a * out_stride + r] = dot(rows[r], x[a]), R x A at once.
template <class T, int R, int A>
inline void dot_tile(const std::byte* const* rows, const float* const* x, int64_t n, float* out, int64_t out_stride,
                     const std::byte* const* ahead = nullptr) {
  Lanes<R, A> lanes;
  clear(lanes);
  accumulate<T, R, A>(rows, x, 0, n / 16 * 16, lanes, ahead);
  finish<T, R, A>(rows, x, n, lanes, out, out_stride);
}

// Streams one row after the other; while a row is read the next one is prefetched at the same offsets. One chain of fma
// keeps up with memory, and reading several rows at once was slower: they lie a multiple of 4 KB apart and meet in the
// same cache sets (F16, n = 2048, 2 threads of a Zen 5 VM: 46 GB/s with 1 row, 38 with 2, 40 with 4).
template <class T>
void dot_rows(const WeightRows& w, const int32_t* rows, int64_t first_row, int64_t n_rows, const ActivationRow& a,
              float* out) {
  const auto row_at = [&](int64_t r) {
    return w.data + static_cast<size_t>(rows != nullptr ? rows[r] : first_row + r) * w.stride;
  };
  const float* const x[1] = {a.f32};
  for (int64_t r = 0; r < n_rows; ++r) {
    const std::byte* const row[1] = {row_at(r)};
    const std::byte* const ahead[1] = {row_at(r + 1 < n_rows ? r + 1 : r)};
    dot_tile<T, 1, 1>(row, x, w.n, out + r, 0, ahead);
  }
}

// Calls f with the numbers of a split of [0, n_acts) into tiles of at most kMost: f.template operator()<A>(first).
template <int kMost, class F>
inline void for_act_tiles(int64_t n_acts, F f) {
  int64_t a = 0;
  for (; a + kMost <= n_acts; a += kMost) f.template operator()<kMost>(a);
  if constexpr (kMost > 4)
    for (; a + 4 <= n_acts; a += 4) f.template operator()<4>(a);
  if constexpr (kMost > 2)
    for (; a + 2 <= n_acts; a += 2) f.template operator()<2>(a);
  for (; a < n_acts; ++a) f.template operator()<1>(a);
}

// R rows against any number of activations.
template <class T, int R>
inline void dot_tiles(const std::byte* const* rows, const float* const* x, int64_t n_acts, int64_t n, float* out,
                      int64_t out_stride) {
  for_act_tiles<kDotActs>(n_acts, [&]<int A>(int64_t a) {
    dot_tile<T, R, A>(rows, x + a, n, out + a * out_stride, out_stride);
  });
}

}  // namespace
}  // namespace hotset::cpu
