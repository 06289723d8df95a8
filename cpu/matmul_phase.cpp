#include <algorithm>

#include "cpu/phases.h"

namespace hotset::cpu {

void multiply_rows(const StepContext& context, const TensorView& weight, int64_t first, int64_t n,
                   const ActivationRow* acts, int64_t n_acts, float* out, int64_t out_stride, std::byte* scratch) {
  const int type = weight_type(weight.dtype);
  if (n_acts == 1) {
    context.kernels.dot_rows[type](weight_rows(weight), nullptr, first, n, acts[0], out + first);
    return;
  }
  GemmArgs args;
  args.w = weight_rows(weight);
  args.first_row = first;
  args.n_rows = n;
  args.acts = acts;
  args.n_acts = n_acts;
  args.out = out + first;
  args.out_stride = out_stride;
  args.scratch = scratch;
  context.kernels.gemm[type](args);
}

void add_bias(const StepContext& context, const float* bias, int64_t first, int64_t n, int64_t n_rows, float* out,
              int64_t out_stride) {
  if (bias == nullptr) return;
  for (int64_t row = 0; row < n_rows; ++row) {
    float* at = out + row * out_stride + first;
    context.kernels.add(at, bias + first, n, at);
  }
}

int64_t weight_rows_per_task(int64_t n_rows, int32_t n_workers) {
  return std::clamp<int64_t>(div_up(div_up(n_rows, n_workers * 8), 32) * 32, 32, 256);
}

int64_t MatMulPhase::rows_per_task(const StepContext& context) const {
  int64_t total = 0;
  for (const Part& part : parts_) total += part.weight.n_rows;
  return weight_rows_per_task(total, context.n_workers);
}

int64_t MatMulPhase::n_tasks(const StepContext& context) const {
  if (context.rows_of(in_.rows) == 0) return 0;
  const int64_t each = rows_per_task(context);
  int64_t n = 0;
  for (const Part& part : parts_) n += div_up(part.weight.n_rows, each);
  return n;
}

void MatMulPhase::run(int64_t task, int32_t worker, const StepContext& context) const {
  const int64_t each = rows_per_task(context);
  for (const Part& part : parts_) {
    const int64_t n = div_up(part.weight.n_rows, each);
    if (task >= n) {
      task -= n;
      continue;
    }
    const int64_t first = task * each;
    multiply_rows(context, part.weight, first, std::min(each, part.weight.n_rows - first), in_.acts,
                  context.rows_of(in_.rows), part.out.data, part.out.stride,
                  scratch_ + static_cast<size_t>(worker) * scratch_distance_);
    add_bias(context, part.bias, first, std::min(each, part.weight.n_rows - first), context.rows_of(in_.rows),
             part.out.data, part.out.stride);
    return;
  }
}

}  // namespace hotset::cpu
