// `hotset synth`: writes a model with random weights and units that fire as often as asked.
#include "tools/common.h"
#include "tools/recipe.h"

namespace hotset::cli {

int cmd_synth(const Words& words) {
  Args args("synth",
            "Writes a model of any size with random weights, whose units fire with the asked sparsity and skew.");
  SynthFlags flags;
  std::string out;
  int64_t n_threads = 0;
  add_synth_flags(args, flags);
  args.text("-o,--output", "FILE", "the GGUF file to write", out);
  args.integer("-t,--threads", "CPU threads; 0 = one per core", n_threads, kThreadRange);
  if (parse_or_help(args, words)) return kExitDone;
  const SynthSpec spec = synth_spec("synth", flags);
  if (out.empty()) throw UsageError(error_text("synth", "no file to write", "-o FILE", "nothing", "add it"));
  const SynthPlan plan = plan_synth(spec);
  const Stopwatch watch;
  write_synth(spec, out, synth_options(n_threads));
  write_note(cat(out, ": ", plan.name, ", ", bytes_text(plan.n_bytes), " of weights in ",
                 text_of("%.1f s", watch.ms() / 1000)));
  return kExitDone;
}

}  // namespace hotset::cli
