// Products of weight rows with activations: the kernels that read the weights in decoding.
//
// A half-warp owns a weight row: thread t of 16 makes the canonical lane t, that is, blocks (or elements) t, t + 16, ..
// of the row in order, so that 16 neighbours read what lies together. A block of 256 threads takes 16 rows, and up to 4
// activations at once, for which a weight is decoded once. Must move: every row once for every 4 activations.
#pragma once

#include "cuda/kernel_base.h"

namespace hotset::cuda {

constexpr int kProductRows = 16;  // weight rows of an item
constexpr int kProductActs = 4;   // activations of an item

// Lane `lane` of the dots of a weight row with n_acts activations from first_act on.
template <DType type>
HS_DEVICE inline void dot_lane(const Matrix& w, const std::byte* row, const Acts& in, int64_t first_act, int n_acts,
                               int lane, float* sum) {
  if constexpr (!is_block_type(type)) {
    HS_UNROLL_4
    for (int64_t i = lane; i < w.n_cols; i += kLanes) {
      const float weight = float_at<type>(row, i);
      HS_UNROLL
      for (int a = 0; a < kProductActs; ++a)
        if (a < n_acts) sum[a] = fused(weight, in.f32.row(first_act + a)[i], sum[a]);
    }
  } else {
    using B = Blocks<type>;
    const int64_t n_blocks = w.n_cols / kBlock;
    for (int64_t b = lane; b < n_blocks; b += kLanes) {
      uint32_t q[8];
      HS_UNROLL
      for (int j = 0; j < 8; ++j) q[j] = B::word(row, b, j);
      const Scales scales = B::scales(row, b);
      HS_UNROLL
      for (int a = 0; a < kProductActs; ++a) {
        if (a >= n_acts) continue;
        const uint32_t* const x = in.words(first_act + a, b);
        const float d_a = in.scale_of(first_act + a, b);
        int32_t half[2] = {0, 0};
        HS_UNROLL
        for (int j = 0; j < 8; ++j) half[j / 4] = dot4(q[j], x[j], half[j / 4]);
        const int32_t s = B::kHasHalves ? scales.c[0] * half[0] + scales.c[1] * half[1] : half[0] + half[1];
        sum[a] = fused(scales.d * d_a, static_cast<float>(s), sum[a]);
        if (B::kHasMinimum)
          sum[a] = fused(-scales.d_m, d_a * static_cast<float>(in.sum_of(first_act + a, b)), sum[a]);
      }
    }
  }
}

// out = w times `in`, plus bias. Without lists every row of w, at its column; with lists those that a row's list names,
// at their place in the list, or scattered to their columns.
template <DType type>
struct Products {
  static constexpr int kThreads = kProductRows * kLanes, kPasses = 2;
  struct Shared {
    float lane[kProductActs][kProductRows][kLanes + 1];  // one to spare: neighbours' lanes lie in other banks
  };
  StepView step;
  Matrix w;
  const float* bias = nullptr;  // null: none
  Acts in;
  Rows out;
  Rows lists;  // no data: none
  bool scattered = false;

  HS_DEVICE bool is_listed() const { return lists.data != nullptr; }
  HS_DEVICE int64_t n_tiles() const { return div_up(w.n_rows, kProductRows); }
  HS_DEVICE int64_t n_items() const {
    const int64_t n = step.n_rows(in.f32.rows);
    return n_tiles() * (is_listed() ? n : div_up(n, kProductActs));
  }
  HS_DEVICE int64_t n_rounds(int64_t) const { return 1; }
  HS_DEVICE int64_t first_act(int64_t item) const { return item / n_tiles() * (is_listed() ? 1 : kProductActs); }
  HS_DEVICE int n_acts(int64_t item) const {
    return is_listed() ? 1 : static_cast<int>(least(kProductActs, step.n_rows(in.f32.rows) - first_act(item)));
  }
  // The weight row that place `r` of an item stands for; -1 for none.
  HS_DEVICE int64_t row_of(int64_t item, int r) const {
    const int64_t at = item % n_tiles() * kProductRows + r;
    if (!is_listed()) return at < w.n_rows ? at : -1;
    const List list = list_of(lists, first_act(item));
    return at < list.n ? list.units[at] : -1;
  }

  HS_DEVICE void pass(int p, int64_t item, int64_t, int thread, Shared& s) const {
    if (p == 0) {
      const int r = thread / kLanes, lane = thread % kLanes, n = n_acts(item);
      const int64_t row = row_of(item, r);
      if (row < 0) return;
      float sum[kProductActs] = {};
      dot_lane<type>(w, w.row(row), in, first_act(item), n, lane, sum);
      HS_UNROLL
      for (int a = 0; a < kProductActs; ++a)
        if (a < n) s.lane[a][r][lane] = sum[a];
      return;
    }
    const int r = thread % kProductRows, a = thread / kProductRows;
    if (a >= n_acts(item)) return;
    const int64_t row = row_of(item, r);
    if (row < 0) return;
    float lane[kLanes];
    HS_UNROLL
    for (int i = 0; i < kLanes; ++i) lane[i] = s.lane[a][r][i];
    const float value = lane_tree(lane);
    const int64_t column = is_listed() && !scattered ? item % n_tiles() * kProductRows + r : row;
    out.row(first_act(item) + a)[column] = bias != nullptr ? value + bias[row] : value;
  }
};

}  // namespace hotset::cuda
