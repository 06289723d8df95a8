// The phases that ops are made of. Rows: independent per row. MatMul, Ffn, Attention: see their files.
#pragma once

#include <cstring>
#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "core/op.h"
#include "cpu/cpu_program.h"

namespace hotset::cpu {

// Rows that a task of a per-row phase takes. One row alone is one task, run without the team.
constexpr int64_t kRowsPerTask = 4;

// Largest number of rows for which a dense down pass and attention split one row's work over the team.
constexpr int64_t kFewRows = 4;
// The same for a down pass over unit lists.
constexpr int64_t kFewListedRows = 8;

// Most shares of the units that a down pass of few rows sums apart.
constexpr int64_t kMostUnitShares = 16;

// Attention over more chunks than this is not split over tasks: 131,072 positions.
constexpr int64_t kMaxSplitChunks = 512;

inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A phase whose tasks are groups of rows. Others over the same rows may join it: a row then goes through all of them
// while it is in the cache, e.g. Add, Norm and quantisation. So a row may read of other rows only what is ready before
// the first of them.
class RowPhase : public Phase {
 public:
  explicit RowPhase(BufferRows rows) : rows_(rows) {}
  BufferRows rows() const { return rows_; }
  void join(std::unique_ptr<RowPhase> next) { joined_.push_back(std::move(next)); }
  int64_t n_tasks(const StepContext& context) const final { return div_up(context.rows_of(rows_), kRowsPerTask); }
  void run(int64_t task, int32_t worker, const StepContext& context) const final {
    const int64_t end = std::min(context.rows_of(rows_), (task + 1) * kRowsPerTask);
    for (int64_t row = task * kRowsPerTask; row < end; ++row) {
      run_row(row, worker, context);
      for (const auto& phase : joined_) phase->run_row(row, worker, context);
    }
  }

 protected:
  virtual void run_row(int64_t row, int32_t worker, const StepContext& context) const = 0;

 private:
  BufferRows rows_;
  std::vector<std::unique_ptr<RowPhase>> joined_;
};

// Row phases made of a function (row, context), or (row, worker, context) for one that has memory for each worker.
template <class F>
class RowFunction final : public RowPhase {
 public:
  RowFunction(BufferRows rows, F function) : RowPhase(rows), function_(std::move(function)) {}

 protected:
  void run_row(int64_t row, int32_t worker, const StepContext& context) const override {
    if constexpr (std::is_invocable_v<F, int64_t, int32_t, const StepContext&>)
      function_(row, worker, context);
    else
      function_(row, context);
  }

 private:
  F function_;
};

template <class F>
std::unique_ptr<RowPhase> row_phase(BufferRows rows, F function) {
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
  void add(const TensorView& weight, const float* bias, const RowBuffer& out) { parts_.push_back({weight, bias, out}); }

  int64_t n_tasks(const StepContext& context) const override;
  void run(int64_t task, int32_t worker, const StepContext& context) const override;

 private:
  struct Part {
    TensorView weight;
    const float* bias;  // null: none
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

// Adds bias[first .. first + n) to as many columns from `first` on of each row of `out`; nothing to do without a bias.
void add_bias(const StepContext& context, const float* bias, int64_t first, int64_t n, int64_t n_rows, float* out,
              int64_t out_stride);

// An activation and what kFatRelu adds to what passes.
struct ActivationRule {
  Activation kind;
  float threshold = 0;
};

// h (n) = act(gate) * up, or act(up) when gate is null. h may equal gate or up.
void activate(const Kernels& kernels, const ActivationRule& rule, const float* gate, const float* up, int64_t n,
              float* h);

// Where a row of kind kActive has the values of its units.
inline float* active_values(const RowBuffer& buffer, int64_t row) {
  return buffer.row(row) + 1 + (buffer.n_cols - 1) / 2;
}

// The unit list of a row, as SelectUnits wrote it.
struct UnitList {
  const int32_t* units;
  int64_t n;
  const float* values;  // detect values of the units, in a buffer of kind kActive; else null
  // Position of the first unit >= `unit`.
  int64_t position(int64_t unit) const { return std::lower_bound(units, units + n, unit) - units; }
};
inline UnitList unit_list(const RowBuffer& buffer, int64_t row) {
  const int32_t* at = reinterpret_cast<const int32_t*>(buffer.row(row));
  return {at + 1, at[0], buffer.kind == BufferKind::kActive ? active_values(buffer, row) : nullptr};
}

// Whether the unit lists of a step name so few of n_units that computing those alone is faster than the dense kernels.
bool lists_are_short(const StepContext& context, const RowBuffer& lists, int64_t n_units);

// Tasks that one row's unit list is cut into.
int64_t list_shares(const StepContext& context);

// Predict with its operands resolved.
struct PredictShape {
  int32_t n_bits;
  float z;
  TensorView planes;
  const float *low, *step, *error, *bias;  // bias null: none
  RowBuffer in, out;
  float* scalars;  // (max_rows, 2): sum of the row's q * scale, and z * norm2 of the row
};

// What all units of a row need of it.
class PredictRowPhase final : public RowPhase {
 public:
  explicit PredictRowPhase(const PredictShape& shape) : RowPhase(shape.in.rows), shape_(shape) {}

 protected:
  void run_row(int64_t row, int32_t worker, const StepContext& context) const override;

 private:
  PredictShape shape_;
};

// Margins, by blocks of units.
class PredictPhase final : public Phase {
 public:
  explicit PredictPhase(const PredictShape& shape) : shape_(shape) {}
  int64_t n_tasks(const StepContext& context) const override;
  void run(int64_t task, int32_t worker, const StepContext& context) const override;

 private:
  PredictShape shape_;
};

// Detect values of listed units.
struct DetectShape {
  TensorView weight;
  const float* bias;  // null: none
  RowBuffer in, out, units;
  bool* only_listed;  // as FfnShape::only_listed
  std::byte* scratch;  // per worker, for the blocked kernel
  size_t scratch_distance;
};

class DetectListedPhase final : public Phase {
 public:
  explicit DetectListedPhase(const DetectShape& shape) : shape_(shape) {}
  int64_t n_tasks(const StepContext& context) const override;
  void run(int64_t task, int32_t worker, const StepContext& context) const override;

 private:
  void compute_listed(const StepContext& context, int64_t row, int64_t first, int64_t end) const;
  void compute_all(const StepContext& context, int64_t first, int64_t end, int32_t worker) const;
  void clear_others(int64_t row, int64_t first, int64_t end) const;
  DetectShape shape_;
};

// SparseFfn with its operands resolved, and the memory that its phases share.
struct FfnShape {
  ActivationRule activation;
  TensorView gate;  // no data: the units have no gate, or their list has its products
  TensorView up;    // no data: the list has its products
  TensorView down_t;
  bool is_gated;
  const float *gate_bias, *up_bias, *down_bias;  // null: none
  RowBuffer in, out;
  RowBuffer onto;      // sums that the units' are added to; else no data
  RowBuffer detected;  // the products that decide, computed before; else no data
  RowBuffer units;     // with a unit list; else no data

  float* h;        // (max_rows, stride): of all units, or by position in the row's list
  float* products; // (max_rows, stride): products of the up rows where there is a gate
  int64_t stride;  // floats between rows
  int64_t* partials;     // (kMostUnitShares, partial_rows, n_embd): sums of each share of the units when rows are few
  int64_t partial_rows;  // how many rows are few
  std::byte* tiles;      // per worker: sums of a tile of the output
  size_t tile_distance;
  std::byte* scratch;  // per worker, for the blocked kernel
  size_t scratch_distance;

  int64_t n_ff() const { return down_t.n_rows; }
  // Whether shares of the units are summed one by one and merged in a phase of its own.
  bool by_shares(const StepContext& context) const { return context.n_rows <= partial_rows; }
  // Whether only listed units are computed: not without a list, nor when the lists of the step's rows name so many units
  // that computing all is faster (the result is the same). FfnListedPhase::n_tasks decides, alone, for the two phases
  // after it; one word serves all layers, because no layer begins before the one before it has ended.
  bool* only_listed;
  std::atomic<uint64_t>* n_computed;  // units computed where there are lists, over all steps
  bool skips_units() const { return units.data != nullptr && *only_listed; }
};
size_t ffn_tile_bytes(bool with_lists);

// out = a + b, sums of n columns; out may equal a or b.
void merge_sums(const int64_t* a, const int64_t* b, int64_t n, int64_t* out);

// out = the values of n sums, plus bias unless it is null.
void sum_values(const int64_t* sums, const float* bias, int64_t n, float* out);

// Products of all units, and their h.
class FfnUnitsPhase final : public Phase {
 public:
  explicit FfnUnitsPhase(const FfnShape& shape) : shape_(shape) {}
  int64_t n_tasks(const StepContext& context) const override;
  void run(int64_t task, int32_t worker, const StepContext& context) const override;

 private:
  FfnShape shape_;
};

// Up products and h of the listed units, or of all when the lists are long or there are none; detect values are there.
class FfnListedPhase final : public Phase {
 public:
  explicit FfnListedPhase(const FfnShape& shape) : shape_(shape) {}
  int64_t n_tasks(const StepContext& context) const override;
  void run(int64_t task, int32_t worker, const StepContext& context) const override;

 private:
  void compute_block(int64_t first, int64_t n, int32_t worker, const StepContext& context) const;
  FfnShape shape_;
};

// Sums over units of h * down_t row, of all units or by shares.
class FfnDownPhase final : public Phase {
 public:
  explicit FfnDownPhase(const FfnShape& shape) : shape_(shape) {}
  static int64_t n_shares(const StepContext& context);
  int64_t n_tasks(const StepContext& context) const override;
  void run(int64_t task, int32_t worker, const StepContext& context) const override;

 private:
  int64_t column_tile(const StepContext& context) const;
  void run_share(int64_t task, const StepContext& context) const;
  void run_tile(int64_t task, int32_t worker, const StepContext& context) const;
  FfnShape shape_;
};

// Merges the shares of FfnDownPhase where it left them apart; nothing to do otherwise.
class FfnMergePhase final : public Phase {
 public:
  explicit FfnMergePhase(const FfnShape& shape) : shape_(shape) {}
  int64_t n_tasks(const StepContext& context) const override;
  void run(int64_t task, int32_t worker, const StepContext& context) const override;

 private:
  FfnShape shape_;
};

// Shows every unit to the step's observer, who gets blocks of units, so that what it counts per unit needs no locks and
// comes in order of rows.
class ObservePhase final : public Phase {
 public:
  // No data in `margins`: units are not predicted.
  ObservePhase(int64_t layer, const RowBuffer& in, const RowBuffer& detected, const RowBuffer& h, const RowBuffer& margins)
      : layer_(layer), in_(in), detected_(detected), h_(h), margins_(margins) {}
  int64_t n_tasks(const StepContext& context) const override;
  void run(int64_t task, int32_t worker, const StepContext& context) const override;

 private:
  int64_t layer_;
  RowBuffer in_, detected_, h_, margins_;
};

// Brings rows of a weight to memory of the device.
class FetchPhase final : public Phase {
 public:
  // The rows of both lie together.
  FetchPhase(const TensorView& from, std::byte* to, std::atomic<uint64_t>& moved) : from_(from), to_(to), moved_(moved) {}
  int64_t n_tasks(const StepContext&) const override { return 1; }
  void run(int64_t, int32_t, const StepContext&) const override {
    std::memcpy(to_, from_.data, from_.size_bytes());
    moved_.fetch_add(from_.size_bytes(), std::memory_order_relaxed);
  }

 private:
  TensorView from_;
  std::byte* to_;
  std::atomic<uint64_t>& moved_;
};

// Tells the lane that waits for the flag to go on.
class SignalPhase final : public Phase {
 public:
  SignalPhase(Handoff& handoff, FlagId flag, std::atomic<uint64_t>& count)
      : handoff_(handoff), flag_(flag), count_(count) {}
  int64_t n_tasks(const StepContext&) const override { return 1; }
  void run(int64_t, int32_t, const StepContext&) const override {
    handoff_.signal(flag_);
    count_.fetch_add(1, std::memory_order_relaxed);
  }

 private:
  Handoff& handoff_;
  FlagId flag_;
  std::atomic<uint64_t>& count_;
};

// Waits for another lane: one worker does, the others for that one.
class WaitPhase final : public Phase {
 public:
  WaitPhase(int32_t lane, Handoff& handoff, FlagId flag, std::atomic<uint64_t>& count)
      : lane_(lane), handoff_(handoff), flag_(flag), count_(count) {}
  int64_t n_tasks(const StepContext&) const override { return 1; }
  void run(int64_t, int32_t worker, const StepContext& context) const override {
    if (lane_ != kHostLane)
      handoff_.wait(flag_);
    else if (!handoff_.wait_on_host(flag_, [&] { return context.is_over(worker); }))
      return;
    count_.fetch_add(1, std::memory_order_relaxed);
  }

 private:
  int32_t lane_;
  Handoff& handoff_;
  FlagId flag_;
  std::atomic<uint64_t>& count_;
};

// Memory and shapes that the phases of Attention share.
struct AttentionShape {
  int32_t lane;   // whose memory has the keys and values,
  int64_t layer;  // and the layer's place in it
  int64_t n_head, n_head_kv, head_dim;
  float scale, softcap;
  int64_t window;  // 0: all positions
  KvLayout kv;
  RowBuffer q, out;
  float* partials;     // few rows: (rows, n_head, chunks) records of m, l, o
  int64_t max_chunks;  // chunks that partials hold; longer contexts are not split
  std::byte* scratch;  // per worker
  size_t scratch_distance;
  int64_t group() const { return n_head / n_head_kv; }
  int64_t record() const { return head_dim + 2; }
  // The first position that a row at `position` sees, and the chunk that has it.
  int64_t first_visible(int64_t position) const { return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0; }
  int64_t first_chunk(int64_t position) const { return first_visible(position) / kChunkPositions; }
};
// Writes n floats as a row of the KV cache (F32, F16 or Q8_0; n a multiple of 32 for Q8_0). Q8_0 takes the integers and
// scales of quantize_activation, the scales rounded to f16.
void store_kv_row(const Kernels& kernels, DType dtype, const float* from, int64_t n, std::byte* to);

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
