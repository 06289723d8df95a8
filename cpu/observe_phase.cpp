// JoinUnits and Observe: a layer's units shown to an observer by their numbers.
#include <algorithm>

#include "cpu/phase_builder.h"
#include "cpu/phases.h"

namespace hotset::cpu {
namespace {

// Units that an observer is shown at a time: two cache lines of a mask of one bit each, 16 tasks for a small layer.
constexpr int64_t kObservedUnits = 128;

}  // namespace

int64_t ObservePhase::n_tasks(const StepContext& context) const {
  if (context.params.observer == nullptr || context.n_rows == 0) return 0;
  return div_up(h_.n_cols, kObservedUnits);
}

void ObservePhase::run(int64_t task, int32_t, const StepContext& context) const {
  const int64_t first = task * kObservedUnits;
  context.params.observer->observe({layer_, first, std::min(kObservedUnits, h_.n_cols - first), context.n_rows,
                                    in_.data, in_.stride, detected_.data, h_.data, h_.stride, margins_.data});
}

void PhaseBuilder::add(const op::JoinUnits& o) {
  const RowBuffer out = buffer(o.out);
  const int32_t* const units =
      o.unit_of_slot ? reinterpret_cast<const int32_t*>(plan_.weight(o.unit_of_slot).data) : nullptr;
  push(row_phase(out.rows, [hot = o.hot ? buffer(o.hot) : RowBuffer{}, cold = o.cold ? buffer(o.cold) : RowBuffer{},
                            n_hot = o.n_hot, units, out](int64_t row, const StepContext&) {
    float* const to = out.row(row);
    for (int64_t slot = 0; slot < out.n_cols; ++slot)
      to[units != nullptr ? units[slot] : slot] = slot < n_hot ? hot.row(row)[slot] : cold.row(row)[slot - n_hot];
  }));
  wrote(o.out);
}

void PhaseBuilder::add(const op::Observe& o) {
  push(std::make_unique<ObservePhase>(o.layer, buffer(o.in), buffer(o.detected), buffer(o.h),
                                      o.margins ? buffer(o.margins) : RowBuffer{}));
}

}  // namespace hotset::cpu
