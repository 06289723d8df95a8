// A device: memory, and programs compiled from plans. It knows operations, not models.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/handoff.h"
#include "core/plan.h"
#include "core/unit_counts.h"

namespace hotset {

// One token to compute: its id, its position, and which of StepParams::sequences it belongs to.
struct Row {
  int32_t token = 0;
  int32_t position = 0;
  int32_t sequence = 0;
};

// Base addresses of a sequence's KV blocks in order, in each lane's memory (Plan::kv_of): position p is in
// (*blocks[lane])[p / KvLayout::kBlockPositions]. null for a lane that keeps no layer's keys and values.
struct SequenceBlocks {
  std::array<const std::vector<std::byte*>*, kMaxLanes> blocks{};
};

// What an Observe op shows: units [first_unit, first_unit + n_units) of every row of a step, as seen at unit 0.
struct ObservedUnits {
  int64_t layer;
  int64_t first_unit, n_units;  // first_unit is a multiple of 64
  int64_t n_rows;
  const float* in;  // (n_rows, n_embd), rows in_stride floats apart: the FFN's input after the norm
  int64_t in_stride;
  const float *detected, *h;  // (n_rows, n_ff), rows `stride` floats apart
  int64_t stride;
  const float* margins = nullptr;  // as h, where the plan predicts
};

// Sees every unit of every row. For one layer after the other observe() is called by several threads at a time, each
// with units of its own; a unit is shown once per layer and step. What is shown is valid during the call. An error it
// throws ends the step.
class UnitObserver {
 public:
  virtual ~UnitObserver() = default;
  // A step is about to run with these rows; called alone, before its first observe().
  virtual void begin_step(const std::vector<Row>& rows) = 0;
  virtual void observe(const ObservedUnits& units) = 0;
};

// What changes from step to step. Rows of several sequences, prefill and decode, may be mixed; rows of one sequence are
// in order of position. Attention sees what this and earlier steps stored.
struct StepParams {
  std::vector<Row> rows;
  std::vector<SequenceBlocks> sequences;
  std::vector<int32_t> output_rows;  // ascending indices into rows
  std::function<bool()> stop;        // asked between operations; true ends the step with CancelledError
  UnitObserver* observer = nullptr;  // sees what the plan's Observe ops show; nullptr = nobody
};

// Memory of a device; freed on destruction, which must come before the device's. Addresses of an accelerator's memory
// are for its programs: the host goes through Device::upload and download.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 protected:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// What the programs of a plan's lanes share. Outlives them.
struct SharedState {
  std::vector<std::byte*> buffers;  // (plan.buffers) row 0 of the shared ones, else null; rows are row_words() apart
  Handoff* handoff = nullptr;       // the plan's flags; null for a plan without any
};

// A plan's steps of one lane, made ready by one device: operands resolved, neighbours fused.
class Program {
 public:
  virtual ~Program() = default;
  // Address of row 0 of one of the lane's buffers, or of a shared one; an accelerator's own are not for the host.
  virtual const float* buffer(BufferId id) const = 0;
  virtual size_t buffer_bytes() const = 0;  // activations and scratch this program holds
  virtual UnitCounts unit_counts() const = 0;
  virtual Traffic traffic() const { return {}; }
  // Adds to counts[i] how many rows have listed the unit of tally first + i (op::SelectUnits) since the program was made,
  // modulo 2^32; 0 for those that the lane does not count. Not while it runs.
  virtual void add_tallies(int64_t /*first*/, std::span<uint32_t> /*counts*/) const {}
};

struct DeviceInfo {
  std::string kind;    // "cpu"
  std::string name;    // what doctor and bench print
  std::string detail;  // "avx512"
  int32_t n_threads = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceInfo info() const = 0;

  // "" when the device can run `op` of `plan`, else what it lacks (a dtype or a shape).
  virtual std::string why_unsupported(const Op& op, const Plan& plan) const = 0;

  // Zero-filled memory, 64-byte aligned; pages are committed when first touched. Throws OutOfMemoryError.
  virtual std::unique_ptr<DeviceMemory> alloc(size_t n_bytes) = 0;

  // Host memory, as alloc gives it, that both the host and this device can access at its addresses.
  virtual std::unique_ptr<DeviceMemory> alloc_shared(size_t n_bytes) = 0;

  // Moves n_bytes between host memory and `at`, an address within this device's memory. Done on return; not while a
  // program runs that writes to it, and upload not while one reads it either. Other memory may be in use meanwhile.
  virtual void upload(std::byte* at, const std::byte* from, size_t n_bytes) = 0;
  virtual void download(const std::byte* at, std::byte* to, size_t n_bytes) = 0;

  // Bytes of alloc() that may still be taken, as far as the device can tell; UINT64_MAX when there is no limit.
  virtual uint64_t free_bytes() const = 0;

  // Makes a program of the plan's steps on `lane`. The plan's weights must outlive it.
  virtual std::unique_ptr<Program> compile(const Plan& plan, int32_t lane, const SharedState& shared = {}) = 0;

  // Starts a step; programs of a device run in the order of their launches. The parameters need not outlive the call.
  // Returns without waiting for steps of the program, which wait for lanes that are launched later: a device whose
  // queue is finite takes the program as one (a graph), or feeds the queue from a thread of its own.
  // synchronize() returns when all launches are done and rethrows their first error.
  virtual void launch(Program& program, const StepParams& params) = 0;
  virtual void synchronize() = 0;
  // Whether all launches are done, or become so within that time, in which a stop of the process does not count.
  virtual bool finishes_within(std::chrono::milliseconds) { return true; }  // of devices that compute within launch()
};

}  // namespace hotset
