#include <algorithm>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "cpu/phases.h"

namespace hotset::cpu {
namespace {

// Tiles of the down pass with many rows: rows by columns of the output. With all units the unpacked weights of a tile
// serve every row; with lists it goes by blocks of units, whose rows of ffn_down_t stay in the cache from one row's
// list to the next.
struct TileSize {
  int64_t n_rows, n_cols;
  int64_t n_sums() const { return n_rows * n_cols; }
};
constexpr TileSize kDenseTile{64, 128}, kListedTile{16, 1024};
constexpr int64_t kListedUnits = 1024;

// A step computes listed units alone while at most this share of all units is listed, in percent; beyond that the dense
// kernels are faster. Measured on a 2-core Zen 5 VM, llama-1b, Q4_0: see docs/BENCHMARKS.md, "Crossover".
constexpr int64_t kMostListedFew = 60;
constexpr int64_t kMostListedMany = 35;
constexpr int64_t kManyRows = 64;

// Shares of a row's unit list, or of all units, that are computed as one task, for each worker: enough that a worker
// that lost its core does not hold up the others, few enough that a share is long against its first cache misses and
// that its sums are soon merged. See docs/BENCHMARKS.md, "Kernels".
constexpr int64_t kSharesPerWorker = 2;

// Rows and columns of the output, and where their sums go: row r's at sums + r * stride.
struct DownPart {
  int64_t first_row, n_rows, first_col, n_cols;
  int64_t* sums;
  int64_t stride;
};

void clear(const DownPart& part) {
  for (int64_t row = 0; row < part.n_rows; ++row)
    std::memset(part.sums + row * part.stride, 0, static_cast<size_t>(part.n_cols) * sizeof(int64_t));
}

// Adds units [first, end) of every row.
void add_units(const StepContext& context, const FfnShape& shape, int64_t first, int64_t end, const DownPart& part) {
  context.kernels.row_sum[weight_type(shape.down_t.dtype)](
      {weight_rows(shape.down_t), nullptr, first, end - first, shape.h + part.first_row * shape.stride + first,
       shape.stride, part.n_rows, part.first_col, part.n_cols, part.sums, part.stride});
}

// Adds the list's positions [begin, end) of row first_row + `row`.
void add_listed(const StepContext& context, const FfnShape& shape, int64_t row, int64_t begin, int64_t end,
                const DownPart& part) {
  const int32_t* const units = unit_list(shape.units, part.first_row + row).units;
  context.kernels.row_sum[weight_type(shape.down_t.dtype)]({weight_rows(shape.down_t), units + begin, 0, end - begin,
                                                            shape.h + (part.first_row + row) * shape.stride + begin,
                                                            shape.stride, 1, part.first_col, part.n_cols,
                                                            part.sums + row * part.stride, part.stride});
}

// Adds units [first, end) of every row, as far as they are listed.
void add_listed_units(const StepContext& context, const FfnShape& shape, int64_t first, int64_t end,
                      const DownPart& part) {
  for (int64_t row = 0; row < part.n_rows; ++row) {
    const UnitList list = unit_list(shape.units, part.first_row + row);
    add_listed(context, shape, row, list.position(first), list.position(end), part);
  }
}

int64_t merged(int64_t a, int64_t b) {
  if (a == kNoSum || b == kNoSum) return kNoSum;
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}

float sum_value(int64_t sum) {
  constexpr float kUnit = 1.0f / static_cast<float>(int64_t{1} << kSumBits);
  return sum == kNoSum ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(sum) * kUnit;
}

// The sums of a row of the output, from `first_col` on, as what `out` holds.
void put_sums(const FfnShape& shape, const int64_t* sums, int64_t row, int64_t first_col, int64_t n) {
  if (shape.onto.data != nullptr) {
    merge_sums(sums, shape.onto.sums(row) + first_col, n, shape.out.sums(row) + first_col);
  } else if (shape.out.kind == BufferKind::kSums) {
    std::memcpy(shape.out.sums(row) + first_col, sums, static_cast<size_t>(n) * sizeof(int64_t));
  } else {
    const float* const bias = shape.down_bias != nullptr ? shape.down_bias + first_col : nullptr;
    sum_values(sums, bias, n, shape.out.row(row) + first_col);
  }
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
  float* const h = shape.h + row * shape.stride;
  if (list.values != nullptr)
    std::memcpy(h + begin, list.values + begin, static_cast<size_t>(end - begin) * sizeof(float));
  else
    for (int64_t i = begin; i < end; ++i) h[i] = shape.detected.row(row)[list.units[i]];
  if (!shape.is_gated) return activate(context.kernels, shape.activation, nullptr, h + begin, end - begin, h + begin);
  float* const up = shape.products + row * shape.stride;
  context.kernels.dot_rows[weight_type(shape.up.dtype)](weight_rows(shape.up), list.units + begin, 0, end - begin,
                                                        shape.in.acts[row], up + begin);
  if (shape.up_bias != nullptr)
    for (int64_t i = begin; i < end; ++i) up[i] += shape.up_bias[list.units[i]];
  activate(context.kernels, shape.activation, h + begin, up + begin, end - begin, h + begin);
}

int64_t n_listed(const StepContext& context, const RowBuffer& lists) {
  int64_t n = 0;
  for (int64_t row = 0; row < context.n_rows; ++row) n += unit_list(lists, row).n;
  return n;
}

// Computes what the lists of a step name alone if they are short enough, or nothing is known of the other units, else
// all units, and counts them. Without lists (units shown to an observer) all units, uncounted.
void choose_units(const StepContext& context, const FfnShape& shape) {
  *shape.only_listed = false;
  if (shape.units.data == nullptr) return;
  *shape.only_listed = shape.detected.data == nullptr || lists_are_short(context, shape.units, shape.n_ff());
  const int64_t n = *shape.only_listed ? n_listed(context, shape.units) : context.n_rows * shape.n_ff();
  shape.n_computed->fetch_add(static_cast<uint64_t>(n), std::memory_order_relaxed);
}

}  // namespace

void merge_sums(const int64_t* a, const int64_t* b, int64_t n, int64_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = merged(a[i], b[i]);
}

void sum_values(const int64_t* sums, const float* bias, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = bias != nullptr ? sum_value(sums[i]) + bias[i] : sum_value(sums[i]);
}

bool lists_are_short(const StepContext& context, const RowBuffer& lists, int64_t n_units) {
  const int64_t percent = context.n_rows < kManyRows ? kMostListedFew : kMostListedMany;
  return 100 * n_listed(context, lists) <= percent * context.n_rows * n_units;
}

int64_t list_shares(const StepContext& context) { return context.n_workers * kSharesPerWorker; }

namespace {

// act of n values, for those that are not part of a fused kernel; x may equal h.
void activate_alone(const Kernels& kernels, const ActivationRule& rule, const float* x, int64_t n, float* h) {
  switch (rule.kind) {
    case Activation::kSilu: return kernels.silu(x, n, h);
    case Activation::kRelu2: return kernels.relu_mul(x, x, n, h);
    case Activation::kFatRelu: return kernels.fat_relu(x, rule.threshold, n, h);
    case Activation::kGelu: return kernels.gelu(x, n, h);
    case Activation::kGeluTanh: return kernels.gelu_tanh(x, n, h);
    case Activation::kRelu:
    case Activation::kDRelu: return kernels.relu(x, n, h);
  }
}

}  // namespace

void activate(const Kernels& kernels, const ActivationRule& rule, const float* gate, const float* up, int64_t n,
              float* h) {
  if (gate == nullptr) return activate_alone(kernels, rule, up, n, h);
  if (rule.kind == Activation::kSilu) return kernels.silu_mul(gate, up, n, h);
  if (rule.kind == Activation::kRelu) return kernels.relu_mul(gate, up, n, h);
  float part[256];
  for (int64_t i = 0; i < n; i += 256) {
    const int64_t n_part = std::min<int64_t>(256, n - i);
    if (rule.kind == Activation::kDRelu) {
      kernels.relu(up + i, n_part, part);
      kernels.relu_mul(gate + i, part, n_part, h + i);
    } else {
      activate_alone(kernels, rule, gate + i, n_part, part);
      if (rule.kind == Activation::kRelu2)  // part is not negative: a -0 becomes +0
        kernels.relu_mul(part, up + i, n_part, h + i);
      else
        kernels.mul(part, up + i, n_part, h + i);
    }
  }
}

size_t ffn_tile_bytes(bool with_lists) {
  const int64_t n = with_lists ? std::max(kDenseTile.n_sums(), kListedTile.n_sums()) : kDenseTile.n_sums();
  return static_cast<size_t>(n) * sizeof(int64_t);
}

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
// row's list names it too; one list of all that any row names was slower (docs/BENCHMARKS.md, "Lists of several rows").
// Units without a gate have their products already.
int64_t FfnListedPhase::n_tasks(const StepContext& context) const {
  choose_units(context, shape_);
  if (!shape_.is_gated) return context.n_rows;
  if (context.n_rows == 1 && shape_.skips_units()) return list_shares(context);
  return context.n_rows == 0 ? 0 : div_up(shape_.n_ff(), weight_rows_per_task(shape_.n_ff(), context.n_workers));
}

void FfnListedPhase::run(int64_t task, int32_t worker, const StepContext& context) const {
  const bool skips = shape_.skips_units();
  const int64_t each = weight_rows_per_task(shape_.n_ff(), context.n_workers);
  if (!skips && !shape_.is_gated)
    return activate(context.kernels, shape_.activation, nullptr, shape_.detected.row(task), shape_.n_ff(),
                    shape_.h + task * shape_.stride);
  if (!skips) return compute_block(task * each, std::min(each, shape_.n_ff() - task * each), worker, context);
  if (!shape_.is_gated) return compute_listed(context, shape_, task, 0, unit_list(shape_.units, task).n);
  if (context.n_rows == 1) {
    const int64_t n = unit_list(shape_.units, 0).n, n_shares = list_shares(context);
    return compute_listed(context, shape_, 0, n * task / n_shares, n * (task + 1) / n_shares);
  }
  for (int64_t row = 0; row < context.n_rows; ++row) {
    const UnitList list = unit_list(shape_.units, row);
    compute_listed(context, shape_, row, list.position(task * each), list.position((task + 1) * each));
  }
}

// All units are computed, because so many are active or because all are asked for: h of units [first, first + n) of
// every row, from their detect values.
void FfnListedPhase::compute_block(int64_t first, int64_t n, int32_t worker, const StepContext& context) const {
  multiply_units(context, shape_, shape_.up, shape_.up_bias, first, n, shape_.products, worker);
  for (int64_t row = 0; row < context.n_rows; ++row) {
    const int64_t at = row * shape_.stride + first;
    activate(context.kernels, shape_.activation, shape_.detected.row(row) + first, shape_.products + at, n, shape_.h + at);
  }
}

// Few rows: shares of the units, each with partial sums of its own, which may be cut into column tiles so that every
// worker has something to do.
int64_t FfnDownPhase::n_shares(const StepContext& context) { return std::min(kMostUnitShares, list_shares(context)); }

int64_t FfnDownPhase::column_tile(const StepContext& context) const {
  const int64_t n_tiles = div_up(context.n_workers * 3, kMostUnitShares);
  return div_up(div_up(shape_.down_t.n_cols, n_tiles), 32) * 32;
}

int64_t FfnDownPhase::n_tasks(const StepContext& context) const {
  if (context.n_rows == 0) return 0;
  if (shape_.by_shares(context)) return n_shares(context) * div_up(shape_.down_t.n_cols, column_tile(context));
  const TileSize tile = shape_.skips_units() ? kListedTile : kDenseTile;
  return div_up(context.n_rows, tile.n_rows) * div_up(shape_.down_t.n_cols, tile.n_cols);
}

void FfnDownPhase::run(int64_t task, int32_t worker, const StepContext& context) const {
  if (shape_.by_shares(context))
    run_share(task, context);
  else
    run_tile(task, worker, context);
}

// Of one row's list equal numbers of units; else equal ranges of all units, so that a weight row is still in the cache
// when the next row's list names it too.
void FfnDownPhase::run_share(int64_t task, const StepContext& context) const {
  const int64_t tile = column_tile(context), n_cols = shape_.down_t.n_cols, n = n_shares(context);
  const int64_t share = task % n, first_col = task / n * tile;
  int64_t* const sums = shape_.partials + share * shape_.partial_rows * n_cols + first_col;
  const DownPart part{0, context.n_rows, first_col, std::min(tile, n_cols - first_col), sums, n_cols};
  clear(part);
  const bool skips = shape_.skips_units(), by_position = skips && context.n_rows == 1;
  const int64_t n_units = by_position ? unit_list(shape_.units, 0).n : shape_.n_ff();
  const int64_t begin = n_units * share / n, end = n_units * (share + 1) / n;
  if (by_position)
    add_listed(context, shape_, 0, begin, end, part);
  else if (skips)
    add_listed_units(context, shape_, begin, end, part);
  else
    add_units(context, shape_, begin, end, part);
}

void FfnDownPhase::run_tile(int64_t task, int32_t worker, const StepContext& context) const {
  const bool skips = shape_.skips_units();
  const TileSize tile = skips ? kListedTile : kDenseTile;
  const int64_t n_row_tiles = div_up(context.n_rows, tile.n_rows), n_ff = shape_.n_ff();
  DownPart part{task % n_row_tiles * tile.n_rows, 0, task / n_row_tiles * tile.n_cols, 0, nullptr, tile.n_cols};
  part.n_rows = std::min(tile.n_rows, context.n_rows - part.first_row);
  part.n_cols = std::min(tile.n_cols, shape_.down_t.n_cols - part.first_col);
  part.sums = reinterpret_cast<int64_t*>(shape_.tiles + static_cast<size_t>(worker) * shape_.tile_distance);
  clear(part);
  if (!skips) add_units(context, shape_, 0, n_ff, part);
  for (int64_t unit = 0; skips && unit < n_ff; unit += kListedUnits)
    add_listed_units(context, shape_, unit, std::min(unit + kListedUnits, n_ff), part);
  for (int64_t row = 0; row < part.n_rows; ++row)
    put_sums(shape_, part.sums + row * part.stride, part.first_row + row, part.first_col, part.n_cols);
}

int64_t FfnMergePhase::n_tasks(const StepContext& context) const {
  return shape_.by_shares(context) ? context.n_rows : 0;
}

void FfnMergePhase::run(int64_t task, int32_t, const StepContext& context) const {
  const int64_t n = shape_.out.n_cols;
  int64_t* const sums = shape_.partials + task * n;
  for (int64_t share = 1; share < FfnDownPhase::n_shares(context); ++share)
    merge_sums(sums, sums + share * shape_.partial_rows * n, n, sums);
  put_sums(shape_, sums, task, 0, n);
}

}  // namespace hotset::cpu
