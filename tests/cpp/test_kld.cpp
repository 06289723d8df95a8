// KL divergence: closed forms, exact zeros, percentiles, and equality with what the logits say directly.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST_CASE("kld: closed forms") {
  // p = (1/4, 3/4), q = (1/2, 1/2); a common shift of the logits changes nothing.
  const double expected = 0.25 * std::log(0.5) + 0.75 * std::log(1.5);
  for (const float shift : {0.0f, 64.0f, -64.0f}) {
    const std::vector<float> p{shift, shift + std::log(3.0f)}, q{7, 7};
    CHECK(kl_divergence(p, q) == doctest::Approx(expected).epsilon(1e-5));  // shift + log 3 is rounded to float
  }
  // p = (1, 0): -log q of its token; q's view of what p excludes does not count.
  CHECK(kl_divergence(std::vector<float>{0, -kInf}, std::vector<float>{0, 0}) == doctest::Approx(std::log(2.0)));
  CHECK(kl_divergence(std::vector<float>{0, -kInf}, std::vector<float>{0, -kInf}) == 0);
  CHECK(kl_divergence(std::vector<float>{0, 0}, std::vector<float>{0, -kInf}) == HUGE_VAL);
  CHECK(kl_divergence(std::vector<float>{5}, std::vector<float>{-3}) == 0);  // one token is certain either way
  // Far apart: p is all on token 0, where q has probability e^-200.
  CHECK(kl_divergence(std::vector<float>{200, 0}, std::vector<float>{0, 200}) == doctest::Approx(200.0));
  // A small difference d of one logit of two equal ones: d^2 / 8 in second order.
  const float d = 0.0009765625f;
  CHECK(kl_divergence(std::vector<float>{d, 0}, std::vector<float>{0, 0}) ==
        doctest::Approx(static_cast<double>(d) * static_cast<double>(d) / 8).epsilon(1e-3));
}

TEST_CASE("kld: equal bits give exactly 0, and it is never negative") {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 8);
  for (const size_t n : {1u, 2u, 3u, 257u, 50257u}) {
    std::vector<float> logits(n);
    for (float& logit : logits) logit = normal(random);
    CHECK(kl_divergence(logits, logits) == 0.0);
    std::vector<float> shifted = logits;  // the same distribution up to rounding
    for (float& logit : shifted) logit += 1.0f / 3;
    const double near = kl_divergence(logits, shifted);
    CHECK(near >= 0);
    CHECK(near < 1e-10);
  }
}

TEST_CASE("kld: NaN and rows that do not match are refused") {
  const std::vector<float> good{1, 2}, bad{1, kNaN};
  CHECK_THROWS_AS(kl_divergence(good, bad), Error);
  CHECK_THROWS_AS(kl_divergence(bad, good), Error);
  CHECK_THROWS_AS(kl_divergence(std::vector<float>{1, kInf}, good), Error);  // infinity over infinity
  CHECK_THROWS_AS(kl_divergence(good, std::vector<float>{1, 2, 3}), std::invalid_argument);
  CHECK_THROWS_AS(kl_divergence({}, {}), std::invalid_argument);
}

TEST_CASE("kld: an engine against one of the same arithmetic is exactly 0") {
  const auto model = load_tiny({});
  const auto one = Engine::create(model, {.n_threads = 1, .n_batch = 7});
  const auto two = Engine::create(model, {.n_threads = 2, .n_batch = 64});
  const std::vector<int32_t> tokens = random_tokens(1, 170, 270);
  int64_t n_calls = 0;
  const KldResult got = kl_divergence(*one, *two, tokens, 17, [&](int64_t done, int64_t n, const KldResult& so_far) {
    CHECK(done == ++n_calls);
    CHECK(n == 10);
    CHECK(so_far.n_scored == done * 8);
  });
  const PerplexityResult alone = perplexity(*one, tokens, 17, {});
  CHECK(n_calls == 10);
  CHECK(got.n_scored == 80);
  for (const double zero : {got.mean_kld, got.kld_error, got.kld_p999, got.kld_max}) CHECK(zero == 0.0);
  CHECK(got.same_top == 1.0);
  CHECK(got.base.nll_mean == alone.nll_mean);
  CHECK(got.other.nll_mean == alone.nll_mean);
  CHECK(got.other.nll_error == alone.nll_error);
  CHECK(kl_divergence(*one, *one, tokens, 17, {}).mean_kld == 0.0);
}

TEST_CASE("kld: another number format of the KV cache, against a direct computation") {
  const auto model = load_tiny({});
  const auto base = Engine::create(model, {.n_threads = 1, .kv_type = "f32"});
  const auto other = Engine::create(model, {.n_threads = 1, .kv_type = "f16"});
  const int64_t n_ctx = 20;
  std::vector<int32_t> tokens = random_tokens(5, 60, 270);
  const KldResult got = kl_divergence(*base, *other, tokens, n_ctx, {});
  std::vector<double> values;
  double nll_base = 0, nll_other = 0;
  int64_t n_same = 0;
  for (size_t begin = 0; begin < tokens.size(); begin += static_cast<size_t>(n_ctx)) {
    tokens[begin] = model->tokenizer().data().bos_id;
    Session p = base->open_session(), q = other->open_session();
    for (size_t i = 0; i + 1 < static_cast<size_t>(n_ctx); ++i) {
      const std::span<const int32_t> token = std::span(tokens).subspan(begin + i, 1);
      p.prefill(token);
      q.prefill(token);
      if (i < static_cast<size_t>(n_ctx) / 2) continue;
      double sum = 0;
      for (int32_t id = 0; id < model->config().n_vocab; ++id) {
        const double log_p = log_softmax_at(p.logits(), id);
        sum += std::exp(log_p) * (log_p - log_softmax_at(q.logits(), id));
      }
      values.push_back(sum);
      nll_base -= log_softmax_at(p.logits(), tokens[begin + i + 1]);
      nll_other -= log_softmax_at(q.logits(), tokens[begin + i + 1]);
      const auto top = [](std::span<const float> logits) {
        return std::max_element(logits.begin(), logits.end()) - logits.begin();
      };
      n_same += top(p.logits()) == top(q.logits());
    }
  }
  const double n = static_cast<double>(values.size());
  double mean = 0;
  for (const double value : values) mean += value / n;
  std::sort(values.begin(), values.end());
  REQUIRE(values.size() == 27);
  REQUIRE(mean > 0);
  CHECK(got.n_scored == 27);
  CHECK(got.mean_kld == doctest::Approx(mean).epsilon(1e-9));
  CHECK(got.kld_max == doctest::Approx(values.back()).epsilon(1e-9));
  const double p999 = values[25] + (0.999 * 26 - 25) * (values[26] - values[25]);
  CHECK(got.kld_p999 == doctest::Approx(p999).epsilon(1e-9));
  CHECK(got.same_top == doctest::Approx(static_cast<double>(n_same) / n));
  CHECK(got.base.nll_mean == doctest::Approx(nll_base / n).epsilon(1e-9));
  CHECK(got.other.nll_mean == doctest::Approx(nll_other / n).epsilon(1e-9));
}

TEST_CASE("kld: wrong arguments and a stop are refused") {
  const auto model = load_tiny({});
  const auto engine = Engine::create(model, {.n_threads = 1, .n_ctx = 64});
  const auto stranger = Engine::create(load_tiny({}), {.n_threads = 1});
  const std::vector<int32_t> tokens = random_tokens(2, 100, 270);
  for (const int64_t n_ctx : {int64_t{51}, int64_t{2}, int64_t{-5}, INT64_MAX})
    CHECK_THROWS_AS(kl_divergence(*engine, *engine, tokens, n_ctx, {}), std::invalid_argument);
  CHECK_THROWS_AS(kl_divergence(*engine, *stranger, tokens, 20, {}), std::invalid_argument);
  CHECK_THROWS_AS(kl_divergence(*engine, *engine, tokens, 20, {}, [] { return true; }), CancelledError);
}

}  // namespace
