// Perplexity of a text, chunked as llama-perplexity does it.
#include <cmath>

#include "core/scored_chunks.h"

namespace hotset {

double PerplexityResult::ppl() const { return std::exp(nll_mean); }
double PerplexityResult::ppl_error() const { return ppl() * nll_error; }

double log_softmax_at(std::span<const float> logits, int32_t id) {
  return LogSoftmax(logits).at(static_cast<size_t>(id));
}

PerplexityResult perplexity(Engine& engine, std::span<const int32_t> tokens, int64_t n_ctx,
                            const std::function<void(int64_t, int64_t, const PerplexityResult&)>& progress,
                            const StopCheck& stop) {
  RunningMean nll;
  ScoreVisitor visitor;
  visitor.position = [&](int32_t target, std::span<const std::span<const float>> logits) {
    nll.add(-log_softmax_at(logits[0], target));
  };
  visitor.chunk_done = [&](int64_t n_done, int64_t n_chunks) {
    if (progress) progress(n_done, n_chunks, nll.as_perplexity());
  };
  Engine* const engines[] = {&engine};
  score_chunks("perplexity", engines, tokens, n_ctx, visitor, stop);
  return nll.as_perplexity();
}

}  // namespace hotset
