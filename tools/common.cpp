#include "tools/common.h"

#include <sys/stat.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>

#include "tools/machine.h"

namespace hotset::cli {
namespace {

bool is_file(const std::string& path) {
  struct stat status{};
  return stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

// The folder above the one that the running program lies in, "" when the system does not say.
std::string installation_folder() {
  char path[PATH_MAX];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path);
  if (n <= 0 || n == static_cast<ssize_t>(sizeof path)) return "";
  const std::string full(path, static_cast<size_t>(n));
  const std::string folder = full.substr(0, full.rfind('/'));
  return folder.substr(0, folder.rfind('/'));
}

// A data file that comes with this program, "" when it is not there.
std::string shipped_file(const std::string& name) {
  for (const char* place : {"/share/hotset/", "/data/"}) {  // a CMake installation or build; the Python package
    const std::string path = installation_folder() + place + name;
    if (is_file(path)) return path;
  }
  return "";
}

// Warnings always, the rest when asked for.
LogSink log_sink(const ModelFlags& flags) {
  return [verbose = flags.verbose](LogLevel level, const std::string& line) {
    if (level == LogLevel::kWarning) write_note("warning: " + line);
    if (level == LogLevel::kInfo && verbose) write_note(line);
  };
}

[[noreturn]] void refuse_hub(const std::string& name) {
  throw UsageError(error_text("model", "models of the hub need the Python package", "the path of a GGUF file",
                              quoted(name), "run 'pip install hotset', or download the file and use -m FILE"));
}

// -ngl: auto, 0 (CPU only), all, or a number of layers.
bool wants_gpu(const std::string& n_gpu_layers) {
  if (n_gpu_layers == "auto") return false;
  if (n_gpu_layers == "all") return true;
  return parse_int("options", "-ngl", n_gpu_layers, {0, 1 << 20}) > 0;
}

}  // namespace

bool parse_or_help(Args& args, const Words& words) {
  if (!args.parse(words)) return false;
  write_stdout(args.help());
  return true;
}

void add_vocabulary_flags(Args& args, ModelFlags& flags) {
  args.text("-m,--model", "FILE", "GGUF file, of several shards the first (default: the packaged model)", flags.path);
  args.text("-hf,--hf-repo", "REPO",
            "OWNER/NAME[@REVISION][:FILE-GLOB] of the Hugging Face hub, with --hf-token (Python package only)", flags.hub);
}

void add_model_flags(Args& args, ModelFlags& flags) {
  add_vocabulary_flags(args, flags);
  args.text("--activation", "silu|relu|relu2|drelu|fatrelu:T|gelu|gelu_tanh",
            "FFN activation, for files that do not say", flags.activation);
  args.flag("-v,--verbose", "show what the library reports", flags.verbose);
}

void add_device_flags(Args& args, DeviceFlags& flags) {
  args.choice("--mode", "exact|predict|dense|auto", "which FFN units are computed", flags.mode);
  args.text("--predictor", "bit_planes:BITS[:Z]", "for --mode predict without a sidecar, not calibrated", flags.predictor);
  args.text("--sidecar", "FILE", "what the offline phase found out (auto: MODEL.hotset.gguf; none)", flags.sidecar);
  args.choice("--device", "auto|cpu|cuda|virtual", "where to compute", flags.device);
  args.text("-ngl,--gpu-layers,--n-gpu-layers", "N|all|auto", "layers on the GPU; 0 = CPU only", flags.n_gpu_layers);
  args.size("--vram-budget", "GPU memory to use: 8GiB, 8000MiB, auto", flags.vram_budget);
  args.choice("--adapt", "on|off", "let hot and cold units change places while generating", flags.adapt);
  args.choice("--kv-type", "auto|f16|f32|q8_0", "number format of the KV cache", flags.kv_type);
  args.choice("--pin", "auto|on|off", "keep CPU threads on chosen cores", flags.pin);
  args.choice("--kv-place", "auto|device|host", "memory of the KV cache", flags.kv_place);
}

void add_compute_flags(Args& args, ComputeFlags& flags) {
  args.integer("-c,--ctx-size", "context size; 0 = as the model was trained", flags.n_ctx, kContextRange);
  args.integer("-t,--threads", "CPU threads; 0 = one per core", flags.n_threads, kThreadRange);
  args.integer("-b,--batch-size", "prompt tokens computed at once", flags.n_batch, kBatchRange);
}

void add_prompt_flags(Args& args, PromptFlags& flags) {
  args.text("-p,--prompt", "TEXT", "the text, bytes as they are; - reads stdin", flags.text);
  args.text("-f,--file", "FILE", "read the text from a file", flags.file);
}

std::string default_model_path() {
  const char* stated = std::getenv("HOTSET_MODEL");
  if (stated != nullptr && *stated != '\0') return stated;
  return shipped_file("demo-relu-q8_0.gguf");
}

std::string machine_rates_file(const std::string& asked) {
  if (is_file(asked) || asked.find('/') != std::string::npos) return asked;
  const std::string shipped = shipped_file("machines/" + asked + ".json");
  return shipped.empty() ? asked : shipped;
}

std::string model_path(const ModelFlags& flags) {
  if (!flags.hub.empty()) refuse_hub(flags.hub);
  if (flags.path.rfind("hf:", 0) == 0) refuse_hub(flags.path);
  const std::string path = flags.path.empty() ? default_model_path() : flags.path;
  if (path.empty()) {
    throw Error(error_text("model", "no model", "-m FILE or the packaged model", "neither",
                           "name a GGUF file with -m or in HOTSET_MODEL"));
  }
  return path;
}

ModelOptions model_options(const ModelFlags& flags) {
  ModelOptions options;
  options.activation = flags.activation;
  options.log = log_sink(flags);
  return options;
}

std::shared_ptr<const Model> open_model(const ModelFlags& flags) {
  return Model::load(model_path(flags), model_options(flags));
}

EngineOptions engine_options(const ModelFlags& model, const DeviceFlags& device, const ComputeFlags& compute) {
  EngineOptions options;
  options.n_ctx = compute.n_ctx;
  options.n_threads = static_cast<int32_t>(compute.n_threads);
  options.n_batch = static_cast<int32_t>(compute.n_batch);
  options.kv_type = device.kv_type;
  options.mode = device.mode;
  options.predictor = device.predictor;
  options.sidecar = device.sidecar;
  if (!device.predictor.empty() && device.mode != "predict")
    throw UsageError(error_text("options", "contradicting flags", "--predictor with --mode predict",
                                "--mode " + device.mode, "add --mode predict"));
  options.device = device.device;
  options.pin = device.pin;
  options.n_gpu_layers = device.n_gpu_layers;
  options.kv_place = device.kv_place;
  if (!device.adapt.empty()) options.adapt = device.adapt;
  if (device.vram_budget != "auto") options.vram_budget = parse_size("options", "--vram-budget", device.vram_budget);
  options.log = log_sink(model);
  const bool gpu_layers = wants_gpu(device.n_gpu_layers);
  const bool cpu_only = device.n_gpu_layers == "0";
  if ((gpu_layers && device.device == "cpu") || (cpu_only && device.device == "cuda")) {
    throw UsageError(error_text("options", "contradicting flags", "-ngl and --device that agree",
                                "-ngl " + device.n_gpu_layers + " --device " + device.device, "drop one of them"));
  }
  if (device.device == "auto" && gpu_layers) options.device = "cuda";
  if (device.device == "auto" && cpu_only) options.device = "cpu";
  if (is_accelerator(device.device) && (cpu_only || options.vram_budget == uint64_t{0})) options.device = "cpu";
  if (!is_accelerator(options.device)) return options;
  std::string note;
  if (auto rates = known_machine_rates(note)) options.rates = std::make_shared<const MachineRates>(std::move(*rates));
  return options;
}

void check_device_flags(const DeviceFlags& flags, const EngineInfo& info) {
  if (info.device != "cpu") {
    if (flags.adapt == "on" && !info.adapts)
      write_note("note: no effect, all units are computed in mode " + info.mode + ": --adapt on");
    return;
  }
  if (flags.kv_place == "device") {
    throw DeviceError(
        error_text("options", "--kv-place device", "a GPU for the KV cache", "the CPU alone", "use --kv-place auto"));
  }
  std::string unused;
  const auto add = [&](bool is_unused, const std::string& text) {
    if (is_unused) unused += (unused.empty() ? "" : ", ") + text;
  };
  add(flags.vram_budget != "auto", "--vram-budget " + flags.vram_budget);
  add(flags.adapt == "on", "--adapt on");
  if (!unused.empty()) write_note("note: no effect, everything runs on the CPU: " + unused);
}

std::string engine_line(const Model& model, const EngineInfo& info) {
  return cat(model.name(), " (", model.type_text(), ", ", bytes_text(model.size_bytes()), ") on ", info.device, " ",
             info.isa, ", ", info.n_threads, info.n_threads == 1 ? " thread" : " threads", ", context ", info.n_ctx,
             ", mode ", info.mode, info.predictor.empty() ? "" : " by " + info.predictor, ", kv ", info.kv_type);
}

std::string prompt_text(const Args& args, const PromptFlags& flags) {
  const bool has_text = args.given("-p");
  const bool has_file = args.given("-f");
  if (has_text == has_file) {
    throw UsageError(error_text(args.command(), has_text ? "two prompts" : "no prompt", "-p TEXT or -f FILE",
                                has_text ? "both" : "neither", has_text ? "drop one" : "add one; -p - reads stdin"));
  }
  if (has_file) return read_file(flags.file);
  return flags.text == "-" ? read_stdin() : flags.text;
}

void check_token_ids(const std::string& where, const std::vector<int32_t>& ids, int32_t n_vocab, bool usage) {
  for (const int32_t id : ids) {
    if (id >= 0 && id < n_vocab) continue;
    const std::string text = error_text(where, "token id outside the vocabulary", cat("0 to ", n_vocab - 1), cat(id),
                                        "use ids of this model's vocabulary");
    if (usage) throw UsageError(text);
    throw Error(text);
  }
}

}  // namespace hotset::cli
