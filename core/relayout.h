// Makes the neuron-major down projection that sparse execution reads from a file in the standard layout.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/arena.h"
#include "core/log.h"
#include "core/model.h"
#include "core/weights.h"

namespace hotset {

class ThreadPool;

// Turns down projections of a standard file one by one: what Relayout does for all, and who copies them for each.
class DownRows {
 public:
  // The model and the team, whose workers it uses, must outlive this.
  DownRows(const Model& model, ThreadPool& pool);
  // Rows of units of fitting_type() from `down` (n_ff, n_embd), whose pages are dropped. Throws OutOfMemoryError.
  Arena make(const TensorView& down);
  // Says in one line to `log` what it cost; nothing when make() was not called.
  void report(const LogSink& log) const;

 private:
  struct Error2 {  // sums of squares
    double error = 0, size = 0;
  };
  const Model& model_;
  ThreadPool& pool_;
  std::vector<Error2> errors_;  // by worker
  size_t n_layers_ = 0;
  uint64_t n_bytes_ = 0;
  double seconds_ = 0;
};

// Owns `ffn_down_t` of every layer whose file has only `ffn_down`: transposed and stored in the same type (or, where n_embd
// is not a multiple of its block, in Q8_0 or F16), so that a unit's outgoing weights are one row. Block types are quantised anew along the other direction, which adds an error of
// the size of their first one; F32, F16 and BF16 lose nothing. The pages of the old tensors are dropped as they are
// read, so that memory grows only where the type had to change.
class Relayout {
 public:
  // Does the work on n_threads threads and says in one line to `log` what it cost; nothing to do and nothing said when
  // every layer has ffn_down_t. The model must outlive this. Throws OutOfMemoryError.
  Relayout(const Model& model, int32_t n_threads, const LogSink& log);

  // What that would make, without the work and the memory: the new tensors have their shapes and types, but view the old
  // ones' bytes and must not be read.
  static std::shared_ptr<const Relayout> outline(const Model& model);

  // The model's weights with ffn_down_t in every layer.
  const Weights& weights() const { return weights_; }
  uint64_t n_bytes() const { return n_bytes_; }

 private:
  explicit Relayout(const Weights& weights) : weights_(weights) {}
  // Puts rows of units of type `type` at `data` in the place of a layer's ffn_down.
  void replace_down(LayerWeights& layer, const std::byte* data, DType type);

  Weights weights_;
  std::vector<Arena> arenas_;  // one per layer
  uint64_t n_bytes_ = 0;
};

}  // namespace hotset
