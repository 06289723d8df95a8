// Counts which units of a model fire on real text, and how much they contribute: the statistics that predictors and
// placement are made from.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/engine.h"

namespace hotset {

// What was counted of one layer. A unit's contribution to a token is |h| times the length of its down row.
struct LayerProfile {
  std::vector<uint64_t> counts;  // (n_ff) tokens for which the unit was active
  std::vector<double> h_sums;    // (n_ff) sum of |h| over all tokens, added in their order
  uint64_t overlap = 0;          // sum over tokens but the first of a sequence: units active for it and the one before
  // A unit is active when its contribution reaches this; 0: when its detect value is not <= 0, as exact mode decides.
  float threshold = 0;
};

// The FFN's inputs and active sets of a sample of the tokens: those whose numbers scatter to the smallest values, so
// that each token has the same chance and the sample depends on nothing else.
struct ProfileSamples {
  struct Layer {
    std::vector<float> input;   // (n, n_embd)
    std::vector<uint8_t> mask;  // (n, (n_ff + 7) / 8): bit u % 8 of byte u / 8 says whether unit u was active
  };
  std::vector<uint64_t> tokens;  // (n) numbers of the sampled tokens; token i of the profile has number i
  std::vector<Layer> layers;
};

// Everything that a profile knows; restored, it goes on as if it had never stopped.
struct ProfileState {
  uint64_t n_tokens = 0;
  std::vector<LayerProfile> layers;
  ProfileSamples samples;
};

// Runs sequences through an engine made with these options, each from its beginning: as many at a time as it has KV
// memory set aside for, or all. Whoever observes sees one sequence after the other. Throws as Engine::advance.
void run_sequences(const std::shared_ptr<Engine>& engine, const EngineOptions& options,
                   std::span<const std::vector<int32_t>> sequences, const StopCheck& stop);

// Runs sequences of tokens through a model, all units computed, and counts. Results do not depend on threads,
// instruction set, n_batch, or how sequences are grouped into calls. Used by one thread at a time.
class Profiler {
 public:
  // The engine's mode is dense; options.n_ctx bounds the length of a sequence, and with an accelerator KV memory for
  // options.n_sequences of them is taken there. `n_samples` tokens are sampled, which
  // takes n_samples * n_layer * (4 * n_embd + n_ff / 8) bytes. Reads all down projections once. Throws as
  // Engine::create, and std::invalid_argument for a sample that does not fit the memory.
  Profiler(std::shared_ptr<const Model> model, const EngineOptions& options, int64_t n_samples);
  ~Profiler();

  // For activations without exact zeros: chooses each layer's threshold so that on these sequences the units below
  // carry at most `share` of the layer's summed contributions. Nothing to do for the others. Before the first add().
  // Throws std::invalid_argument (share not within 0 to 0.5, no tokens), else as add().
  void calibrate(std::span<const std::vector<int32_t>> sequences, double share, const StopCheck& stop = {});

  // Counts all tokens of the sequences, computed in one pass; without an accelerator KV memory is taken for all at
  // once. When this throws, nothing of them is counted. Throws as Engine::advance; Error where an activation is not
  // finite.
  void add(std::span<const std::vector<int32_t>> sequences, const StopCheck& stop = {});

  const ProfileState& state() const;
  // Takes over what state() of a profiler of the same model and number of samples gave. Throws std::invalid_argument
  // when it cannot have been that.
  void restore(ProfileState state);

  // Lengths of the down rows, (n_ff) for each layer.
  const std::vector<std::vector<double>>& down_norms() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hotset
