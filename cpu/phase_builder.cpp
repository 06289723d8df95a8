#include "cpu/phase_builder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "cpu/phases.h"

namespace hotset::cpu {
namespace {

// Visits the weights of an op that read activations, with the buffer they read.
template <class F>
void visit_products(const Op& op, F&& f) {
  if (const auto* o = std::get_if<op::MatMul>(&op)) f(o->weight, o->in);
  if (const auto* o = std::get_if<op::Detect>(&op)) f(o->weight, o->in);
  if (const auto* o = std::get_if<op::SparseFfn>(&op)) {
    if (o->gate) f(o->gate, o->in);
    if (o->up) f(o->up, o->in);
  }
}

// One to the tally of every listed unit. Rows of a step are counted by several workers.
void count_listed(const int32_t* units, int64_t n, bool is_shared, uint32_t* tally) {
  for (int64_t i = 0; i < n; ++i) {
    if (is_shared)
      std::atomic_ref(tally[units[i]]).fetch_add(1, std::memory_order_relaxed);
    else
      ++tally[units[i]];
  }
}

}  // namespace

int weight_type(DType dtype) {
  switch (dtype) {
    case DType::kF32: return kWeightF32;
    case DType::kF16: return kWeightF16;
    case DType::kBF16: return kWeightBF16;
    case DType::kQ8_0: return kWeightQ8_0;
    case DType::kQ4_0: return kWeightQ4_0;
    case DType::kQ4_K: return kWeightQ4_K;
    case DType::kQ5_K: return kWeightQ5_K;
    case DType::kQ6_K: return kWeightQ6_K;
    case DType::kQ2_K: return kWeightQ2_K;
    case DType::kQ3_K: return kWeightQ3_K;
    case DType::kIQ4_XS: return kWeightIQ4_XS;
    case DType::kQ4_1: return kWeightQ4_1;
    case DType::kQ5_0: return kWeightQ5_0;
    case DType::kQ5_1: return kWeightQ5_1;
    case DType::kIQ4_NL: return kWeightIQ4_NL;
    case DType::kMXFP4: return kWeightMXFP4;
    default: return -1;
  }
}

PhaseBuilder::PhaseBuilder(CpuProgram& program, const Plan& plan, int32_t lane, const SharedState& shared)
    : program_(program), plan_(plan), lane_(lane), shared_(shared), block_input_(plan.buffers.size()), quantized_(plan.buffers.size()) {}

std::string PhaseBuilder::why_unsupported(const Op& op, const Plan& plan) {
  std::string out;
  const auto ask = [&](WeightId id) {
    const DType dtype = plan.weight(id).dtype;
    if (weight_type(dtype) < 0) out = cat("no kernels for ", dtype_name(dtype));
  };
  visit_products(op, [&](WeightId id, BufferId) { ask(id); });
  if (const auto* o = std::get_if<op::SparseFfn>(&op)) ask(o->down_t);
  if (const auto* o = std::get_if<op::Embed>(&op)) ask(o->table);
  if (const auto* o = std::get_if<op::EmbedPosition>(&op)) ask(o->table);
  if (const auto* o = std::get_if<op::Attention>(&op))
    if (o->n_head / plan.kv.n_head_kv > 256) out = "no attention for more than 256 heads per KV head";
  return out;
}

void PhaseBuilder::check_supported(const Plan& plan, int32_t lane, const char* where) {
  for (const Step& step : plan.steps) {
    if (step.lane != lane) continue;
    const std::string lacks = why_unsupported(step.op, plan);
    if (!lacks.empty())
      throw DeviceError(error_text(where, "operation", "one this device can run", lacks, "use another model file"));
  }
}

void PhaseBuilder::build() {
  mark_block_inputs();
  allocate_buffers();
  allocate_tallies();
  for (at_ = 0; at_ < plan_.steps.size(); ++at_) {
    if (plan_.steps[at_].lane != lane_) continue;
    std::visit([this](const auto& o) { add(o); }, plan_.steps[at_].op);
  }
}

void PhaseBuilder::mark_block_inputs() {
  for (const Step& step : plan_.steps) {
    if (step.lane != lane_) continue;
    visit_products(step.op, [&](WeightId weight, BufferId in) {
      if (is_block_type(plan_.weight(weight).dtype)) block_input_[static_cast<size_t>(in.index)] = true;
    });
    if (const auto* o = std::get_if<op::Predict>(&step.op)) block_input_[static_cast<size_t>(o->in.index)] = true;
  }
}

// Units of the widest SparseFfn of this lane: layers share their memory.
int64_t PhaseBuilder::most_units() const {
  int64_t out = 0;
  for (const Step& step : plan_.steps)
    if (const auto* o = std::get_if<op::SparseFfn>(&step.op); o && step.lane == lane_)
      out = std::max(out, plan_.weight(o->down_t).n_rows);
  return out;
}

std::byte* PhaseBuilder::take_memory(size_t n_bytes) {
  n_bytes = std::max<size_t>(n_bytes, 64);
  program_.memory_.push_back(program_.host_.alloc(n_bytes));
  program_.memory_bytes_ += n_bytes;
  return program_.memory_.back()->data();
}

std::byte* PhaseBuilder::take_worker_memory(size_t n_bytes, size_t& distance) {
  distance = (n_bytes + 127) / 64 * 64;  // whole cache lines and one to spare
  return take_memory(distance * static_cast<size_t>(program_.pool_.size()));
}

std::byte* PhaseBuilder::gemm_scratch(size_t& distance) {
  // One region serves all phases; it is sized for the longest row of the plan the first time it is asked for.
  if (!gemm_memory_) {
    int64_t n = 0;
    for (const WeightDesc& weight : plan_.weights) n = std::max(n, weight.view.n_cols);
    const Kernels& kernels = program_.kernels_;
    gemm_memory_ = take_worker_memory(std::max(kernels.gemm_scratch_bytes(n), kernels.float_gemm_scratch_bytes()),
                                      gemm_distance_);
  }
  distance = gemm_distance_;
  return gemm_memory_;
}

bool PhaseBuilder::has_unit_lists() const {
  return std::any_of(plan_.steps.begin(), plan_.steps.end(), [this](const Step& step) {
    const auto* o = std::get_if<op::SparseFfn>(&step.op);
    return o && step.lane == lane_ && o->units;
  });
}

int64_t PhaseBuilder::few_rows(bool with_lists) const {
  return std::min(plan_.max_rows, with_lists ? kFewListedRows : kFewRows);
}

void PhaseBuilder::allocate_buffers() {
  program_.activations_.resize(plan_.buffers.size());
  for (size_t i = 0; i < plan_.buffers.size(); ++i) {
    const BufferDesc& desc = plan_.buffers[i];
    const BufferId id{static_cast<int32_t>(i)};
    RowBuffer out;
    out.n_cols = desc.n_cols;
    out.stride = plan_.row_words(id);
    out.rows = desc.rows;
    out.kind = desc.kind;
    if (desc.lane == lane_)
      out.data = reinterpret_cast<float*>(
          take_memory(static_cast<size_t>(plan_.max_rows_of(id) * out.stride) * sizeof(float)));
    else if (desc.lane == kSharedLane)
      out.data = reinterpret_cast<float*>(shared_.buffers.at(i));
    program_.buffers_.push_back(out);
    if (out.data != nullptr) allocate_activations(i);
  }
}

void PhaseBuilder::allocate_tallies() {
  int64_t n = 0;
  for (const Step& step : plan_.steps)
    if (const auto* o = std::get_if<op::SelectUnits>(&step.op); o && step.lane == lane_ && o->tally >= 0)
      n = std::max(n, o->tally + (o->n_units > 0 ? o->n_units : plan_.buffer(o->in).n_cols - o->first_unit));
  program_.n_tallies_ = n;
  if (n > 0) program_.tallies_ = reinterpret_cast<uint32_t*>(take_memory(static_cast<size_t>(n) * sizeof(uint32_t)));
}

void PhaseBuilder::allocate_activations(size_t index) {
  RowBuffer& buffer = program_.buffers_[index];
  const int64_t n_rows = plan_.max_rows_of({static_cast<int32_t>(index)});
  const int64_t n_blocks = div_up(buffer.n_cols, kBlock);
  const size_t q_bytes = static_cast<size_t>(div_up(buffer.n_cols, 64) * 64);
  const size_t block_bytes = static_cast<size_t>(div_up(n_blocks, 16) * 64);
  std::byte* at = nullptr;
  if (block_input_[index]) at = take_memory(static_cast<size_t>(n_rows) * (q_bytes + 2 * block_bytes));
  std::vector<ActivationRow>& rows = program_.activations_[index];
  for (int64_t row = 0; row < n_rows; ++row) {
    ActivationRow act{buffer.row(row), nullptr, nullptr, nullptr};
    if (at) {
      act.q = reinterpret_cast<const int8_t*>(at);
      act.scale = reinterpret_cast<const float*>(at + q_bytes);
      act.sum = reinterpret_cast<const int32_t*>(at + q_bytes + block_bytes);
      at += q_bytes + 2 * block_bytes;
    }
    rows.push_back(act);
  }
  buffer.acts = rows.data();
}

void PhaseBuilder::push(std::unique_ptr<Phase> phase) {
  open_ = nullptr;
  program_.phases_.push_back(std::move(phase));
}

// Joins the phase before where that is over the same rows.
void PhaseBuilder::push(std::unique_ptr<RowPhase> phase) {
  if (open_ && open_->rows() == phase->rows()) return open_->join(std::move(phase));
  RowPhase* const last = phase.get();
  push(std::unique_ptr<Phase>(std::move(phase)));
  open_ = last;
}

void PhaseBuilder::quantize(BufferId in) {
  if (quantized_[static_cast<size_t>(in.index)]) return;
  quantized_[static_cast<size_t>(in.index)] = true;
  push(row_phase(buffer(in).rows, [in = buffer(in)](int64_t row, const StepContext& context) {
    const ActivationRow& act = in.acts[row];
    int8_t* const q = const_cast<int8_t*>(act.q);
    float* const scale = const_cast<float*>(act.scale);
    int32_t* const sum = const_cast<int32_t*>(act.sum);
    const int64_t n_blocks = in.n_cols / kBlock, n_whole = n_blocks * kBlock;
    context.kernels.quantize_activation(act.f32, n_whole, q, scale, sum);
    if (n_whole == in.n_cols) return;
    float last[kBlock] = {};
    std::memcpy(last, act.f32 + n_whole, static_cast<size_t>(in.n_cols - n_whole) * sizeof(float));
    context.kernels.quantize_activation(last, kBlock, q + n_whole, scale + n_blocks, sum + n_blocks);
  }));
}

void PhaseBuilder::add(const op::Embed& o) {
  push(row_phase(
      BufferRows::kAll,
      [table = plan_.weight(o.table), scale = o.scale, out = buffer(o.out)](int64_t row, const StepContext& context) {
        const int32_t token = context.params.rows[static_cast<size_t>(row)].token;
        context.kernels.dequantize_row[weight_type(table.dtype)](table.row(token), table.n_cols, out.row(row));
        if (scale != 1) context.kernels.scale(out.row(row), scale, table.n_cols, out.row(row));
      }));
  wrote(o.out);
}

void PhaseBuilder::add(const op::EmbedPosition& o) {
  const size_t n_bytes = static_cast<size_t>(buffer(o.x).n_cols) * sizeof(float);
  size_t distance = 0;
  std::byte* table_row = take_worker_memory(n_bytes, distance);
  push(row_phase(buffer(o.x).rows, [table = plan_.weight(o.table), x = buffer(o.x), table_row, distance](
                                              int64_t row, int32_t worker, const StepContext& context) {
    float* widened = reinterpret_cast<float*>(table_row + static_cast<size_t>(worker) * distance);
    const int32_t position = context.params.rows[static_cast<size_t>(row)].position;
    context.kernels.dequantize_row[weight_type(table.dtype)](table.row(position), table.n_cols, widened);
    context.kernels.add(x.row(row), widened, x.n_cols, x.row(row));
  }));
  wrote(o.x);
}

void PhaseBuilder::add(const op::Norm& o) {
  push(row_phase(buffer(o.in).rows, [weight = vector(o.weight), bias = vector(o.bias), kind = o.kind, eps = o.eps,
                                     in = buffer(o.in), out = buffer(o.out)](int64_t row, const StepContext& context) {
    if (kind == NormKind::kRms)
      context.kernels.rms_norm(in.row(row), weight, eps, in.n_cols, out.row(row));
    else
      context.kernels.layer_norm(in.row(row), weight, bias, eps, in.n_cols, out.row(row));
  }));
  wrote(o.out);
}

void PhaseBuilder::add(const op::HeadNorm& o) {
  push(row_phase(buffer(o.x).rows, [weight = vector(o.weight), head_dim = plan_.kv.head_dim, eps = o.eps,
                                    n_head = o.n_head, x = buffer(o.x)](int64_t row, const StepContext& context) {
    for (int64_t head = 0; head < n_head; ++head) {
      float* const values = x.row(row) + head * head_dim;
      context.kernels.rms_norm(values, weight, eps, head_dim, values);
    }
  }));
  wrote(o.x);
}

// Takes the products that follow with the same input into one phase: the team meets once, and small weights (k, v of
// grouped heads) do not leave workers idle.
void PhaseBuilder::add(const op::MatMul& o) {
  quantize_for(plan_.weight(o.weight).dtype, o.in);
  size_t distance = 0;
  std::byte* scratch = gemm_scratch(distance);
  auto phase = std::make_unique<MatMulPhase>(buffer(o.in), scratch, distance);
  phase->add(plan_.weight(o.weight), vector(o.bias), buffer(o.out));
  wrote(o.out);
  while (at_ + 1 < plan_.steps.size() && plan_.steps[at_ + 1].lane == lane_) {
    const auto* next = std::get_if<op::MatMul>(&plan_.steps[at_ + 1].op);
    if (!next || !(next->in == o.in) ||
        is_block_type(plan_.weight(next->weight).dtype) != is_block_type(plan_.weight(o.weight).dtype))
      break;
    phase->add(plan_.weight(next->weight), vector(next->bias), buffer(next->out));
    wrote(next->out);
    ++at_;
  }
  push(std::move(phase));
}

void PhaseBuilder::add(const op::RopeAngles& o) {
  push(row_phase(BufferRows::kAll,
                 [freqs = o.is_local ? plan_.rope_freqs_local : plan_.rope_freqs,
                  magnitude = static_cast<double>(plan_.rope_magnitude),
                  out = buffer(o.out)](int64_t row, const StepContext& context) {
                   const double position = context.params.rows[static_cast<size_t>(row)].position;
                   float* angles = out.row(row);
                   for (size_t i = 0; i < freqs.size(); ++i) {
                     angles[i] = static_cast<float>(magnitude * std::cos(position * freqs[i]));
                     angles[freqs.size() + i] = static_cast<float>(magnitude * std::sin(position * freqs[i]));
                   }
                 }));
  wrote(o.out);
}

void PhaseBuilder::add(const op::Rope& o) {
  push(row_phase(
      BufferRows::kAll, [o, angles = buffer(o.angles), x = buffer(o.x)](int64_t row, const StepContext& context) {
        const float* cosines = angles.row(row);
        const bool interleaved = o.layout == RopeLayout::kInterleaved;
        for (int64_t head = 0; head < o.n_head; ++head)
          context.kernels.rope(x.row(row) + head * o.head_dim, o.n_rot, interleaved, cosines, cosines + o.n_rot / 2);
      }));
  wrote(o.x);
}

void PhaseBuilder::add(const op::StoreKv& o) {
  push(row_phase(BufferRows::kAll, [layer = plan_.kv_slot(o.layer), kv = plan_.kv_of(lane_), lane = lane_,
                                    k = buffer(o.k), v = buffer(o.v)](int64_t row, const StepContext& context) {
    const Row& at = context.params.rows[static_cast<size_t>(row)];
    const auto& sequence = context.params.sequences[static_cast<size_t>(at.sequence)];
    const auto& blocks = *sequence.blocks[static_cast<size_t>(lane)];
    std::byte* block = blocks[static_cast<size_t>(at.position / KvLayout::kBlockPositions)];
    const size_t each = row_bytes(kv.dtype, kv.head_dim);
    const size_t offset = static_cast<size_t>(at.position % KvLayout::kBlockPositions) * each;
    for (int64_t head = 0; head < kv.n_head_kv; ++head)
      for (const bool is_value : {false, true}) {
        const float* from = (is_value ? v : k).row(row) + head * kv.head_dim;
        std::byte* to = block + kv.page_offset(layer, head, is_value) + offset;
        store_kv_row(context.kernels, kv.dtype, from, kv.head_dim, to);
      }
  }));
}

void PhaseBuilder::add(const op::Attention& o) {
  const KvLayout kv = plan_.kv_of(lane_);
  AttentionShape shape{
      lane_,        plan_.kv_slot(o.layer),
      o.n_head,     kv.n_head_kv,
      kv.head_dim,  o.scale,
      o.softcap,    o.window,
      kv,
      buffer(o.q),  buffer(o.out),
      nullptr,      std::clamp<int64_t>(div_up(plan_.max_positions, kChunkPositions), 1, kMaxSplitChunks),
      nullptr,      0};
  if (!attend_memory_) {
    attend_memory_ =
        take_worker_memory(attention_scratch_bytes(program_.kernels_, shape.group(), kv.head_dim), attend_distance_);
    attend_partials_ =
        take_memory(static_cast<size_t>(kFewRows * o.n_head * shape.max_chunks * shape.record()) * sizeof(float));
    program_.tile_rows_ = attention_tile_rows(shape.group());
  }
  shape.scratch = attend_memory_;
  shape.scratch_distance = attend_distance_;
  shape.partials = reinterpret_cast<float*>(attend_partials_);
  push(std::make_unique<AttentionPhase>(shape));
  push(std::make_unique<AttentionMergePhase>(shape));
  wrote(o.out);
}

void PhaseBuilder::add(const op::Activate& o) {
  push(row_phase(buffer(o.out).rows, [rule = ActivationRule{o.activation, o.threshold},
                                      gate = o.gate ? buffer(o.gate) : RowBuffer{}, up = buffer(o.up),
                                      out = buffer(o.out)](int64_t row, const StepContext& context) {
    const float* gate_row = gate.data != nullptr ? gate.row(row) : nullptr;
    activate(context.kernels, rule, gate_row, up.row(row), out.n_cols, out.row(row));
  }));
  wrote(o.out);
}

void PhaseBuilder::add(const op::Predict& o) {
  quantize(o.in);
  PredictShape shape{o.n_bits,       o.z,          plan_.weight(o.planes), vector(o.low),
                     vector(o.step), vector(o.error), vector(o.bias),         buffer(o.in),
                     buffer(o.out),  nullptr};
  if (!predict_scalars_) predict_scalars_ = take_memory(static_cast<size_t>(plan_.max_rows) * 2 * sizeof(float));
  shape.scalars = reinterpret_cast<float*>(predict_scalars_);
  push(std::unique_ptr<RowPhase>(std::make_unique<PredictRowPhase>(shape)));
  push(std::make_unique<PredictPhase>(shape));
  wrote(o.out);
}

void PhaseBuilder::add(const op::Detect& o) {
  if (!o.units) return add(op::MatMul{o.weight, o.bias, o.in, o.out});
  quantize_for(plan_.weight(o.weight).dtype, o.in);
  DetectShape shape{plan_.weight(o.weight), vector(o.bias),           buffer(o.in), buffer(o.out),
                    buffer(o.units),        &program_.detects_listed_, nullptr,      0};
  shape.scratch = gemm_scratch(shape.scratch_distance);
  push(std::make_unique<DetectListedPhase>(shape));
  wrote(o.out);
}

void PhaseBuilder::add(const op::SelectUnits& o) {
  push(row_phase(buffer(o.out).rows, [in = buffer(o.in), among = o.among ? buffer(o.among) : RowBuffer{},
                                      out = buffer(o.out), is_active = o.set == UnitSet::kActive, first = o.first_unit,
                                      n_units = o.n_units > 0 ? o.n_units : buffer(o.in).n_cols - o.first_unit,
                                      moved = is_handed_over(o.out) ? &program_.traffic_.to_host : nullptr,
                                      tally = o.tally >= 0 ? program_.tallies_ + o.tally : nullptr,
                                      is_cold = lane_ == kHostLane || is_handed_over(o.out),
                                      counts = &program_.unit_counts_](int64_t row, const StepContext& context) {
    const float* const values = in.row(row) + first;
    int32_t* const list = reinterpret_cast<int32_t*>(out.row(row));
    int64_t n = 0, n_looked_at = n_units;
    if (among.data != nullptr) {
      const UnitList candidates = unit_list(among, row);
      const int64_t begin = candidates.position(first), end = candidates.position(first + n_units);
      n_looked_at = end - begin;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t unit = candidates.units[i] - first;
        list[1 + n] = static_cast<int32_t>(unit);
        n += !(values[unit] <= 0.0f);
      }
    } else {
      n = context.kernels.select_units(values, n_units, list + 1);
    }
    list[0] = static_cast<int32_t>(n);
    const bool with_values = out.kind == BufferKind::kActive;
    if (moved != nullptr)
      moved->fetch_add(static_cast<uint64_t>(with_values ? 1 + 2 * n : 1 + n) * 4, std::memory_order_relaxed);
    if (with_values)
      for (int64_t i = 0; i < n; ++i) active_values(out, row)[i] = values[list[1 + i]];
    if (tally != nullptr) count_listed(list + 1, n, context.n_rows > 1, tally);
    if (!is_active) return;
    if (is_cold) counts->on_host.fetch_add(static_cast<uint64_t>(n), std::memory_order_relaxed);
    counts->active.fetch_add(static_cast<uint64_t>(n), std::memory_order_relaxed);
    counts->total.fetch_add(static_cast<uint64_t>(n_units), std::memory_order_relaxed);
    counts->candidates.fetch_add(static_cast<uint64_t>(n_looked_at), std::memory_order_relaxed);
  }));
}

void PhaseBuilder::add(const op::SparseFfn& o) {
  FfnShape shape{};
  shape.activation = {o.activation, o.threshold};
  if (o.gate) shape.gate = plan_.weight(o.gate);
  if (o.up) shape.up = plan_.weight(o.up);
  shape.down_t = plan_.weight(o.down_t);
  shape.gate_bias = vector(o.gate_bias), shape.up_bias = vector(o.up_bias), shape.down_bias = vector(o.down_bias);
  shape.in = buffer(o.in), shape.out = buffer(o.out);
  if (o.onto) shape.onto = buffer(o.onto);
  if (o.detected) shape.detected = buffer(o.detected);
  if (o.units) shape.units = buffer(o.units);
  shape.is_gated = o.gate || (o.up && shape.units.kind == BufferKind::kActive);
  if (shape.gate) quantize_for(shape.gate.dtype, o.in);
  if (shape.up) quantize_for(shape.up.dtype, o.in);
  shape.stride = div_up(most_units(), 16) * 16;
  shape.partial_rows = few_rows(static_cast<bool>(o.units));
  shape.scratch = gemm_scratch(shape.scratch_distance);
  const size_t n_bytes = static_cast<size_t>(plan_.max_rows * shape.stride) * sizeof(float);
  if (!units_h_) {  // one set serves all layers
    units_h_ = o.h ? buffer(o.h).data : reinterpret_cast<float*>(take_memory(n_bytes));
    const bool lists = has_unit_lists();
    const int64_t n_partials = kMostUnitShares * few_rows(lists) * shape.down_t.n_cols;
    partials_ = reinterpret_cast<int64_t*>(take_memory(static_cast<size_t>(n_partials) * sizeof(int64_t)));
    tile_memory_ = take_worker_memory(ffn_tile_bytes(lists), tile_distance_);
  }
  if (shape.is_gated && !units_products_) units_products_ = reinterpret_cast<float*>(take_memory(n_bytes));
  shape.only_listed = &program_.only_listed_;
  shape.n_computed = &program_.unit_counts_.computed;
  shape.h = o.h ? buffer(o.h).data : units_h_;
  shape.products = units_products_, shape.partials = partials_;
  shape.tiles = tile_memory_, shape.tile_distance = tile_distance_;
  if (o.detected || o.units)
    push(std::make_unique<FfnListedPhase>(shape));
  else
    push(std::make_unique<FfnUnitsPhase>(shape));
  push(std::make_unique<FfnDownPhase>(shape));
  push(std::make_unique<FfnMergePhase>(shape));
  wrote(o.out);
  if (o.h) wrote(o.h);
}

void PhaseBuilder::add(const op::MergeSums& o) {
  push(row_phase(buffer(o.out).rows, [a = buffer(o.a), b = o.b ? buffer(o.b) : RowBuffer{}, bias = vector(o.bias),
                                      out = buffer(o.out)](int64_t row, const StepContext&) {
    constexpr int64_t kPart = 256;
    int64_t sums[kPart];
    for (int64_t i = 0; i < out.n_cols; i += kPart) {
      const int64_t n = std::min(kPart, out.n_cols - i);
      const int64_t* from = a.sums(row) + i;
      if (b.data != nullptr) merge_sums(from, b.sums(row) + i, n, sums), from = sums;
      sum_values(from, bias != nullptr ? bias + i : nullptr, n, out.row(row) + i);
    }
  }));
  wrote(o.out);
}

void PhaseBuilder::add(const op::Add& o) {
  push(row_phase(buffer(o.out).rows,
                 [a = buffer(o.a), b = buffer(o.b), out = buffer(o.out)](int64_t row, const StepContext& context) {
                   context.kernels.add(a.row(row), b.row(row), out.n_cols, out.row(row));
                 }));
  wrote(o.out);
}

void PhaseBuilder::add(const op::SoftCap& o) {
  push(row_phase(buffer(o.x).rows, [cap = o.cap, x = buffer(o.x)](int64_t row, const StepContext& context) {
    context.kernels.soft_cap(x.row(row), cap, x.n_cols, x.row(row));
  }));
  wrote(o.x);
}

void PhaseBuilder::add(const op::SelectRows& o) {
  push(
      row_phase(BufferRows::kOutput, [in = buffer(o.in), out = buffer(o.out)](int64_t row, const StepContext& context) {
        const int32_t from = context.params.output_rows[static_cast<size_t>(row)];
        std::memcpy(out.row(row), in.row(from), static_cast<size_t>(out.n_cols) * sizeof(float));
      }));
  wrote(o.out);
}

void PhaseBuilder::add(const op::Copy& o) {
  const bool to_host = plan_.buffer(o.to).lane == kSharedLane;
  std::atomic<uint64_t>* const moved = to_host ? &program_.traffic_.to_host : &program_.traffic_.to_device;
  push(row_phase(buffer(o.to).rows,
                 [from = buffer(o.from), to = buffer(o.to), n_words = plan_.buffer(o.from).row_words(),
                  moved](int64_t row, const StepContext&) {
                   const int64_t n = from.kind == BufferKind::kUnits ? 1 + unit_list(from, row).n : n_words;
                   const size_t n_bytes = static_cast<size_t>(n) * sizeof(float);
                   std::memcpy(to.row(row), from.row(row), n_bytes);
                   moved->fetch_add(n_bytes, std::memory_order_relaxed);
                 }));
  wrote(o.to);
}

void PhaseBuilder::add(const op::Fetch& o) {
  push(std::make_unique<FetchPhase>(plan_.weight(o.from), const_cast<std::byte*>(plan_.weight(o.to).data),
                                    program_.traffic_.fetched));
}

void PhaseBuilder::add(const op::Signal& o) {
  push(std::make_unique<SignalPhase>(*shared_.handoff, o.flag, program_.traffic_.n_signals));
}

void PhaseBuilder::add(const op::Wait& o) {
  push(std::make_unique<WaitPhase>(lane_, *shared_.handoff, o.flag, program_.traffic_.n_waits));
  // What the other lane wrote is new.
  for (size_t i = 0; i < quantized_.size(); ++i)
    if (plan_.buffers[i].lane == kSharedLane) quantized_[i] = false;
}

}  // namespace hotset::cpu
