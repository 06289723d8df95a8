// Predict, and Detect of the units that it proposes.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/bit_planes.h"
#include "cpu/canonical.h"
#include "cpu/phases.h"

namespace hotset::cpu {
namespace {

// Listed units whose products are made before they are put in their places.
constexpr int64_t kListedAtOnce = 256;

}  // namespace

// Canonical: the sum as a dot of `scale` and `sum` (float), block b in lane b % 16; norm2 from the dot of the row with
// itself. Rounded once more each: the square root, and its product with z.
void PredictRowPhase::run_row(int64_t row, int32_t, const StepContext& context) const {
  const ActivationRow& act = shape_.in.acts[row];
  const int64_t n = shape_.in.n_cols;
  float lane[16] = {};
  for (int64_t block = 0; block < div_up(n, kBlock); ++block)
    lane[block % 16] = fma1(act.scale[block], static_cast<float>(act.sum[block]), lane[block % 16]);
  const WeightRows itself{reinterpret_cast<const std::byte*>(act.f32), 0, n};
  float squares;
  context.kernels.dot_rows[kWeightF32](itself, nullptr, 0, 1, act, &squares);
  float* const out = shape_.scalars + 2 * row;
  out[0] = reduce_lanes(lane);
  out[1] = shape_.z * std::sqrt(squares);
}

int64_t PredictPhase::n_tasks(const StepContext& context) const {
  const int64_t n_units = shape_.planes.n_rows;
  return context.n_rows == 0 ? 0 : div_up(n_units, weight_rows_per_task(n_units, context.n_workers));
}

void PredictPhase::run(int64_t task, int32_t, const StepContext& context) const {
  const int64_t n_units = shape_.planes.n_rows, each = weight_rows_per_task(n_units, context.n_workers);
  const int64_t first = task * each, n = std::min(each, n_units - first);
  const WeightRows rows{shape_.planes.data, shape_.planes.row_stride, shape_.in.n_cols};
  context.kernels.plane_dots[shape_.n_bits - 1](
      {rows, first, n, shape_.in.acts, context.n_rows, shape_.out.data + first, shape_.out.stride});
  const float* const bias = shape_.bias != nullptr ? shape_.bias + first : nullptr;
  for (int64_t row = 0; row < context.n_rows; ++row) {
    const float* scalars = shape_.scalars + 2 * row;
    context.kernels.plane_margins({shape_.low + first, shape_.step + first, shape_.error + first, bias, scalars[0],
                                   scalars[1], n, shape_.out.row(row) + first});
  }
}

// As FfnListedPhase: one row by shares of its list, several by blocks of units, with the dense kernels when lists are long.
int64_t DetectListedPhase::n_tasks(const StepContext& context) const {
  const int64_t n_units = shape_.weight.n_rows;
  *shape_.only_listed = lists_are_short(context, shape_.units, n_units);
  if (context.n_rows == 1 && *shape_.only_listed) return list_shares(context);
  return context.n_rows == 0 ? 0 : div_up(n_units, weight_rows_per_task(n_units, context.n_workers));
}

void DetectListedPhase::run(int64_t task, int32_t worker, const StepContext& context) const {
  const int64_t n_units = shape_.weight.n_rows;
  if (context.n_rows == 1 && *shape_.only_listed) {
    const UnitList list = unit_list(shape_.units, 0);
    const int64_t n_shares = list_shares(context);
    const auto border = [&](int64_t share) {
      const int64_t position = list.n * share / n_shares;
      return share == n_shares ? n_units : position == 0 ? 0 : list.units[position];
    };
    return compute_listed(context, 0, border(task), border(task + 1));
  }
  const int64_t each = weight_rows_per_task(n_units, context.n_workers);
  const int64_t first = task * each, end = std::min(first + each, n_units);
  if (!*shape_.only_listed) compute_all(context, first, end, worker);
  for (int64_t row = 0; row < context.n_rows; ++row)
    *shape_.only_listed ? compute_listed(context, row, first, end) : clear_others(row, first, end);
}

// Values of the listed units within [first, end) of one row; +0 for the others.
void DetectListedPhase::compute_listed(const StepContext& context, int64_t row, int64_t first, int64_t end) const {
  const UnitList list = unit_list(shape_.units, row);
  const int64_t list_end = list.position(end);
  float* const out = shape_.out.row(row);
  std::memset(out + first, 0, static_cast<size_t>(end - first) * sizeof(float));
  float values[kListedAtOnce];
  for (int64_t at = list.position(first); at < list_end; at += kListedAtOnce) {
    const int32_t* const units = list.units + at;
    const int64_t n = std::min(kListedAtOnce, list_end - at);
    context.kernels.dot_rows[weight_type(shape_.weight.dtype)](weight_rows(shape_.weight), units, 0, n,
                                                               shape_.in.acts[row], values);
    for (int64_t i = 0; i < n; ++i)
      out[units[i]] = shape_.bias != nullptr ? values[i] + shape_.bias[units[i]] : values[i];
  }
}

void DetectListedPhase::compute_all(const StepContext& context, int64_t first, int64_t end, int32_t worker) const {
  multiply_rows(context, shape_.weight, first, end - first, shape_.in.acts, context.n_rows, shape_.out.data,
                shape_.out.stride, shape_.scratch + static_cast<size_t>(worker) * shape_.scratch_distance);
  add_bias(context, shape_.bias, first, end - first, context.n_rows, shape_.out.data, shape_.out.stride);
}

// +0 for the units within [first, end) that the row's list does not name.
void DetectListedPhase::clear_others(int64_t row, int64_t first, int64_t end) const {
  const UnitList list = unit_list(shape_.units, row);
  float* const out = shape_.out.row(row);
  int64_t unit = first;
  for (int64_t at = list.position(first), list_end = list.position(end); at < list_end; ++at) {
    std::memset(out + unit, 0, static_cast<size_t>(list.units[at] - unit) * sizeof(float));
    unit = list.units[at] + 1;
  }
  std::memset(out + unit, 0, static_cast<size_t>(end - unit) * sizeof(float));
}

}  // namespace hotset::cpu
