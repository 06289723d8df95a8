// The memory account of an engine: which bytes lie where, before anything is loaded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/placement.h"

namespace hotset {

struct Plan;
struct Weights;

struct MemoryComponent {
  std::string name;    // embeddings, attention, detect, units, head, kv, compute, logits, relayout, handoff, ..
  std::string device;  // "cpu" or "gpu"
  uint64_t bytes = 0;
};

// Components by name, each device's apart; those of 0 bytes are left out.
struct MemoryPlan {
  std::vector<MemoryComponent> components;

  void add(const std::string& name, const std::string& device, uint64_t bytes);
  uint64_t bytes_on(const std::string& device) const;
};

// Weights of one layer by the part that places them.
struct LayerBytes {
  uint64_t attention = 0;     // with all norms and biases of the layer
  uint64_t detect_row = 0;    // of one unit; 0 when all units are computed
  uint64_t unit_rows = 0;     // of one unit: its other rows
  uint64_t shortest_row = 0;  // of the latter: the piece in which active units are read
};

// The layer's weights, whose FFN must be neuron-major (ffn_down_t). `exact`: active units are found by their detect
// row.
LayerBytes layer_bytes(const Weights& weights, size_t layer, bool exact);

// The output head with its norm; of a tied head the embeddings, which hold it.
uint64_t head_bytes(const Weights& weights);

// What `n_tokens` tokens of text bring into memory of a mapped embedding table: a tied one wholly, because the head
// reads it; else the 64 KiB around each row that is read, which is what Linux maps at a time. Counts on text of a
// natural language, of which n tokens meet about as many different places as 2 n^0.65 rows at random would (within a
// tenth or two for 256 to 16,384 tokens of stories, with vocabularies of 32,000 and 128,000). Learned positions count
// wholly.
uint64_t embedding_bytes(const Weights& weights, uint64_t n_tokens);

// A layer's predictor: what a side that has rows of it needs once, and a row.
struct PredictorBytes {
  uint64_t shared = 0, unit = 0;
};

// What an engine takes beside its weights.
struct EngineBytes {
  uint64_t embeddings = 0;      // in memory, of the mapped table
  uint64_t kv_per_layer = 0;    // of all positions of all sequences
  uint64_t compute = 0;         // activations and scratch of the host's program
  uint64_t logits = 0;          // kept by the sequences
  uint64_t predictor = 0;       // made at load in mode predict, with everything on the host
  uint64_t relayout = 0;        // of the neuron-major down projection, where it is made at load
  std::vector<PredictorBytes> predictors;  // (n_layer) where sides have their rows; empty = none
  uint64_t device_compute = 0;  // activations and scratch of the device's program, and what aligns its weights
  uint64_t handoff = 0;         // pinned host memory through which device and host exchange a layer's work
};

// The account of `placement` (of as many layers as the weights have). Every weight lies on one side, but for a head
// tied to the embeddings, of which the device gets a copy. With everything on the host it is the CPU engine's account:
// what generation touches, the weights as pages of the mapped file.
MemoryPlan account(const Weights& weights, bool exact, const EngineBytes& engine, const Placement& placement);

}  // namespace hotset
