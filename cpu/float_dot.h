// Dots of float weights: one activation (decode) and many (prefill). Needs float_weights.h.
#pragma once

#include "cpu/float_weights.h"

namespace hotset::cpu {
namespace {

constexpr int64_t kGemmRows = 32;     // rows whose lanes are kept while a piece of the activations is in L1
constexpr int64_t kGemmPiece = 1024;  // elements in such a piece: kDotActs of them fill half of L1

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

// Adds the last n % 16 products and runs the lane trees: out[a * out_stride + r].
template <class T, int R, int A>
inline void finish(const std::byte* const* rows, const float* const* x, int64_t n, Lanes<R, A>& lanes, float* out,
                   int64_t out_stride) {
  const int64_t rest = n / 16 * 16;
  for (int a = 0; a < A; ++a) {
    float* const to = out + a * out_stride;
    if (R == 4 && rest == n) {
      lane_trees4(lanes.of[0][a], lanes.of[1 % R][a], lanes.of[2 % R][a], lanes.of[3 % R][a], to);
      continue;
    }
    for (int r = 0; r < R; ++r) {
      if (rest == n) {
        to[r] = lane_tree(lanes.of[r][a]);
        continue;
      }
      float spilled[16];
      for (int p = 0; p < kParts; ++p) store(spilled + p * kWidth, lanes.of[r][a][p]);
      for (int64_t i = rest; i < n; ++i) spilled[i - rest] = fma1(T::load_one(rows[r], i), x[a][i], spilled[i - rest]);
      to[r] = reduce_lanes(spilled);
    }
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

// Calls f with the numbers of a split of [0, n_acts) into tiles: f.template operator()<A>(first activation).
template <class F>
inline void for_act_tiles(int64_t n_acts, F f) {
  int64_t a = 0;
  for (; a + kDotActs <= n_acts; a += kDotActs) f.template operator()<kDotActs>(a);
  if constexpr (kDotActs > 4)
    for (; a + 4 <= n_acts; a += 4) f.template operator()<4>(a);
  if constexpr (kDotActs > 2)
    for (; a + 2 <= n_acts; a += 2) f.template operator()<2>(a);
  for (; a < n_acts; ++a) f.template operator()<1>(a);
}

// R rows against any number of activations.
template <class T, int R>
inline void dot_tiles(const std::byte* const* rows, const float* const* x, int64_t n_acts, int64_t n, float* out,
                      int64_t out_stride) {
  for_act_tiles(n_acts, [&]<int A>(int64_t a) {
    dot_tile<T, R, A>(rows, x + a, n, out + a * out_stride, out_stride);
  });
}

// Elements [begin, end) of R rows and A activations on top of the lanes `kept` (absent before the first piece).
template <class T, int R, int A>
inline void gemm_piece(const std::byte* first_row, size_t stride, const float* const* x, int64_t n, int64_t begin,
                       int64_t end, float* kept, float* out, int64_t out_stride) {
  const std::byte* rows[R];
  for (int r = 0; r < R; ++r) rows[r] = first_row + static_cast<size_t>(r) * stride;
  Lanes<R, A> lanes;
  if (begin == 0)
    clear(lanes);
  else
    for (int i = 0; i < R * A * kParts; ++i)
      lanes.of[i / kParts / A][i / kParts % A][i % kParts] = load(kept + i * kWidth);
  accumulate<T, R, A>(rows, x, begin, end, lanes, nullptr);
  if (end == n / 16 * 16)
    finish<T, R, A>(rows, x, n, lanes, out, out_stride);
  else
    for (int i = 0; i < R * A * kParts; ++i)
      store(kept + i * kWidth, lanes.of[i / kParts / A][i / kParts % A][i % kParts]);
}

// `n_rows` <= kGemmRows rows, A activations: a piece of the activations stays in L1 while the rows stream past it.
template <class T, int A>
inline void gemm_rows(const std::byte* row, size_t stride, int64_t n_rows, const float* const* x, int64_t n, float* out,
                      int64_t out_stride) {
  alignas(64) float kept[kGemmRows * A * 16];
  const int64_t whole = n / 16 * 16;
  int64_t begin = 0;
  do {
    const int64_t end = whole - begin < 2 * kGemmPiece ? whole : begin + kGemmPiece;
    int64_t r = 0;
    for (; r + kDotRows <= n_rows; r += kDotRows)
      gemm_piece<T, kDotRows, A>(row + static_cast<size_t>(r) * stride, stride, x, n, begin, end, kept + r * A * 16,
                                 out + r, out_stride);
    for (; r < n_rows; ++r)
      gemm_piece<T, 1, A>(row + static_cast<size_t>(r) * stride, stride, x, n, begin, end, kept + r * A * 16, out + r,
                          out_stride);
    begin = end;
  } while (begin < whole);
}

template <class T>
void gemm(const GemmArgs& args) {
  for (int64_t r = 0; r < args.n_rows; r += kGemmRows) {
    const int64_t n_rows = args.n_rows - r < kGemmRows ? args.n_rows - r : kGemmRows;
    const std::byte* const row = args.w.data + static_cast<size_t>(args.first_row + r) * args.w.stride;
    for_act_tiles(args.n_acts, [&]<int A>(int64_t a) {
      const float* x[A];
      for (int i = 0; i < A; ++i) x[i] = args.acts[a + i].f32;
      gemm_rows<T, A>(row, args.w.stride, n_rows, x, args.w.n, args.out + a * args.out_stride + r, args.out_stride);
    });
  }
}

}  // namespace
}  // namespace hotset::cpu
