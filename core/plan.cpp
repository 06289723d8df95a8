#include "core/plan.h"

#include <algorithm>
#include <map>

#include "core/bit_planes.h"
#include "core/error.h"

namespace hotset {
namespace {

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

// Prints one op the way a formula is read: out = Op(weights; inputs).
class Printer {
 public:
  explicit Printer(const Plan& plan) : plan_(plan) {}

  std::string text(const Op& op) const {
    return std::visit(
        Overloaded{
            [&](const op::Embed& o) { return cat(b(o.out), " = Embed(", w(o.table), ")"); },
            [&](const op::EmbedPosition& o) { return cat(b(o.x), " = EmbedPosition(", w(o.table), "; ", b(o.x), ")"); },
            [&](const op::Norm& o) {
              return cat(b(o.out), " = ", o.kind == NormKind::kRms ? "Norm(" : "LayerNorm(", w(o.weight), plus(o.bias),
                         "; ", b(o.in), ")");
            },
            [&](const op::MatMul& o) {
              return cat(b(o.out), " = MatMul(", w(o.weight), plus(o.bias), "; ", b(o.in), ")");
            },
            [&](const op::RopeAngles& o) { return cat(b(o.out), " = RopeAngles(positions)"); },
            [&](const op::Rope& o) { return cat(b(o.x), " = Rope(", o.n_head, " heads; ", b(o.angles), ")"); },
            [&](const op::StoreKv& o) { return cat("kv[", o.layer, "] = StoreKv(", b(o.k), ", ", b(o.v), ")"); },
            [&](const op::Attention& o) {
              return cat(b(o.out), " = Attention(", o.n_head, " heads; ", b(o.q), ", kv[", o.layer, "])");
            },
            [&](const op::Activate& o) {
              return cat(b(o.out), " = Activate(", o.gate ? b(o.gate) + ", " : "", b(o.up), ")");
            },
            [&](const op::Predict& o) {
              return cat(b(o.out), " = Predict(", o.n_bits, " bits of ", w(o.planes), plus(o.bias), ", z ", o.z, "; ",
                         b(o.in), ")");
            },
            [&](const op::Detect& o) {
              return cat(b(o.out), " = Detect(", o.units ? b(o.units) + "; " : "", w(o.weight), plus(o.bias), "; ",
                         b(o.in), ")");
            },
            [&](const op::SelectUnits& o) {
              return cat(b(o.out), " = SelectUnits(", b(o.in), range(o), o.among ? " among " + b(o.among) : "", ")");
            },
            [&](const op::SparseFfn& o) {
              const std::string units =
                  cat(o.units ? b(o.units) : "all units", o.detected ? " by " + b(o.detected) : "");
              const std::string gate = o.gate ? w(o.gate) + plus(o.gate_bias) + ", " : "";
              return cat(b(o.out), o.h ? ", " + b(o.h) : "", " = SparseFfn(", units, "; ", gate, w(o.up),
                         plus(o.up_bias), ", ", w(o.down_t), plus(o.down_bias), "; ", b(o.in), ")");
            },
            [&](const op::Observe& o) {
              return cat("observed[", o.layer, "] = Observe(", b(o.in), ", ", b(o.detected), ", ", b(o.h),
                         o.margins ? ", " + b(o.margins) : "", ")");
            },
            [&](const op::Add& o) { return cat(b(o.out), " = Add(", b(o.a), ", ", b(o.b), ")"); },
            [&](const op::SelectRows& o) { return cat(b(o.out), " = SelectRows(", b(o.in), ")"); },
            [&](const op::Copy& o) { return cat(b(o.to), " = Copy(", b(o.from), ")"); },
            [&](const op::Signal& o) { return cat("Signal(", f(o.flag), ")"); },
            [&](const op::Wait& o) { return cat("Wait(", f(o.flag), ")"); },
        },
        op);
  }

 private:
  std::string b(BufferId id) const { return id.index < 0 ? "?" : plan_.buffer(id).name; }
  std::string w(WeightId id) const {
    if (!id) return "?";
    const WeightDesc& weight = plan_.weights[static_cast<size_t>(id.index)];
    return cat(weight.name, " ", dtype_name(weight.view.dtype));
  }
  std::string f(FlagId id) const {
    const bool ok = id.index >= 0 && static_cast<size_t>(id.index) < plan_.flags.size();
    return ok ? plan_.flags[static_cast<size_t>(id.index)] : "?";
  }
  static std::string range(const op::SelectUnits& o) {
    if (o.first_unit == 0 && o.n_units == 0) return "";
    return cat("[", o.first_unit, ":", o.n_units == 0 ? "" : cat(o.first_unit + o.n_units), "]");
  }
  std::string plus(WeightId bias) const {
    return bias ? " + " + plan_.weights[static_cast<size_t>(bias.index)].name : "";
  }
  const Plan& plan_;
};

// Walks the steps once. Buffers are reused, so it keeps for each the version it holds (0: nothing yet) and the versions
// of all buffers that value was computed from: once one of those has been written again the value is stale, and reading
// it means that a step is missing; so does a value that nobody reads. A value changed in place (x = x + y, rope) keeps
// the history it had.
class Linter {
 public:
  explicit Linter(const Plan& plan)
      : plan_(plan), values_(plan.buffers.size()), stored_(static_cast<size_t>(plan.kv.n_layer), false) {}

  std::vector<std::string> run() {
    expect(plan_.kv.dtype != DType::kQ8_0 || plan_.kv.head_dim % dtype_info(DType::kQ8_0).block_size == 0,
           "heads divide into the blocks of the KV cache");
    for (at_ = 0; at_ < plan_.steps.size(); ++at_) {
      inputs_.clear();
      std::visit([&](const auto& o) { check(o); }, plan_.steps[at_].op);
    }
    for (size_t i = 0; i < plan_.buffers.size(); ++i)
      if (static_cast<int32_t>(i) != plan_.logits.index) expect_read({static_cast<int32_t>(i)});
    if (reads(plan_.logits)) expect(plan_.buffer(plan_.logits).n_cols == plan_.n_vocab, "logits have n_vocab columns");
    return problems_;
  }

 private:
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
    value_of(id).read = true;
    inputs_.push_back(id);
    return true;
  }
  void expect_kind(BufferId id, BufferKind wanted) {
    const char* const kind = wanted == BufferKind::kUnits    ? " is a unit list"
                             : wanted == BufferKind::kActive ? " is a list of active units with values"
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
    return true;
  }
  bool has(WeightId id) {
    const bool ok = id && static_cast<size_t>(id.index) < plan_.weights.size() && plan_.weight(id);
    expect(ok, "weight id in range and bound");
    return ok;
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
    writes(o.out);
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
    columns(o.out, static_cast<int64_t>(plan_.rope_freqs.size()) * 2);
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
    expect(o.layer >= 0 && o.layer < plan_.kv.n_layer, "layer in range");
    if (o.layer >= 0 && o.layer < plan_.kv.n_layer) stored_[static_cast<size_t>(o.layer)] = true;
  }
  void check(const op::Attention& o) {
    columns(o.q, o.n_head * plan_.kv.head_dim), columns(o.out, o.n_head * plan_.kv.head_dim);
    const bool layer_ok = o.layer >= 0 && o.layer < plan_.kv.n_layer;
    expect(layer_ok && stored_[static_cast<size_t>(o.layer)], "keys are stored before they are attended to");
    expect(plan_.kv.n_head_kv > 0 && o.n_head % plan_.kv.n_head_kv == 0, "heads divide into KV heads");
    reads(o.q), writes(o.out);
  }
  void check(const op::Activate& o) {
    expect(o.activation != Activation::kDRelu || o.gate, "dReLU has a gate");
    if ((o.gate && !reads(o.gate)) || !reads(o.up) || !writes(o.out)) return;
    if (o.gate) columns(o.gate, plan_.buffer(o.out).n_cols);
    columns(o.up, plan_.buffer(o.out).n_cols);
  }
  void check(const op::Predict& o) {
    expect(o.n_bits >= 1 && o.n_bits <= kMaxPlaneBits, "1 to 3 bit planes");
    if (has(o.planes) && reads(o.in)) {
      const TensorView& planes = plan_.weight(o.planes);
      expect(planes.dtype == DType::kI8 && planes.n_cols == plane_row_bytes(o.n_bits, plan_.buffer(o.in).n_cols),
             "rows of bit planes as long as the input");
      for (const WeightId id : {o.low, o.step, o.error, o.bias}) vector(id, planes.n_rows);
      expect(o.low && o.step && o.error, "what the codes of bit planes mean");
      columns(o.out, planes.n_rows);
    }
    expect(!(o.in == o.out), "Predict does not write its input");
    if (writes(o.out)) same_rows(o.in, o.out);
  }
  void list(BufferId id, int64_t n_units) {
    reads(id, BufferKind::kUnits), columns(id, n_units + 1);
  }
  void check(const op::Detect& o) {
    product(o.weight, o.bias, o.in, o.out);
    if (o.units && has(o.weight)) list(o.units, plan_.weight(o.weight).n_rows);
    expect(!(o.in == o.out), "Detect does not write its input");
    if (reads(o.in) && writes(o.out)) same_rows(o.in, o.out);
  }
  void check(const op::SelectUnits& o) {
    if (!reads(o.in)) return;
    if (o.among) list(o.among, plan_.buffer(o.in).n_cols);
    expect(!(o.among == o.out), "SelectUnits does not write its input");
    const int64_t n = o.n_units > 0 ? o.n_units : plan_.buffer(o.in).n_cols - o.first_unit;
    expect(o.first_unit >= 0 && n >= 0 && o.first_unit + n <= plan_.buffer(o.in).n_cols, "units are columns of the values");
    const bool with_values = valid(o.out) && plan_.buffer(o.out).kind == BufferKind::kActive;
    if (!writes(o.out, with_values ? BufferKind::kActive : BufferKind::kUnits)) return;
    const int64_t room = (plan_.buffer(o.out).n_cols - 1) / (with_values ? 2 : 1);
    expect(room >= n, cat(plan_.buffer(o.out).name, " has room for ", n, " units"));
    same_rows(o.in, o.out);
  }
  void check(const op::SparseFfn& o) {
    if ((!o.gate || has(o.gate)) && has(o.up) && has(o.down_t)) {
      const TensorView& up = plan_.weight(o.up);
      for (const WeightId id : {o.gate, o.down_t})
        expect(!id || (plan_.weight(id).n_cols == up.n_cols && plan_.weight(id).n_rows == up.n_rows),
               "gate, up and down_t have one shape");
      vector(o.gate_bias, up.n_rows), vector(o.up_bias, up.n_rows), vector(o.down_bias, up.n_cols);
      columns(o.in, up.n_cols), columns(o.out, up.n_cols);
      if (o.detected) at_least(o.detected, up.n_rows);
      if (o.units && valid(o.units)) at_least(o.units, (is_active(o.units) ? 2 : 1) * up.n_rows + 1);
      if (o.h) columns(o.h, up.n_rows);
    }
    expect(!o.units || o.detected || is_active(o.units), "detect values with a unit list");
    expect(!o.units || !o.h, "h of all units only without a unit list");
    expect(o.activation != Activation::kDRelu || o.gate, "dReLU has a gate");
    expect(!o.units || is_sparse(o.activation), "a unit list needs an activation that makes zeros");
    if (o.detected) reads(o.detected);
    if (o.units) reads(o.units, is_active(o.units) ? BufferKind::kActive : BufferKind::kUnits);
    expect(!(o.in == o.out || o.in == o.h), "SparseFfn does not write its input");
    expect(!o.h || !(o.h == o.out || o.h == o.detected), "h is a buffer of its own");
    if (!reads(o.in)) return;
    if (o.h && writes(o.h)) same_rows(o.in, o.h);
    if (writes(o.out)) same_rows(o.in, o.out);
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
    columns(o.to, plan_.buffer(o.from).n_cols);
    same_rows(o.from, o.to);
  }
  void check(const op::Signal& o) { flag(o.flag); }
  void check(const op::Wait& o) { flag(o.flag); }
  void flag(FlagId id) {
    expect(id.index >= 0 && static_cast<size_t>(id.index) < plan_.flags.size(), "flag id in range");
  }

  struct Value {
    int64_t version = 0;
    bool read = false;                   // this version has been read
    std::map<int32_t, int64_t> sources;  // buffer index -> version it was computed from
  };
  Value& value_of(BufferId id) { return values_[static_cast<size_t>(id.index)]; }

  const Plan& plan_;
  size_t at_ = 0;
  std::vector<BufferId> inputs_;  // what the current op has read
  std::vector<Value> values_;
  std::vector<bool> stored_;
  std::vector<std::string> problems_;
};

}  // namespace

int32_t Plan::n_lanes() const {
  int32_t n = 1;
  for (const Step& step : steps) n = std::max(n, step.lane + 1);
  return n;
}

KvLayout Plan::kv_of(int32_t lane) const {
  KvLayout out = kv;
  if (!kv_lanes.empty()) out.n_layer = std::count(kv_lanes.begin(), kv_lanes.end(), lane);
  return out;
}

int64_t Plan::kv_slot(int64_t layer) const {
  if (kv_lanes.empty()) return layer;
  return std::count(kv_lanes.begin(), kv_lanes.begin() + layer, kv_lane(layer));
}

uint64_t row_memory_bytes(const Plan& plan) {
  uint64_t n_floats = 0;
  for (const BufferDesc& buffer : plan.buffers)
    if (buffer.rows == BufferRows::kAll) n_floats += static_cast<uint64_t>(buffer.n_cols);
  uint64_t n_units = 0;
  for (const Step& step : plan.steps)
    if (const auto* ffn = std::get_if<op::SparseFfn>(&step.op))
      n_units = std::max(n_units, 2 * static_cast<uint64_t>(plan.weight(ffn->up).n_rows));
  // A quantised copy has a byte per element and two words per 32.
  return n_floats * 4 + n_floats * 5 / 4 + n_units * 4;
}

std::string dump(const Plan& plan) {
  const Printer printer(plan);
  std::string out;
  for (const Step& step : plan.steps) out += cat("lane ", step.lane, "  ", printer.text(step.op), "\n");
  return out;
}

std::vector<std::string> lint(const Plan& plan) { return Linter(plan).run(); }

}  // namespace hotset
