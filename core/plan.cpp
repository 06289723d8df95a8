#include "core/plan.h"

#include <algorithm>

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
            [&](const op::Embed& o) {
              return cat(b(o.out), " = Embed(", w(o.table), o.scale != 1 ? cat(", times ", o.scale) : "", ")");
            },
            [&](const op::EmbedPosition& o) { return cat(b(o.x), " = EmbedPosition(", w(o.table), "; ", b(o.x), ")"); },
            [&](const op::Norm& o) {
              return cat(b(o.out), " = ", o.kind == NormKind::kRms ? "Norm(" : "LayerNorm(", w(o.weight), plus(o.bias),
                         "; ", b(o.in), ")");
            },
            [&](const op::HeadNorm& o) {
              return cat(b(o.x), " = HeadNorm(", w(o.weight), ", ", o.n_head, " heads; ", b(o.x), ")");
            },
            [&](const op::MatMul& o) {
              return cat(b(o.out), " = MatMul(", w(o.weight), plus(o.bias), "; ", b(o.in), ")");
            },
            [&](const op::RopeAngles& o) {
              return cat(b(o.out), " = RopeAngles(", o.is_local ? "local " : "", "positions)");
            },
            [&](const op::Rope& o) { return cat(b(o.x), " = Rope(", o.n_head, " heads; ", b(o.angles), ")"); },
            [&](const op::StoreKv& o) { return cat("kv[", o.layer, "] = StoreKv(", b(o.k), ", ", b(o.v), ")"); },
            [&](const op::Attention& o) {
              return cat(b(o.out), " = Attention(", o.n_head, " heads", o.window > 0 ? cat(", window ", o.window) : "",
                         o.softcap > 0 ? cat(", cap ", o.softcap) : "", "; ", b(o.q), ", kv[", o.layer, "])");
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
              const std::string up = o.up ? w(o.up) + plus(o.up_bias) + ", " : "";
              return cat(b(o.out), o.h ? ", " + b(o.h) : "", " = ", o.onto ? b(o.onto) + " + " : "", "SparseFfn(",
                         units, "; ", gate, up, w(o.down_t), plus(o.down_bias), "; ", b(o.in), ")");
            },
            [&](const op::MergeSums& o) {
              return cat(b(o.out), " = MergeSums(", b(o.a), o.b ? ", " + b(o.b) : "", plus(o.bias), ")");
            },
            [&](const op::JoinUnits& o) {
              return cat(b(o.out), " = JoinUnits(", o.unit_of_slot ? w(o.unit_of_slot) + "; " : "",
                         o.hot ? cat(b(o.hot), "[:", o.n_hot, "]") : "", o.hot && o.cold ? ", " : "",
                         o.cold ? b(o.cold) : "", ")");
            },
            [&](const op::Observe& o) {
              return cat("observed[", o.layer, "] = Observe(", b(o.in), ", ", b(o.detected), ", ", b(o.h),
                         o.margins ? ", " + b(o.margins) : "", ")");
            },
            [&](const op::Add& o) { return cat(b(o.out), " = Add(", b(o.a), ", ", b(o.b), ")"); },
            [&](const op::SoftCap& o) { return cat(b(o.x), " = SoftCap(", o.cap, "; ", b(o.x), ")"); },
            [&](const op::SelectRows& o) { return cat(b(o.out), " = SelectRows(", b(o.in), ")"); },
            [&](const op::Copy& o) { return cat(b(o.to), " = Copy(", b(o.from), ")"); },
            [&](const op::Fetch& o) { return cat(w(o.to), " = Fetch()"); },
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
    if (buffer.rows == BufferRows::kAll) n_floats += static_cast<uint64_t>(buffer.row_words());
  uint64_t n_units = 0;
  for (const Step& step : plan.steps)
    if (const auto* ffn = std::get_if<op::SparseFfn>(&step.op))
      n_units = std::max(n_units, 2 * static_cast<uint64_t>(plan.weight(ffn->down_t).n_rows));
  // A quantised copy has a byte per element and two words per 32.
  return n_floats * 4 + n_floats * 5 / 4 + n_units * 4;
}

std::string dump(const Plan& plan) {
  const Printer printer(plan);
  const char* const host = plan.n_lanes() > 1 ? "host                " : "host    ";
  std::string out;
  for (const Step& step : plan.steps)
    out += cat(step.lane == kHostLane ? host : step.lane == kCopyLane ? "copy    " : "device  ",
               printer.text(step.op), "\n");
  return out;
}

}  // namespace hotset
