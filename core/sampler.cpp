#include "core/sampler.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "core/error.h"

namespace hotset {
namespace {

void require(bool ok, const char* name, const char* expected, double got) {
  if (!ok) throw std::invalid_argument(error_text("sampler", name, expected, cat(got), "pass a value in that range"));
}

uint64_t seed_from_system() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

// Highest logit first; among equals the lowest id, so that every run and machine agrees.
template <class Candidate>
bool better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

}  // namespace

Sampler::Sampler(const SamplerOptions& options)
    : options_(options), random_(options.seed ? *options.seed : seed_from_system()) {
  require(options.temperature >= 0 && std::isfinite(options.temperature), "temperature", "a number >= 0",
          options.temperature);
  require(options.top_k >= 0, "top_k", "an integer >= 0 (0 = off)", options.top_k);
  require(options.top_p > 0 && options.top_p <= 1, "top_p", "a number in (0, 1] (1 = off)", options.top_p);
  require(options.min_p >= 0 && options.min_p <= 1, "min_p", "a number in [0, 1] (0 = off)", options.min_p);
  require(options.repeat_penalty > 0 && std::isfinite(options.repeat_penalty), "repeat_penalty",
          "a number > 0 (1 = off)", options.repeat_penalty);
  require(options.repeat_last_n >= -1, "repeat_last_n", "an integer >= -1", options.repeat_last_n);
}

void Sampler::accept(int32_t id) {
  if (options_.repeat_last_n == 0 || options_.repeat_penalty == 1) return;
  recent_.push_back(id);
  const size_t limit = static_cast<size_t>(std::max(options_.repeat_last_n, 0));
  if (options_.repeat_last_n > 0 && recent_.size() > limit) recent_.erase(recent_.begin());
}

// All tokens with their logits, recent ones penalised.
void Sampler::collect_candidates(std::span<const float> logits) {
  candidates_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) candidates_[i] = {static_cast<int32_t>(i), logits[i]};
  if (options_.repeat_penalty == 1) return;
  std::vector<int32_t> seen = recent_;
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  for (const int32_t id : seen) {
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) continue;
    float& logit = candidates_[static_cast<size_t>(id)].logit;
    logit = logit > 0 ? logit / options_.repeat_penalty : logit * options_.repeat_penalty;
  }
}

// Keeps the best candidates whose probabilities reach `limit_p` (top-p), then those of at least min_p times the best.
// Candidates are sorted, best first; at least one stays.
void Sampler::cut(float limit_p) {
  const float best = candidates_[0].logit;
  if (limit_p < 1) {
    double total = 0;
    for (const Candidate& candidate : candidates_) total += std::exp(static_cast<double>(candidate.logit - best));
    double sum = 0;
    size_t n = 0;
    while (n < candidates_.size() && (n == 0 || sum < static_cast<double>(limit_p) * total))
      sum += std::exp(static_cast<double>(candidates_[n++].logit - best));
    candidates_.resize(n);
  }
  if (options_.min_p > 0) {
    const float lowest = best + std::log(options_.min_p);
    size_t n = 1;
    while (n < candidates_.size() && candidates_[n].logit >= lowest) ++n;
    candidates_.resize(n);
  }
}

SampledToken Sampler::sample(std::span<const float> logits) {
  double largest = -INFINITY;
  for (const float logit : logits) {
    if (std::isnan(logit))
      throw Error(error_text("sampler", "logits", "numbers", "NaN", "check the model file; its weights may be broken"));
    largest = std::max(largest, static_cast<double>(logit));
  }
  if (!std::isfinite(largest))
    throw Error(
        error_text("sampler", "logits", "a finite maximum", cat(largest), "check the logits_processor or model"));
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit) - largest);
  const double log_total = largest + std::log(total);

  collect_candidates(logits);
  size_t chosen = 0;
  if (options_.temperature == 0) {
    for (size_t i = 1; i < candidates_.size(); ++i)
      if (better(candidates_[i], candidates_[chosen])) chosen = i;
  } else {
    const size_t top_k =
        options_.top_k == 0 ? candidates_.size() : std::min(candidates_.size(), static_cast<size_t>(options_.top_k));
    std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(top_k), candidates_.end(),
                      better<Candidate>);
    candidates_.resize(top_k);
    cut(options_.top_p);
    const float best = candidates_[0].logit;
    std::vector<double> sums(candidates_.size());
    double sum = 0;
    for (size_t i = 0; i < candidates_.size(); ++i)
      sums[i] = sum += std::exp(static_cast<double>(candidates_[i].logit - best) / options_.temperature);
    // 53 random bits: the same draw on every platform, unlike std::uniform_real_distribution.
    const double draw = static_cast<double>(random_() >> 11) * 0x1p-53 * sum;
    while (chosen + 1 < sums.size() && sums[chosen] <= draw) ++chosen;
  }
  const int32_t id = candidates_[chosen].id;
  return {id, static_cast<float>(static_cast<double>(logits[static_cast<size_t>(id)]) - log_total)};
}

}  // namespace hotset
