// Perplexity: equal to what the logits say directly, chunk by chunk.
#include <doctest/doctest.h>

#include <cmath>

#include "core/error.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;

// Mean and standard error of -log p of the second half of each chunk, every position computed alone.
PerplexityResult direct(Engine& engine, std::vector<int32_t> tokens, size_t n_ctx) {
  PerplexityResult out;
  std::vector<double> nll;
  for (size_t begin = 0; begin + n_ctx <= tokens.size(); begin += n_ctx) {
    tokens[begin] = engine.model().tokenizer().data().bos_id;
    Session session = engine.open_session();
    for (size_t i = 0; i + 1 < n_ctx; ++i) {
      session.prefill(std::span(tokens).subspan(begin + i, 1));
      if (i < n_ctx / 2) continue;
      double total = 0;
      for (const float logit : session.logits()) total += std::exp(static_cast<double>(logit));
      const double logit = session.logits()[static_cast<size_t>(tokens[begin + i + 1])];
      nll.push_back(std::log(total) - logit);
    }
  }
  for (const double each : nll) out.nll_mean += each / static_cast<double>(nll.size());
  double variance = 0;
  for (const double each : nll)
    variance += (each - out.nll_mean) * (each - out.nll_mean) / static_cast<double>(nll.size());
  out.nll_error = std::sqrt(variance / static_cast<double>(nll.size() - 1));
  out.n_scored = static_cast<int64_t>(nll.size());
  return out;
}

TEST_CASE("perplexity: equals a direct computation from the logits") {
  const auto engine = Engine::create(load_tiny({}), {.n_threads = 2, .n_batch = 13});
  std::vector<int32_t> tokens = random_tokens(1, 170, 270);
  for (const int64_t n_ctx : {3, 4, 17, 32, 85}) {
    CAPTURE(n_ctx);
    int64_t n_calls = 0;
    const PerplexityResult got =
        perplexity(*engine, tokens, n_ctx, [&](int64_t done, int64_t n, const PerplexityResult& r) {
          CHECK(done == ++n_calls);
          CHECK(n == 170 / n_ctx);
          CHECK(r.n_scored == done * (n_ctx - 1 - n_ctx / 2));
        });
    const PerplexityResult expected = direct(*engine, tokens, static_cast<size_t>(n_ctx));
    CHECK(n_calls == 170 / n_ctx);
    CHECK(got.n_scored == expected.n_scored);
    CHECK(got.nll_mean == doctest::Approx(expected.nll_mean).epsilon(1e-9));
    CHECK(got.nll_error == doctest::Approx(expected.nll_error).epsilon(1e-6));
    CHECK(got.ppl() == doctest::Approx(std::exp(expected.nll_mean)).epsilon(1e-9));
  }
}

TEST_CASE("perplexity: too short a text, too small a chunk and a stop are refused") {
  const auto engine = Engine::create(load_tiny({}), {.n_threads = 1, .n_ctx = 64});
  const std::vector<int32_t> tokens = random_tokens(2, 100, 270);
  for (const int64_t n_ctx : {int64_t{51}, int64_t{100}, int64_t{1}, int64_t{0}, int64_t{-5}, INT64_MAX})
    CHECK_THROWS_AS(perplexity(*engine, tokens, n_ctx, {}), std::invalid_argument);
  CHECK_THROWS_AS(perplexity(*engine, tokens, 2, {}), std::invalid_argument);  // would score nothing
  CHECK_THROWS_AS(perplexity(*engine, {}, 10, {}), std::invalid_argument);
  CHECK_THROWS_AS(perplexity(*engine, tokens, 20, {}, [] { return true; }), CancelledError);
  CHECK_THROWS_AS(perplexity(*engine, random_tokens(3, 200, 270), 66, {}), ContextLengthError);
}

TEST_CASE("perplexity: log softmax in closed form, also of extreme logits") {
  const std::vector<float> logits{0, std::log(3.0f), -HUGE_VALF};
  CHECK(log_softmax_at(logits, 0) == doctest::Approx(std::log(0.25)));
  CHECK(log_softmax_at(logits, 1) == doctest::Approx(std::log(0.75)));
  CHECK(log_softmax_at(logits, 2) == -HUGE_VAL);
  CHECK(log_softmax_at(std::vector<float>{5000, 5000}, 1) == doctest::Approx(std::log(0.5)));
  CHECK(log_softmax_at(std::vector<float>{-3e38f, -3e38f}, 1) == doctest::Approx(std::log(0.5)));
}

}  // namespace
