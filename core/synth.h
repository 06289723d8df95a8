// Models with random weights whose units fire as often as asked on any input: for benchmarks of sparse execution.
// How it works: core/synth_firing.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/model.h"

namespace hotset {

// Sizes of a model. 0 means: n_head_kv as n_head, head_dim n_embd / n_head, n_rot head_dim.
struct SynthShape {
  std::string name;  // "" for a free shape
  std::string arch;  // family that really has this shape; "" for a free shape
  int64_t n_layer = 0, n_embd = 0, n_ff = 0, n_head = 0, n_head_kv = 0, head_dim = 0, n_rot = 0;
  int64_t n_vocab = 32000, n_ctx = 4096;
  bool tied = false;  // no output.weight: the head is the embedding
};

// The named shapes.
const std::vector<SynthShape>& synth_shapes();

struct SynthSpec {
  std::string arch;
  SynthShape shape;
  std::string activation;     // "" = the usual one of the architecture
  std::string type = "q4_0";  // as `hotset quantize` takes them
  bool pure = false;          // one type throughout
  bool neuron_major = true;   // ffn_down_t, else ffn_down
  uint64_t seed = 1;
  double sparsity = 0.9;    // mean share of units that do not fire
  double skew_top = 0.26;   // this share of the units ..
  double skew_share = 0.8;  // .. has this share of all firings; 0 = as near to 0.8 as the sparsity allows
};

struct SynthOptions {
  int32_t n_threads = 0;         // 0 = one per physical core; the file does not depend on it
  std::function<bool()> stop{};  // asked now and then; true: CancelledError
  std::function<void(uint64_t n_done, uint64_t n_total)> progress{};  // bytes of weights
};

// What write_synth makes of a specification.
struct SynthPlan {
  std::string name;       // "llama-7b q4_0, 90 % sparse, 26 % of units fire 80 %": general.name of the file
  uint64_t n_bytes = 0;   // of all weights
  double skew_share = 0;  // in effect
};

// Checks a specification. Throws std::invalid_argument: unknown names, sizes that do not fit together or the type, a
// skew that the sparsity does not allow.
SynthPlan plan_synth(const SynthSpec& spec);

// Writes the model, a few MiB per thread in memory at a time. Equal specifications give equal bytes. The two layouts of
// one seed hold the same weights before they are quantised. Throws as plan_synth, Error (the file cannot be written),
// CancelledError; then nothing is left behind.
void write_synth(const SynthSpec& spec, const std::string& path, const SynthOptions& options);

// Makes the model in memory and loads it, without a disk. Throws as write_synth, and OutOfMemoryError when the machine
// has not enough free memory.
std::shared_ptr<const Model> load_synth(const SynthSpec& spec, const SynthOptions& options, const ModelOptions& model);

// The model in outline: names, shapes and types are those of write_synth, all values are zeros that take no memory, so
// that models of any size can be planned and placed; to run it makes no sense. Throws as plan_synth, and
// OutOfMemoryError.
std::shared_ptr<const Model> outline_synth(const SynthSpec& spec, const ModelOptions& model = {});

// Share of tokens for which each unit of a layer fires, descending; the same in all layers. Throws as plan_synth.
std::vector<double> synth_frequencies(const SynthSpec& spec);

}  // namespace hotset
