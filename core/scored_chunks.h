// The walk over a text that perplexity and KL divergence share: chunks of n_ctx tokens, the second half of each scored.
#pragma once

#include <functional>
#include <span>
#include <string>

#include "core/engine.h"

namespace hotset {

// Natural log of softmax(logits)[id] is logits[id] - largest - log_total, in double and in this order everywhere.
struct LogSoftmax {
  explicit LogSoftmax(std::span<const float> logits);
  double at(size_t id) const { return static_cast<double>(logits[id]) - largest - log_total; }

  std::span<const float> logits;
  double largest;
  double log_total;
};

// Mean of what was added, and its standard error.
class RunningMean {
 public:
  void add(double value);
  int64_t n() const { return n_; }
  double mean() const { return n_ > 0 ? sum_ / static_cast<double>(n_) : 0; }
  double error() const;
  PerplexityResult as_perplexity() const { return {mean(), error(), n_}; }  // of negative log likelihoods

 private:
  double sum_ = 0, sum_squares_ = 0;
  int64_t n_ = 0;
};

// `position` gets the token that really comes there and each engine's logits (n_vocab) for it.
struct ScoreVisitor {
  std::function<void(int32_t target, std::span<const std::span<const float>> logits)> position;
  std::function<void(int64_t n_done, int64_t n_chunks)> chunk_done;
};

// Feeds the same chunks to all engines (of one model) and visits the scored positions in order. A chunk's first token
// is replaced by BOS where the vocabulary adds one. Throws std::invalid_argument, naming `where`, when n_ctx is out of
// range or there are fewer than 2 * n_ctx tokens; and what Engine::advance throws.
void score_chunks(const std::string& where, std::span<Engine* const> engines, std::span<const int32_t> tokens,
                  int64_t n_ctx, const ScoreVisitor& visitor, const StopCheck& stop);

}  // namespace hotset
