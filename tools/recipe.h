// The flags that describe a made-up model, on the command line of `hotset synth` and in a recipe of `bench --synth`.
#pragma once

#include <string>

#include "core/engine.h"
#include "tools/args.h"

namespace hotset::cli {

struct SynthFlags {
  std::string arch;  // "" = the one that the shape is named after
  std::string activation;
  std::string layout = "neuron";
  std::string shape;
  std::string type = "q4_0";
  std::string skew;  // "" = the usual one
  bool pure = false;
  int64_t seed = 1;
  float sparsity = 0.9f;
};

void add_synth_flags(Args& args, SynthFlags& flags);

// Throws UsageError for a name that is not known (with the nearest one) and for malformed values. `where` is for
// messages.
SynthSpec synth_spec(const std::string& where, const SynthFlags& flags);

// The flags in one text, words between spaces: "llama shape=llama-1b type=q4_0 pure" means
// "--arch llama --shape llama-1b --type q4_0 --pure"; both spellings mix. `where` is for messages. Throws UsageError.
SynthSpec parse_recipe(const std::string& where, const std::string& recipe);

// Options of making the model: Ctrl-C ends it, a terminal shows how far it is.
SynthOptions synth_options(int64_t n_threads);

}  // namespace hotset::cli
