// The sampler against closed forms: which tokens may come, how often, and that nothing else decides.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <map>

#include "core/error.h"
#include "core/sampler.h"

namespace {

using namespace hotset;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A plain draw from the softmax, everything else off.
SamplerOptions plain(uint64_t seed) {
  SamplerOptions out;
  out.temperature = 1;
  out.top_k = 0;
  out.top_p = 1;
  out.min_p = 0;
  out.seed = seed;
  return out;
}

SamplerOptions greedy() {
  SamplerOptions out;
  out.temperature = 0;
  return out;
}

std::vector<float> logs(const std::vector<double>& weights) {
  std::vector<float> out;
  for (const double weight : weights) out.push_back(static_cast<float>(std::log(weight)));
  return out;
}

// 100,000 draws follow `expected` (not normalised): tokens of weight 0 never come, and chi-square stays below a bound
// that a right sampler passes with a probability above 0.9999 (mean df, standard deviation sqrt(2 df)).
void check_distribution(const SamplerOptions& options, const std::vector<float>& logits,
                        const std::vector<double>& expected) {
  constexpr int kDraws = 100000;
  CAPTURE(*options.seed);
  Sampler sampler(options);
  std::vector<double> counts(expected.size());
  for (int i = 0; i < kDraws; ++i) ++counts[static_cast<size_t>(sampler.sample(logits).id)];
  double total = 0, chi_square = 0;
  for (const double each : expected) total += each;
  int df = -1;
  for (size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    const double mean = kDraws * expected[i] / total;
    if (expected[i] == 0) {
      CHECK(counts[i] == 0);
      continue;
    }
    chi_square += (counts[i] - mean) * (counts[i] - mean) / mean;
    ++df;
  }
  CHECK(chi_square < df + 5 * std::sqrt(2.0 * df) + 8);
}

TEST_CASE("sampler: greedy takes the highest logit, the lowest id among equals") {
  Sampler sampler(greedy());
  CHECK(sampler.sample(std::vector<float>{1, 3, 2}).id == 1);
  CHECK(sampler.sample(std::vector<float>{2, 3, 3, 3}).id == 1);
  CHECK(sampler.sample(std::vector<float>(100, -7.0f)).id == 0);
  CHECK(sampler.sample(std::vector<float>{-kInf, -kInf, -5}).id == 2);
  CHECK(sampler.sample(std::vector<float>{4}).id == 0);
}

TEST_CASE("sampler: logprob is the log softmax over the whole vocabulary, whatever the cuts") {
  const std::vector<float> logits = logs({1, 2, 5, 2});
  CHECK(Sampler(greedy()).sample(logits).logprob == doctest::Approx(std::log(0.5)).epsilon(1e-6));
  SamplerOptions options = plain(3);
  options.top_k = 1;
  options.temperature = 5;
  CHECK(Sampler(options).sample(logits).logprob == doctest::Approx(std::log(0.5)).epsilon(1e-6));
  CHECK(Sampler(greedy()).sample(std::vector<float>{1000, 0}).logprob == doctest::Approx(0).epsilon(1e-6));
  CHECK(Sampler(greedy()).sample(std::vector<float>{-1e8f, -1e8f}).logprob == doctest::Approx(std::log(0.5)));
}

TEST_CASE("sampler: draws follow the softmax, at any temperature") {
  const std::vector<double> weights{0.05, 0.4, 0.1, 0.2, 0.25};
  check_distribution(plain(1), logs(weights), weights);
  SamplerOptions hot = plain(2);
  hot.temperature = 2;
  std::vector<double> flat, sharp;
  for (const double weight : weights) flat.push_back(std::sqrt(weight)), sharp.push_back(weight * weight);
  check_distribution(hot, logs(weights), flat);
  SamplerOptions cold = plain(3);
  cold.temperature = 0.5f;
  check_distribution(cold, logs(weights), sharp);
  std::vector<float> with_none = logs(weights);
  with_none.push_back(-kInf);
  std::vector<double> none = weights;
  none.push_back(0);
  check_distribution(plain(4), with_none, none);
}

TEST_CASE("sampler: top-k keeps the k best, the lowest ids among equals") {
  SamplerOptions options = plain(5);
  options.top_k = 2;
  check_distribution(options, logs({0.1, 0.4, 0.2, 0.3}), {0, 0.4, 0, 0.3});
  check_distribution(options, logs({1, 1, 1, 1}), {1, 1, 0, 0});
  options.top_k = 100;
  check_distribution(options, logs({0.1, 0.4, 0.2, 0.3}), {0.1, 0.4, 0.2, 0.3});
  options.top_k = 1;
  check_distribution(options, logs({0.1, 0.4, 0.2, 0.3}), {0, 1, 0, 0});
}

TEST_CASE("sampler: top-p keeps the fewest that reach p, at least one") {
  SamplerOptions options = plain(6);
  options.top_p = 0.75f;
  check_distribution(options, logs({0.1, 0.5, 0.1, 0.3}), {0, 0.5, 0, 0.3});
  options.top_p = 0.45f;
  check_distribution(options, logs({0.1, 0.5, 0.1, 0.3}), {0, 1, 0, 0});
  options.top_p = 0.85f;
  check_distribution(options, logs({0.1, 0.5, 0.1, 0.3}), {0.1, 0.5, 0, 0.3});
  options.top_p = 1e-6f;
  check_distribution(options, logs({0.1, 0.5, 0.1, 0.3}), {0, 1, 0, 0});
}

TEST_CASE("sampler: min-p keeps what has at least that share of the best") {
  SamplerOptions options = plain(7);
  options.min_p = 0.3f;
  check_distribution(options, logs({0.1, 0.5, 0.12, 0.28}), {0, 0.5, 0, 0.28});
  options.min_p = 0.21f;
  check_distribution(options, logs({0.1, 0.5, 0.12, 0.28}), {0, 0.5, 0.12, 0.28});
  options.min_p = 1;
  check_distribution(options, logs({0.1, 0.5, 0.12, 0.28}), {0, 1, 0, 0});
}

TEST_CASE("sampler: cuts come before temperature, top-k before top-p") {
  SamplerOptions options = plain(8);
  options.top_p = 0.75f;
  options.temperature = 1000;  // would flatten everything if it came first
  check_distribution(options, logs({0.1, 0.5, 0.1, 0.3}), {0, 1, 0, 1});
  options = plain(9);
  options.top_k = 2;
  options.top_p = 0.6f;  // 0.5 is 0.625 of what top-k leaves
  check_distribution(options, logs({0.1, 0.5, 0.1, 0.3}), {0, 1, 0, 0});
}

TEST_CASE("sampler: the repeat penalty divides positive and multiplies negative logits of recent tokens, once each") {
  SamplerOptions options = greedy();
  options.repeat_penalty = 2;
  Sampler sampler(options);
  CHECK(sampler.sample(std::vector<float>{3, 2, 1}).id == 0);
  sampler.accept(0);
  CHECK(sampler.sample(std::vector<float>{3, 2, 1}).id == 1);  // 1.5, 2, 1
  sampler.accept(0);
  CHECK(sampler.sample(std::vector<float>{5, 2, 1}).id == 0);        // 2.5, not 1.25
  CHECK(sampler.sample(std::vector<float>{-1, -1.5f, -4}).id == 1);  // -2
  sampler.accept(-1);
  sampler.accept(1000);
  CHECK(sampler.sample(std::vector<float>{3, 2, 1}).id == 1);
  SamplerOptions drawn = plain(10);
  drawn.repeat_penalty = 2;
  Sampler unused(drawn);
  check_distribution(drawn, {1, 0, -1}, {std::exp(1.0), 1, std::exp(-1.0)});
}

TEST_CASE("sampler: only the last n tokens are penalised") {
  const std::vector<float> logits{3, 2, 1};
  SamplerOptions options = greedy();
  options.repeat_penalty = 10;
  const auto after = [&](int32_t last_n, const std::vector<int32_t>& ids) {
    options.repeat_last_n = last_n;
    Sampler sampler(options);
    for (const int32_t id : ids) sampler.accept(id);
    return sampler.sample(logits).id;
  };
  CHECK(after(2, {0, 1}) == 2);
  CHECK(after(2, {0, 1, 2}) == 0);
  CHECK(after(1, {0, 1}) == 0);
  CHECK(after(0, {0, 1}) == 0);
  std::vector<int32_t> many{0};
  many.resize(1000, 2);
  CHECK(after(-1, many) == 1);
  CHECK(after(64, many) == 0);
}

TEST_CASE("sampler: NaN and no finite maximum are errors, never drawn") {
  for (const bool is_greedy : {true, false}) {
    Sampler sampler(is_greedy ? greedy() : plain(1));
    CHECK_THROWS_AS(sampler.sample(std::vector<float>{1, kNan, 2}), Error);
    CHECK_THROWS_AS(sampler.sample(std::vector<float>{kNan}), Error);
    CHECK_THROWS_AS(sampler.sample(std::vector<float>{-kInf, -kInf}), Error);
    CHECK_THROWS_AS(sampler.sample(std::vector<float>{1, kInf}), Error);
    CHECK_THROWS_AS(sampler.sample(std::vector<float>{}), Error);
  }
}

TEST_CASE("sampler: values outside their range are refused") {
  const auto refused = [](auto change) {
    SamplerOptions options;
    change(options);
    CHECK_THROWS_AS(Sampler{options}, std::invalid_argument);
  };
  for (const float bad : {-0.1f, kNan, kInf}) refused([&](auto& o) { o.temperature = bad; });
  for (const float bad : {0.0f, -1.0f, 1.1f, kNan}) refused([&](auto& o) { o.top_p = bad; });
  for (const float bad : {-0.1f, 1.1f, kNan}) refused([&](auto& o) { o.min_p = bad; });
  for (const float bad : {0.0f, -1.0f, kNan, kInf}) refused([&](auto& o) { o.repeat_penalty = bad; });
  refused([](auto& o) { o.top_k = -1; });
  refused([](auto& o) { o.repeat_last_n = -2; });
}

TEST_CASE("sampler: a seed repeats its draws, another seed does not") {
  const std::vector<float> logits(50, 0.0f);
  const auto draws = [&](std::optional<uint64_t> seed) {
    SamplerOptions options = plain(0);
    options.seed = seed;
    Sampler sampler(options);
    std::vector<int32_t> out;
    for (int i = 0; i < 40; ++i) out.push_back(sampler.sample(logits).id);
    return out;
  };
  CHECK(draws(42) == draws(42));
  CHECK(draws(42) != draws(43));
  CHECK(draws(std::nullopt) != draws(std::nullopt));  // equal with a probability of 50^-40
  // The generator and the way a draw is made are part of what a seed means: std::mt19937_64, 53 bits, ids in order.
  std::mt19937_64 random(42);
  std::vector<int32_t> expected;
  for (int i = 0; i < 40; ++i)
    expected.push_back(static_cast<int32_t>(static_cast<double>(random() >> 11) * 0x1p-53 * 50));
  CHECK(draws(42) == expected);
}

}  // namespace
