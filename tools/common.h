// What the commands share: the model and engine flags, the prompt, opening a model and an engine.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "core/engine.h"
#include "tools/args.h"
#include "tools/io.h"

namespace hotset::cli {

using Words = std::vector<std::string>;

// The commands. `words` are the arguments after the command's name; the result is the exit code.
int cmd_run(const Words& words);
int cmd_bench(const Words& words);
int cmd_perplexity(const Words& words);
int cmd_kld(const Words& words);
int cmd_tokenize(const Words& words);
int cmd_detokenize(const Words& words);
int cmd_logits(const Words& words);
int cmd_inspect(const Words& words);
int cmd_plan(const Words& words);
int cmd_quantize(const Words& words);
int cmd_synth(const Words& words);
int cmd_doctor(const Words& words);

// Parses; when help was asked for it is shown and the command has nothing left to do (true).
[[nodiscard]] bool parse_or_help(Args& args, const Words& words);

struct ModelFlags {
  std::string path;  // "" = the default model
  std::string hub;   // -hf
  std::string activation;
  bool verbose = false;
};

struct DeviceFlags {
  std::string device = "auto";
  std::string n_gpu_layers = "auto";
  std::string mode = "auto";
  std::string predictor;
  std::string sidecar = "auto";
  std::string vram_budget = "auto";
  std::string adapt;
  std::string kv_type = "auto";
  std::string kv_place = "auto";
  std::string pin = "auto";
};

struct ComputeFlags {
  int64_t n_ctx = 0;
  int64_t n_threads = 0;
  int64_t n_batch = 512;
};

struct PromptFlags {
  std::string text;
  std::string file;
};

void add_model_flags(Args& args, ModelFlags& flags);
void add_vocabulary_flags(Args& args, ModelFlags& flags);  // only which file
void add_device_flags(Args& args, DeviceFlags& flags);
void add_compute_flags(Args& args, ComputeFlags& flags);
void add_prompt_flags(Args& args, PromptFlags& flags);

inline constexpr IntRange kContextRange{0, int64_t{1} << 24};
inline constexpr IntRange kThreadRange{0, 1024};
inline constexpr IntRange kBatchRange{1, int64_t{1} << 16};

// The file that the flags name, else the default model. Throws UsageError (hub names) and Error (no default found).
std::string model_path(const ModelFlags& flags);

// $HOTSET_MODEL, else the packaged model beside this program; "" when there is none.
std::string default_model_path();

// The file of machine rates that --machine means: a path, or the name of a machine that comes with this program.
std::string machine_rates_file(const std::string& asked);

ModelOptions model_options(const ModelFlags& flags);
std::shared_ptr<const Model> open_model(const ModelFlags& flags);

// Options of an engine from checked flags. Throws UsageError for flags that contradict each other.
EngineOptions engine_options(const ModelFlags& model, const DeviceFlags& device, const ComputeFlags& compute);

// Where everything runs on the CPU: says on stderr which flags have no effect, throws DeviceError for --kv-place
// device.
void check_device_flags(const DeviceFlags& flags, const EngineInfo& info);

// One line about the model and what it runs on.
std::string engine_line(const Model& model, const EngineInfo& info);

// The prompt's bytes: -p TEXT, -p - (stdin), or -f FILE. Throws UsageError without a prompt or with two.
std::string prompt_text(const Args& args, const PromptFlags& flags);

// Throws for an id outside the vocabulary: UsageError when `usage` (the ids came from a flag), else Error.
void check_token_ids(const std::string& where, const std::vector<int32_t>& ids, int32_t n_vocab, bool usage);

// Milliseconds since it was made.
class Stopwatch {
 public:
  double ms() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// `count` per second in `ms` milliseconds; 0 when nothing was measured.
inline double per_second(int64_t count, double ms) {
  return count > 0 && ms > 0 ? 1000.0 * static_cast<double>(count) / ms : 0;
}

}  // namespace hotset::cli
