// Finds what is wrong with a plan without running it.
#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "core/bit_planes.h"
#include "core/error.h"
#include "core/fetched_weights.h"
#include "core/plan.h"

namespace hotset {
namespace {

// Walks the steps once. Buffers are reused, so it keeps for each the version it holds (0: nothing yet) and the versions
// of all buffers that value was computed from: once one of those has been written again the value is stale, and reading
// it means that a step is missing; so does a value that nobody reads. A value changed in place (x = x + y, rope) keeps
// the history it had.
//
// The order of the list is one order in which lanes may run. That every other order gives the same is proven by vector
// clocks: a lane's clock says how many steps of each lane are known to have ended, and a Wait takes over what its
// Signal knew. Who reads a buffer must know its last write, who writes it also all reads since. Waits end, because every
// Signal comes before its Wait in an order that all lanes keep to.
class Linter {
 public:
  explicit Linter(const Plan& plan)
      : plan_(plan),
        values_(plan.buffers.size()),
        flags_(plan.flags.size()),
        stored_(static_cast<size_t>(plan.kv.n_layer), false),
        fetched_(plan) {}

  std::vector<std::string> run() {
    expect(plan_.kv.dtype != DType::kQ8_0 || plan_.kv.head_dim % dtype_info(DType::kQ8_0).block_size == 0,
           "heads divide into the blocks of the KV cache");
    const bool lanes_ok = plan_.kv_lanes.empty() || static_cast<int64_t>(plan_.kv_lanes.size()) == plan_.kv.n_layer;
    expect(lanes_ok, "a lane for the keys and values of every layer");
    for (const Step& step : plan_.steps) expect(step.lane >= 0 && step.lane < kMaxLanes, "lane in range");
    if (!problems_.empty()) return problems_;
    for (at_ = 0; at_ < plan_.steps.size(); ++at_) {
      inputs_.clear();
      begin_step(plan_.steps[at_].lane);
      std::visit([&](const auto& o) { check(o); }, plan_.steps[at_].op);
    }
    finish();
    return problems_;
  }

 private:
  static constexpr size_t kLanes = kMaxLanes;
  // By lane, how many of its steps have ended.
  using Clock = FetchedWeights::Clock;

  void begin_step(int32_t lane) {
    lane_ = lane;
    ++n_steps_[index(lane)];
    clocks_[index(lane)][index(lane)] = n_steps_[index(lane)];
  }
  // The host takes the logits once its lane has ended; by then it knows that all others have.
  void finish() {
    for (size_t i = 0; i < plan_.buffers.size(); ++i)
      if (static_cast<int32_t>(i) != plan_.logits.index) expect_read({static_cast<int32_t>(i)});
    begin_step(kHostLane);
    if (reads(plan_.logits)) expect(plan_.buffer(plan_.logits).n_cols == plan_.n_vocab, "logits have n_vocab columns");
    expect(clocks_[kHostLane] == n_steps_, "the host's lane waits for the ends of all others");
    expect(fetched_.unread().empty(), cat(fetched_.unread(), " is read after it was fetched"));
    for (size_t i = 0; i < flags_.size(); ++i)
      expect(flags_[i].is_signalled && flags_[i].is_waited, cat(plan_.flags[i], " is signalled and waited for"));
  }

  static size_t index(int32_t lane) { return static_cast<size_t>(lane); }
  void expect(bool ok, const std::string& what) {
    if (!ok) problems_.push_back(cat("step ", at_, ": ", what));
  }
  bool valid(BufferId id) {
    const bool ok = id.index >= 0 && static_cast<size_t>(id.index) < plan_.buffers.size();
    expect(ok, "buffer id in range");
    return ok;
  }
  bool reads(BufferId id, BufferKind wanted = BufferKind::kFloats) {
    if (!valid(id)) return false;
    const Value& value = value_of(id);
    expect_kind(id, wanted);
    expect(value.version > 0, cat(plan_.buffer(id).name, " is written before it is read"));
    for (const auto& [source, version] : value.sources)
      expect(value_of({source}).version == version,
             cat(plan_.buffer(id).name, " was computed from an older ", plan_.buffer({source}).name));
    expect_reach(id);
    expect_known(id, value.writer, value.write_step, "written");
    value_of(id).read = true;
    value_of(id).reads[index(lane_)] = n_steps_[index(lane_)];
    inputs_.push_back(id);
    return true;
  }
  void expect_reach(BufferId id) {
    const int32_t owner = plan_.buffer(id).lane;
    expect(owner == lane_ || owner == kSharedLane,
           cat(plan_.buffer(id).name, " is memory that lane ", lane_, " touches"));
  }
  // That this lane knows the end of a step of another lane that has read or written the buffer.
  void expect_known(BufferId id, int32_t lane, int64_t step, const char* what) {
    expect(clocks_[index(lane_)][index(lane)] >= step,
           cat("lane ", lane_, " knows that lane ", lane, " has ", what, " ", plan_.buffer(id).name));
  }
  void expect_kind(BufferId id, BufferKind wanted) {
    const char* const kind = wanted == BufferKind::kUnits    ? " is a unit list"
                             : wanted == BufferKind::kActive ? " is a list of active units with values"
                             : wanted == BufferKind::kSums   ? " is sums"
                                                             : " is no unit list";
    expect(plan_.buffer(id).kind == wanted, cat(plan_.buffer(id).name, kind));
  }
  void expect_read(BufferId id) {
    const Value& value = value_of(id);
    expect(value.version == 0 || value.read, cat(plan_.buffer(id).name, " is read before it is lost"));
  }
  // The op's output: computed from everything it has read.
  bool writes(BufferId id, BufferKind wanted = BufferKind::kFloats) {
    if (!valid(id)) return false;
    Value& value = value_of(id);
    expect_kind(id, wanted);
    expect_reach(id);
    expect_known(id, value.writer, value.write_step, "written");
    for (int32_t lane = 0; lane < kMaxLanes; ++lane) expect_known(id, lane, value.reads[index(lane)], "read");
    const bool in_place = std::find(inputs_.begin(), inputs_.end(), id) != inputs_.end();
    if (!in_place) {
      expect_read(id);
      std::map<int32_t, int64_t> sources;
      for (const BufferId input : inputs_) {
        sources[input.index] = value_of(input).version;
        sources.insert(value_of(input).sources.begin(), value_of(input).sources.end());
      }
      sources.erase(id.index);
      value.sources = std::move(sources);
    }
    ++value.version;
    value.read = false;
    value.n_held = plan_.buffer(id).n_cols, value.detected_from = nullptr;
    value.writer = lane_, value.write_step = n_steps_[index(lane_)];
    return true;
  }
  bool has(WeightId id) {
    const bool ok = id && static_cast<size_t>(id.index) < plan_.weights.size() && plan_.weight(id);
    expect(ok, "weight id in range and bound");
    if (ok) {
      const WeightDesc& weight = plan_.weights[static_cast<size_t>(id.index)];
      expect(weight.lane == lane_, cat(weight.name, " is a weight of lane ", lane_));
      if (lane_ == kDeviceLane) {
        const std::string problem = fetched_.read(weight, clocks_[kDeviceLane]);
        expect(problem.empty(), problem);
      }
    }
    return ok;
  }
  const WeightDesc* weight_of(WeightId id, int32_t lane) {
    const bool ok = id && static_cast<size_t>(id.index) < plan_.weights.size() && plan_.weight(id);
    expect(ok, "weight id in range and bound");
    if (!ok) return nullptr;
    const WeightDesc& out = plan_.weights[static_cast<size_t>(id.index)];
    expect(out.lane == lane, cat(out.name, " is a weight of lane ", lane));
    return &out;
  }
  void columns(BufferId id, int64_t n) {
    if (id.index >= 0 && static_cast<size_t>(id.index) < plan_.buffers.size())
      expect(plan_.buffer(id).n_cols == n,
             cat(plan_.buffer(id).name, " has ", n, " columns, not ", plan_.buffer(id).n_cols));
  }
  void at_least(BufferId id, int64_t n) {
    if (id.index >= 0 && static_cast<size_t>(id.index) < plan_.buffers.size())
      expect(plan_.buffer(id).n_cols >= n,
             cat(plan_.buffer(id).name, " has at least ", n, " columns, not ", plan_.buffer(id).n_cols));
  }
  bool is_active(BufferId id) {
    return id.index >= 0 && static_cast<size_t>(id.index) < plan_.buffers.size() &&
           plan_.buffer(id).kind == BufferKind::kActive;
  }
  void same_rows(BufferId a, BufferId b) { expect(plan_.buffer(a).rows == plan_.buffer(b).rows, "equal row kinds"); }

  // An optional F32 vector of n values.
  void vector(WeightId id, int64_t n) {
    if (!id) return;
    if (has(id)) expect(plan_.weight(id).dtype == DType::kF32 && plan_.weight(id).n_cols == n, "a bias has n_out values");
  }

  void check(const op::EmbedPosition& o) {
    if (has(o.table)) {
      columns(o.x, plan_.weight(o.table).n_cols);
      expect(plan_.weight(o.table).n_rows >= plan_.max_positions, "a row of the table for every position");
    }
    if (reads(o.x)) writes(o.x);
  }
  void check(const op::Embed& o) {
    if (has(o.table)) columns(o.out, plan_.weight(o.table).n_cols);
    expect(std::isfinite(o.scale) && o.scale > 0, "a positive scale");
    writes(o.out);
  }
  void check(const op::HeadNorm& o) {
    if (has(o.weight)) {
      vector(o.weight, plan_.kv.head_dim);
      columns(o.x, o.n_head * plan_.kv.head_dim);
    }
    if (reads(o.x)) writes(o.x);
  }
  void check(const op::Norm& o) {
    if (has(o.weight)) {
      const int64_t n = plan_.weight(o.weight).n_cols;
      columns(o.in, n), columns(o.out, n);
      vector(o.bias, n);
    }
    expect(!o.bias || o.kind == NormKind::kLayer, "only a LayerNorm has a bias");
    if (reads(o.in) && writes(o.out)) same_rows(o.in, o.out);
  }
  void check(const op::MatMul& o) {
    product(o.weight, o.bias, o.in, o.out);
    expect(!(o.in == o.out), "MatMul does not write its input");
    if (reads(o.in) && writes(o.out)) same_rows(o.in, o.out);
  }
  void product(WeightId weight, WeightId bias, BufferId in, BufferId out) {
    if (!has(weight)) return;
    columns(in, plan_.weight(weight).n_cols), columns(out, plan_.weight(weight).n_rows);
    vector(bias, plan_.weight(weight).n_rows);
  }
  void check(const op::RopeAngles& o) {
    columns(o.out, static_cast<int64_t>((o.is_local ? plan_.rope_freqs_local : plan_.rope_freqs).size()) * 2);
    writes(o.out);
  }
  void check(const op::Rope& o) {
    columns(o.angles, o.n_rot), columns(o.x, o.n_head * o.head_dim);
    expect(o.n_rot <= o.head_dim && o.n_rot % 2 == 0, "n_rot is even and within a head");
    if (reads(o.angles) && reads(o.x)) writes(o.x);
  }
  void check(const op::StoreKv& o) {
    columns(o.k, plan_.kv.n_head_kv * plan_.kv.head_dim), columns(o.v, plan_.kv.n_head_kv * plan_.kv.head_dim);
    reads(o.k), reads(o.v);
    if (kv_layer(o.layer)) stored_[static_cast<size_t>(o.layer)] = true;
  }
  bool kv_layer(int64_t layer) {
    const bool ok = layer >= 0 && layer < plan_.kv.n_layer;
    expect(ok, "layer in range");
    if (ok) expect(plan_.kv_lane(layer) == lane_, "keys and values are in the lane's memory");
    return ok;
  }
  void check(const op::Attention& o) {
    columns(o.q, o.n_head * plan_.kv.head_dim), columns(o.out, o.n_head * plan_.kv.head_dim);
    expect(kv_layer(o.layer) && stored_[static_cast<size_t>(o.layer)], "keys are stored before they are attended to");
    expect(plan_.kv.n_head_kv > 0 && o.n_head % plan_.kv.n_head_kv == 0, "heads divide into KV heads");
    expect(o.window >= 0, "a window of positions, or 0");
    expect(std::isfinite(o.softcap) && o.softcap >= 0, "a cap of scores, or 0");
    reads(o.q), writes(o.out);
  }
  void check(const op::Activate& o) {
    expect(o.activation != Activation::kDRelu || o.gate, "dReLU has a gate");
    threshold(o.activation, o.threshold);
    if ((o.gate && !reads(o.gate)) || !reads(o.up) || !writes(o.out)) return;
    if (o.gate) columns(o.gate, plan_.buffer(o.out).n_cols);
    columns(o.up, plan_.buffer(o.out).n_cols);
  }
  void threshold(Activation activation, float value) {
    const bool ok = activation == Activation::kFatRelu ? std::isfinite(value) && value >= 0 : value == 0;
    expect(ok, "a threshold of at least 0 where the activation has one");
  }
  void check(const op::Predict& o) {
    expect(o.n_bits >= 1 && o.n_bits <= kMaxPlaneBits, "1 to 3 bit planes");
    if (has(o.planes) && reads(o.in)) {
      const TensorView& planes = plan_.weight(o.planes);
      expect(planes.dtype == DType::kI8 && planes.n_cols == plane_row_bytes(o.n_bits, plan_.buffer(o.in).n_cols),
             "rows of bit planes as long as the input");
      for (const WeightId id : {o.low, o.step, o.error, o.bias}) vector(id, planes.n_rows);
      expect(o.low && o.step && o.error, "what the codes of bit planes mean");
      at_least(o.out, planes.n_rows);
      if (writes(o.out)) value_of(o.out).n_held = planes.n_rows, same_rows(o.in, o.out);
    }
    expect(!(o.in == o.out), "Predict does not write its input");
  }
  void list(BufferId id, int64_t n_units) {
    if (reads(id, BufferKind::kUnits)) holds(id, n_units);
  }
  void check(const op::Detect& o) {
    if (!has(o.weight)) return;
    const TensorView& weight = plan_.weight(o.weight);
    columns(o.in, weight.n_cols), at_least(o.out, weight.n_rows);
    vector(o.bias, weight.n_rows);
    if (o.units) list(o.units, weight.n_rows);
    expect(!(o.in == o.out), "Detect does not write its input");
    if (!reads(o.in) || !writes(o.out)) return;
    value_of(o.out).n_held = weight.n_rows;
    value_of(o.out).detected_from = weight.data;
    same_rows(o.in, o.out);
  }
  // A list of units below n_units, or values of so many units.
  void holds(BufferId id, int64_t n_units) {
    expect(value_of(id).n_held == n_units,
           cat(plan_.buffer(id).name, " is of ", n_units, " units, not of ", value_of(id).n_held));
  }
  void check(const op::SelectUnits& o) {
    if (!reads(o.in)) return;
    const int64_t n_held = value_of(o.in).n_held;
    if (o.among) list(o.among, n_held);
    expect(!(o.among == o.out), "SelectUnits does not write its input");
    const int64_t n = o.n_units > 0 ? o.n_units : plan_.buffer(o.in).n_cols - o.first_unit;
    expect(o.first_unit >= 0 && n >= 0 && o.first_unit + n <= n_held, "units are columns of the values");
    const bool with_values = valid(o.out) && plan_.buffer(o.out).kind == BufferKind::kActive;
    if (!writes(o.out, with_values ? BufferKind::kActive : BufferKind::kUnits)) return;
    const int64_t room = (plan_.buffer(o.out).n_cols - 1) / (with_values ? 2 : 1);
    expect(room >= n, cat(plan_.buffer(o.out).name, " has room for ", n, " units"));
    value_of(o.out).n_held = n;
    same_rows(o.in, o.out);
  }
  void check(const op::SparseFfn& o) {
    const bool active = is_active(o.units);
    const bool is_gated = o.gate || (active && o.up);  // detect rows are not read when the list has their products
    expect(!active || (!o.gate && !o.detected), "detect values of listed units are in their list");
    expect(o.up || active, "up rows, or their products in the list");
    if ((!o.gate || has(o.gate)) && (!o.up || has(o.up)) && has(o.down_t)) ffn_shapes(o, plan_.weight(o.down_t));
    expect(!o.units || o.detected || active, "detect values with a unit list");
    expect(!o.units || !o.h, "h of all units only without a unit list");
    expect(o.activation != Activation::kDRelu || is_gated, "dReLU has a gate");
    threshold(o.activation, o.threshold);
    expect(!o.units || is_sparse(o.activation), "a unit list needs an activation that makes zeros");
    if (o.detected) reads(o.detected);
    if (o.units) reads(o.units, active ? BufferKind::kActive : BufferKind::kUnits);
    expect(!(o.in == o.out || o.in == o.h), "SparseFfn does not write its input");
    expect(!o.h || !(o.h == o.out || o.h == o.detected), "h is a buffer of its own");
    if (!reads(o.in)) return;
    if (o.h && writes(o.h)) value_of(o.h).n_held = plan_.weight(o.down_t).n_rows, same_rows(o.in, o.h);
    const bool sums = valid(o.out) && plan_.buffer(o.out).kind == BufferKind::kSums;
    expect(!sums || !o.down_bias, "a bias is added to merged sums");
    expect(sums || !o.onto, "only sums are added to sums");
    if (o.onto && reads(o.onto, BufferKind::kSums)) same_rows(o.onto, o.out), columns(o.onto, plan_.buffer(o.out).n_cols);
    if (!writes(o.out, sums ? BufferKind::kSums : BufferKind::kFloats)) return;
    same_rows(o.in, o.out);
    // Sums of some units stay good while the next ones are detected and listed, as long as the input is the same.
    if (sums)
      for (const BufferId id : {o.detected, o.units}) value_of(o.out).sources.erase(id.index);
  }
  void check(const op::MergeSums& o) {
    if (!reads(o.a, BufferKind::kSums) || (o.b && !reads(o.b, BufferKind::kSums)) || !writes(o.out)) return;
    columns(o.a, plan_.buffer(o.out).n_cols), vector(o.bias, plan_.buffer(o.out).n_cols);
    same_rows(o.a, o.out);
    if (o.b) columns(o.b, plan_.buffer(o.out).n_cols), same_rows(o.b, o.out);
  }
  void ffn_shapes(const op::SparseFfn& o, const TensorView& down_t) {
    for (const WeightId id : {o.gate, o.up})
      expect(!id || (plan_.weight(id).n_cols == down_t.n_cols && plan_.weight(id).n_rows == down_t.n_rows),
             "gate, up and down_t have one shape");
    vector(o.gate_bias, down_t.n_rows), vector(o.up_bias, down_t.n_rows), vector(o.down_bias, down_t.n_cols);
    columns(o.in, down_t.n_cols), columns(o.out, down_t.n_cols);
    if (o.detected && o.up && valid(o.detected)) {
      const TensorView& matrix = plan_.weight(o.gate ? o.gate : o.up);
      const std::byte* const from = value_of(o.detected).detected_from;
      expect(from == nullptr || from == matrix.data, "detect values of the units that are summed");
      expect(value_of(o.detected).n_held >= down_t.n_rows, cat("detect values of ", down_t.n_rows, " units"));
    }
    if (o.units && valid(o.units)) holds(o.units, down_t.n_rows);
    if (o.h) at_least(o.h, down_t.n_rows);
  }
  void check(const op::JoinUnits& o) {
    const int64_t n = valid(o.out) ? plan_.buffer(o.out).n_cols : 0;
    for (const auto& [values, n_units] : {std::pair{o.hot, o.n_hot}, {o.cold, n - o.n_hot}}) {
      expect(n_units >= 0 && static_cast<bool>(values) == (n_units > 0), "values of every unit once");
      if (values && reads(values)) holds(values, n_units);
    }
    if (o.unit_of_slot && has(o.unit_of_slot))
      expect(plan_.weight(o.unit_of_slot).dtype == DType::kI32 && plan_.weight(o.unit_of_slot).n_cols == n,
             "a unit for every slot");
    expect(!(o.hot == o.out || o.cold == o.out), "JoinUnits does not write its input");
    writes(o.out);
  }
  void check(const op::Observe& o) {
    expect(o.layer >= 0 && o.layer < plan_.kv.n_layer, "layer in range");
    if (!reads(o.in) || !reads(o.detected) || !reads(o.h)) return;
    columns(o.detected, plan_.buffer(o.h).n_cols);
    if (o.margins && reads(o.margins)) columns(o.margins, plan_.buffer(o.h).n_cols);
    for (const BufferId id : {o.in, o.detected, o.h})
      expect(plan_.buffer(id).rows == BufferRows::kAll, "Observe sees all rows");
  }
  void check(const op::Add& o) {
    if (reads(o.a) && reads(o.b) && writes(o.out)) {
      columns(o.a, plan_.buffer(o.out).n_cols), columns(o.b, plan_.buffer(o.out).n_cols);
      same_rows(o.a, o.out), same_rows(o.b, o.out);
    }
  }
  void check(const op::SoftCap& o) {
    expect(std::isfinite(o.cap) && o.cap > 0, "a positive cap");
    columns(o.x, plan_.n_vocab);
    if (reads(o.x)) writes(o.x);
  }
  void check(const op::SelectRows& o) {
    if (!reads(o.in) || !writes(o.out)) return;
    columns(o.in, plan_.buffer(o.out).n_cols);
    expect(plan_.buffer(o.in).rows == BufferRows::kAll && plan_.buffer(o.out).rows == BufferRows::kOutput,
           "SelectRows goes from all rows to output rows");
  }

  void check(const op::Copy& o) {
    expect(!(o.from == o.to), "Copy does not write its input");
    if (!valid(o.from) || !reads(o.from, plan_.buffer(o.from).kind)) return;
    if (!valid(o.to) || !writes(o.to, plan_.buffer(o.from).kind)) return;
    const bool one_shared = (plan_.buffer(o.from).lane == kSharedLane) != (plan_.buffer(o.to).lane == kSharedLane);
    expect(one_shared && lane_ != kHostLane, "a device copies between its own memory and shared memory");
    columns(o.to, plan_.buffer(o.from).n_cols);
    value_of(o.to).n_held = value_of(o.from).n_held;
    same_rows(o.from, o.to);
  }
  void check(const op::Fetch& o) {
    const WeightDesc *from = weight_of(o.from, kHostLane), *to = weight_of(o.to, kDeviceLane);
    expect(lane_ == kCopyLane, "Fetch is of the copy lane");
    if (!from || !to || lane_ != kCopyLane) return;
    const TensorView &a = from->view, &b = to->view;
    expect(a.dtype == b.dtype && a.n_cols == b.n_cols && a.n_rows == b.n_rows && a.row_stride == b.row_stride,
           "Fetch keeps the shape");
    const std::string problem = fetched_.fetch(*to, clocks_[kCopyLane]);
    expect(problem.empty(), problem);
  }
  void check(const op::Signal& o) {
    if (!flag(o.flag)) return;
    Flag& flag = flags_[static_cast<size_t>(o.flag.index)];
    expect(!flag.is_signalled, "a flag is signalled once");
    flag.is_signalled = true;
    flag.lane = lane_, flag.known = clocks_[index(lane_)];
  }
  void check(const op::Wait& o) {
    if (!flag(o.flag)) return;
    Flag& flag = flags_[static_cast<size_t>(o.flag.index)];
    expect(flag.is_signalled && !flag.is_waited, "a flag is waited for once, after its Signal");
    expect(flag.lane != lane_, "a flag is between two lanes");
    flag.is_waited = true;
    Clock& clock = clocks_[index(lane_)];
    for (size_t i = 0; i < kLanes; ++i) clock[i] = std::max(clock[i], flag.known[i]);
  }
  bool flag(FlagId id) {
    const bool ok = id.index >= 0 && static_cast<size_t>(id.index) < plan_.flags.size();
    expect(ok, "flag id in range");
    return ok;
  }

  struct Value {
    int64_t version = 0;
    bool read = false;                   // this version has been read
    std::map<int32_t, int64_t> sources;  // buffer index -> version it was computed from
    const std::byte* detected_from = nullptr;  // of what Detect wrote, the first row
    int64_t n_held = 0;                  // columns with values; of a list, how many units it was chosen from
    int32_t writer = 0;                  // the lane that wrote this version,
    int64_t write_step = 0;              // in this step of its own
    Clock reads{};                       // by lane, its last step that has read the buffer
  };
  struct Flag {
    bool is_signalled = false, is_waited = false;
    int32_t lane = 0;  // that signals
    Clock known{};     // to it by then
  };
  Value& value_of(BufferId id) { return values_[static_cast<size_t>(id.index)]; }

  const Plan& plan_;
  size_t at_ = 0;
  int32_t lane_ = 0;              // of the current step
  Clock n_steps_{};               // begun, by lane
  std::array<Clock, kLanes> clocks_{};
  std::vector<BufferId> inputs_;  // what the current op has read
  std::vector<Value> values_;
  std::vector<Flag> flags_;
  std::vector<bool> stored_;
  FetchedWeights fetched_;
  std::vector<std::string> problems_;
};

}  // namespace

std::vector<std::string> lint(const Plan& plan) { return Linter(plan).run(); }

}  // namespace hotset
