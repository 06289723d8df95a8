// Perplexity of a text, chunked as llama-perplexity does it.
#include <algorithm>
#include <cmath>

#include "core/engine.h"

namespace hotset {
namespace {

// Logits are kept for this many positions at a time.
constexpr size_t kPieceTokens = 256;

}  // namespace

double PerplexityResult::ppl() const { return std::exp(nll_mean); }
double PerplexityResult::ppl_error() const { return ppl() * nll_error; }

double log_softmax_at(std::span<const float> logits, int32_t id) {
  double largest = -INFINITY;
  for (const float logit : logits) largest = std::max(largest, static_cast<double>(logit));
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit) - largest);
  return static_cast<double>(logits[static_cast<size_t>(id)]) - largest - std::log(total);
}

PerplexityResult perplexity(Engine& engine, std::span<const int32_t> tokens, int64_t n_ctx,
                            const std::function<void(int64_t, int64_t, const PerplexityResult&)>& progress,
                            const StopCheck& stop) {
  if (n_ctx < 3 || n_ctx > int64_t{1} << 30)  // a chunk of 2 has no token to score
    throw std::invalid_argument(error_text("perplexity", "n_ctx", "3 to 2^30", cat(n_ctx), "pass -c in that range"));
  const int64_t n_chunks = static_cast<int64_t>(tokens.size()) / n_ctx;
  if (n_chunks < 2)
    throw std::invalid_argument(error_text("perplexity", "text", cat("at least ", 2 * n_ctx, " tokens"),
                                           cat(tokens.size()), "use a longer text or a smaller -c"));
  const TokenizerData& vocabulary = engine.model().tokenizer().data();
  const size_t n_vocab = static_cast<size_t>(engine.model().config().n_vocab);
  const size_t first = static_cast<size_t>(n_ctx / 2);
  double sum = 0, sum_squares = 0;
  PerplexityResult out;
  for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
    const auto begin = tokens.begin() + chunk * n_ctx;
    std::vector<int32_t> text(begin, begin + n_ctx);
    if (vocabulary.add_bos && vocabulary.bos_id >= 0) text[0] = vocabulary.bos_id;
    Session session = engine.open_session();
    // Position p predicts token p + 1: the scored targets are first + 1 .. n_ctx - 1.
    session.prefill(std::span<const int32_t>(text).first(first), stop);
    for (size_t begin_piece = first; begin_piece + 1 < text.size(); begin_piece += kPieceTokens) {
      const size_t n_piece = std::min(kPieceTokens, text.size() - 1 - begin_piece);
      const Engine::Entry entry{&session, std::span<const int32_t>(text).subspan(begin_piece, n_piece), true};
      engine.advance({&entry, 1}, stop);
      for (size_t i = 0; i < n_piece; ++i) {
        const std::span<const float> logits = session.all_logits().subspan(i * n_vocab, n_vocab);
        const double nll = -log_softmax_at(logits, text[begin_piece + i + 1]);
        sum += nll;
        sum_squares += nll * nll;
        ++out.n_scored;
      }
    }
    const double n = static_cast<double>(out.n_scored);
    out.nll_mean = sum / n;
    const double variance = sum_squares / n - out.nll_mean * out.nll_mean;
    out.nll_error = out.n_scored > 1 && variance > 0 ? std::sqrt(variance / (n - 1)) : 0;
    if (progress) progress(chunk + 1, n_chunks, out);
  }
  return out;
}

}  // namespace hotset
