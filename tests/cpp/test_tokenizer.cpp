// Whole vocabularies: published vectors, round trips on any bytes, special tokens, hostile data.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>
#include <sstream>
#include <thread>

#include "core/error.h"
#include "core/tokenizer_gguf.h"
#include "tests/cpp/tiny_vocabularies.h"

namespace {

using namespace hotset;
using Ids = std::vector<int32_t>;

constexpr EncodeOptions kPlain = {.add_special = false, .parse_special = false};
constexpr EncodeOptions kParse = {.add_special = false, .parse_special = true};

// The folder of shared test data; empty when this machine has none.
std::filesystem::path shared_data() {
  const char* variable = std::getenv("HOTSET_SHARED");
  const auto root = std::filesystem::path(__FILE__).parent_path().parent_path().parent_path();
  const std::filesystem::path data = (variable ? std::filesystem::path(variable) : root / "../shared") / "data";
  return std::filesystem::exists(data) ? data : std::filesystem::path();
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

// Bytes that contain text, broken text and noise.
std::string random_text(std::mt19937& random) {
  static const std::string kParts[] = {"a",
                                       "the",
                                       " ",
                                       "  ",
                                       "\n",
                                       "'s",
                                       "'LL",
                                       "12345",
                                       ".",
                                       "\t",
                                       "\r\n",
                                       "\xe2",
                                       "\x80",
                                       "\xff",
                                       "<s>",
                                       "<0x0A>",
                                       "<sep>",
                                       "\xc3\xa9",
                                       "\xe2\x96\x81",
                                       "\xf0\x9f\xa6\x99"};
  std::string text;
  for (size_t n = random() % 40; n > 0; --n) {
    if (random() % 4 == 0) {
      text += static_cast<char>(random());
    } else {
      text += kParts[random() % std::size(kParts)];
    }
  }
  return text;
}

std::string streamed(const std::shared_ptr<const Tokenizer>& tokenizer, const Ids& ids, bool continuation = false) {
  StreamDecoder decoder(tokenizer, continuation);
  std::string text;
  for (const int32_t id : ids) text += decoder.push(id);
  return text + decoder.flush();
}

TEST_CASE("published vectors encode and decode") {
  const std::filesystem::path data = shared_data();
  if (data.empty()) {
    MESSAGE("skipped: no shared data");
    return;
  }
  for (const char* name : {"llama-spm", "gpt-2", "llama-bpe"}) {
    CAPTURE(name);
    const std::string path = (data / "vocabs" / ("ggml-vocab-" + std::string(name) + ".gguf")).string();
    const auto tokenizer = Tokenizer::create(tokenizer_data_from_gguf(*GgufFile::open(path)));
    const std::string separator = "\n__ggml_vocab_test__\n";
    std::string inputs = read_file(path + ".inp");
    std::istringstream outputs(read_file(path + ".out"));
    int n_cases = 0;
    for (size_t end = inputs.find(separator); end != std::string::npos; end = inputs.find(separator)) {
      const std::string text = inputs.substr(0, end);
      inputs.erase(0, end + separator.size());
      std::string line;
      REQUIRE(std::getline(outputs, line));
      std::istringstream numbers(line);
      const Ids expected{std::istream_iterator<int32_t>(numbers), {}};
      CAPTURE(text);
      CHECK(tokenizer->encode(text, kPlain) == expected);
      CHECK(tokenizer->decode(expected) == text);
      CHECK(streamed(tokenizer, expected) == text);
      ++n_cases;
    }
    CHECK(n_cases == 46);
  }
}

TEST_CASE("any bytes survive encode and decode") {
  const uint32_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (const TokenizerData& data : {tiny_bpe(), tiny_llama3(), tiny_spm()}) {
    const auto tokenizer = Tokenizer::create(data);
    const bool is_spm = tokenizer->data().model == "llama";
    for (int i = 0; i < 3000; ++i) {
      std::string text = random_text(random);
      // U+2581 is how SentencePiece writes a space; it cannot survive.
      for (size_t at; is_spm && (at = text.find("\xe2\x96\x81")) != std::string::npos;) text.erase(at, 3);
      CAPTURE(text);
      REQUIRE(tokenizer->decode(tokenizer->encode(text)) == text);
      REQUIRE(tokenizer->decode(tokenizer->encode(text, kParse), /*special=*/true) == text);
    }
  }
}

TEST_CASE("byte-level merges go by rank, then from the left") {
  const auto tokenizer = Tokenizer::create(tiny_bpe());
  const auto texts = [&](const std::string& text) {
    std::vector<std::string> pieces;
    for (const int32_t id : tokenizer->encode(text, kPlain)) pieces.push_back(tokenizer->piece(id));
    return pieces;
  };
  CHECK(texts("aaaaa") == std::vector<std::string>{"aaaa", "a"});
  CHECK(texts("the then") == std::vector<std::string>{"the", " the", "n"});
  CHECK(texts("the  the") == std::vector<std::string>{"the", " ", " the"});
  CHECK(texts("hes") == std::vector<std::string>{"he", "s"});
  CHECK(texts("").empty());
  // The merge x+y makes no token, so its bytes come out, but x+y+z does.
  CHECK(texts("xy") == std::vector<std::string>{"x", "y"});
  CHECK(texts("xyz") == std::vector<std::string>{"xyz"});
}

TEST_CASE("llama-3 vocabularies take a whole pre-token that is a token") {
  // "qrs" is a token that no merge reaches.
  CHECK(Tokenizer::create(tiny_llama3())->encode("qrs", kPlain).size() == 1);
  CHECK(Tokenizer::create(tiny_bpe())->encode("qrs", kPlain).size() == 3);
}

TEST_CASE("SentencePiece: prefix, escaping, byte fallback") {
  const auto tokenizer = Tokenizer::create(tiny_spm());
  const auto id = [&](const std::string& token) { return id_of(tokenizer->data(), token); };
  CHECK(tokenizer->encode("the", kPlain) == Ids{id("\xe2\x96\x81the")});
  CHECK(tokenizer->encode("the") == Ids{tokenizer->data().bos_id, id("\xe2\x96\x81the")});
  CHECK(tokenizer->encode("", kPlain).empty());
  CHECK(tokenizer->encode("") == Ids{tokenizer->data().bos_id});
  CHECK(tokenizer->encode("\xc3\xa9", kPlain) == Ids{id("\xe2\x96\x81"), id("<0xC3>"), id("<0xA9>")});
  CHECK(tokenizer->encode("\xc3", kPlain) == Ids{id("\xe2\x96\x81"), id("<0xC3>")});
  CHECK(tokenizer->piece(id("\xe2\x96\x81the")) == " the");
  CHECK(tokenizer->decode({id("\xe2\x96\x81the"), id("\xe2\x96\x81the")}) == "the the");
  // A text that spells a byte or control token stays text.
  for (const char* text : {"<0x41>", "<s>", "</s>", "<unk>"}) {
    for (const int32_t token : tokenizer->encode(text, kPlain)) {
      CHECK(tokenizer->data().types[static_cast<size_t>(token)] != TokenType::kControl);
    }
    CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
  }

  // A user-defined token keeps its own space.
  TokenizerData spaced = tiny_spm();
  spaced.tokens[static_cast<size_t>(id("<sep>"))] = " x";
  const auto with_space = Tokenizer::create(spaced);
  for (const char* text : {" x", " xa", "a x", " x x  x", "x a x a"}) {
    CHECK(with_space->decode(with_space->encode(text)) == text);
  }

  TokenizerData no_prefix = tiny_spm();
  no_prefix.add_space_prefix = false;
  const auto bare = Tokenizer::create(no_prefix);
  CHECK(bare->decode(bare->encode("the")) == "the");
  CHECK(bare->decode(bare->encode(" the")) == " the");

  TokenizerData trimming = tiny_spm();
  trimming.remove_extra_whitespaces = true;
  const auto trimmed = Tokenizer::create(trimming);
  CHECK(trimmed->encode("  the   the ", kPlain) == tokenizer->encode("the the", kPlain));
  CHECK(trimmed->encode("   ", kPlain).empty());
}

TEST_CASE("SentencePiece without a prefix: runs of spaces and line breaks that are user-defined come first") {
  // As Gemma has them; converters write such tokens with U+2581 or with spaces.
  for (const std::string& spaces : {std::string("\xe2\x96\x81\xe2\x96\x81"), std::string("  ")}) {
    TokenizerData data = tiny_spm();
    data.add_space_prefix = false;
    const auto add = [&](const std::string& token) {
      data.tokens.push_back(token);
      data.types.push_back(TokenType::kUserDefined);
      data.scores.push_back(-1000);
      return static_cast<int32_t>(data.tokens.size()) - 1;
    };
    const int32_t two = add(spaces), three = add(spaces + spaces.substr(0, spaces.size() / 2)), breaks = add("\n\n");
    const auto tokenizer = Tokenizer::create(data);
    const int32_t the = id_of(data, "the"), space_the = id_of(data, "\xe2\x96\x81the"), newline = id_of(data, "<0x0A>");
    const int32_t space_t = id_of(data, "\xe2\x96\x81t");
    CHECK(tokenizer->encode("the the", kPlain) == Ids{the, space_the});
    CHECK(tokenizer->encode("the  the", kPlain) == Ids{the, two, the});
    CHECK(tokenizer->encode("the   the", kPlain) == Ids{the, three, the});
    CHECK(tokenizer->encode("the      the", kPlain) == Ids{the, three, three, the});
    CHECK(tokenizer->encode("\n\n\n\xc3\xa9", kPlain) ==
          Ids{breaks, newline, id_of(data, "<0xC3>"), id_of(data, "<0xA9>")});
    CHECK(tokenizer->encode("\n\n t", kPlain) == Ids{breaks, space_t});
    for (const char* text : {"  ", "the    the", " the", "a  \n\n   \n\n\n t ", "      the "}) {
      CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
    }
  }
}

TEST_CASE("SentencePiece without byte tokens: a run of unknown characters is one unknown token") {
  TokenizerData data;
  data.model = "llama";
  data.tokens = {"<unk>", "\xe2\x96\x81", "a",
                 "\xe2\x96\x81"
                 "a"};
  data.scores = {0, -3, -2, -1};
  data.types = {TokenType::kUnknown, TokenType::kNormal, TokenType::kNormal, TokenType::kNormal};
  CHECK_THROWS_AS(Tokenizer::create(data), ModelFormatError);
  data.unk_id = 0;
  const auto tokenizer = Tokenizer::create(data);
  CHECK(tokenizer->encode("a\xc3\xa9za", kPlain) == Ids{3, 0, 2});
  CHECK(tokenizer->encode("z za", kPlain) == Ids{1, 0, 1, 0, 2});
  CHECK(tokenizer->decode({3, 0, 2}) == "aa");
  CHECK(tokenizer->decode({3, 0, 2}, /*special=*/true) == "a<unk>a");
}

TEST_CASE("SentencePiece tokens with a space behind something else") {
  TokenizerData data = tiny_spm();
  data.add_space_prefix = false;
  data.tokens.push_back("e\xe2\x96\x81t");
  data.types.push_back(TokenType::kNormal);
  data.scores.push_back(-0.5f);
  const auto tokenizer = Tokenizer::create(data);
  const int32_t joined = id_of(data, "e\xe2\x96\x81t"), space_t = id_of(data, "\xe2\x96\x81t"), a = id_of(data, "aa");
  CHECK(tokenizer->encode("e t", kPlain) == Ids{joined});
  CHECK(tokenizer->encode("aa taa e t t", kPlain) == Ids{a, space_t, a, id_of(data, "\xe2\x96\x81"), joined, space_t});
}

TEST_CASE("a long text has the tokens of its words") {
  const uint32_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  TokenizerData spm = tiny_spm();
  spm.add_space_prefix = false;
  for (const TokenizerData& data : {tiny_bpe(), tiny_llama3(), spm}) {
    const auto tokenizer = Tokenizer::create(data);
    std::vector<std::string> words(3000, " ");
    for (std::string& word : words) {
      for (size_t n = 1 + random() % 30; n > 0; --n) word += "theaxyzqrs"[random() % 10];
    }
    std::string text;
    Ids expected;
    for (int i = 0; i < 20000; ++i) {
      const std::string& word = words[random() % (i % 2 ? 30 : words.size())];  // some are frequent
      const Ids ids = tokenizer->encode(word, kPlain);
      text += word;
      expected.insert(expected.end(), ids.begin(), ids.end());
    }
    CHECK(tokenizer->encode(text, kPlain) == expected);
  }
}

TEST_CASE("special tokens only where they are asked for; user-defined tokens always") {
  for (const TokenizerData& data : {tiny_spm(), tiny_bpe()}) {
    const auto tokenizer = Tokenizer::create(data);
    const int32_t end = id_of(data, "</s>"), separator = id_of(data, "<sep>");
    const auto count = [](const Ids& ids, int32_t id) { return std::count(ids.begin(), ids.end(), id); };
    const std::string text = "a</s>the<sep>b</s>";
    CHECK(count(tokenizer->encode(text), end) == 0);
    CHECK(count(tokenizer->encode(text), separator) == 1);
    CHECK(count(tokenizer->encode(text, kParse), end) == 2);
    CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
    CHECK(tokenizer->decode(tokenizer->encode(text, kParse), /*special=*/true) == text);
    CHECK(tokenizer->decode(tokenizer->encode(text, kParse)) == "athe<sep>b");
    CHECK(tokenizer->piece(end).empty());
    CHECK(tokenizer->piece(end, /*special=*/true) == "</s>");
    CHECK(tokenizer->is_control(end));
    CHECK_FALSE(tokenizer->is_control(separator));
    for (const int32_t id : {-1, tokenizer->n_vocab()}) {
      CHECK_THROWS_AS(tokenizer->piece(id), std::invalid_argument);
      CHECK_THROWS_AS(tokenizer->decode({id}), std::invalid_argument);
      CHECK_FALSE(tokenizer->is_end(id));
      CHECK_FALSE(tokenizer->is_control(id));
    }
  }
}

TEST_CASE("end of generation: ids and usual texts") {
  TokenizerData data = tiny_bpe();
  const auto add = [&](const char* token, TokenType type) {
    data.tokens.push_back(token);
    data.types.push_back(type);
    return static_cast<int32_t>(data.tokens.size()) - 1;
  };
  data.eos_id = id_of(data, "</s>");
  data.eot_id = add("<turn>", TokenType::kControl);
  const int32_t im_end = add("<|im_end|>", TokenType::kUserDefined), other = add("<other>", TokenType::kControl);
  const auto tokenizer = Tokenizer::create(data);
  CHECK(tokenizer->is_end(data.eos_id));
  CHECK(tokenizer->is_end(data.eot_id));
  CHECK(tokenizer->is_end(im_end));
  CHECK(tokenizer->is_control(im_end));  // whatever the file says: users must not be able to write it
  CHECK_FALSE(tokenizer->is_end(other));
  CHECK_FALSE(tokenizer->is_end(id_of(data, "a")));
}

TEST_CASE("BOS and EOS where the vocabulary asks for them") {
  TokenizerData data = tiny_bpe();
  data.bos_id = id_of(data, "<s>");
  data.eos_id = id_of(data, "</s>");
  data.add_bos = data.add_eos = true;
  const auto tokenizer = Tokenizer::create(data);
  CHECK(tokenizer->encode("a") == Ids{data.bos_id, id_of(data, "a"), data.eos_id});
  CHECK(tokenizer->encode("a", kPlain) == Ids{id_of(data, "a")});
  data.bos_id = -1;
  CHECK_THROWS_AS(Tokenizer::create(data), ModelFormatError);
}

TEST_CASE("streamed text never ends inside a character") {
  const auto tokenizer = Tokenizer::create(tiny_spm());
  const auto byte = [&](int value) {
    std::ostringstream name;
    name << "<0x" << std::hex << std::uppercase << value << ">";
    return id_of(tokenizer->data(), name.str());
  };
  const std::string replacement = "\xef\xbf\xbd";
  StreamDecoder decoder(tokenizer, /*continuation=*/true);
  for (const int value : {0xf0, 0x9f, 0xa6}) CHECK(decoder.push(byte(value)).empty());
  CHECK(decoder.push(byte(0x99)) == "\xf0\x9f\xa6\x99");
  // The bytes of Unicode's example: one U+FFFD for each maximal subpart.
  std::string text;
  for (const int value : {0x61, 0xf1, 0x80, 0x80, 0xe1, 0x80, 0xc2, 0x62, 0x80, 0x63, 0x80, 0xbf, 0x64}) {
    text += decoder.push(id_of(tokenizer->data(), "<0x61>") + value - 0x61);
  }
  const std::string two = replacement + replacement;
  CHECK(text == "a" + two + replacement + "b" + replacement + "c" + two + "d");
  CHECK(decoder.push(byte(0xe2)).empty());
  CHECK(decoder.push(byte(0xc0)) == two);
  CHECK(decoder.flush().empty());
  CHECK(decoder.push(byte(0xf0)).empty());
  CHECK(decoder.push(byte(0x9f)).empty());
  CHECK(decoder.flush() == replacement);
  CHECK(decoder.flush().empty());

  const int32_t word = id_of(tokenizer->data(), "\xe2\x96\x81the");
  CHECK(streamed(tokenizer, {word, word}, /*continuation=*/true) == " the the");
  CHECK(streamed(tokenizer, {word, word}) == "the the");
  CHECK_THROWS_AS(decoder.push(-1), std::invalid_argument);
}

TEST_CASE("long runs of one character") {
  for (const TokenizerData& data : {tiny_bpe(), tiny_llama3(), tiny_spm()}) {
    const auto tokenizer = Tokenizer::create(data);
    for (const char c : {'a', ' ', '\n', '\'', '9', '<', '\xff'}) {
      const std::string text(1000000, c);
      CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
    }
  }
}

TEST_CASE("one tokenizer serves several threads") {
  const auto tokenizer = Tokenizer::create(tiny_spm());
  const std::string text = "the then <sep> \xc3\xa9 the";
  const Ids expected = tokenizer->encode(text);
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (Ids& result : results) threads.emplace_back([&] { result = tokenizer->encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) CHECK(result == expected);
}

TEST_CASE("equal tokens, empty tokens and tokens that are not UTF-8 do no harm") {
  TokenizerData data = tiny_spm();
  for (const char* token : {"a", "", "\xff\xfe", "\xe2\x96"}) {
    data.tokens.push_back(token);
    data.scores.push_back(-1);
    data.types.push_back(TokenType::kNormal);
  }
  const int32_t last_a = static_cast<int32_t>(data.tokens.size()) - 4;
  const auto tokenizer = Tokenizer::create(data);
  CHECK(tokenizer->encode("ba", kPlain).back() == last_a);
  CHECK(tokenizer->decode(tokenizer->encode("a\xff\xfe\xe2\x96")) == "a\xff\xfe\xe2\x96");
  CHECK(tokenizer->piece(last_a + 1).empty());
}

TEST_CASE("hostile vocabularies are refused") {
  const auto refused = [](TokenizerData data, auto&& change) {
    change(data);
    CHECK_THROWS_AS(Tokenizer::create(std::move(data)), ModelFormatError);
  };
  for (const TokenizerData& good : {tiny_spm(), tiny_bpe()}) {
    CHECK_NOTHROW(Tokenizer::create(good));
    const int32_t n = static_cast<int32_t>(good.tokens.size());
    refused(good, [](TokenizerData& d) { d.tokens.clear(), d.scores.clear(), d.types.clear(); });
    refused(good, [](TokenizerData& d) { d.types.pop_back(); });
    refused(good, [](TokenizerData& d) { d.types[3] = static_cast<TokenType>(0); });
    refused(good, [](TokenizerData& d) { d.types[3] = static_cast<TokenType>(7); });
    refused(good, [&](TokenizerData& d) { d.bos_id = n; });
    refused(good, [](TokenizerData& d) { d.eos_id = -2; });
    refused(good, [&](TokenizerData& d) { d.unk_id = n; });
    refused(good, [](TokenizerData& d) { d.eot_id = std::numeric_limits<int32_t>::min(); });
  }
  refused(tiny_spm(), [](TokenizerData& d) { d.scores[5] = std::nanf(""); });
  refused(tiny_spm(), [](TokenizerData& d) { d.scores[5] = -std::numeric_limits<float>::infinity(); });
  refused(tiny_spm(), [](TokenizerData& d) { d.scores.pop_back(); });
  refused(tiny_spm(), [](TokenizerData& d) { d.tokens[static_cast<size_t>(id_of(d, "<0x0A>"))] = "<0x0G>"; });
  for (const char* merge : {"ab", "", " a", "a ", "a b c", " "}) {
    refused(tiny_bpe(), [&](TokenizerData& d) { d.merges.push_back(merge); });
  }
  refused(tiny_bpe(), [](TokenizerData& d) { d.tokens[static_cast<size_t>(id_of(d, "a"))] = "zz"; });
}

TEST_CASE("unknown kinds are named") {
  const auto message = [](TokenizerData data) -> std::string {
    try {
      Tokenizer::create(std::move(data));
    } catch (const UnsupportedModelError& error) {
      return error.what();
    }
    return "";
  };
  TokenizerData data = tiny_bpe();
  data.pre = "gpt-5";
  CHECK(message(data).find("\"gpt-5\"") != std::string::npos);
  data.pre = "";
  CHECK(message(data).find("got none") != std::string::npos);
  data.pre = "default";
  CHECK(message(data).find("\"default\"") != std::string::npos);
  data.model = "bert";
  CHECK(message(data).find("\"bert\"") != std::string::npos);
}

}  // namespace
