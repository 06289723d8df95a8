// The named shapes of `hotset synth`: sizes from the published configurations of the models.
#include "core/synth.h"

namespace hotset {

const std::vector<SynthShape>& synth_shapes() {
  // name, family, n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_rot, n_vocab, n_ctx, tied
  static const std::vector<SynthShape> kShapes = {
      {"llama-7b", "llama", 32, 4096, 11008, 32, 32, 0, 0, 32000, 4096, false},
      {"llama-13b", "llama", 40, 5120, 13824, 40, 40, 0, 0, 32000, 4096, false},
      {"llama-70b", "llama", 80, 8192, 28672, 64, 8, 0, 0, 32000, 4096, false},
      {"opt-6.7b", "opt", 32, 4096, 16384, 32, 32, 0, 0, 50272, 2048, true},
      {"opt-13b", "opt", 40, 5120, 20480, 40, 40, 0, 0, 50272, 2048, true},
      {"opt-30b", "opt", 48, 7168, 28672, 56, 56, 0, 0, 50272, 2048, true},
      {"opt-66b", "opt", 64, 9216, 36864, 72, 72, 0, 0, 50272, 2048, true},
      {"opt-175b", "opt", 96, 12288, 49152, 96, 96, 0, 0, 50272, 2048, true},
      {"arcee-4.5b", "arcee", 36, 2560, 18432, 20, 4, 128, 0, 128000, 65536, false},
      {"nemotron-8b", "nemotron", 32, 4096, 16384, 32, 32, 0, 64, 256000, 4096, false},
      // For benchmarks; no published model has these sizes.
      {"llama-1b", "llama", 16, 2048, 8192, 32, 8, 0, 0, 32000, 4096, false},
      {"arcee-1b", "arcee", 16, 2048, 8192, 32, 8, 0, 0, 32000, 4096, false},
      // For tests.
      {"tiny", "llama", 3, 256, 768, 8, 4, 0, 0, 2048, 1024, false},
  };
  return kShapes;
}

}  // namespace hotset
