// Binds the memory account and the placement: what `hotset plan` tells, and the solver by itself.
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "core/engine_plan.h"
#include "python/bindings.h"

namespace hotset::python {

namespace {

using Vector = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::vector<double> values(const Vector& array) { return {array.data(), array.data() + array.size()}; }

template <class T>
T member(const nb::dict& from, const char* name) {
  return nb::cast<T>(from[name]);
}

ReadRate read_rate(const nb::dict& from) {
  ReadRate out{member<double>(from, "dense_gbps"), {}};
  for (nb::handle each : member<nb::list>(from, "gathered")) {
    const nb::sequence pair = nb::cast<nb::sequence>(each);
    out.gathered.push_back({nb::cast<double>(pair[0]), nb::cast<double>(pair[1])});
  }
  return out;
}

PlacementLayer problem_layer(const nb::dict& from) {
  PlacementLayer out;
  out.frequency = values(member<Vector>(from, "frequency"));
  out.detect_bytes = member<uint64_t>(from, "detect_bytes");
  out.unit_bytes = member<uint64_t>(from, "unit_bytes");
  out.predictor_bytes = member<uint64_t>(from, "predictor_bytes");
  out.predictor_unit_bytes = member<uint64_t>(from, "predictor_unit_bytes");
  out.over_selection = member<double>(from, "over_selection");
  out.attention_bytes = member<uint64_t>(from, "attention_bytes");
  out.kv_bytes = member<uint64_t>(from, "kv_bytes");
  out.kv_read_bytes = member<uint64_t>(from, "kv_read_bytes");
  out.device = read_rate(member<nb::dict>(from, "device"));
  out.host = read_rate(member<nb::dict>(from, "host"));
  return out;
}

PlacementProblem problem_of(const nb::dict& from) {
  PlacementProblem out;
  for (nb::handle each : member<nb::list>(from, "layers"))
    out.layers.push_back(problem_layer(nb::cast<nb::dict>(each)));
  out.head_bytes = member<uint64_t>(from, "head_bytes");
  out.handoff_seconds = member<double>(from, "handoff_seconds");
  out.fixed_bytes = member<uint64_t>(from, "fixed_bytes");
  out.budget = member<uint64_t>(from, "budget");
  out.unit_step = member<int64_t>(from, "unit_step");
  out.tolerance = member<double>(from, "tolerance");
  out.max_nodes = member<int64_t>(from, "max_nodes");
  return out;
}

// "layers" and "head", what a placement decides.
void write_decisions(const Placement& placement, const PlacementProblem* problem, int64_t n_units, nb::dict& out) {
  nb::list layers;
  for (size_t i = 0; i < placement.layers.size(); ++i) {
    const LayerPlacement& at = placement.layers[i];
    nb::dict layer;
    layer["layer"] = i;
    layer["n_hot"] = at.n_hot;
    layer["n_units"] = problem ? problem->layers[i].n_units() : n_units;
    layer["detect"] = place_name(at.detect);
    layer["attention"] = place_name(at.attention);
    layer["kv"] = place_name(at.kv());
    layer["device_predicts"] = at.device_predicts;
    layers.append(layer);
  }
  out["layers"] = layers;
  out["head"] = place_name(placement.head);
}

Placement decisions(const nb::dict& from) {
  Placement out;
  for (nb::handle each : member<nb::list>(from, "layers")) {
    const nb::dict layer = nb::cast<nb::dict>(each);
    const std::string detect = member<std::string>(layer, "detect");
    LayerPlacement at;
    at.n_hot = member<int64_t>(layer, "n_hot");
    at.attention = member<std::string>(layer, "attention") == "device" ? Place::kDevice : Place::kHost;
    at.host_kv = at.attention == Place::kDevice && layer.contains("kv") && member<std::string>(layer, "kv") == "host";
    at.detect = detect == "device"  ? DetectPlace::kDevice
                : detect == "split" ? DetectPlace::kSplit
                                    : DetectPlace::kHost;
    at.device_predicts = layer.contains("device_predicts") && member<bool>(layer, "device_predicts");
    out.layers.push_back(at);
  }
  out.head = member<std::string>(from, "head") == "device" ? Place::kDevice : Place::kHost;
  return out;
}

nb::dict solve_placement(const nb::dict& from) {
  const PlacementProblem problem = problem_of(from);
  const Placement placement = [&] {
    ReleasedGil release;
    return place(problem);
  }();
  nb::dict out;
  write_decisions(placement, &problem, 0, out);
  out["seconds"] = placement.seconds;
  out["bound"] = placement.bound;
  out["device_bytes"] = placement.device_bytes;
  out["n_nodes"] = placement.n_nodes;
  return out;
}

nb::tuple evaluate_placement(const nb::dict& from, const nb::dict& placement) {
  const PlacementProblem problem = problem_of(from);
  const Placement given = decisions(placement);
  check_placement(problem, given);
  return nb::make_tuple(predict_seconds(problem, given), device_bytes(problem, given));
}

// A number, or None with the reason beside it.
void write_rate(nb::dict& out, const char* name, const std::optional<double>& rate, const std::string& reason) {
  out[name] = rate;
  out[(std::string(name, 2) + "_reason").c_str()] = rate ? nb::none() : nb::cast(reason);
}

// The hardware that a placement is for, in words.
std::string machine_name(const std::optional<MachineRates>& rates) {
  if (!rates) return "";
  std::string out = cat(rates->cpu.empty() ? "unknown CPU" : rates->cpu, ", ", rates->n_cores, " cores");
  if (rates->gpu)
    out += cat("; ", rates->gpu->name.empty() ? "GPU" : rates->gpu->name, ", ", rates->gpu->dense_gbps, " GB/s");
  return out;
}

nb::dict plan_dict(const EnginePlan& plan, const std::string& fingerprint) {
  nb::dict out, totals, predicted;
  nb::list components;
  for (const MemoryComponent& each : plan.memory.components) {
    nb::dict component;
    component["name"] = each.name, component["device"] = each.device, component["bytes"] = each.bytes;
    components.append(component);
  }
  totals["vram"] = plan.memory.bytes_on("gpu"), totals["ram"] = plan.memory.bytes_on("cpu");
  write_rate(predicted, "tg_ts", plan.tg_ts, plan.tg_reason);
  write_rate(predicted, "pp_ts", std::nullopt, plan.pp_reason);
  predicted["gap"] = plan.tg_ts ? std::optional(plan.placement.gap()) : std::nullopt;
  out["model_fingerprint"] = fingerprint;
  out["mode"] = plan.engine.mode, out["kv_type"] = plan.engine.kv_type;
  out["n_ctx"] = plan.engine.n_ctx, out["n_threads"] = plan.engine.n_threads;
  out["components"] = components, out["totals"] = totals;
  write_decisions(plan.placement, nullptr, plan.n_units, out);
  out["predicted"] = predicted;
  out["gpu_active_share"] = plan.gpu_active_share;
  out["notes"] = plan.notes;
  return out;
}

nb::dict plan(const std::string& path, const nb::dict& load, uint64_t vram_budget,
              const std::vector<Vector>& frequencies, const std::string& machine, const RatesByHand& by_hand) {
  EngineOptions options;
  options.mode = member<std::string>(load, "mode");
  options.device = member<std::string>(load, "device");
  options.kv_type = member<std::string>(load, "kv_type");
  options.n_ctx = member<int64_t>(load, "n_ctx");
  options.n_threads = member<int32_t>(load, "n_threads");
  options.n_batch = member<int32_t>(load, "n_batch");
  const std::string activation = member<std::string>(load, "activation");
  PlanRequest request;
  request.vram_budget = vram_budget;
  for (const Vector& each : frequencies) request.frequencies.push_back(values(each));
  std::string fingerprint;
  const EnginePlan result = [&] {
    ReleasedGil release;
    if (!machine.empty()) request.rates = load_machine_rates(machine);
    if (request.rates) apply(by_hand, *request.rates);
    const auto model = Model::load(path, {activation, {}});
    fingerprint = model->fingerprint();
    return plan_engine(model, options, request);
  }();
  nb::dict out = plan_dict(result, fingerprint);
  out["machine"] = machine_name(request.rates);
  return out;
}

}  // namespace

void bind_plan(nb::module_& module) {
  module.def(
      "plan",
      [](const std::string& path, const nb::dict& load, uint64_t vram_budget, const std::vector<Vector>& frequencies,
         const std::string& machine, std::optional<double> gpu_gbps, std::optional<double> pcie_gbps,
         std::optional<double> handoff_us) {
        return plan(path, load, vram_budget, frequencies, machine, {gpu_gbps, pcie_gbps, handoff_us});
      },
      nb::arg("path"), nb::kw_only(), nb::arg("load"), nb::arg("vram_budget"), nb::arg("frequencies"),
      nb::arg("machine"), nb::arg("gpu_gbps").none(), nb::arg("pcie_gbps").none(), nb::arg("handoff_us").none(),
      nb::sig("def plan(path: str, *, load: dict[str, typing.Any], vram_budget: int, frequencies: "
              "collections.abc.Sequence[numpy.ndarray], machine: str, gpu_gbps: float | None, pcie_gbps: float | None, "
              "handoff_us: float | None) -> dict[str, typing.Any]"),
      "What `hotset plan --json` prints, of a model with the keywords that Engine takes.");
  module.def("place", &solve_placement, nb::arg("problem"),
             nb::sig("def place(problem: dict[str, typing.Any]) -> dict[str, typing.Any]"),
             "Solves a placement problem: see hotset.offline.placement.Problem.");
  module.def("evaluate_placement", &evaluate_placement, nb::arg("problem"), nb::arg("placement"),
             nb::sig("def evaluate_placement(problem: dict[str, typing.Any], placement: dict[str, typing.Any]) -> "
                     "tuple[float, int]"),
             "Predicted seconds of a token, and bytes on the device.");
}

}  // namespace hotset::python
