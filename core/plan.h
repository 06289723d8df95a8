// A plan: the flat list of steps that computes a batch of rows, with the buffers and weights the steps name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/op.h"
#include "core/tensor.h"

namespace hotset {

// Which rows a buffer has: one per row of the step, or one per row whose logits are asked for.
enum class BufferRows { kAll, kOutput };

// What a row of a buffer holds: n_cols float32, or a unit list, which is int32: the number of units and then the units,
// ascending, in n_cols = n + 1 columns; or active units with their values: the same in n_cols = 2 n + 1 columns, where
// column 1 + n + i is the float32 detect value of the unit in column 1 + i; or n_cols int64, sums of units that another
// device's are added to.
enum class BufferKind { kFloats, kUnits, kActive, kSums };

// Lanes of a plan: the host's CPU alone, or the CPU and an accelerator, which may have a second lane that brings it
// weights from host memory while it computes. A plan with one lane is the CPU's.
constexpr int32_t kHostLane = 0;
constexpr int32_t kDeviceLane = 1;
constexpr int32_t kCopyLane = 2;
constexpr int32_t kMaxLanes = 3;
// In place of a lane: host memory that every device can access, which hand-offs go through.
constexpr int32_t kSharedLane = -1;

struct BufferDesc {
  std::string name;
  int64_t n_cols = 0;
  BufferRows rows = BufferRows::kAll;
  BufferKind kind = BufferKind::kFloats;
  int32_t lane = kHostLane;  // whose memory it is: only steps of that lane, and Copy, touch it; or kSharedLane

  int64_t row_words() const { return kind == BufferKind::kSums ? 2 * n_cols : n_cols; }  // of 4 bytes
};

// A weight by its GGUF name; `view` is where it lies: in the mapped file or other host memory, or, for those of a
// device's lane, in that device's memory, which the host must not read.
struct WeightDesc {
  std::string name;
  TensorView view;
  int32_t lane = kHostLane;  // only its steps read it
};

// Where keys and values lie. A block holds kBlockPositions positions of every layer and KV head; within it a page is
// one (layer, K or V, head): kBlockPositions rows of head_dim elements.
struct KvLayout {
  static constexpr int64_t kBlockPositions = 32;
  int64_t n_layer = 0;
  int64_t n_head_kv = 0;
  int64_t head_dim = 0;
  DType dtype = DType::kF16;  // kF16, kF32, or kQ8_0 (head_dim a multiple of 32)

  size_t page_bytes() const { return static_cast<size_t>(kBlockPositions) * row_bytes(dtype, head_dim); }
  size_t block_bytes() const { return static_cast<size_t>(n_layer * n_head_kv * 2) * page_bytes(); }
  // Byte offset of a page within its block.
  size_t page_offset(int64_t layer, int64_t head, bool is_value) const {
    return static_cast<size_t>((layer * 2 + (is_value ? 1 : 0)) * n_head_kv + head) * page_bytes();
  }
};

// One operation on one lane. A lane is the index of a device in the plan.
struct Step {
  int32_t lane = 0;
  Op op;
};

struct Plan {
  int64_t max_rows = 0;         // rows a step may have
  int64_t max_output_rows = 0;  // rows whose logits a step may ask for
  int64_t max_positions = 0;    // positions a sequence may reach
  int64_t n_vocab = 0;
  KvLayout kv;                    // of all layers
  std::vector<int32_t> kv_lanes;  // (n_layer) the lane whose memory has a layer's keys and values; empty = kHostLane
  std::vector<double> rope_freqs;  // (n_rot / 2) radians per position, all scaling applied
  std::vector<double> rope_freqs_local;  // those of layers with a window, where they have their own
  float rope_magnitude = 1;              // what cosines and sines are multiplied by
  std::vector<BufferDesc> buffers;
  std::vector<WeightDesc> weights;
  // Memory of the device that its weights take turns in: those that lie there are read after their Fetch.
  const std::byte* ring = nullptr;
  size_t ring_bytes = 0;
  std::vector<std::string> flags;  // their names
  std::vector<Step> steps;
  BufferId logits;  // in host memory: of the host's lane, or shared

  int32_t n_lanes() const;  // one more than the last lane that has a step
  int32_t kv_lane(int64_t layer) const {
    return kv_lanes.empty() ? kHostLane : kv_lanes[static_cast<size_t>(layer)];
  }
  // The layout of a block in a lane's memory, which has the layers of that lane alone, and a layer's place among them.
  KvLayout kv_of(int32_t lane) const;
  int64_t kv_slot(int64_t layer) const;

  const BufferDesc& buffer(BufferId id) const { return buffers[static_cast<size_t>(id.index)]; }
  const TensorView& weight(WeightId id) const { return weights[static_cast<size_t>(id.index)].view; }
  // 4-byte words from row to row of a buffer: whole cache lines, so that rows of different tasks share none; but logits
  // leave the plan as one dense array.
  int64_t row_words(BufferId id) const {
    const int64_t n = buffer(id).row_words();
    return id == logits ? n : (n + 15) / 16 * 16;
  }
  int64_t max_rows_of(BufferId id) const { return buffer(id).rows == BufferRows::kAll ? max_rows : max_output_rows; }
};

// Bytes of activations that one row of a step takes, quantised copies and FFN units included; logits excluded.
uint64_t row_memory_bytes(const Plan& plan);

// One line per step: the lane's name, the operation with its weights and buffers. With two lanes the host's steps stand
// to the right of the device's, so that what runs at the same time is seen. Needs no device.
std::string dump(const Plan& plan);

// Problems of a plan, empty when it is right: ids in range, shapes that agree, nothing read before it is written or
// after it is out of date, keys stored before they are attended to; steps touch memory and weights of their lane alone,
// flags order all accesses to shared memory by different lanes, every wait ends, and the host's lane ends after all
// others. Needs no device.
std::vector<std::string> lint(const Plan& plan);

}  // namespace hotset
