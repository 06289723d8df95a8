// `hotset quantize`: a model file with other weight types, and another layout of the down projection.
#include <cmath>

#include "tools/common.h"

namespace hotset::cli {
namespace {

struct QuantizeFlags {
  std::string input, output, order;
  QuantizeOptions options;
  int64_t n_threads = 0;
};

void declare(Args& args, QuantizeFlags& flags) {
  args.positional("IN", "GGUF file, of any types that run", flags.input);
  args.positional("OUT", "the file to write; replaced when it is complete", flags.output);
  args.positional("TYPE",
                  "q8_0, q2_k, q3_k_s, q3_k_m, q3_k_l, q4_0, q4_1, q4_k_s, q4_k_m, q5_0, q5_1, q5_k_s, q5_k_m, q6_k, "
                  "iq4_nl, iq4_xs, mxfp4, f16, bf16, f32",
                  flags.options.type);
  args.choice("--layout", "neuron|gguf",
              "neuron: down projection transposed, one row per unit; gguf: as llama.cpp "
              "reads it",
              flags.options.layout);
  args.flag("--pure", "one type throughout, not llama.cpp's mixture", flags.options.pure);
  args.text("--order", "FILE", "units hottest first, by a sidecar of IN, whose units are rows", flags.order);
  args.integer("-t,--threads", "CPU threads; 0 = one per core", flags.n_threads, kThreadRange);
}

void check(const Args& args, const QuantizeFlags& flags) {
  const std::pair<const char*, const std::string*> words[] = {
      {"IN", &flags.input}, {"OUT", &flags.output}, {"TYPE", &flags.options.type}};
  for (const auto& [name, value] : words) {
    if (!args.given(name)) {
      throw UsageError(
          error_text("quantize", "missing argument", "IN OUT TYPE", cat("no ", name), "see 'hotset quantize --help'"));
    }
    if (value->empty()) {
      throw UsageError(error_text("quantize", cat("bad value of ", name), "a name", "nothing", "correct the value"));
    }
  }
  if (flags.order.ends_with(".npz")) {
    throw UsageError(error_text("quantize", "--order", "a sidecar of IN", quoted(flags.order),
                                "pip install hotset: its command takes statistics too"));
  }
}

// A line that redraws itself with every whole per cent.
class ProgressBar {
 public:
  void show(uint64_t done, uint64_t total) {
    const int percent = static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(total));
    if (percent == shown_) return;
    shown_ = percent;
    const std::string bar(static_cast<size_t>(percent) * kWidth / 100, '#');
    write_stderr(text_of("\r[%-*s] %3d %%%s", kWidth, bar.c_str(), percent, done == total ? "\n" : ""));
  }

 private:
  static constexpr int kWidth = 40;
  int shown_ = -1;
};

}  // namespace

int cmd_quantize(const Words& words) {
  Args args("quantize", "Writes IN to OUT with weights of another type, units as rows (ffn_down_t).");
  QuantizeFlags flags;
  declare(args, flags);
  if (parse_or_help(args, words)) return kExitDone;
  check(args, flags);
  ProgressBar bar;
  flags.options.n_threads = static_cast<int32_t>(flags.n_threads);
  flags.options.stop = interrupt_check();
  flags.options.log = [](LogLevel level, const std::string& line) {
    write_note((level == LogLevel::kWarning ? "warning: " : "") + line);
  };
  if (stderr_is_terminal()) flags.options.progress = [&](uint64_t done, uint64_t total) { bar.show(done, total); };
  if (args.given("--order")) flags.options.unit_order = read_unit_order(flags.order, flags.input);
  const Stopwatch watch;
  const QuantizeResult result = quantize_model(flags.input, flags.output, flags.options);
  write_note(text_of("quantize: %s -> %s, %.2f bits per weight, %.1f s", bytes_text(result.input_bytes).c_str(),
                     bytes_text(result.output_bytes).c_str(), result.bits_per_weight(), watch.ms() / 1000));
  return kExitDone;
}

}  // namespace hotset::cli
