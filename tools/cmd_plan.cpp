// `hotset plan`: where a model would lie, what that takes and how fast it would be, before anything is loaded.
#include <algorithm>
#include <cmath>
#include <optional>

#include "core/engine_plan.h"
#include "tools/common.h"
#include "tools/json.h"
#include "tools/machine.h"
#include "tools/recipe.h"

namespace hotset::cli {
namespace {

constexpr float kNotGiven = -1;

struct PlanFlags {
  ModelFlags model;
  DeviceFlags device;
  ComputeFlags compute;
  int64_t n_sequences = 1;
  std::string synth, machine;
  std::string predictor;
  float step_us = 0;
  bool simulates = false;
  float gpu_gbps = kNotGiven, pcie_gbps = kNotGiven, handoff_us = kNotGiven;
  bool as_json = false;
  bool dumps = false;
};

void declare(Args& args, PlanFlags& flags) {
  add_model_flags(args, flags.model);
  add_compute_flags(args, flags.compute);
  add_device_flags(args, flags.device);
  args.integer("--sequences", "sequences that are open at the same time (1)", flags.n_sequences, {1, 1 << 20});
  args.text("--synth", "RECIPE", "plan a made-up model that needs no file: 'shape=opt-175b type=q4_0 sparsity=0.97'",
            flags.synth);
  args.text("--machine", "FILE|NAME", "rates to plan for: a file (default: those measured here), pc-high or pc-low",
            flags.machine);
  args.real("--gpu-gbps", "read rate of the GPU's memory, in place of the file's", flags.gpu_gbps, {0, 1e6f, true});
  args.real("--pcie-gbps", "copies to and from the GPU, in place of the file's", flags.pcie_gbps, {0, 1e6f, true});
  args.real("--handoff-us", "microseconds of a hand-off, in place of the file's", flags.handoff_us, {0, 1e6f});
  args.flag("--simulate", "let the plan run on a simulated clock", flags.simulates);
  args.real("--step-us", "simulated microseconds of every operation of the GPU beside its reads (0)", flags.step_us,
            {0, 1e6f});
  args.text("--assume-predictor", "SIZE[:OVER]",
            "count on a trained predictor of that size, with OVER candidates per unit", flags.predictor);
  args.flag("--json", "print one JSON object", flags.as_json);
  args.flag("--dump", "print the list of steps, of both lanes with a GPU budget", flags.dumps);
}

std::optional<double> given(float value) {
  return value == kNotGiven ? std::nullopt : std::optional<double>(static_cast<double>(value));
}

// Rates of --machine, else of this machine, changed by hand.
std::optional<MachineRates> chosen_rates(const PlanFlags& flags, std::string& note) {
  std::optional<MachineRates> rates;
  if (flags.machine.empty())
    rates = known_machine_rates(note);
  else
    rates = load_machine_rates(machine_rates_file(flags.machine));
  if (rates) apply({given(flags.gpu_gbps), given(flags.pcie_gbps), given(flags.handoff_us)}, *rates);
  return rates;
}

// The budget in bytes; "auto" is what is free on the GPU, and this version has none.
uint64_t chosen_budget(const PlanFlags& flags, std::vector<std::string>& notes) {
  if (flags.device.vram_budget != "auto") return parse_size("plan", "--vram-budget", flags.device.vram_budget);
  if (is_accelerator(flags.device.device)) return kVirtualBytes;
  notes.push_back("no GPU in this version: everything on the CPU (--vram-budget SIZE plans for one)");
  return 0;
}

// "3GiB:1.5"
AssumedPredictor assumed_predictor(const std::string& text) {
  const size_t colon = text.find(':');
  AssumedPredictor out;
  out.n_bytes = parse_size("plan", "--assume-predictor", text.substr(0, colon));
  if (colon != std::string::npos)
    out.over_selection = static_cast<double>(
        parse_real("plan", "--assume-predictor (candidates per unit)", text.substr(colon + 1), {1, 1000}));
  return out;
}

// The model of -m or of --synth, and of the latter how often its units fire.
std::shared_ptr<const Model> planned_model(const Args& args, const PlanFlags& flags, PlanRequest& request) {
  if (!args.given("--synth")) return open_model(flags.model);
  if (args.given("-m") || args.given("-hf"))
    throw UsageError(error_text("plan", "two models", "-m FILE or --synth RECIPE", "both", "drop one"));
  const SynthSpec spec = parse_recipe("plan --synth", flags.synth);
  auto model = outline_synth(spec, model_options(flags.model));
  if (is_sparse(model->config().activation))
    request.frequencies.assign(static_cast<size_t>(spec.shape.n_layer), synth_frequencies(spec));
  return model;
}

struct Report {
  std::string model, type, sidecar;
  uint64_t vram_budget = 0;
  EnginePlan plan;
};

void write_predictions(JsonWriter& json, const EnginePlan& plan) {
  json.key("predicted").begin_object();
  plan.tg_ts ? json.field("tg_ts", *plan.tg_ts) : json.key("tg_ts").null();
  plan.tg_ts ? json.key("tg_reason").null() : json.field("tg_reason", plan.tg_reason);
  json.key("pp_ts").null().field("pp_reason", plan.pp_reason);
  plan.tg_ts ? json.field("gap", plan.placement.gap()) : json.key("gap").null();
  json.end_object();
}

void write_path(JsonWriter& json, const PathTime& path) {
  json.begin_object().field("host", path.host).field("device", path.device).field("bus", path.bus);
  json.field("flags", path.flags).end_object();
}

PathTime whole_path(const Simulation& simulation) {
  PathTime out = simulation.rest;
  for (const PathTime& each : simulation.layers)
    out.host += each.host, out.device += each.device, out.bus += each.bus, out.flags += each.flags;
  return out;
}

void write_simulation(JsonWriter& json, const EnginePlan& plan) {
  json.key("simulated");
  if (!plan.simulated) {
    json.null();
    return;
  }
  const Simulation& expected = plan.simulated->expected;
  const SimulatedSpread& firing = plan.simulated->firing;
  json.begin_object().field("tg_ts", 1 / firing.mean_seconds).field("tg_ts_of_mean_lists", 1 / expected.seconds);
  json.field("mean_ms", 1e3 * firing.mean_seconds).field("mean_ms_error", 1e3 * firing.standard_error);
  json.field("p95_ms", 1e3 * firing.p95_seconds);
  json.field("host_busy", expected.host_busy / expected.seconds);
  json.field("device_busy", expected.device_busy / expected.seconds);
  json.key("path_seconds");
  write_path(json, whole_path(expected));
  json.key("layers").begin_array();
  for (const PathTime& each : expected.layers) write_path(json, each);
  json.end_array().end_object();
}

std::string simulation_text(const SimulatedStep& simulated) {
  const Simulation& expected = simulated.expected;
  const SimulatedSpread& firing = simulated.firing;
  const PathTime path = whole_path(expected);
  const auto percent = [&](double seconds) { return 100 * seconds / expected.seconds; };
  std::string out = text_of(
      "simulated  %.2f tokens/s (%.2f if all tokens were alike): %.2f ms a token, 95 %% of them below %.2f ms\n",
      1 / firing.mean_seconds, 1 / expected.seconds, 1e3 * firing.mean_seconds, 1e3 * firing.p95_seconds);
  out += text_of(
      "           busy: host %.0f %%, GPU %.0f %%; longest path: host %.0f %%, GPU %.0f %%, bus %.1f %%, "
      "flags %.1f %%\n",
      percent(expected.host_busy), percent(expected.device_busy), percent(path.host), percent(path.device),
      percent(path.bus), percent(path.flags));
  return out;
}

std::string json_report(const Report& report) {
  const EnginePlan& plan = report.plan;
  JsonWriter json;
  json.begin_object().field("model", report.model).field("type", report.type);
  json.field("mode", plan.engine.mode).field("kv_type", plan.engine.kv_type);
  json.field("n_ctx", plan.engine.n_ctx).field("n_threads", plan.engine.n_threads);
  json.field("vram_budget", report.vram_budget).key("sidecar");
  report.sidecar.empty() ? json.null() : json.value(report.sidecar);
  json.key("components").begin_array();
  for (const MemoryComponent& each : plan.memory.components)
    json.begin_object().field("name", each.name).field("device", each.device).field("bytes", each.bytes).end_object();
  json.end_array().key("totals").begin_object();
  json.field("vram", plan.memory.bytes_on("gpu")).field("ram", plan.memory.bytes_on("cpu")).end_object();
  json.field("head", place_name(plan.placement.head)).key("layers").begin_array();
  for (size_t i = 0; i < plan.placement.layers.size(); ++i) {
    const LayerPlacement& at = plan.placement.layers[i];
    json.begin_object()
        .field("layer", static_cast<uint64_t>(i))
        .field("n_hot", at.n_hot)
        .field("n_units", plan.n_units);
    json.field("detect", place_name(at.detect)).field("attention", place_name(at.attention));
    json.field("kv", place_name(at.kv())).field("device_predicts", at.device_predicts).end_object();
  }
  json.end_array();
  write_predictions(json, plan);
  write_simulation(json, plan);
  plan.gpu_active_share ? json.field("gpu_active_share", *plan.gpu_active_share) : json.key("gpu_active_share").null();
  json.field("notes", plan.notes).end_object();
  return json.text() + "\n";
}

// Runs of equal layers are one line.
std::string layer_table(const EnginePlan& plan) {
  std::string out =
      "\n| layers    |   hot units | detect | attention | kv     |\n"
      "| --------- | ----------: | ------ | --------- | ------ |\n";
  const auto& layers = plan.placement.layers;
  for (size_t begin = 0, end = 0; begin < layers.size(); begin = end) {
    const LayerPlacement& at = layers[begin];
    for (end = begin; end < layers.size() && layers[end].n_hot == at.n_hot && layers[end].detect == at.detect &&
                      layers[end].attention == at.attention && layers[end].host_kv == at.host_kv &&
                      layers[end].device_predicts == at.device_predicts;)
      ++end;
    const std::string range = end - begin == 1 ? cat(begin) : cat(begin, " to ", end - 1);
    out += text_of("| %-9s | %11lld | %-6s | %-9s | %-6s |\n", range.c_str(), static_cast<long long>(at.n_hot),
                   cat(place_name(at.detect), at.device_predicts ? "*" : "").c_str(), place_name(at.attention),
                   place_name(at.kv()));
  }
  if (std::any_of(layers.begin(), layers.end(), [](const LayerPlacement& at) { return at.device_predicts; }))
    out += "\n* with the predictor of all units on the GPU\n";
  return out + cat("\nof ", plan.n_units, " units each; head: ", place_name(plan.placement.head), "\n");
}

std::string text_report(const Report& report) {
  const EnginePlan& plan = report.plan;
  std::string out = cat("model      ", printable(report.model), " (", report.type, "), mode ", plan.engine.mode,
                        ", context ", plan.engine.n_ctx, ", kv ", plan.engine.kv_type, "\n");
  out +=
      "\n| component    | device |         bytes |            |\n| ------------ | ------ | ------------: | ---------: "
      "|\n";
  const auto line = [&](const std::string& name, const std::string& device, uint64_t bytes) {
    out += text_of("| %-12s | %-6s | %13llu | %10s |\n", name.c_str(), device.c_str(),
                   static_cast<unsigned long long>(bytes), bytes_text(bytes).c_str());
  };
  for (const MemoryComponent& each : plan.memory.components) line(each.name, each.device, each.bytes);
  line("total", "gpu", plan.memory.bytes_on("gpu"));
  line("total", "cpu", plan.memory.bytes_on("cpu"));
  out += layer_table(plan);
  out += plan.tg_ts
             ? text_of("decode     %.2f tokens/s predicted (no placement of this kind is more than %.3g %% faster)\n",
                       *plan.tg_ts, 100 * plan.placement.gap() / (1 - plan.placement.gap()))
             : cat("decode     not predicted: ", plan.tg_reason, "\n");
  if (plan.simulated) out += simulation_text(*plan.simulated);
  out += cat("prompt     not predicted: ", plan.pp_reason, "\n");
  for (const std::string& note : plan.notes) out += cat("note       ", note, "\n");
  return out;
}

}  // namespace

int cmd_plan(const Words& words) {
  Args args("plan",
            "Shows where a model would lie, what it takes and how fast it would be, before anything is loaded.");
  PlanFlags flags;
  declare(args, flags);
  if (parse_or_help(args, words)) return kExitDone;

  std::vector<std::string> notes;
  PlanRequest request;
  request.vram_budget = chosen_budget(flags, notes);
  std::string note;
  request.rates = chosen_rates(flags, note);
  if (!note.empty()) notes.push_back(note);
  request.simulate = flags.simulates;
  request.step_us = static_cast<double>(flags.step_us);
  if (!flags.predictor.empty()) request.predictor = assumed_predictor(flags.predictor);
  const auto model = planned_model(args, flags, request);
  EngineOptions options = engine_options(flags.model, flags.device, flags.compute);
  options.n_sequences = static_cast<int32_t>(flags.n_sequences);
  if (is_accelerator(options.device)) {
    if (!request.rates || !request.rates->gpu) notes.push_back("no rates of a GPU: those of a card of the middle class");
    request.rates = complete_rates(request.rates ? &*request.rates : nullptr, request.vram_budget);
  }
  const bool is_made_up = !flags.synth.empty();
  Report report{is_made_up ? "synth " + flags.synth : model->path(),
                model->type_text(),
                is_made_up ? "" : find_sidecar(flags.device.sidecar, model->path()),
                request.vram_budget,
                {}};
  if (!report.sidecar.empty()) request.frequencies = sidecar_frequencies(report.sidecar, *model);
  report.plan = plan_engine(model, options, request);
  // The program, its libraries and the vocabulary, as they are in this process; weights are counted already.
  model->drop_pages();
  report.plan.memory.add("process", "cpu", resident_memory_bytes());
  report.plan.notes.insert(report.plan.notes.begin(), notes.begin(), notes.end());
  if (flags.dumps) {
    write_stdout(report.plan.steps);
    return kExitDone;
  }
  write_stdout(flags.as_json ? json_report(report) : text_report(report));
  return kExitDone;
}

}  // namespace hotset::cli
