#include "core/scored_chunks.h"

#include <algorithm>
#include <cmath>

namespace hotset {
namespace {

// Logits are kept for this many positions at a time.
constexpr size_t kPieceTokens = 256;

}  // namespace

LogSoftmax::LogSoftmax(std::span<const float> logits_in) : logits(logits_in), largest(-INFINITY) {
  for (const float logit : logits) largest = std::max(largest, static_cast<double>(logit));
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit) - largest);
  log_total = std::log(total);
}

void RunningMean::add(double value) {
  sum_ += value;
  sum_squares_ += value * value;
  ++n_;
}

double RunningMean::error() const {
  const double n = static_cast<double>(n_);
  const double variance = n_ > 0 ? sum_squares_ / n - mean() * mean() : 0;
  return n_ > 1 && variance > 0 ? std::sqrt(variance / (n - 1)) : 0;
}

void score_chunks(const std::string& where, std::span<Engine* const> engines, std::span<const int32_t> tokens,
                  int64_t n_ctx, const ScoreVisitor& visitor, const StopCheck& stop) {
  if (n_ctx < 3 || n_ctx > int64_t{1} << 30)  // a chunk of 2 has no token to score
    throw std::invalid_argument(error_text(where, "n_ctx", "3 to 2^30", cat(n_ctx), "pass -c in that range"));
  const int64_t n_chunks = static_cast<int64_t>(tokens.size()) / n_ctx;
  if (n_chunks < 2)
    throw std::invalid_argument(error_text(where, "text", cat("at least ", 2 * n_ctx, " tokens"), cat(tokens.size()),
                                           "use a longer text or a smaller -c"));
  const Model& model = engines[0]->model();
  const TokenizerData& vocabulary = model.tokenizer().data();
  const size_t n_vocab = static_cast<size_t>(model.config().n_vocab);
  const size_t first = static_cast<size_t>(n_ctx / 2);
  std::vector<std::span<const float>> logits(engines.size());
  for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
    const auto begin = tokens.begin() + chunk * n_ctx;
    std::vector<int32_t> text(begin, begin + n_ctx);
    if (vocabulary.add_bos && vocabulary.bos_id >= 0) text[0] = vocabulary.bos_id;
    std::vector<Session> sessions;
    for (Engine* engine : engines) sessions.push_back(engine->open_session());
    // Position p predicts token p + 1: the scored targets are first + 1 .. n_ctx - 1.
    for (Session& session : sessions) session.prefill(std::span<const int32_t>(text).first(first), stop);
    for (size_t begin_piece = first; begin_piece + 1 < text.size(); begin_piece += kPieceTokens) {
      const size_t n_piece = std::min(kPieceTokens, text.size() - 1 - begin_piece);
      for (size_t e = 0; e < engines.size(); ++e) {
        const Engine::Entry entry{&sessions[e], std::span<const int32_t>(text).subspan(begin_piece, n_piece), true};
        engines[e]->advance({&entry, 1}, stop);
      }
      for (size_t i = 0; i < n_piece; ++i) {
        for (size_t e = 0; e < engines.size(); ++e) logits[e] = sessions[e].all_logits().subspan(i * n_vocab, n_vocab);
        visitor.position(text[begin_piece + i + 1], logits);
      }
    }
    visitor.chunk_done(chunk + 1, n_chunks);
  }
}

}  // namespace hotset
