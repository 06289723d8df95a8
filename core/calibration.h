// How much slack a predictor needs: what it would propose and what it would miss, for every threshold at once.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/engine.h"

namespace hotset {

// Units and tokens of a layer by their slack: the threshold from which on a unit is a candidate for a token, in what is
// added to margins (with bit planes: deviations of their error). Bin i counts slacks within low + i * width and the
// next bin's begin; the first also those below and NaN, which is always a candidate, the last also those above. A
// threshold at the end of bin i proposes what bins 0 to i count.
struct SlackHistogram {
  std::vector<uint64_t> units;   // (n_bins)
  std::vector<uint64_t> active;  // (n_bins) those that fired
  std::vector<double> mass;      // (n_bins) their contributions: |h| times the length of the unit's down row
};

struct SlackBins {
  double low = -8, high = 8;
  int64_t n = 1024;
};

// Runs sequences of tokens through a model, all units computed, and counts by slack. Results do not depend on threads,
// instruction set or n_batch. Used by one thread at a time.
class Calibrator {
 public:
  // `options` name the predictor; the mode is predict, but nothing is left out. options.n_ctx bounds the length of a
  // sequence. Throws as Engine::create, std::invalid_argument for bins that are no bins and thresholds
  // that are not finite.
  Calibrator(std::shared_ptr<const Model> model, const EngineOptions& options, const SlackBins& bins);
  ~Calibrator();

  // Counts all tokens of the sequences, computed in one pass. When this throws, nothing of them is counted. Throws as
  // Engine::advance.
  void add(std::span<const std::vector<int32_t>> sequences, const StopCheck& stop = {});

  // One per layer; empty where a layer has no predictor.
  std::vector<SlackHistogram> layers() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hotset
