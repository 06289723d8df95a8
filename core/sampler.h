// Chooses the next token from logits: repeat penalty, top-k, top-p, min-p, temperature, seeded draw.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <vector>

namespace hotset {

// Names and defaults as llama.cpp.
struct SamplerOptions {
  float temperature = 0.8f;      // 0 = greedy
  int32_t top_k = 40;            // 0 = off
  float top_p = 0.95f;           // 1 = off
  float min_p = 0.05f;           // 0 = off
  float repeat_penalty = 1.0f;   // 1 = off; > 1 makes recent tokens less likely
  int32_t repeat_last_n = 64;    // how many recent tokens count; 0 = off, -1 = all
  std::optional<uint64_t> seed;  // nullopt = from std::random_device
};

struct SampledToken {
  int32_t id = 0;
  float logprob = 0;  // natural log of the softmax probability over the whole vocabulary, before penalties and cuts
};

// One sequence's sampler: remembers recent tokens and owns the random state. Not thread-safe.
// The chain, in llama.cpp's order: penalties, top-k, top-p, min-p, temperature, draw.
// Greedy takes the highest logit after penalties, the lowest id among equals.
class Sampler {
 public:
  // Throws std::invalid_argument for values outside their range (negative temperature, top_p outside (0, 1], NaN ...).
  explicit Sampler(const SamplerOptions& options);

  // Draws from `logits` (n_vocab). Throws Error when no logit is finite (NaN logits are named, never drawn).
  SampledToken sample(std::span<const float> logits);

  // Tells the sampler about a token that is now part of the text (prompt or sampled); only matters for the penalty.
  void accept(int32_t id);

 private:
  struct Candidate {
    int32_t id;
    float logit;
  };
  void collect_candidates(std::span<const float> logits);
  void cut(float limit_p);

  SamplerOptions options_;
  std::mt19937_64 random_;
  std::vector<int32_t> recent_;
  std::vector<Candidate> candidates_;
};

}  // namespace hotset
