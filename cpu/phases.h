// The phases that ops are made of. Rows: independent per row. MatMul, Ffn, Attention: see their files.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/op.h"
#include "cpu/cpu_program.h"

namespace hotset::cpu {

// Rows that a task of a per-row phase takes. One row alone is one task: worker 0 does it without a barrier.
constexpr int64_t kRowsPerTask = 4;

// Largest number of rows for which the down pass and attention split one row's work over the team.
constexpr int64_t kFewRows = 4;

// Attention over more chunks than this is not split over tasks: 131,072 positions.
constexpr int64_t kMaxSplitChunks = 512;

inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A phase whose tasks are groups of rows.
class RowPhase : public Phase {
 public:
  explicit RowPhase(BufferRows rows) : rows_(rows) {}
  int64_t n_tasks(const StepContext& context) const final { return div_up(context.rows_of(rows_), kRowsPerTask); }
  void run(int64_t task, int32_t, const StepContext& context) const final {
    const int64_t end = std::min(context.rows_of(rows_), (task + 1) * kRowsPerTask);
    for (int64_t row = task * kRowsPerTask; row < end; ++row) run_row(row, context);
  }

 protected:
  virtual void run_row(int64_t row, const StepContext& context) const = 0;

 private:
  BufferRows rows_;
};

// Row phases made of a function (row, context).
template <class F>
class RowFunction final : public RowPhase {
 public:
  RowFunction(BufferRows rows, F function) : RowPhase(rows), function_(std::move(function)) {}

 protected:
  void run_row(int64_t row, const StepContext& context) const override { function_(row, context); }

 private:
  F function_;
};

template <class F>
std::unique_ptr<Phase> row_phase(BufferRows rows, F function) {
  return std::make_unique<RowFunction<F>>(rows, std::move(function));
}

// Weight rows that a task takes: few enough that the last tasks do not leave workers idle, enough to fill the blocked
// kernel's panels.
int64_t weight_rows_per_task(int64_t n_rows, int32_t n_workers);

// Several weights times the same input, e.g. attn_q, attn_k and attn_v.
class MatMulPhase final : public Phase {
 public:
  MatMulPhase(const RowBuffer& in, std::byte* scratch, size_t scratch_distance)
      : in_(in), scratch_(scratch), scratch_distance_(scratch_distance) {}
  void add(const TensorView& weight, const RowBuffer& out) { parts_.push_back({weight, out}); }

  int64_t n_tasks(const StepContext& context) const override;
  void run(int64_t task, int32_t worker, const StepContext& context) const override;

 private:
  struct Part {
    TensorView weight;
    RowBuffer out;
  };
  int64_t rows_per_task(const StepContext& context) const;
  const RowBuffer in_;
  std::byte* scratch_;
  size_t scratch_distance_;
  std::vector<Part> parts_;
};

// One or many activations times weight rows [first, first + n): out (n_acts, out_stride) from column `first` on.
// One activation streams the rows, more go through the blocked kernel; the results are the same.
void multiply_rows(const StepContext& context, const TensorView& weight, int64_t first, int64_t n,
                   const ActivationRow* acts, int64_t n_acts, float* out, int64_t out_stride, std::byte* scratch);

// Memory that the phases of SparseFfn share.
struct FfnBuffers {
  float* gate;       // (max_rows, stride) gate products, then h
  float* up;         // (max_rows, stride)
  int64_t stride;    // floats between rows
  float* partials;   // (kUnitRanges, kFewRows, n_embd): sums of each range when there are few rows
  std::byte* tiles;  // per worker: sums of ranges not yet merged
  size_t tile_distance;
  std::byte* scratch;  // per worker, for the blocked kernel
  size_t scratch_distance;
};
size_t ffn_tile_bytes();

// Gate and up products of all units, and h = act(gate) * up.
class FfnUnitsPhase final : public Phase {
 public:
  FfnUnitsPhase(const op::SparseFfn& o, const TensorView& gate, const TensorView& up, const RowBuffer& in,
                const FfnBuffers& buffers)
      : activation_(o.activation), gate_(gate), up_(up), in_(in), buffers_(buffers) {}
  int64_t n_tasks(const StepContext& context) const override;
  void run(int64_t task, int32_t worker, const StepContext& context) const override;

 private:
  Activation activation_;
  TensorView gate_, up_;
  RowBuffer in_;
  FfnBuffers buffers_;
};

// out = sum over units of h * down_t row, by kUnitRanges ranges.
class FfnDownPhase final : public Phase {
 public:
  FfnDownPhase(const TensorView& down_t, const RowBuffer& out, const FfnBuffers& buffers)
      : down_t_(down_t), out_(out), buffers_(buffers) {}
  int64_t n_tasks(const StepContext& context) const override;
  void run(int64_t task, int32_t worker, const StepContext& context) const override;

 private:
  int64_t column_tile(const StepContext& context) const;
  void run_range(int64_t task, const StepContext& context) const;
  void run_tile(int64_t task, int32_t worker, const StepContext& context) const;
  TensorView down_t_;
  RowBuffer out_;
  FfnBuffers buffers_;
};

// Merges the range sums of FfnDownPhase when there are few rows; nothing to do otherwise.
class FfnMergePhase final : public Phase {
 public:
  FfnMergePhase(const RowBuffer& out, const FfnBuffers& buffers) : out_(out), buffers_(buffers) {}
  int64_t n_tasks(const StepContext& context) const override;
  void run(int64_t task, int32_t worker, const StepContext& context) const override;

 private:
  RowBuffer out_;
  FfnBuffers buffers_;
};

// Memory and shapes that the phases of Attention share.
struct AttentionShape {
  int64_t layer, n_head, n_head_kv, head_dim;
  float scale;
  KvLayout kv;
  RowBuffer q, out;
  float* partials;     // few rows: (rows, n_head, chunks) records of m, l, o
  int64_t max_chunks;  // chunks that partials hold; longer contexts are not split
  std::byte* scratch;  // per worker
  size_t scratch_distance;
  int64_t group() const { return n_head / n_head_kv; }
  int64_t record() const { return head_dim + 2; }
};
// Rows that one attention task takes for `group` query heads per KV head.
int64_t attention_tile_rows(int64_t group);
size_t attention_scratch_bytes(const Kernels& kernels, int64_t group, int64_t head_dim);

// Tasks: (row tile, KV head), or with few rows (row tile, KV head, chunk), each chunk's result kept for the merge.
class AttentionPhase final : public Phase {
 public:
  explicit AttentionPhase(const AttentionShape& shape) : shape_(shape) {}
  int64_t n_tasks(const StepContext& context) const override;
  void run(int64_t task, int32_t worker, const StepContext& context) const override;

 private:
  AttentionShape shape_;
};

// Merges chunks in order when AttentionPhase split them.
class AttentionMergePhase final : public Phase {
 public:
  explicit AttentionMergePhase(const AttentionShape& shape) : shape_(shape) {}
  int64_t n_tasks(const StepContext& context) const override;
  void run(int64_t task, int32_t worker, const StepContext& context) const override;

 private:
  int64_t pairs_per_task(const StepContext& context) const;
  AttentionShape shape_;
};

}  // namespace hotset::cpu
