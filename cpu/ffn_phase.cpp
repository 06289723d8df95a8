#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "cpu/phases.h"

namespace hotset::cpu {
namespace {

// A tile of the down pass with many rows: this many rows by this many columns of the output.
constexpr int64_t kTileRows = 64;
constexpr int64_t kTileColumns = 64;
constexpr int64_t kTileFloats = kTileRows * kTileColumns;
// A balanced tree over 16 ranges holds at most one unmerged sum per level, and the one being computed.
constexpr int64_t kTileLevels = 5;

bool few_rows(const StepContext& context) { return context.n_rows <= kFewRows; }

RowSumArgs row_sum_args(const TensorView& down_t, const FfnBuffers& buffers, int64_t range) {
  RowSumArgs args;
  args.w = weight_rows(down_t);
  args.list = nullptr;
  args.first_unit = unit_range_begin(down_t.n_rows, range);
  args.n_units = unit_range_begin(down_t.n_rows, range + 1) - args.first_unit;
  args.h = buffers.gate + args.first_unit;
  args.h_stride = buffers.stride;
  return args;
}

}  // namespace

size_t ffn_tile_bytes() { return kTileLevels * kTileFloats * sizeof(float); }

int64_t FfnUnitsPhase::n_tasks(const StepContext& context) const {
  return context.n_rows == 0 ? 0 : div_up(gate_.n_rows, weight_rows_per_task(gate_.n_rows, context.n_workers));
}

void FfnUnitsPhase::run(int64_t task, int32_t worker, const StepContext& context) const {
  const int64_t each = weight_rows_per_task(gate_.n_rows, context.n_workers);
  const int64_t first = task * each;
  const int64_t n = std::min(each, gate_.n_rows - first);
  std::byte* scratch = buffers_.scratch + static_cast<size_t>(worker) * buffers_.scratch_distance;
  multiply_rows(context, gate_, first, n, in_.acts, context.n_rows, buffers_.gate, buffers_.stride, scratch);
  multiply_rows(context, up_, first, n, in_.acts, context.n_rows, buffers_.up, buffers_.stride, scratch);
  const auto activate = activation_ == Activation::kRelu ? context.kernels.relu_mul : context.kernels.silu_mul;
  for (int64_t row = 0; row < context.n_rows; ++row) {
    float* gate = buffers_.gate + row * buffers_.stride + first;
    activate(gate, buffers_.up + row * buffers_.stride + first, n, gate);
  }
}

// Few rows: a range may be cut into column tiles so that every worker has something to do.
int64_t FfnDownPhase::column_tile(const StepContext& context) const {
  const int64_t n_tiles = std::max<int64_t>(1, div_up(context.n_workers * 3, kUnitRanges));
  return div_up(div_up(down_t_.n_cols, n_tiles), 32) * 32;
}

int64_t FfnDownPhase::n_tasks(const StepContext& context) const {
  if (context.n_rows == 0) return 0;
  if (few_rows(context)) return kUnitRanges * div_up(down_t_.n_cols, column_tile(context));
  return div_up(context.n_rows, kTileRows) * div_up(down_t_.n_cols, kTileColumns);
}

void FfnDownPhase::run(int64_t task, int32_t worker, const StepContext& context) const {
  if (few_rows(context))
    run_range(task, context);
  else
    run_tile(task, worker, context);
}

void FfnDownPhase::run_range(int64_t task, const StepContext& context) const {
  const int64_t tile = column_tile(context);
  const int64_t range = task % kUnitRanges;
  RowSumArgs args = row_sum_args(down_t_, buffers_, range);
  args.n_acts = context.n_rows;
  args.first_col = task / kUnitRanges * tile;
  args.n_cols = std::min(tile, down_t_.n_cols - args.first_col);
  args.acc_stride = down_t_.n_cols;
  args.acc = buffers_.partials + range * kFewRows * down_t_.n_cols + args.first_col;
  for (int64_t row = 0; row < args.n_acts; ++row)
    std::memset(args.acc + row * args.acc_stride, 0, static_cast<size_t>(args.n_cols) * sizeof(float));
  context.kernels.row_sum[weight_type(down_t_.dtype)](args);
}

// Many rows: one tile of the output, ranges in order; neighbours of equal size are merged as they come, like the
// carries of a binary counter, which is the balanced tree of neighbours.
void FfnDownPhase::run_tile(int64_t task, int32_t worker, const StepContext& context) const {
  const int64_t n_row_tiles = div_up(context.n_rows, kTileRows);
  const int64_t first_row = task % n_row_tiles * kTileRows;
  const int64_t first_col = task / n_row_tiles * kTileColumns;
  const int64_t n_rows = std::min(kTileRows, context.n_rows - first_row);
  const int64_t n_cols = std::min(kTileColumns, down_t_.n_cols - first_col);
  float* sums = reinterpret_cast<float*>(buffers_.tiles + static_cast<size_t>(worker) * buffers_.tile_distance);
  int64_t depth = 0;
  for (int64_t range = 0; range < kUnitRanges; ++range) {
    float* sum = sums + depth++ * kTileFloats;
    std::memset(sum, 0, kTileFloats * sizeof(float));
    RowSumArgs args = row_sum_args(down_t_, buffers_, range);
    args.h += first_row * buffers_.stride;
    args.n_acts = n_rows;
    args.first_col = first_col;
    args.n_cols = n_cols;
    args.acc = sum;
    args.acc_stride = kTileColumns;
    context.kernels.row_sum[weight_type(down_t_.dtype)](args);
    for (int64_t carry = range + 1; carry % 2 == 0; carry /= 2, --depth) {
      float* left = sums + (depth - 2) * kTileFloats;
      context.kernels.add(left, left + kTileFloats, kTileFloats, left);
    }
  }
  for (int64_t row = 0; row < n_rows; ++row)
    std::memcpy(out_.row(first_row + row) + first_col, sums + row * kTileColumns,
                static_cast<size_t>(n_cols) * sizeof(float));
}

int64_t FfnMergePhase::n_tasks(const StepContext& context) const { return few_rows(context) ? context.n_rows : 0; }

void FfnMergePhase::run(int64_t task, int32_t, const StepContext& context) const {
  const int64_t n = out_.n_cols;
  const int64_t distance = kFewRows * n;
  float* sums = buffers_.partials + task * n;
  for (int64_t step = 1; step < kUnitRanges; step *= 2)
    for (int64_t range = 0; range < kUnitRanges; range += 2 * step) {
      float* left = sums + range * distance;
      context.kernels.add(left, left + step * distance, n, left);
    }
  std::memcpy(out_.row(task), sums, static_cast<size_t>(n) * sizeof(float));
}

}  // namespace hotset::cpu
