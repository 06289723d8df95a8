// KL divergence between what two engines of one model predict, chunked as perplexity.
#include <algorithm>
#include <cmath>

#include "core/scored_chunks.h"

namespace hotset {
namespace {

// Sum over tokens of p * (log p - log q). A token of probability 0 under p adds nothing, whatever q says. Equal bits
// give equal logarithms and hence exactly 0; otherwise rounding may leave a sum of about -1e-16, which means 0.
double divergence(const LogSoftmax& p, const LogSoftmax& q) {
  double sum = 0;
  for (size_t id = 0; id < p.logits.size(); ++id) {
    const double log_p = p.at(id);
    const double probability = std::exp(log_p);
    if (probability != 0) sum += probability * (log_p - q.at(id));
  }
  if (std::isnan(sum))
    throw Error(error_text("kld", "logits", "numbers", "NaN", "check the model: 'hotset perplexity' shows its loss"));
  return std::max(sum, 0.0);
}

size_t top_token(std::span<const float> logits) {
  return static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Value below which a share `rank` of the values lies, between neighbours by linear interpolation.
double percentile(std::vector<double> values, double rank) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double place = rank * static_cast<double>(values.size() - 1);
  const size_t below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, values.size() - 1);
  const double step = values[above] - values[below];
  return step > 0 ? values[below] + (place - static_cast<double>(below)) * step : values[below];  // also inf - inf
}

}  // namespace

double kl_divergence(std::span<const float> base, std::span<const float> other) {
  if (base.empty() || base.size() != other.size())
    throw std::invalid_argument(error_text("kld", "logits", "two rows of equal length",
                                           cat(base.size(), " and ", other.size()), "pass rows of one model"));
  return divergence(LogSoftmax(base), LogSoftmax(other));
}

KldResult kl_divergence(Engine& base, Engine& other, std::span<const int32_t> tokens, int64_t n_ctx,
                        const std::function<void(int64_t, int64_t, const KldResult&)>& progress,
                        const StopCheck& stop) {
  if (&base.model() != &other.model())
    throw std::invalid_argument(
        error_text("kld", "engines", "two of one model", "two models", "pass the same Model to both Engine::create"));
  std::vector<double> values;
  RunningMean kld, nll_base, nll_other;
  int64_t n_same_top = 0;
  KldResult out;
  ScoreVisitor visitor;
  visitor.position = [&](int32_t target, std::span<const std::span<const float>> logits) {
    const LogSoftmax p(logits[0]), q(logits[1]);
    values.push_back(divergence(p, q));
    kld.add(values.back());
    nll_base.add(-p.at(static_cast<size_t>(target)));
    nll_other.add(-q.at(static_cast<size_t>(target)));
    if (top_token(logits[0]) == top_token(logits[1])) ++n_same_top;
  };
  visitor.chunk_done = [&](int64_t n_done, int64_t n_chunks) {
    out.n_scored = kld.n();
    out.mean_kld = kld.mean();
    out.kld_error = kld.error();
    out.same_top = static_cast<double>(n_same_top) / static_cast<double>(kld.n());
    out.base = nll_base.as_perplexity();
    out.other = nll_other.as_perplexity();
    if (n_done == n_chunks) {
      out.kld_p999 = percentile(values, 0.999);
      out.kld_max = *std::max_element(values.begin(), values.end());
    }
    if (progress) progress(n_done, n_chunks, out);
  };
  Engine* const engines[] = {&base, &other};
  score_chunks("kld", engines, tokens, n_ctx, visitor, stop);
  return out;
}

}  // namespace hotset
