// Generation: which text is delivered when, and how it ends. Logits processors force the tokens, so that every case
// is known in advance.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>

#include "core/error.h"
#include "tests/cpp/tiny_vocabularies.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;
using Ids = std::vector<int32_t>;

// Everything one sequence delivered.
struct Delivered {
  Ids ids;
  std::vector<std::string> texts;
  std::string text;
  FinishReason finish = FinishReason::kNone;
};

void take(std::vector<Delivered>& out, const std::vector<GeneratedToken>& tokens) {
  for (const GeneratedToken& token : tokens) {
    Delivered& to = out.at(token.sequence);
    REQUIRE(to.finish == FinishReason::kNone);
    if (token.id >= 0) {
      CHECK(token.index == static_cast<int64_t>(to.ids.size()));
      to.ids.push_back(token.id);
    }
    to.texts.push_back(token.text);
    to.text += token.text;
    to.finish = token.finish;
  }
}

std::vector<Delivered> run(Generation& generation, size_t n) {
  std::vector<Delivered> out(n);
  while (generation.next()) take(out, generation.tokens());
  CHECK_FALSE(generation.next());
  return out;
}

std::shared_ptr<Engine> tiny_engine(int64_t n_ctx = 64) {
  return Engine::create(load_tiny({.n_layer = 1, .n_embd = 32, .n_ff = 32, .head_dim = 8}),
                        {.n_threads = 2, .n_ctx = n_ctx, .n_batch = 16});
}

int32_t id_of(const std::string& token) { return hotset::id_of(tiny_spm(), token); }

// The byte tokens of a text.
Ids bytes_of(const std::string& text) {
  Ids out;
  for (const char each : text) out.push_back(3 + static_cast<unsigned char>(each));
  return out;
}

// Makes sequence i give scripts[i], token by token, and token 2 (the end) after its last.
GenerateOptions forced(const std::vector<Ids>& scripts) {
  GenerateOptions out;
  out.max_tokens = -1;
  out.sampler.temperature = 0;
  auto at = std::make_shared<std::vector<size_t>>(scripts.size());
  out.logits_processor = [scripts, at](size_t sequence, std::span<float> logits) {
    const size_t i = (*at)[sequence]++;
    const int32_t id = i < scripts[sequence].size() ? scripts[sequence][i] : 2;
    std::fill(logits.begin(), logits.end(), -INFINITY);
    logits[static_cast<size_t>(id)] = 0;
  };
  return out;
}

Delivered run_forced(const std::string& text, const std::vector<std::string>& stop, int64_t max_tokens = -1) {
  GenerateOptions options = forced({bytes_of(text)});
  options.stop = stop;
  options.max_tokens = max_tokens;
  Generation generation(tiny_engine(), {{1}}, options);
  return run(generation, 1)[0];
}

TEST_CASE("generation: greedy equals the highest logits step by step") {
  const auto engine = tiny_engine();
  GenerateOptions options;
  options.max_tokens = 20;
  options.ignore_eos = true;
  options.sampler.temperature = 0;
  const Ids prompt = random_tokens(1, 20, 270);
  Generation generation(engine, {prompt}, options);
  const Delivered got = run(generation, 1)[0];
  CHECK(got.finish == FinishReason::kLength);
  REQUIRE(got.ids.size() == 20);
  Session session = engine->open_session();
  session.prefill(prompt);
  for (const int32_t id : got.ids) {
    const auto logits = session.logits();
    CHECK(id == std::max_element(logits.begin(), logits.end()) - logits.begin());
    session.prefill(Ids{id});
  }
  CHECK(generation.stats().n_prompt == 20);
  CHECK(generation.stats().n_generated == 20);
  CHECK(generation.stats().first_token_ms >= generation.stats().prompt_ms);
}

TEST_CASE("generation: the end token ends the text and is not delivered, unless it is ignored") {
  GenerateOptions options = forced({{id_of("he"), 2, id_of("the")}});
  {
    Generation generation(tiny_engine(), {{1}}, options);
    const Delivered got = run(generation, 1)[0];
    CHECK(got.ids == Ids{id_of("he")});
    CHECK(got.text == "he");
    CHECK(got.finish == FinishReason::kStop);
  }
  options = forced({{id_of("he"), 2, id_of("the")}});
  options.ignore_eos = true;
  options.max_tokens = 3;
  Generation generation(tiny_engine(), {{1}}, options);
  const Delivered got = run(generation, 1)[0];
  CHECK(got.ids == Ids{id_of("he"), 2, id_of("the")});
  CHECK(got.text == "hethe");
  CHECK(got.finish == FinishReason::kLength);
}

TEST_CASE("generation: control tokens are shown when asked for") {
  for (const bool special : {false, true}) {
    GenerateOptions options = forced({{id_of("he"), 1, id_of("the")}});
    options.special = special;
    Generation generation(tiny_engine(), {{1}}, options);
    CHECK(run(generation, 1)[0].text == (special ? "he<s>the" : "hethe"));
  }
}

TEST_CASE("generation: the space of a continuation stays, that of a first text goes") {
  const int32_t the = id_of("\xe2\x96\x81the");
  for (const bool has_text : {false, true}) {
    Generation generation(tiny_engine(), {has_text ? Ids{1, id_of("he")} : Ids{1}}, forced({{the, the}}));
    CHECK(run(generation, 1)[0].text == (has_text ? " the the" : "the the"));
  }
}

TEST_CASE("generation: max_tokens counts tokens, 0 computes nothing, below -1 is refused") {
  CHECK(run_forced("abcdef", {}, 3).text == "abc");
  CHECK(run_forced("abcdef", {}, 3).finish == FinishReason::kLength);
  CHECK(run_forced("abc", {}, -1).finish == FinishReason::kStop);
  GenerateOptions options;
  options.max_tokens = 0;
  Generation none(tiny_engine(), {{1}}, options);
  CHECK_FALSE(none.next());
  CHECK(none.tokens().empty());
  options.max_tokens = -2;
  CHECK_THROWS_AS(Generation(tiny_engine(), {{1}}, options), std::invalid_argument);
}

TEST_CASE("generation: nothing behind a stop text is delivered, nor the stop text") {
  const Delivered got = run_forced("abcENDdef", {"END"});
  CHECK(got.text == "abc");
  CHECK(got.finish == FinishReason::kStop);
  CHECK(got.ids == bytes_of("abcEND"));
  CHECK(got.texts == std::vector<std::string>{"a", "b", "c", "", "", ""});
  CHECK(run_forced("abc", {"a"}).text == "");
  CHECK(run_forced("xaab", {"aab", "ab"}).text == "x");
  CHECK(run_forced("xyz", {"yz", "y"}).text == "x");
}

TEST_CASE("generation: text that only began like a stop text is delivered as soon as that is certain") {
  const Delivered got = run_forced("aENEND", {"END"});
  CHECK(got.text == "aEN");
  CHECK(got.texts == std::vector<std::string>{"a", "", "", "EN", "", ""});
  CHECK(run_forced("aaaab", {"aab"}).text == "aa");
  CHECK(run_forced("abab!", {"abc", "bac"}).text == "abab!");
}

TEST_CASE("generation: held back text comes out at the end, however it ends") {
  CHECK(run_forced("abEN", {"END"}).text == "abEN");
  CHECK(run_forced("abENDc", {"ENDING"}, 5).text == "abEND");
  CHECK(run_forced("ab", {"b!"}, 2).text == "ab");
}

TEST_CASE("generation: a token that completes a stop text may hold more text before it") {
  GenerateOptions options = forced({{id_of("the"), id_of("aaaa"), id_of("he")}});
  options.stop = {"aah"};
  Generation generation(tiny_engine(), {{1}}, options);
  const Delivered got = run(generation, 1)[0];
  CHECK(got.text == "theaa");
  CHECK(got.finish == FinishReason::kStop);
}

TEST_CASE("generation: texts end at whole characters, also stop texts of several bytes") {
  const Delivered got = run_forced("\xc3\xa9!", {});
  CHECK(got.texts == std::vector<std::string>{"", "\xc3\xa9", "!", ""});
  CHECK(run_forced("a\xc3", {}).text == "a\xef\xbf\xbd");  // cut in the middle: U+FFFD
  CHECK(run_forced("a\xc3\xa9z", {}, 2).text == "a\xef\xbf\xbd");
  CHECK(run_forced("a\xc3\xa9z", {"\xc3\xa9"}).text == "a");
  CHECK_THROWS_AS(run_forced("a", {"b", ""}), std::invalid_argument);
}

TEST_CASE("generation: the sequences of a batch end at different times and equal single runs") {
  const auto engine = tiny_engine();
  GenerateOptions options;
  options.sampler.seed = 5;
  options.sampler.temperature = 1.5f;
  options.max_tokens = 12;
  std::vector<Ids> prompts;
  for (const size_t n : {3, 20, 1, 9}) prompts.push_back(random_tokens(n, n, 270));
  Generation batch(engine, prompts, options);
  const std::vector<Delivered> together = run(batch, 4);
  for (size_t i = 0; i < 4; ++i) {
    GenerateOptions alone = options;
    *alone.sampler.seed += i;
    Generation single(engine, {prompts[i]}, alone);
    const Delivered expected = run(single, 1)[0];
    CHECK(together[i].ids == expected.ids);
    CHECK(together[i].texts == expected.texts);
    CHECK(together[i].finish == expected.finish);
  }
  Generation uneven(engine, {{1}, {1, 5}, {1}}, forced({bytes_of("a"), bytes_of("bcdef"), bytes_of("gh")}));
  const std::vector<Delivered> got = run(uneven, 3);
  CHECK(got[0].text == "a");
  CHECK(got[1].text == "bcdef");
  CHECK(got[2].text == "gh");
  for (const Delivered& each : got) CHECK(each.finish == FinishReason::kStop);
  Generation nothing(engine, {}, {});
  CHECK_FALSE(nothing.next());
}

TEST_CASE("generation: prompts are refused when empty, too long or not of the vocabulary") {
  CHECK_THROWS_AS(Generation(tiny_engine(), {{}}, {}), std::invalid_argument);
  CHECK_THROWS_AS(Generation(tiny_engine(), {{1}, {}}, {}), std::invalid_argument);
  CHECK_THROWS_AS(Generation(tiny_engine(), {Ids(65, 5)}, {}), ContextLengthError);
  for (const int32_t bad : {-1, 100000}) {
    Generation generation(tiny_engine(), {{1, bad}}, {});
    CHECK_THROWS_AS(generation.next(), std::invalid_argument);
  }
}

TEST_CASE("generation: at the end of the context everything has been delivered, then comes the error") {
  Generation generation(tiny_engine(16), {Ids(10, 5)}, forced({bytes_of("0123456789")}));
  std::vector<Delivered> out(1);
  try {
    while (generation.next()) take(out, generation.tokens());
    FAIL_CHECK("no error");
  } catch (const ContextLengthError& error) {
    CHECK(std::string(error.what()).find("--context-shift") != std::string::npos);
  }
  CHECK(out[0].text == "0123456");  // 6 positions are left, and the last one's logits give a 7th
  CHECK_THROWS_AS(generation.next(), ContextLengthError);
}

TEST_CASE("generation: text held back is delivered before the error of a full context") {
  GenerateOptions options = forced({bytes_of("01234ENxyz")});
  options.stop = {"END"};
  Generation generation(tiny_engine(16), {Ids(10, 5)}, options);
  std::vector<Delivered> out(1);
  try {
    while (generation.next()) take(out, generation.tokens());
    FAIL_CHECK("no error");
  } catch (const ContextLengthError&) {
  }
  CHECK(out[0].text == "01234EN");
}

TEST_CASE("generation: a full prompt gives one token") {
  Generation generation(tiny_engine(16), {Ids(16, 5)}, forced({bytes_of("abc")}));
  CHECK(generation.next());
  CHECK(generation.tokens().at(0).text == "a");
  CHECK_THROWS_AS(generation.next(), ContextLengthError);
}

TEST_CASE("generation: context_shift goes on with the first token and the later half") {
  const auto engine = tiny_engine(16);
  GenerateOptions options;
  options.sampler.temperature = 0;
  options.max_tokens = 60;
  options.ignore_eos = true;
  options.context_shift = true;
  const Ids prompt = random_tokens(3, 10, 270);
  Generation generation(engine, {prompt}, options);
  const Delivered got = run(generation, 1)[0];
  CHECK(got.ids.size() == 60);
  CHECK(got.finish == FinishReason::kLength);
  Ids held = prompt;  // the same by hand
  for (const int32_t id : got.ids) {
    if (held.size() > 16) {
      Ids kept{held[0]};
      kept.insert(kept.end(), held.end() - 8, held.end());
      held = kept;
    }
    Session session = engine->open_session();
    session.prefill(held);
    CHECK(id == std::max_element(session.logits().begin(), session.logits().end()) - session.logits().begin());
    held.push_back(id);
  }
}

TEST_CASE("generation: cancel ends all sequences, before, between and during steps") {
  GenerateOptions options = forced({bytes_of("abcdefghij"), bytes_of("ENENENENEN")});
  options.stop = {"END"};
  {
    Generation generation(tiny_engine(), {{1}, {1}}, options);
    std::vector<Delivered> out(2);
    for (int i = 0; i < 2; ++i) generation.next(), take(out, generation.tokens());
    generation.cancel();
    CHECK(generation.next());
    take(out, generation.tokens());
    CHECK(out[0].text == "ab");
    CHECK(out[1].text == "EN");  // what was held back
    for (const Delivered& each : out) CHECK(each.finish == FinishReason::kCancelled);
    CHECK_FALSE(generation.next());
  }
  {
    Generation generation(tiny_engine(), {{1}}, {});
    generation.cancel();
    CHECK(generation.next());
    CHECK(generation.tokens().at(0).id == -1);
    CHECK(generation.tokens().at(0).finish == FinishReason::kCancelled);
  }
  Generation generation(tiny_engine(2000), {random_tokens(4, 2000, 270)}, {});
  std::atomic<int> n_asked{0};
  std::thread canceller([&] {
    while (n_asked.load() < 3) std::this_thread::yield();
    generation.cancel();
  });
  CHECK(generation.next([&] { return ++n_asked, false; }));
  canceller.join();
  CHECK(generation.tokens().at(0).finish == FinishReason::kCancelled);
}

TEST_CASE("generation: the caller's stop is an error of that call, and the next call goes on") {
  Generation generation(tiny_engine(16), {Ids(12, 5)}, [] {
    GenerateOptions options = forced({bytes_of("abcdefghijkl")});
    options.context_shift = true;
    return options;
  }());
  std::vector<Delivered> out(1);
  for (bool more = true; more;) {
    CHECK_THROWS_AS(generation.next([] { return true; }), CancelledError);
    more = generation.next();
    if (more) take(out, generation.tokens());
    if (out[0].finish != FinishReason::kNone) break;
  }
  CHECK(out[0].text == "abcdefghijkl");
}

TEST_CASE("generation: logits processors see each sequence's logits and decide") {
  const auto engine = tiny_engine();
  GenerateOptions options;
  options.sampler.temperature = 0;
  options.max_tokens = 2;
  std::vector<size_t> seen;
  const size_t n_vocab = static_cast<size_t>(engine->model().config().n_vocab);
  options.logits_processor = [&](size_t sequence, std::span<float> logits) {
    CHECK(logits.size() == n_vocab);
    seen.push_back(sequence);
    logits[3 + 'A' + sequence] = 1e9f;
  };
  Generation generation(engine, {{1}, {1}}, options);
  const std::vector<Delivered> got = run(generation, 2);
  CHECK(got[0].text == "AA");
  CHECK(got[1].text == "BB");
  CHECK(seen == std::vector<size_t>{0, 1, 0, 1});
  options.logits_processor = [](size_t, std::span<float> logits) { logits[0] = NAN; };
  Generation broken(engine, {{1}}, options);
  CHECK_THROWS_AS(broken.next(), Error);
}

TEST_CASE("generation: finish reasons have names") {
  CHECK(std::string(finish_reason_name(FinishReason::kNone)) == "");
  CHECK(std::string(finish_reason_name(FinishReason::kStop)) == "stop");
  CHECK(std::string(finish_reason_name(FinishReason::kLength)) == "length");
  CHECK(std::string(finish_reason_name(FinishReason::kCancelled)) == "cancelled");
}

}  // namespace
