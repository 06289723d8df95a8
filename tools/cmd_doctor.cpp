// `hotset doctor`: what this machine and this build offer, and why a GPU is or is not used.
#include <algorithm>

#include "tools/common.h"
#include "tools/json.h"
#include "tools/machine.h"

namespace hotset::cli {
namespace {

struct Findings {
  Machine machine;
  double read_gbps = 0;
  std::string model_path;   // "" = no default model
  std::string model_state;  // how it runs, or the error
  std::string isa;          // "" = no engine could be made
  std::string gpu;          // device in use, "" = none
  std::string gpu_reason;   // why none is used
};

// An engine on the default model knows best which kernels and devices there are.
void ask_engine(Findings& findings) {
  findings.model_path = default_model_path();
  if (findings.model_path.empty()) {
    findings.model_state = "not found";
    findings.gpu_reason = "not asked: there is no default model";
    return;
  }
  std::shared_ptr<const Model> model;
  try {
    model = Model::load(findings.model_path);
    const auto engine = Engine::create(model, {});
    findings.isa = engine->info().isa;
    findings.model_state = engine_line(*model, engine->info());
  } catch (const std::exception& error) {
    findings.model_state = error.what();
  }
  if (model == nullptr) return;
  try {
    EngineOptions options;
    options.device = "cuda";
    findings.gpu = Engine::create(model, options)->info().device;
  } catch (const std::exception& error) {
    findings.gpu_reason = error.what();
  }
}

Findings examine() {
  Findings findings;
  findings.machine = probe_machine();
  findings.read_gbps = measure_read_gbps(findings.machine.n_physical, findings.machine.free_bytes);
  ask_engine(findings);
  return findings;
}

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : " ") + word;
  return out.empty() ? "none known" : out;
}

// The kernels in use, and those to try that are not chosen by themselves.
std::string describe_kernels(const Findings& findings) {
  const std::vector<std::string>& features = findings.machine.features;
  const bool has_amx = std::find(features.begin(), features.end(), "amx_int8") != features.end();
  if (findings.isa.empty()) return "unknown";
  if (!has_amx || findings.isa != "avx512") return findings.isa;
  return findings.isa + "; this CPU has AMX: HOTSET_ISA=amx uses it for prompts (never timed, so not chosen)";
}

std::string text_report(const Findings& findings) {
  const Machine& machine = findings.machine;
  std::string out = cat("hotset     ", version(), " (", build_commit(), "), compiler ", __VERSION__, "\n");
  out += cat("cpu        ", machine.cpu.empty() ? "unknown" : printable(machine.cpu), ", ", machine.n_physical,
             " cores, ", machine.n_logical, " processors\n");
  out += cat("threads    ", describe_processors(), "\n");
  out += cat("features   ", joined(machine.features), "\n");
  out += cat("kernels    ", describe_kernels(findings), "\n");
  out += cat("memory     ", bytes_text(machine.memory_bytes), ", ", bytes_text(machine.free_bytes), " free\n");
  out += text_of("bandwidth  %.1f GB/s read with %d threads\n", findings.read_gbps, machine.n_physical);
  const std::string no_gpu = "none in use: " + printable(findings.gpu_reason);
  out += cat("gpu        ", findings.gpu.empty() ? no_gpu : findings.gpu, "\n");
  out += cat("model      ", findings.model_path.empty() ? "" : printable(findings.model_path) + ": ",
             printable(findings.model_state), "\n");
  return out;
}

std::string json_report(const Findings& findings) {
  const auto text_or_null = [](JsonWriter& json, const char* name, const std::string& text) {
    json.key(name);
    text.empty() ? json.null() : json.value(text);
  };
  const Machine& machine = findings.machine;
  JsonWriter json;
  json.begin_object().field("version", version()).field("build_commit", build_commit());
  json.field("compiler", __VERSION__);
  text_or_null(json, "cpu", machine.cpu);
  json.field("cpu_features", machine.features);
  text_or_null(json, "isa", findings.isa);
  json.field("n_cores", machine.n_physical).field("n_processors", machine.n_logical);
  json.field("threads", describe_processors());
  json.field("memory_bytes", machine.memory_bytes).field("free_bytes", machine.free_bytes);
  json.field("read_gbps", findings.read_gbps);
  text_or_null(json, "gpu", findings.gpu);
  text_or_null(json, "gpu_reason", findings.gpu_reason);
  text_or_null(json, "model", findings.model_path);
  json.field("model_state", findings.model_state).end_object();
  return json.text() + "\n";
}

}  // namespace

int cmd_doctor(const Words& words) {
  Args args("doctor", "Shows what this machine and this build offer. Takes about a second.");
  bool as_json = false;
  args.flag("--json", "print one JSON object", as_json);
  if (parse_or_help(args, words)) return kExitDone;

  const Findings findings = examine();
  write_stdout(as_json ? json_report(findings) : text_report(findings));
  return kExitDone;
}

}  // namespace hotset::cli
