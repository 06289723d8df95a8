// Generation: sampling loop over one or several sequences, stop texts, end of context.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "core/engine.h"
#include "core/plan.h"
#include "core/prefix_cache.h"

namespace hotset {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// Releases text unless it may be the beginning of a stop text; cuts it at the first stop text.
class StopFilter {
 public:
  explicit StopFilter(const std::vector<std::string>& stops) : stops_(stops) {}

  // Adds text, returns what may be shown; sets `stopped` when a stop text was completed.
  std::string push(const std::string& text, bool& stopped) {
    held_ += text;
    size_t first = std::string::npos;
    for (const std::string& stop : stops_) first = std::min(first, held_.find(stop));
    stopped = first != std::string::npos;
    const size_t n_show = stopped ? first : held_.size() - possible_start();
    std::string out = held_.substr(0, n_show);
    held_.erase(0, stopped ? held_.size() : n_show);
    return out;
  }

  std::string flush() {
    std::string out;
    out.swap(held_);
    return out;
  }

 private:
  // Length of the longest end of held_ that begins a stop text.
  size_t possible_start() const {
    size_t longest = 0;
    for (const std::string& stop : stops_)
      for (size_t n = std::min(stop.size() - 1, held_.size()); n > longest; --n)
        if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) longest = n;
    return longest;
  }

  const std::vector<std::string>& stops_;
  std::string held_;
};

// Whether the tokens hold text: a continuation keeps the space that a SentencePiece vocabulary starts a text with.
bool is_text(const Tokenizer& tokenizer, const std::vector<int32_t>& tokens) {
  return std::any_of(tokens.begin(), tokens.end(),
                     [&](int32_t id) { return id < 0 || id >= tokenizer.n_vocab() || !tokenizer.is_control(id); });
}

// A sampler that has seen the tokens of a session and of a prompt.
Sampler sampler_after(const SamplerOptions& options, const std::vector<int32_t>& held,
                      const std::vector<int32_t>& prompt) {
  Sampler out(options);
  for (const int32_t token : held) out.accept(token);
  for (const int32_t token : prompt) out.accept(token);
  return out;
}

}  // namespace

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone: return "";
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kCancelled: return "cancelled";
  }
  return "";
}

struct Generation::Sequence {
  // Takes the session unless this throws.
  Sequence(Session&& session_in, std::vector<int32_t> prompt_in, const SamplerOptions& sampler_options,
           std::shared_ptr<const Tokenizer> tokenizer, const std::vector<std::string>& stops)
      : prompt(std::move(prompt_in)),
        pending(prompt),
        sampler(sampler_after(sampler_options, session_in.tokens(), prompt)),
        decoder(tokenizer, is_text(*tokenizer, session_in.tokens()) || is_text(*tokenizer, prompt)),
        filter(stops),
        session(std::move(session_in)) {}

  // What decoder and filter still hold back, up to a stop text.
  std::string rest() {
    bool stopped = false;
    std::string out = filter.push(decoder.flush(), stopped);
    if (!stopped) out += filter.flush();
    return out;
  }

  std::vector<int32_t> prompt;
  std::vector<int32_t> pending;  // tokens not yet in the session
  Sampler sampler;
  StreamDecoder decoder;
  StopFilter filter;
  Session session;  // after all that may throw
  int64_t n_generated = 0;
  bool finished = false;
  bool full = false;  // met the end of the context; the others go on, then the error is thrown
};

struct Generation::State {
  std::shared_ptr<Engine> engine;
  GenerateOptions options;
  int64_t n_ctx = 0;  // of the engine
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<GeneratedToken> tokens;
  std::vector<float> scratch;
  GenerateStats stats;
  bool started = false;
  bool failed = false;
  std::atomic<bool> cancelled{false};

  void check_options();
  void add(Session&& session, std::vector<int32_t> prompt);
  struct Shared;
  std::vector<Shared> shared_beginnings() const;
  void share_beginnings(const StopCheck& stop);
  void compute(const std::vector<Engine::Entry>& entries, const StopCheck& stop);
  void make_room(Sequence& sequence);
  bool is_active(const Sequence& sequence) const;
  void advance(const StopCheck& stop);
  void sample(size_t index);
  FinishReason add_text(Sequence& sequence, int32_t id, std::string& text);
  [[noreturn]] void fail_full() const;
  void finish_all_cancelled();
};

void Generation::State::check_options() {
  if (options.max_tokens < -1)
    throw std::invalid_argument(
        error_text("generate", "max_tokens", "-1 or more", cat(options.max_tokens), "pass -1 for no limit"));
  for (const std::string& stop : options.stop)
    if (stop.empty())
      throw std::invalid_argument(
          error_text("generate", "stop text", "at least one byte", "an empty one", "leave it out"));
  n_ctx = engine->info().n_ctx;
  if (options.context_shift && n_ctx < 4)
    throw std::invalid_argument(error_text("generate", "context_shift", "a context of at least 4 positions", cat(n_ctx),
                                           "raise the context (-c, n_ctx)"));
}

void Generation::State::add(Session&& session, std::vector<int32_t> prompt) {
  if (prompt.empty())
    throw std::invalid_argument(error_text("generate", "prompt", "at least one token", "none", "pass some text"));
  const int64_t n_free = n_ctx - session.n_past();
  if (static_cast<int64_t>(prompt.size()) > n_free)
    throw ContextLengthError(error_text("generate", "prompt", cat("at most ", n_free, " tokens"), cat(prompt.size()),
                                        "shorten it or raise the context (-c, n_ctx)"));
  SamplerOptions sampler = options.sampler;
  if (sampler.seed) *sampler.seed += sequences.size();
  sequences.reserve(sequences.size() + 1);
  sequences.push_back(std::make_unique<Sequence>(std::move(session), std::move(prompt), sampler,
                                                 engine->model().shared_tokenizer(), options.stop));
  sequences.back()->finished = options.max_tokens == 0;
}

Generation::Generation(std::shared_ptr<Engine> engine, std::vector<std::vector<int32_t>> prompts,
                       const GenerateOptions& options)
    : state_(std::make_unique<State>()) {
  state_->engine = std::move(engine);
  state_->options = options;
  state_->check_options();
  for (std::vector<int32_t>& prompt : prompts) state_->add(state_->engine->open_session(), std::move(prompt));
}

Generation::Generation(Session&& session, std::vector<int32_t> prompt, const GenerateOptions& options)
    : state_(std::make_unique<State>()) {
  state_->engine = session.engine();
  state_->options = options;
  state_->check_options();
  state_->add(std::move(session), std::move(prompt));
}

Generation::~Generation() {
  if (!state_->options.reuse) return;
  try {
    for (const auto& sequence : state_->sequences) sequence->session.retire();
  } catch (const std::exception&) {
    // No memory to note them down: they are computed again.
  }
}

Generation::Rest Generation::take_session() {
  HS_CHECK(!state_->sequences.empty(), "generate");
  const std::unique_ptr<Sequence> first = std::move(state_->sequences.front());
  state_->sequences.erase(state_->sequences.begin());
  for (const auto& other : state_->sequences) other->finished = true;
  return {std::move(first->session), std::move(first->pending)};
}

// Of a sequence the first n positions, which `to` has in common with `from`.
struct Generation::State::Shared {
  Sequence *from, *to;
  int64_t n;
};

// What of the prompts can be shared, in whole blocks: a shorter beginning is not worth a pass over the weights. In
// lexical order each prompt has the most in common with the one before it.
std::vector<Generation::State::Shared> Generation::State::shared_beginnings() const {
  std::vector<Sequence*> order;
  for (const auto& sequence : sequences)
    if (is_active(*sequence)) order.push_back(sequence.get());
  std::sort(order.begin(), order.end(), [](const Sequence* a, const Sequence* b) { return a->prompt < b->prompt; });
  std::vector<Shared> out;
  for (size_t i = 1; i < order.size(); ++i) {
    const std::span<const int32_t> a = order[i - 1]->prompt, b = order[i]->prompt;
    const size_t n = common_beginning(a.first(a.size() - 1), b.first(b.size() - 1));  // the last token gives the logits
    constexpr int64_t kBlock = KvLayout::kBlockPositions;
    out.push_back({order[i - 1], order[i], static_cast<int64_t>(n) / kBlock * kBlock});
  }
  return out;
}

// Computes what prompts have in common at their beginnings once: takes over what the engine keeps, then lets one
// sequence compute a common beginning and the others share it.
void Generation::State::share_beginnings(const StopCheck& stop) {
  const auto update_pending = [](Sequence& sequence) {
    sequence.pending.assign(sequence.prompt.begin() + sequence.session.n_past(), sequence.prompt.end());
  };
  for (const auto& sequence : sequences) {
    if (!is_active(*sequence) || sequence->session.n_past() > 0) continue;
    stats.n_prompt_reused += sequence->session.reuse(sequence->prompt);
    update_pending(*sequence);
  }
  const std::vector<Shared> shared = shared_beginnings();
  while (true) {
    std::vector<Engine::Entry> entries;
    std::vector<Sequence*> leaders;
    bool from_waits = false;
    for (const auto& [from, to, n] : shared) {
      const int64_t n_from = from->session.n_past(), n_to = to->session.n_past();
      const bool to_waits = n_to < n && n_from < n;
      if (to_waits && !from_waits) {
        entries.push_back({&from->session, std::span(from->pending).first(static_cast<size_t>(n - n_from))});
        leaders.push_back(from);
      } else if (n_to < n && n_from >= n) {
        to->session = from->session.fork(n);
        stats.n_prompt_reused += n - n_to;
        update_pending(*to);
      }
      from_waits = to_waits;
    }
    if (entries.empty()) return;
    compute(entries, stop);
    for (Sequence* leader : leaders) update_pending(*leader);
  }
}

// At the end of the context: either forget the middle (first token and later half stay) or mark the sequence.
void Generation::State::make_room(Sequence& sequence) {
  if (sequence.session.n_past() + static_cast<int64_t>(sequence.pending.size()) <= n_ctx) return;
  if (!options.context_shift) {
    sequence.full = true;
    return;
  }
  const std::vector<int32_t> all = sequence.session.tokens();
  std::vector<int32_t> kept{all[0]};
  kept.insert(kept.end(), all.end() - static_cast<std::ptrdiff_t>(n_ctx / 2 - 1), all.end());
  kept.insert(kept.end(), sequence.pending.begin(), sequence.pending.end());
  sequence.session.truncate(0);
  sequence.pending = std::move(kept);
}

// Whether a sequence is still to be computed.
bool Generation::State::is_active(const Sequence& sequence) const { return !sequence.finished && !sequence.full; }

void Generation::State::advance(const StopCheck& stop) {
  std::vector<Engine::Entry> entries;
  for (const auto& sequence : sequences) {
    if (is_active(*sequence)) entries.push_back({&sequence->session, sequence->pending});
  }
  compute(entries, stop);
  for (const auto& sequence : sequences)
    if (is_active(*sequence)) sequence->pending.clear();
}

void Generation::State::compute(const std::vector<Engine::Entry>& entries, const StopCheck& stop) {
  engine->advance(entries, [&] { return cancelled.load(std::memory_order_relaxed) || (stop && stop()); });
}

void Generation::State::sample(size_t index) {
  Sequence& sequence = *sequences[index];
  const Tokenizer& tokenizer = engine->model().tokenizer();
  // Embedding tables may be padded beyond the vocabulary; those rows are no tokens.
  std::span<const float> logits = sequence.session.logits().first(static_cast<size_t>(tokenizer.n_vocab()));
  if (options.logits_processor) {
    scratch.assign(logits.begin(), logits.end());
    options.logits_processor(index, scratch);
    logits = scratch;
  }
  const SampledToken sampled = sequence.sampler.sample(logits);
  sequence.sampler.accept(sampled.id);
  ++stats.n_generated;
  GeneratedToken out;
  out.sequence = index;
  out.index = sequence.n_generated++;
  out.logprob = sampled.logprob;
  if (tokenizer.is_end(sampled.id) && !options.ignore_eos) {
    out.text = sequence.rest();
    out.finish = FinishReason::kStop;
  } else {
    out.id = sampled.id;
    sequence.pending = {sampled.id};
    out.finish = add_text(sequence, sampled.id, out.text);
  }
  sequence.finished = out.finish != FinishReason::kNone;
  tokens.push_back(std::move(out));
}

// Adds the text of a token that is not an end token; says whether the sequence ends with it.
FinishReason Generation::State::add_text(Sequence& sequence, int32_t id, std::string& text) {
  const Tokenizer& tokenizer = engine->model().tokenizer();
  const bool shown_control = options.special && tokenizer.is_control(id);
  std::string raw = shown_control ? sequence.decoder.flush() : sequence.decoder.push(id);
  if (shown_control) raw += tokenizer.piece(id, true);
  bool stopped = false;
  text = sequence.filter.push(raw, stopped);
  if (stopped) return FinishReason::kStop;
  const bool last = options.max_tokens >= 0 && sequence.n_generated >= options.max_tokens;
  // The next call will find the context full: what is held back has to go now.
  const bool full = !options.context_shift && sequence.session.n_past() == n_ctx;
  if (last || full) text += sequence.rest();
  return last ? FinishReason::kLength : FinishReason::kNone;
}

void Generation::State::fail_full() const {
  throw ContextLengthError(error_text("generate", "context", cat("room for position ", n_ctx + 1),
                                      cat("a full context of ", n_ctx),
                                      "raise it (-c, n_ctx), ask for fewer tokens, or use --context-shift"));
}

void Generation::State::finish_all_cancelled() {
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& sequence = *sequences[i];
    if (!is_active(sequence)) continue;
    GeneratedToken out;
    out.sequence = i;
    out.index = sequence.n_generated;
    out.text = sequence.rest();
    out.finish = FinishReason::kCancelled;
    sequence.finished = true;
    tokens.push_back(std::move(out));
  }
}

bool Generation::next(const StopCheck& stop) {
  State& state = *state_;
  state.tokens.clear();
  if (state.failed)
    throw Error(
        error_text("generate", "generation", "one that can go on", "one that ended with an error", "start a new one"));
  for (const auto& sequence : state.sequences)
    if (state.is_active(*sequence)) state.make_room(*sequence);
  if (std::none_of(state.sequences.begin(), state.sequences.end(),
                   [&](const auto& s) { return state.is_active(*s); })) {
    for (const auto& sequence : state.sequences)
      if (sequence->full) state.fail_full();
    return false;
  }
  const bool first = !state.started;
  const Clock::time_point begin = Clock::now();
  if (first) {
    state.started = true;
    for (const auto& sequence : state.sequences) state.stats.n_prompt += static_cast<int64_t>(sequence->prompt.size());
  }
  try {
    if (first && state.options.reuse) state.share_beginnings(stop);
    state.advance(stop);
    if (first && state.options.reuse)
      for (const auto& sequence : state.sequences) sequence->session.keep();
  } catch (const CancelledError&) {
    if (!state.cancelled.load(std::memory_order_relaxed)) throw;  // the caller's own stop check: its business
    state.finish_all_cancelled();
    return true;
  }
  if (first) state.stats.prompt_ms = ms_since(begin);
  state.failed = true;  // until every sequence has its token: half a round cannot be continued
  for (size_t i = 0; i < state.sequences.size(); ++i)
    if (state.is_active(*state.sequences[i])) state.sample(i);
  state.failed = false;
  (first ? state.stats.first_token_ms : state.stats.generate_ms) += ms_since(begin);
  return true;
}

const std::vector<GeneratedToken>& Generation::tokens() const { return state_->tokens; }
const GenerateStats& Generation::stats() const { return state_->stats; }
void Generation::cancel() { state_->cancelled.store(true, std::memory_order_relaxed); }

}  // namespace hotset
