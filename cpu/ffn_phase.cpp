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

// Shares of a row's unit list that are computed as one task, for each worker: enough that a worker that lost its core
// does not hold up the others, few enough that a share is long against its first cache misses.
constexpr int64_t kSharesPerWorker = 4;

// All units of a range.
RowSumArgs range_args(const FfnShape& shape, int64_t range) {
  RowSumArgs args;
  args.w = weight_rows(shape.down_t);
  args.list = nullptr;
  args.first_unit = unit_range_begin(shape.n_ff(), range);
  args.n_units = unit_range_begin(shape.n_ff(), range + 1) - args.first_unit;
  args.h = shape.h + args.first_unit;
  args.h_stride = shape.stride;
  return args;
}

// Products of units [first, first + n) with every row.
void multiply_units(const StepContext& context, const FfnShape& shape, const TensorView& weight, const float* bias,
                    int64_t first, int64_t n, float* out, int32_t worker) {
  std::byte* scratch = shape.scratch + static_cast<size_t>(worker) * shape.scratch_distance;
  multiply_rows(context, weight, first, n, shape.in.acts, context.n_rows, out, shape.stride, scratch);
  add_bias(context, bias, first, n, context.n_rows, out, shape.stride);
}

// h of the list's positions [begin, end) of one row.
void compute_listed(const StepContext& context, const FfnShape& shape, int64_t row, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const UnitList list = unit_list(shape.units, row);
  const float* const detected = shape.detected.row(row);
  float* const h = shape.h + row * shape.stride;
  for (int64_t i = begin; i < end; ++i) h[i] = detected[list.units[i]];
  if (!shape.gate) return activate(context.kernels, shape.activation, nullptr, h + begin, end - begin, h + begin);
  float* const up = shape.products + row * shape.stride;
  context.kernels.dot_rows[weight_type(shape.up.dtype)](weight_rows(shape.up), list.units + begin, 0, end - begin,
                                                        shape.in.acts[row], up + begin);
  if (shape.up_bias != nullptr)
    for (int64_t i = begin; i < end; ++i) up[i] += shape.up_bias[list.units[i]];
  activate(context.kernels, shape.activation, h + begin, up + begin, end - begin, h + begin);
}

}  // namespace

void activate(const Kernels& kernels, Activation activation, const float* gate, const float* up, int64_t n, float* h) {
  if (gate == nullptr) {
    if (activation == Activation::kSilu) return kernels.silu(up, n, h);
    if (activation == Activation::kRelu) return kernels.relu(up, n, h);
    return kernels.relu_mul(up, up, n, h);
  }
  if (activation == Activation::kSilu) return kernels.silu_mul(gate, up, n, h);
  if (activation == Activation::kRelu) return kernels.relu_mul(gate, up, n, h);
  float part[256];  // relu(gate)^2 or relu(up), neither of which is negative
  for (int64_t i = 0; i < n; i += 256) {
    const int64_t n_part = std::min<int64_t>(256, n - i);
    if (activation == Activation::kRelu2) {
      kernels.relu_mul(gate + i, gate + i, n_part, part);
      kernels.relu_mul(part, up + i, n_part, h + i);
    } else {
      kernels.relu(up + i, n_part, part);
      kernels.relu_mul(gate + i, part, n_part, h + i);
    }
  }
}

size_t ffn_tile_bytes() { return kTileLevels * kTileFloats * sizeof(float); }

int64_t FfnUnitsPhase::n_tasks(const StepContext& context) const {
  return context.n_rows == 0 ? 0 : div_up(shape_.n_ff(), weight_rows_per_task(shape_.n_ff(), context.n_workers));
}

void FfnUnitsPhase::run(int64_t task, int32_t worker, const StepContext& context) const {
  const int64_t each = weight_rows_per_task(shape_.n_ff(), context.n_workers);
  const int64_t first = task * each;
  const int64_t n = std::min(each, shape_.n_ff() - first);
  const bool gated = static_cast<bool>(shape_.gate);
  if (gated) multiply_units(context, shape_, shape_.gate, shape_.gate_bias, first, n, shape_.h, worker);
  float* const products = gated ? shape_.products : shape_.h;
  multiply_units(context, shape_, shape_.up, shape_.up_bias, first, n, products, worker);
  for (int64_t row = 0; row < context.n_rows; ++row) {
    float* h = shape_.h + row * shape_.stride + first;
    activate(context.kernels, shape_.activation, gated ? h : nullptr, products + row * shape_.stride + first, n, h);
  }
}

// One row: shares of its list. Several rows: blocks of units, so that a weight row is still in the cache when the next
// row's list names it too. Units without a gate have their products already.
int64_t FfnListedPhase::n_tasks(const StepContext& context) const {
  if (!shape_.gate) return context.n_rows;
  if (context.n_rows == 1) return context.n_workers * kSharesPerWorker;
  return context.n_rows == 0 ? 0 : div_up(shape_.n_ff(), weight_rows_per_task(shape_.n_ff(), context.n_workers));
}

void FfnListedPhase::run(int64_t task, int32_t, const StepContext& context) const {
  if (!shape_.gate) return compute_listed(context, shape_, task, 0, unit_list(shape_.units, task).n);
  if (context.n_rows == 1) {
    const int64_t n = unit_list(shape_.units, 0).n, n_shares = context.n_workers * kSharesPerWorker;
    return compute_listed(context, shape_, 0, n * task / n_shares, n * (task + 1) / n_shares);
  }
  const int64_t each = weight_rows_per_task(shape_.n_ff(), context.n_workers);
  for (int64_t row = 0; row < context.n_rows; ++row) {
    const UnitList list = unit_list(shape_.units, row);
    compute_listed(context, shape_, row, list.position(task * each), list.position((task + 1) * each));
  }
}

// A range may be cut into column tiles so that every worker has something to do.
int64_t FfnDownPhase::column_tile(const StepContext& context) const {
  const int64_t n_tiles = std::max<int64_t>(1, div_up(context.n_workers * 3, kUnitRanges));
  return div_up(div_up(shape_.down_t.n_cols, n_tiles), 32) * 32;
}

int64_t FfnDownPhase::n_tasks(const StepContext& context) const {
  if (context.n_rows == 0) return 0;
  if (shape_.by_ranges(context)) return kUnitRanges * div_up(shape_.down_t.n_cols, column_tile(context));
  return div_up(context.n_rows, kTileRows) * div_up(shape_.down_t.n_cols, kTileColumns);
}

void FfnDownPhase::run(int64_t task, int32_t worker, const StepContext& context) const {
  if (shape_.by_ranges(context))
    run_range(task, context);
  else
    run_tile(task, worker, context);
}

void FfnDownPhase::run_range(int64_t task, const StepContext& context) const {
  const int64_t tile = column_tile(context), n_cols = shape_.down_t.n_cols;
  const int64_t range = task % kUnitRanges;
  const auto row_sum = context.kernels.row_sum[weight_type(shape_.down_t.dtype)];
  RowSumArgs args = range_args(shape_, range);
  args.first_col = task / kUnitRanges * tile;
  args.n_cols = std::min(tile, n_cols - args.first_col);
  args.acc_stride = n_cols;
  args.acc = shape_.partials + range * shape_.partial_rows * n_cols + args.first_col;
  for (int64_t row = 0; row < context.n_rows; ++row)
    std::memset(args.acc + row * n_cols, 0, static_cast<size_t>(args.n_cols) * sizeof(float));
  args.n_acts = shape_.has_list() ? 1 : context.n_rows;
  if (!shape_.has_list()) return row_sum(args);
  const int64_t first = args.first_unit, end = first + args.n_units;
  for (int64_t row = 0; row < context.n_rows; ++row, args.acc += n_cols) {
    const UnitList list = unit_list(shape_.units, row);
    const int64_t begin = list.position(first);
    args.list = list.units + begin;
    args.n_units = list.position(end) - begin;
    args.h = shape_.h + row * shape_.stride + begin;
    row_sum(args);
  }
}

// Many rows: one tile of the output, ranges in order; neighbours of equal size are merged as they come, like the
// carries of a binary counter, which is the balanced tree of neighbours.
void FfnDownPhase::run_tile(int64_t task, int32_t worker, const StepContext& context) const {
  const int64_t n_row_tiles = div_up(context.n_rows, kTileRows);
  const int64_t first_row = task % n_row_tiles * kTileRows;
  const int64_t first_col = task / n_row_tiles * kTileColumns;
  const int64_t n_rows = std::min(kTileRows, context.n_rows - first_row);
  const int64_t n_cols = std::min(kTileColumns, shape_.down_t.n_cols - first_col);
  float* sums = reinterpret_cast<float*>(shape_.tiles + static_cast<size_t>(worker) * shape_.tile_distance);
  int64_t depth = 0;
  for (int64_t range = 0; range < kUnitRanges; ++range) {
    float* sum = sums + depth++ * kTileFloats;
    std::memset(sum, 0, kTileFloats * sizeof(float));
    RowSumArgs args = range_args(shape_, range);
    args.h += first_row * shape_.stride;
    args.n_acts = n_rows;
    args.first_col = first_col;
    args.n_cols = n_cols;
    args.acc = sum;
    args.acc_stride = kTileColumns;
    context.kernels.row_sum[weight_type(shape_.down_t.dtype)](args);
    for (int64_t carry = range + 1; carry % 2 == 0; carry /= 2, --depth) {
      float* left = sums + (depth - 2) * kTileFloats;
      context.kernels.add(left, left + kTileFloats, kTileFloats, left);
    }
  }
  const float* const bias = shape_.down_bias;
  for (int64_t row = 0; row < n_rows; ++row) {
    float* const to = shape_.out.row(first_row + row) + first_col;
    std::memcpy(to, sums + row * kTileColumns, static_cast<size_t>(n_cols) * sizeof(float));
    if (bias != nullptr) context.kernels.add(to, bias + first_col, n_cols, to);
  }
}

int64_t FfnMergePhase::n_tasks(const StepContext& context) const {
  return shape_.by_ranges(context) ? context.n_rows : 0;
}

void FfnMergePhase::run(int64_t task, int32_t, const StepContext& context) const {
  const int64_t n = shape_.out.n_cols;
  const int64_t distance = shape_.partial_rows * n;
  float* sums = shape_.partials + task * n;
  for (int64_t step = 1; step < kUnitRanges; step *= 2)
    for (int64_t range = 0; range < kUnitRanges; range += 2 * step) {
      float* left = sums + range * distance;
      context.kernels.add(left, left + step * distance, n, left);
    }
  std::memcpy(shape_.out.row(task), sums, static_cast<size_t>(n) * sizeof(float));
  add_bias(context, shape_.down_bias, 0, n, 1, shape_.out.row(task), 0);
}

}  // namespace hotset::cpu
