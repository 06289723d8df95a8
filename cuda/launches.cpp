#include "cuda/launches.h"

#include <algorithm>

#include "core/error.h"
#include "core/handoff.h"

namespace hotset::cuda {
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

// A kernel for the type of the weight, for which has_kernels(): make(std::integral_constant<DType, ..>).
template <class Any, class F>
Any for_dtype(DType dtype, F&& make) {
  switch (dtype) {
    case DType::kF32: return make(std::integral_constant<DType, DType::kF32>{});
    case DType::kF16: return make(std::integral_constant<DType, DType::kF16>{});
    case DType::kBF16: return make(std::integral_constant<DType, DType::kBF16>{});
    case DType::kQ8_0: return make(std::integral_constant<DType, DType::kQ8_0>{});
    case DType::kQ4_0: return make(std::integral_constant<DType, DType::kQ4_0>{});
    case DType::kQ4_K: return make(std::integral_constant<DType, DType::kQ4_K>{});
    case DType::kQ5_K: return make(std::integral_constant<DType, DType::kQ5_K>{});
    default: return make(std::integral_constant<DType, DType::kQ6_K>{});
  }
}

// A kernel with the most work that a step of the plan can mean for it, which may be that of few rows: those are split.
template <class K>
Launch launch_of(const Kernel& kernel, K own, const Plan& plan) {
  Launch out{kernel, 1, 1};
  for (int64_t n : {int64_t{1}, kSplitRows, kFewRows, plan.max_rows}) {
    n = std::min(n, plan.max_rows);
    StepHead head{};
    head.n_rows = static_cast<int32_t>(n);
    head.n_output_rows = static_cast<int32_t>(std::min(n, plan.max_output_rows));
    own.step.head = &head;
    out.most_items = std::max(out.most_items, own.n_items());
    if (n <= kFewRows) out.few_items = out.most_items;
  }
  return out;
}

}  // namespace

bool has_kernels(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_K:
    case DType::kQ5_K:
    case DType::kQ6_K: return true;
    default: return false;
  }
}

std::string why_unsupported(const Op& op, const Plan& plan) {
  std::string out;
  const auto ask = [&](WeightId id) {
    if (!has_kernels(plan.weight(id).dtype)) out = cat("no kernels for ", dtype_name(plan.weight(id).dtype));
  };
  visit_products(op, [&](WeightId id, BufferId) { ask(id); });
  if (const auto* o = std::get_if<op::SparseFfn>(&op)) ask(o->down_t);
  if (const auto* o = std::get_if<op::Embed>(&op)) ask(o->table);
  if (const auto* o = std::get_if<op::EmbedPosition>(&op)) ask(o->table);
  if (std::holds_alternative<op::Attention>(op) && plan.kv.head_dim > kMostHeadDim)
    out = cat("no attention for heads of more than ", kMostHeadDim, " elements");
  if (std::holds_alternative<op::Observe>(op)) out = "no observer on a card";
  return out;
}

namespace {

class LaunchBuilder {
 public:
  using Alloc = std::function<std::unique_ptr<DeviceMemory>(size_t)>;
  LaunchBuilder(const Plan& plan, int32_t lane, const SharedState& shared, const Alloc& alloc,
                const Alloc& alloc_shared)
      : plan_(plan), lane_(lane), shared_(shared), alloc_(alloc), alloc_shared_(alloc_shared),
        acts_(plan.buffers.size()), quantized_(plan.buffers.size()) {}

  LaunchList build() {
    mark_block_inputs();
    allocate_buffers();
    allocate_step();
    for (const Step& step : plan_.steps)
      if (step.lane == lane_) std::visit([this](const auto& o) { add(o); }, step.op);
    ShowCounters show;
    show.from = counters_, show.to = reinterpret_cast<Counters*>(out_.counter_memory->data());
    out_.launches.push_back({show, 1, 1});
    return std::move(out_);
  }

 private:
  template <class T = float>
  T* take(int64_t n) {
    const size_t n_bytes = std::max<size_t>(static_cast<size_t>(n) * sizeof(T), 64);
    out_.memory.push_back(alloc_(n_bytes));
    out_.memory_bytes += n_bytes;
    return reinterpret_cast<T*>(out_.memory.back()->data());
  }
  template <class K>
  void push(K kernel) {
    kernel.step = step_;
    out_.launches.push_back(launch_of(kernel, kernel, plan_));
  }
  const Rows& buffer(BufferId id) const { return out_.buffers[static_cast<size_t>(id.index)]; }
  Rows optional(BufferId id) const { return id ? buffer(id) : Rows{}; }
  const Acts& acts(BufferId id) const { return acts_[static_cast<size_t>(id.index)]; }
  const float* vector(WeightId id) const {
    return id ? reinterpret_cast<const float*>(plan_.weight(id).data) : nullptr;
  }
  Matrix matrix(WeightId id) const {
    const TensorView& view = plan_.weight(id);
    return {view.data, view.row_stride, view.n_cols, view.n_rows, view.dtype};
  }
  bool is_handed_over(BufferId id) const { return plan_.buffer(id).lane == kSharedLane; }
  void wrote(BufferId id) { quantized_[static_cast<size_t>(id.index)] = false; }

  void mark_block_inputs() {
    block_input_.resize(plan_.buffers.size());
    for (const Step& step : plan_.steps) {
      if (step.lane != lane_) continue;
      visit_products(step.op, [&](WeightId weight, BufferId in) {
        if (is_block_type(plan_.weight(weight).dtype)) block_input_[static_cast<size_t>(in.index)] = true;
      });
      if (const auto* o = std::get_if<op::Predict>(&step.op)) block_input_[static_cast<size_t>(o->in.index)] = true;
    }
  }

  void allocate_buffers() {
    for (size_t i = 0; i < plan_.buffers.size(); ++i) {
      const BufferDesc& desc = plan_.buffers[i];
      const BufferId id{static_cast<int32_t>(i)};
      Rows rows{nullptr, plan_.row_words(id), desc.n_cols, desc.rows, desc.kind};
      const int64_t n_rows = plan_.max_rows_of(id);
      if (desc.lane == lane_) rows.data = take(n_rows * rows.stride);
      if (desc.lane == kSharedLane) rows.data = reinterpret_cast<float*>(shared_.buffers.at(i));
      out_.buffers.push_back(rows);
      Acts& acts = acts_[i];
      acts.f32 = rows;
      if (rows.data == nullptr || !block_input_[i]) continue;
      acts.q_stride = div_up(desc.n_cols, 64) * 64, acts.block_stride = div_up(div_up(desc.n_cols, kBlock), 16) * 16;
      acts.q = take<int8_t>(n_rows * acts.q_stride);
      acts.scale = take(n_rows * acts.block_stride), acts.sum = take<int32_t>(n_rows * acts.block_stride);
    }
  }

  void allocate_step() {
    int64_t n_words = kHeadWords + 3 * plan_.max_rows + plan_.max_output_rows;
    for (const Step& step : plan_.steps) {
      if (step.lane != lane_) continue;
      out_.has_angles |= std::holds_alternative<op::RopeAngles>(step.op);
      out_.has_kv |= std::holds_alternative<op::StoreKv>(step.op) || std::holds_alternative<op::Attention>(step.op);
      if (const auto* o = std::get_if<op::SelectUnits>(&step.op); o && o->tally >= 0)
        out_.n_tallies = std::max(out_.n_tallies, o->tally + n_units(*o));
      if (const auto* o = std::get_if<op::SparseFfn>(&step.op))
        most_units_ = std::max(most_units_, plan_.weight(o->down_t).n_rows);
    }
    if (out_.has_kv) n_words += 2 * plan_.max_rows * div_up(plan_.max_positions, KvLayout::kBlockPositions);
    if (out_.has_angles)
      n_words += 2 * plan_.max_rows * static_cast<int64_t>(plan_.rope_freqs.size() + plan_.rope_freqs_local.size());
    if (out_.n_tallies > 0) out_.tallies = take<uint32_t>(out_.n_tallies);
    counters_ = take<Counters>(1);
    out_.step_words = static_cast<size_t>(n_words);
    out_.step_memory = alloc_shared_(out_.step_words * 4), out_.counter_memory = alloc_shared_(sizeof(Counters));
    TakeStep first;
    first.from = out_.step(), first.to = reinterpret_cast<StepHead*>(take<int32_t>(n_words));
    step_.head = first.to;
    out_.launches.push_back({first, 4, div_up(n_words, kTile)});
  }

  void quantize(BufferId in) {
    if (quantized_[static_cast<size_t>(in.index)]) return;
    quantized_[static_cast<size_t>(in.index)] = true;
    QuantizeRows kernel;
    kernel.acts = acts(in);
    push(kernel);
  }

  // out = weight times in + bias; of listed units, at their places in the list or in their columns.
  void multiply(WeightId weight, WeightId bias, BufferId in, const Rows& out, const Rows& lists = {},
                bool scattered = false) {
    const Matrix w = matrix(weight);
    if (is_block_type(w.dtype)) quantize(in);
    const auto any = for_dtype<AnyProducts>(w.dtype, [&](auto type) -> AnyProducts {
      Products<type()> kernel;
      kernel.step = step_, kernel.w = w, kernel.bias = vector(bias), kernel.in = acts(in), kernel.out = out;
      kernel.lists = lists, kernel.scattered = scattered;
      return kernel;
    });
    std::visit([&](auto kernel) { out_.launches.push_back(launch_of(any, kernel, plan_)); }, any);
  }

  void add(const op::Embed& o) { embed(o.table, o.out, false, o.scale); }
  void add(const op::EmbedPosition& o) { embed(o.table, o.x, true, 1); }
  void embed(WeightId table, BufferId out, bool by_position, float scale) {
    EmbedRows kernel;
    kernel.table = matrix(table), kernel.out = buffer(out), kernel.by_position = by_position;
    kernel.scale = scale;
    push(kernel);
    wrote(out);
  }
  void add(const op::Norm& o) {
    NormRows kernel;
    kernel.kind = o.kind, kernel.eps = o.eps, kernel.weight = vector(o.weight), kernel.bias = vector(o.bias);
    kernel.in = buffer(o.in), kernel.out = buffer(o.out), kernel.n = kernel.in.n_cols;
    push(kernel);
    wrote(o.out);
  }
  void add(const op::HeadNorm& o) {
    NormRows kernel;
    kernel.eps = o.eps, kernel.weight = vector(o.weight), kernel.in = kernel.out = buffer(o.x);
    kernel.n_head = o.n_head, kernel.n = plan_.kv.head_dim;
    push(kernel);
    wrote(o.x);
  }
  void add(const op::MatMul& o) {
    multiply(o.weight, o.bias, o.in, buffer(o.out));
    wrote(o.out);
  }
  void add(const op::RopeAngles& o) {
    CopyAngles kernel;
    kernel.out = buffer(o.out);
    const int64_t n = 2 * static_cast<int64_t>(plan_.rope_freqs.size());
    kernel.out.n_cols = o.is_local ? 2 * static_cast<int64_t>(plan_.rope_freqs_local.size()) : n;
    kernel.n_before = o.is_local ? n : 0;
    push(kernel);
    wrote(o.out);
  }
  void add(const op::Rope& o) {
    RotatePairs kernel;
    kernel.angles = buffer(o.angles), kernel.x = buffer(o.x);
    kernel.n_head = o.n_head, kernel.head_dim = o.head_dim, kernel.n_rot = o.n_rot;
    kernel.interleaved = o.layout == RopeLayout::kInterleaved;
    push(kernel);
    wrote(o.x);
  }
  KvPlace kv_place(int64_t layer) const { return {plan_.kv_of(lane_), plan_.kv_slot(layer)}; }
  void add(const op::StoreKv& o) {
    StoreKvRows kernel;
    kernel.place = kv_place(o.layer), kernel.k = buffer(o.k), kernel.v = buffer(o.v);
    push(kernel);
  }
  void add(const op::Attention& o) {
    AttendChunks kernel;
    kernel.place = kv_place(o.layer), kernel.q = buffer(o.q), kernel.out = buffer(o.out);
    kernel.n_head = o.n_head, kernel.scale = o.scale, kernel.softcap = o.softcap, kernel.window = o.window;
    kernel.max_chunks = std::max<int64_t>(1, div_up(plan_.max_positions, kChunk));
    const int64_t head_dim = kernel.place.layout.head_dim;
    const int64_t n = std::min(kSplitRows, plan_.max_rows) * o.n_head * kernel.max_chunks * (head_dim + 2);
    if (n > n_partials_) attend_partials_ = take(n), n_partials_ = n;
    kernel.partials = attend_partials_;
    push(kernel);
    MergeAttention merge;
    merge.out = kernel.out, merge.n_head = o.n_head, merge.head_dim = head_dim, merge.max_chunks = kernel.max_chunks;
    merge.partials = attend_partials_, merge.window = o.window;
    push(merge);
    wrote(o.out);
  }
  void add(const op::Activate& o) {
    ActivateRows kernel;
    kernel.activation = {o.activation, o.threshold}, kernel.gate = optional(o.gate), kernel.up = buffer(o.up);
    kernel.out = buffer(o.out);
    push(kernel);
    wrote(o.out);
  }
  void add(const op::Predict& o) {
    quantize(o.in);
    if (predict_scalars_ == nullptr) predict_scalars_ = take(2 * plan_.max_rows);
    PredictScalars first;
    first.in = acts(o.in), first.z = o.z, first.scalars = predict_scalars_;
    push(first);
    PredictUnits kernel;
    kernel.n_bits = o.n_bits, kernel.planes = matrix(o.planes), kernel.in = acts(o.in), kernel.out = buffer(o.out);
    kernel.low = vector(o.low), kernel.steps = vector(o.step), kernel.error = vector(o.error);
    kernel.bias = vector(o.bias), kernel.scalars = predict_scalars_;
    push(kernel);
    wrote(o.out);
  }
  void add(const op::Detect& o) {
    if (o.units) {
      ClearRows clear;
      clear.out = buffer(o.out), clear.n = plan_.weight(o.weight).n_rows;
      push(clear);
    }
    multiply(o.weight, o.bias, o.in, buffer(o.out), optional(o.units), true);
    wrote(o.out);
  }
  int64_t n_units(const op::SelectUnits& o) const {
    return o.n_units > 0 ? o.n_units : plan_.buffer(o.in).n_cols - o.first_unit;
  }
  void add(const op::SelectUnits& o) {
    SelectUnitRows kernel;
    kernel.in = buffer(o.in), kernel.among = optional(o.among), kernel.out = buffer(o.out);
    kernel.first_unit = o.first_unit, kernel.n_units = n_units(o);
    if (o.tally >= 0) kernel.tally = out_.tallies + o.tally;
    kernel.counters = counters_, kernel.is_active = o.set == UnitSet::kActive;
    kernel.is_handed_over = kernel.is_cold = is_handed_over(o.out);
    push(kernel);
  }
  void add(const op::SparseFfn& o);
  void add(const op::MergeSums& o) {
    MergeSumRows kernel;
    kernel.a = buffer(o.a), kernel.b = optional(o.b), kernel.bias = vector(o.bias), kernel.out = buffer(o.out);
    push(kernel);
    wrote(o.out);
  }
  void add(const op::JoinUnits& o) {
    JoinUnitRows kernel;
    kernel.n_hot = o.n_hot, kernel.hot = optional(o.hot), kernel.cold = optional(o.cold), kernel.out = buffer(o.out);
    if (o.unit_of_slot) kernel.unit_of_slot = reinterpret_cast<const int32_t*>(plan_.weight(o.unit_of_slot).data);
    push(kernel);
    wrote(o.out);
  }
  void add(const op::Observe&) { HS_CHECK(false, "cuda launches"); }  // why_unsupported
  void add(const op::Add& o) {
    AddRows kernel;
    kernel.a = buffer(o.a), kernel.b = buffer(o.b), kernel.out = buffer(o.out);
    push(kernel);
    wrote(o.out);
  }
  void add(const op::SoftCap& o) {
    SoftCapRows kernel;
    kernel.cap = o.cap, kernel.x = buffer(o.x);
    push(kernel);
    wrote(o.x);
  }
  void add(const op::SelectRows& o) {
    SelectOutputRows kernel;
    kernel.in = buffer(o.in), kernel.out = buffer(o.out);
    push(kernel);
    wrote(o.out);
  }
  void add(const op::Copy& o) {
    CopyRows kernel;
    kernel.from = buffer(o.from), kernel.to = buffer(o.to), kernel.n_words = plan_.buffer(o.from).row_words();
    kernel.moved = is_handed_over(o.to) ? &counters_->to_host : &counters_->to_device;
    push(kernel);
    wrote(o.to);
  }
  void add(const op::Fetch& o) {
    const TensorView& from = plan_.weight(o.from);
    auto* const to = const_cast<std::byte*>(plan_.weight(o.to).data);
    out_.launches.push_back({FetchBytes{from.data, to, from.size_bytes()}, 1, 1});
    out_.fetched += from.size_bytes();
  }
  uint32_t* flag_word(FlagId flag) const { return reinterpret_cast<uint32_t*>(&shared_.handoff->word(flag)); }
  void add(const op::Signal& o) {
    SignalFlag kernel;
    kernel.word = flag_word(o.flag);
    push(kernel);
    ++out_.n_signals;
  }
  void add(const op::Wait& o) {
    WaitFlag kernel;
    kernel.word = flag_word(o.flag);
    push(kernel);
    ++out_.n_waits;
    for (size_t i = 0; i < quantized_.size(); ++i)  // what the other lane wrote is new
      if (plan_.buffers[i].lane == kSharedLane) quantized_[i] = false;
  }

  // Memory for one value of each unit and row; layers share it.
  Rows unit_rows(float*& memory) {
    const int64_t stride = div_up(most_units_, 16) * 16;
    if (memory == nullptr) memory = take(plan_.max_rows * stride);
    return {memory, stride, most_units_};
  }

  const Plan& plan_;
  const int32_t lane_;
  const SharedState& shared_;
  const Alloc& alloc_;
  const Alloc& alloc_shared_;
  LaunchList out_;
  std::vector<Acts> acts_;          // of each buffer
  std::vector<bool> block_input_;   // it is read as blocks
  std::vector<bool> quantized_;     // its blocks are current at this point of the plan
  StepView step_;
  Counters* counters_ = nullptr;
  int64_t most_units_ = 0;
  float *units_h_ = nullptr, *units_products_ = nullptr, *attend_partials_ = nullptr, *predict_scalars_ = nullptr;
  int64_t* sum_partials_ = nullptr;
  int64_t n_partials_ = 0, n_sum_partials_ = 0;
};

void LaunchBuilder::add(const op::SparseFfn& o) {
  const Rows lists = optional(o.units), detected = optional(o.detected);
  const bool is_active = o.units && lists.kind == BufferKind::kActive, is_known = is_active || o.detected;
  UnitRows units;
  units.activation = {o.activation, o.threshold};
  units.is_gated = o.gate || (o.up && is_active);
  units.h = o.h ? buffer(o.h) : unit_rows(units_h_);
  units.lists = lists, units.detected = detected, units.counters = counters_;
  units.n_units = plan_.weight(o.down_t).n_rows;
  if (units.is_gated && !is_known) {
    units.gates = units.h;  // becomes h in place
    multiply(o.gate, o.gate_bias, o.in, units.gates);
  }
  if (units.is_gated || !is_known) {
    units.products = unit_rows(units_products_);
    multiply(o.up, o.up_bias, o.in, units.products, lists);
  }
  push(units);

  const Matrix down = matrix(o.down_t);
  const SumsOut to{buffer(o.out), optional(o.onto), vector(o.down_bias)};
  const int64_t n = kUnitShares * kFewRows * down.n_cols;
  if (n > n_sum_partials_) sum_partials_ = take<int64_t>(n), n_sum_partials_ = n;
  const auto any = for_dtype<AnyDownSums>(down.dtype, [&](auto type) -> AnyDownSums {
    DownSums<type()> kernel;
    kernel.step = step_, kernel.w = down, kernel.h = units.h, kernel.lists = lists, kernel.to = to;
    kernel.partials = sum_partials_;
    return kernel;
  });
  std::visit([&](auto kernel) { out_.launches.push_back(launch_of(any, kernel, plan_)); }, any);
  MergeShares merge;
  merge.partials = sum_partials_, merge.n_units = down.n_rows, merge.n_cols = down.n_cols, merge.to = to;
  push(merge);
  wrote(o.out);
  if (o.h) wrote(o.h);
}

}  // namespace

LaunchList build_launches(const Plan& plan, int32_t lane, const SharedState& shared,
                          const std::function<std::unique_ptr<DeviceMemory>(size_t)>& alloc,
                          const std::function<std::unique_ptr<DeviceMemory>(size_t)>& alloc_shared) {
  for (const Step& step : plan.steps) {
    if (step.lane != lane) continue;
    const std::string lacks = why_unsupported(step.op, plan);
    if (!lacks.empty())
      throw DeviceError(error_text("cuda", "operation", "one this device can run", lacks, "use --device cpu"));
  }
  return LaunchBuilder(plan, lane, shared, alloc, alloc_shared).build();
}

}  // namespace hotset::cuda
