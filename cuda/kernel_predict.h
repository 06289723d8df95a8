// Predict: margins of units from the bit planes of their detect rows (core/bit_planes.h).
#pragma once

#include "cuda/kernel_base.h"

namespace hotset::cuda {

// What all units of a row need of it: the sum of its q * scale, and z times its norm. 16 threads make each chain.
struct PredictScalars {
  static constexpr int kThreads = 32, kPasses = 2;
  struct Shared {
    float lane[2][kLanes];
  };
  StepView step;
  Acts in;
  float z = 0;
  float* scalars = nullptr;  // (n_rows, 2)
  HS_DEVICE int64_t n_items() const { return step.n_rows(in.f32.rows); }
  HS_DEVICE int64_t n_rounds(int64_t) const { return 1; }
  HS_DEVICE void pass(int p, int64_t row, int64_t, int thread, Shared& s) const {
    const int lane = thread % kLanes;
    const bool is_norm = thread >= kLanes;
    if (p == 0) {
      const int64_t n = in.f32.n_cols;
      float sum = 0.0f;
      for (int64_t i = lane; i < (is_norm ? n : div_up(n, kBlock)); i += kLanes) {
        const float a = is_norm ? in.f32.row(row)[i] : in.scale_of(row, i);
        sum = fused(a, is_norm ? a : static_cast<float>(in.sum_of(row, i)), sum);
      }
      s.lane[is_norm][lane] = sum;
    } else if (lane == 0) {
      float all[kLanes];
      for (int i = 0; i < kLanes; ++i) all[i] = s.lane[is_norm][i];
      const float total = lane_tree(all);
      scalars[2 * row + is_norm] = is_norm ? z * sqrtf(total) : total;
    }
  }
};

// Margins of 16 units of one row. Lane t of 16 takes columns 4 (t % 8) .. of blocks t / 8, t / 8 + 2, ..
// Must move: each unit's planes once for every row.
struct PredictUnits {
  static constexpr int kUnits = 16, kThreads = kUnits * kLanes, kPasses = 2;
  struct Shared {
    float lane[kUnits][kLanes + 1];
  };
  StepView step;
  int n_bits = 1;
  Matrix planes;
  const float *low = nullptr, *steps = nullptr, *error = nullptr, *bias = nullptr;  // bias null: none
  Acts in;
  Rows out;
  const float* scalars = nullptr;

  HS_DEVICE int64_t n_tiles() const { return div_up(planes.n_rows, kUnits); }
  HS_DEVICE int64_t n_items() const { return step.n_rows(in.f32.rows) * n_tiles(); }
  HS_DEVICE int64_t n_rounds(int64_t) const { return 1; }

  // Codes of columns 4 i .. 4 i + 3 of block b, a byte each.
  HS_DEVICE uint32_t codes(const std::byte* row, int64_t b, int i) const {
    const int64_t at = b % 8;  // blocks of a group of 256 columns
    const std::byte* const group = row + b / 8 * (n_bits == 1 ? 32 : n_bits == 2 ? 64 : 96);
    uint32_t pairs = 0;
    if (n_bits > 1) pairs = load_4(group + at % 2 * kBlock + 4 * i) >> (at / 2 * 2) & 0x03030303u;
    if (n_bits == 2) return pairs;
    const uint32_t four = byte_at(group, (n_bits == 3 ? 64 : 0) + at * 4 + i / 2) >> (i % 2 * 4) & 15;
    const uint32_t spread = (four & 1) | (four & 2) << 7 | (four & 4) << 14 | (four & 8) << 21;
    return pairs | spread << (n_bits - 1);
  }

  HS_DEVICE void pass(int p, int64_t item, int64_t, int thread, Shared& s) const {
    const int64_t row = item / n_tiles(), first = item % n_tiles() * kUnits;
    if (p == 0) {
      const int lane = thread % kLanes, part = lane % 8;
      const int64_t unit = first + thread / kLanes;
      if (unit >= planes.n_rows) return;
      const std::byte* const from = planes.row(unit);
      float sum = 0.0f;
      for (int64_t b = lane / 8; b < div_up(in.f32.n_cols, kBlock); b += 2) {
        const int32_t dot = dot4(codes(from, b, part), in.words(row, b)[part], 0);
        sum = fused(in.scale_of(row, b), static_cast<float>(dot), sum);
      }
      s.lane[thread / kLanes][lane] = sum;
      return;
    }
    const int64_t unit = first + thread;
    if (thread >= kUnits || unit >= planes.n_rows) return;
    float lane[kLanes];
    for (int i = 0; i < kLanes; ++i) lane[i] = s.lane[thread][i];
    const float floor = fused(low[unit], scalars[2 * row],
                              fused(error[unit], scalars[2 * row + 1], bias != nullptr ? bias[unit] : 0.0f));
    out.row(row)[unit] = fused(steps[unit], lane_tree(lane), floor);
  }
};

}  // namespace hotset::cuda
