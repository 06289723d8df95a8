// What kernels are made of. A kernel is a struct with its operands and
//   kThreads, kPasses, Shared          threads of a block, passes of a round, memory that a block's threads share
//   n_items()                          pieces of work in this step; blocks take them in turn
//   n_rounds(item)                     how often the passes are walked for an item
//   pass(p, item, round, thread, s)    what one thread does; the block meets before the next pass
// so that one launch serves any number of rows, and the same code runs on the device (cuda_program.cu) and, thread
// after thread, on the host (stand_in.cpp), where sanitizers see every access. A pass must not read what another
// thread of the block writes in it. Nothing else than Shared lives from pass to pass.
#pragma once

#include "core/plan.h"
#include "cuda/weight_blocks.h"

#if defined(__CUDA_ARCH__)
#define HS_UNROLL _Pragma("unroll")
#define HS_UNROLL_4 _Pragma("unroll 4")
#else
#define HS_UNROLL
#define HS_UNROLL_4
#endif

namespace hotset::cuda {

struct NoShared {};

// Most pieces of one item are walked once.
struct OneRound {
  using Shared = NoShared;
  static constexpr int kThreads = 256, kPasses = 1;
  HS_DEVICE int64_t n_rounds(int64_t) const { return 1; }
};

// What changes from step to step, as the host writes it to pinned memory and TakeStep brings it to the device: this
// head, then arrays at the offsets that it names, in words of 4 bytes.
struct StepHead {
  int32_t n_rows, n_output_rows;
  uint32_t number;   // Handoff::step()
  int32_t n_words;   // head included
  int32_t rows;      // (n_rows, 3) token, position, first of the row's blocks
  int32_t outputs;   // (n_output_rows) rows whose logits are asked for
  int32_t blocks;    // addresses of KV blocks, 8 bytes each
  int32_t angles;    // (n_rows, n_rot) as RopeAngles wants them; then those of layers with a window, if they have own
};

constexpr int32_t kHeadWords = sizeof(StepHead) / 4;

struct StepView {
  const StepHead* head = nullptr;
  HS_DEVICE const int32_t* words(int32_t at) const { return reinterpret_cast<const int32_t*>(head) + at; }
  HS_DEVICE int64_t n_rows(BufferRows rows) const {
    return rows == BufferRows::kAll ? head->n_rows : head->n_output_rows;
  }
  HS_DEVICE int64_t token(int64_t row) const { return words(head->rows)[3 * row]; }
  HS_DEVICE int64_t position(int64_t row) const { return words(head->rows)[3 * row + 1]; }
  HS_DEVICE std::byte* const* blocks(int64_t row) const {
    return reinterpret_cast<std::byte* const*>(words(head->blocks)) + words(head->rows)[3 * row + 2];
  }
};

// Counts of all steps; zero at first.
struct Counters {
  unsigned long long active, computed, total, candidates, on_host, to_host, to_device, fetched;
};

// A buffer of the plan.
struct Rows {
  float* data = nullptr;
  int64_t stride = 0, n_cols = 0;  // words from row to row; columns
  BufferRows rows = BufferRows::kAll;
  BufferKind kind = BufferKind::kFloats;
  HS_DEVICE float* row(int64_t i) const { return data + i * stride; }
  HS_DEVICE int64_t* sums(int64_t i) const { return reinterpret_cast<int64_t*>(row(i)); }
};

// A row of unit lists (BufferKind::kUnits or kActive).
struct List {
  const int32_t* units;
  const float* values;  // of kind kActive
  int64_t n;
  HS_DEVICE int64_t position(int64_t unit) const {  // of the first unit >= `unit`
    int64_t low = 0, high = n;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (units[middle] < unit)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};
HS_DEVICE inline int64_t list_capacity(const Rows& lists) {
  return lists.kind == BufferKind::kActive ? (lists.n_cols - 1) / 2 : lists.n_cols - 1;
}
// After a step that failed elsewhere a list may hold anything: its length is kept within its row.
HS_DEVICE inline List list_of(const Rows& lists, int64_t row) {
  const float* const at = lists.row(row);
  const int64_t capacity = list_capacity(lists), n = *reinterpret_cast<const int32_t*>(at);
  return {reinterpret_cast<const int32_t*>(at) + 1, at + 1 + capacity, n < 0 ? 0 : least(n, capacity)};
}

// Rows of activations, and their 8-bit blocks where products read those.
struct Acts {
  Rows f32;
  int8_t* q = nullptr;       // (rows, q_stride)
  float* scale = nullptr;    // (rows, block_stride)
  int32_t* sum = nullptr;    // (rows, block_stride)
  int64_t q_stride = 0, block_stride = 0;
  HS_DEVICE const uint32_t* words(int64_t row, int64_t b) const {
    return reinterpret_cast<const uint32_t*>(q + row * q_stride + b * kBlock);
  }
  HS_DEVICE float scale_of(int64_t row, int64_t b) const { return scale[row * block_stride + b]; }
  HS_DEVICE int32_t sum_of(int64_t row, int64_t b) const { return sum[row * block_stride + b]; }
};

}  // namespace hotset::cuda
