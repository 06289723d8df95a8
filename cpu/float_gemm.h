// Many activations times float weights (prefill, and small batches). Needs float_dot.h.
//
// The lanes of kGemmRows x kGemmActs dots are kept in memory (L2) while pieces of kGemmPiece elements come past. Of a
// piece kTileRows rows at a time are widened to float, once, into a buffer that stays in L1, and multiplied with
// kTileActs activations at a time. The 16 lanes are independent, so a Vec's width of them (a part) is done after the
// other: that leaves registers for kTileRows x kTileActs sums, and a load serves several products.
//
//   scratch: widened rows (kParts x kGemmPiece / 16 x kTileRows Vecs) | lanes (tiles of kParts x kTileRows x acts Vecs)
//
// Copying the activations into the order of use as well was slower (AVX-512,
// Zen 5, n = 2048: 190 instead of 213 Gop/s).
#pragma once

#include "cpu/float_dot.h"

namespace hotset::cpu {
namespace {

constexpr int64_t kGemmPiece = 512;
constexpr int64_t kGemmRows = 32;
constexpr int64_t kGemmActs = 96;
constexpr int64_t kStreamedActs = 8;  // up to here widening rows first would cost more than it saves

constexpr int64_t kWidenedFloats = kGemmPiece * 2 * kTileRows;  // a last piece may be nearly twice as long

// The rows of one tile: absent ones repeat the last row, their results are dropped.
struct TileRows {
  const std::byte* of[kTileRows];
  int64_t n;

  TileRows(const GemmArgs& args, int64_t first) : n(args.n_rows - first < kTileRows ? args.n_rows - first : kTileRows) {
    for (int64_t r = 0; r < kTileRows; ++r)
      of[r] = args.w.data + static_cast<size_t>(args.first_row + first + (r < n ? r : n - 1)) * args.w.stride;
  }
};

// Asks for a part of elements [begin, end) of the rows: of share `i` of `n`.
template <class T>
inline void prefetch_share(const TileRows& rows, int64_t begin, int64_t end, int64_t i, int64_t n) {
  const int64_t lines = (T::offset(end) - T::offset(begin)) / 64 * kTileRows, each = (lines + n - 1) / n;
  for (int64_t line = i * each; line < lines && line < (i + 1) * each; ++line)
    __builtin_prefetch(rows.of[line % kTileRows] + T::offset(begin) + line / kTileRows * 64, 0, 2);
}

// Elements [begin, end) of the rows to float: of each part, 16 elements after the other, a Vec of each row.
template <class T>
inline void widen_tile(const TileRows& rows, int64_t begin, int64_t end, float* to) {
  for (int p = 0; p < kParts; ++p)
    for (int64_t k = begin + p * kWidth; k < end; k += 16)
      for (int r = 0; r < kTileRows; ++r, to += kWidth) store(to, T::load_vec(rows.of[r], k));
}

// One part of the lanes of kTileRows x A dots, on top of `kept` unless kFresh; x[a] starts at the part's first element.
// Not inlined: one copy serves all types.
template <int A, bool kFresh>
[[gnu::noinline]] void multiply_part(const float* w, const float* const* x, int64_t n_steps, float* kept) {
  Vec lanes[kTileRows][A];
  for (int r = 0; r < kTileRows; ++r)
    for (int a = 0; a < A; ++a) lanes[r][a] = kFresh ? zero() : load(kept + (r * A + a) * kWidth);
  const float* act[A];
  for (int a = 0; a < A; ++a) act[a] = x[a];
  int64_t k = 0;
  do {
    Vec v[A];
    for (int a = 0; a < A; ++a) v[a] = load(act[a] + k * 16);
    for (int r = 0; r < kTileRows; ++r) {
      Vec row = load(w + r * kWidth);
      pin(row);
      for (int a = 0; a < A; ++a) lanes[r][a] = fused(row, v[a], lanes[r][a]);
    }
    w += kTileRows * kWidth;
  } while (++k < n_steps);
  for (int r = 0; r < kTileRows; ++r)
    for (int a = 0; a < A; ++a) store(kept + (r * A + a) * kWidth, lanes[r][a]);
}

// The lanes of dot (r, a) of a tile, gathered from its parts.
template <int A>
inline void load_lanes(const float* kept, int r, int a, Vec* lanes) {
  for (int p = 0; p < kParts; ++p) lanes[p] = load(kept + ((p * kTileRows + r) * A + a) * kWidth);
}

// Adds the last n % 16 products and runs the lane trees: out[a * out_stride + r].
template <class T, int A>
inline void finish_tile(const TileRows& rows, const float* const* x, int64_t n, const float* kept, float* out,
                        int64_t out_stride) {
  const int64_t rest = n / 16 * 16;
  for (int a = 0; a < A; ++a) {
    float sums[kTileRows];
    Vec lanes[kTileRows][kParts];
    for (int r = 0; r < kTileRows; ++r) load_lanes<A>(kept, r, a, lanes[r]);
    if constexpr (kTileRows % 4 == 0)
      for (int r = 0; r < kTileRows; r += 4) lane_trees4(lanes[r], lanes[r + 1], lanes[r + 2], lanes[r + 3], sums + r);
    else
      for (int r = 0; r < kTileRows; ++r) sums[r] = lane_tree(lanes[r]);
    for (int r = 0; r < kTileRows && rest < n; ++r) sums[r] = tail_and_tree<T>(rows.of[r], x[a], n, lanes[r]);
    if (rows.n == kTileRows)
      std::memcpy(out + a * out_stride, sums, sizeof sums);
    else
      for (int64_t r = 0; r < rows.n; ++r) out[a * out_stride + r] = sums[r];
  }
}

// One piece of a block: elements [begin, end) of every dot. `last`: the dots end here.
struct Piece {
  int64_t begin;
  int64_t end;
  bool last;
};

// A piece of kTileRows rows, widened already, with A activations.
template <int A>
inline void multiply_tile(const float* widened, const float* const* x, const Piece& piece, float* kept) {
  const int64_t n_steps = (piece.end - piece.begin) / 16;
  if (n_steps == 0) std::memset(kept, 0, kTileRows * A * 16 * sizeof(float));
  const float* part[A];
  for (int p = 0; p < kParts && n_steps > 0; ++p) {
    for (int i = 0; i < A; ++i) part[i] = x[i] + piece.begin + p * kWidth;
    const auto multiply = piece.begin == 0 ? multiply_part<A, true> : multiply_part<A, false>;
    multiply(widened + p * n_steps * kTileRows * kWidth, part, n_steps, kept + p * kTileRows * A * kWidth);
  }
}

// Activations [first, first + n_acts), at most kGemmActs, with the rows from `row` on, at most kGemmRows.
template <class T>
inline void gemm_block(const GemmArgs& args, int64_t row, int64_t first, int64_t n_acts) {
  float* const widened = reinterpret_cast<float*>(args.scratch);
  const int64_t whole = args.w.n / 16 * 16;
  const int64_t end_row = args.n_rows - row < kGemmRows ? args.n_rows : row + kGemmRows;
  for (Piece piece{0, 0, false}; !piece.last; piece.begin = piece.end) {
    piece.last = whole - piece.begin < 2 * kGemmPiece;
    piece.end = piece.last ? whole : piece.begin + kGemmPiece;
    float* kept = widened + kWidenedFloats;
    for (int64_t r = row; r < end_row; r += kTileRows) {
      const TileRows rows(args, r);
      const TileRows coming(args, r + kTileRows < args.n_rows ? r + kTileRows : r);
      widen_tile<T>(rows, piece.begin, piece.end, widened);
      for_act_tiles<kTileActs>(n_acts, [&]<int A>(int64_t a) {
        prefetch_share<T>(coming, piece.begin, piece.end, a / kTileActs, kGemmActs / kTileActs);
        const float* x[A];
        for (int i = 0; i < A; ++i) x[i] = args.acts[first + a + i].f32;
        multiply_tile<A>(widened, x, piece, kept);
        if (piece.last)
          finish_tile<T, A>(rows, x, args.w.n, kept, args.out + (first + a) * args.out_stride + r, args.out_stride);
        kept += kTileRows * A * 16;
      });
    }
  }
}

// Few activations: R rows at a time stream past them, the next ones are prefetched.
template <class T, int R>
inline void gemm_streamed(const GemmArgs& args) {
  const auto row_at = [&](int64_t r) {
    const int64_t row = args.first_row + (r < args.n_rows ? r : args.n_rows - 1);
    return args.w.data + static_cast<size_t>(row) * args.w.stride;
  };
  const float* x[kStreamedActs];
  for (int64_t a = 0; a < args.n_acts; ++a) x[a] = args.acts[a].f32;
  const auto multiply = [&]<int N>(int64_t r) {
    const std::byte* rows[N];
    const std::byte* ahead[N];
    for (int i = 0; i < N; ++i) rows[i] = row_at(r + i), ahead[i] = row_at(r + N + i);
    for_act_tiles<kStreamTile>(args.n_acts, [&]<int A>(int64_t a) {
      dot_tile<T, N, A>(rows, x + a, args.w.n, args.out + a * args.out_stride + r, args.out_stride,
                        a == 0 ? ahead : nullptr);
    });
  };
  int64_t r = 0;
  for (; r + R <= args.n_rows; r += R) multiply.template operator()<R>(r);
  for (; r < args.n_rows; ++r) multiply.template operator()<1>(r);
}

// Two activations stay in L1 while single rows stream past, as in dot_rows; more are read from L2 again and again, so
// that several rows share a pass.
template <class T>
void gemm(const GemmArgs& args) {
  if (args.n_acts <= 2) return gemm_streamed<T, 1>(args);
  if (args.n_acts <= kStreamedActs) return gemm_streamed<T, kDotRows>(args);
  for (int64_t r = 0; r < args.n_rows; r += kGemmRows)
    for (int64_t a = 0; a < args.n_acts; a += kGemmActs)
      gemm_block<T>(args, r, a, args.n_acts - a < kGemmActs ? args.n_acts - a : kGemmActs);
}

size_t float_gemm_scratch_bytes() {
  return static_cast<size_t>(kWidenedFloats + kGemmRows * kGemmActs * 16) * sizeof(float);
}

}  // namespace
}  // namespace hotset::cpu
