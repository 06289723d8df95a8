// Turns the ops of a plan into phases of a CPU program: allocates buffers, quantises activations where block weights
// read them, and fuses neighbours.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/plan.h"
#include "cpu/cpu_program.h"

namespace hotset::cpu {

class RowPhase;

class PhaseBuilder {
 public:
  PhaseBuilder(CpuProgram& program, const Plan& plan, int32_t lane, const SharedState& shared);
  void build();

  // What one op needs that this device lacks; "" when nothing.
  static std::string why_unsupported(const Op& op, const Plan& plan);
  // Throws DeviceError when a step of the lane needs what it lacks.
  static void check_supported(const Plan& plan, int32_t lane, const char* where);

 private:
  void allocate_buffers();
  void mark_block_inputs();
  int64_t most_units() const;
  bool has_unit_lists() const;              // whether a SparseFfn of this lane has
  int64_t few_rows(bool with_lists) const;  // FfnShape::partial_rows
  void allocate_activations(size_t buffer);
  void allocate_tallies();

  void add(const op::Embed& o);
  void add(const op::EmbedPosition& o);
  void add(const op::Norm& o);
  void add(const op::HeadNorm& o);
  void add(const op::MatMul& o);
  void add(const op::RopeAngles& o);
  void add(const op::Rope& o);
  void add(const op::StoreKv& o);
  void add(const op::Attention& o);
  void add(const op::Activate& o);
  void add(const op::Predict& o);
  void add(const op::Detect& o);
  void add(const op::SelectUnits& o);
  void add(const op::SparseFfn& o);
  void add(const op::JoinUnits& o);
  void add(const op::Observe& o);
  void add(const op::MergeSums& o);
  void add(const op::Add& o);
  void add(const op::SoftCap& o);
  void add(const op::SelectRows& o);
  void add(const op::Copy& o);
  void add(const op::Fetch& o);
  void add(const op::Signal& o);
  void add(const op::Wait& o);

  void push(std::unique_ptr<Phase> phase);
  void push(std::unique_ptr<RowPhase> phase);
  // Makes sure that the rows of `in` are quantised before the next phase, or only when `dtype` asks for it.
  void quantize(BufferId in);
  void quantize_for(DType dtype, BufferId in) {
    if (is_block_type(dtype)) quantize(in);
  }
  // A buffer was written: its quantised form is stale.
  void wrote(BufferId id) { quantized_[static_cast<size_t>(id.index)] = false; }
  const RowBuffer& buffer(BufferId id) const { return program_.buffers_[static_cast<size_t>(id.index)]; }
  // Whether a device's lane writes it for the host.
  bool is_handed_over(BufferId id) const { return lane_ != kHostLane && plan_.buffer(id).lane == kSharedLane; }
  // The values of an F32 vector; null for an absent one.
  const float* vector(WeightId id) const {
    return id ? reinterpret_cast<const float*>(plan_.weight(id).data) : nullptr;
  }
  std::byte* take_memory(size_t n_bytes);
  // Memory private to each worker, n_bytes apart (rounded up to cache lines); returns the distance.
  std::byte* take_worker_memory(size_t n_bytes, size_t& distance);
  std::byte* gemm_scratch(size_t& distance);

  CpuProgram& program_;
  const Plan& plan_;
  const int32_t lane_;
  const SharedState& shared_;
  std::vector<bool> block_input_;  // buffer is read as blocks
  std::vector<bool> quantized_;    // its quantised rows are current at this point of the plan
  size_t at_ = 0;                  // step being added
  RowPhase* open_ = nullptr;       // the last phase, if others may join it
  std::byte* gemm_memory_ = nullptr;
  size_t gemm_distance_ = 0;
  int64_t* partials_ = nullptr;  // shared by all SparseFfn steps, like the next two
  float* units_h_ = nullptr;
  float* units_products_ = nullptr;
  std::byte* tile_memory_ = nullptr;
  size_t tile_distance_ = 0;
  std::byte* attend_memory_ = nullptr;
  size_t attend_distance_ = 0;
  std::byte* attend_partials_ = nullptr;
  std::byte* predict_scalars_ = nullptr;
};

}  // namespace hotset::cpu
