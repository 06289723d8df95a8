// Parts of the tokenizers against plain statements of what they do: UTF-8, splitting, special tokens, merging.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/pre_tokenizer.h"
#include "core/tokenizer_merge.h"
#include "core/tokenizer_special.h"
#include "core/unicode.h"

namespace hotset {

static bool operator==(const Symbol& a, const Symbol& b) { return a.id == b.id && a.n_bytes == b.n_bytes; }

static bool operator==(const SpecialMatch& a, const SpecialMatch& b) {
  return a.begin == b.begin && a.end == b.end && a.id == b.id;
}

}  // namespace hotset

namespace {

using namespace hotset;

std::string utf8(uint32_t c) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | (c >> shift & 0x3f)); };
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xc0 | c >> 6), tail(0)};
  if (c < 0x10000) return {static_cast<char>(0xe0 | c >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xf0 | c >> 18), tail(12), tail(6), tail(0)};
}

TEST_CASE("every code point decodes, surrogates and values beyond do not") {
  int n_wrong = 0;
  for (uint32_t c = 0; c < 0x120000; ++c) {
    const std::string text = utf8(c);
    const Utf8Char decoded = decode_utf8(text);
    const bool is_valid = c < 0x110000 && (c < 0xd800 || c > 0xdfff);
    const bool is_right =
        is_valid ? decoded.status == Utf8Status::kValid && decoded.code_point == c && decoded.n_bytes == text.size()
                 : decoded.status == Utf8Status::kInvalid && decoded.n_bytes == 1;
    if (!is_right) ++n_wrong;
  }
  CHECK(n_wrong == 0);
}

TEST_CASE("ill-formed UTF-8 ends where it stops being the start of a character") {
  struct Case {
    const char* text;
    Utf8Status status;
    int n_bytes;
  };
  for (const Case& c :
       {Case{"\x80", Utf8Status::kInvalid, 1}, Case{"\xc0\x80", Utf8Status::kInvalid, 1},
        Case{"\xc1\xbf", Utf8Status::kInvalid, 1}, Case{"\xc2", Utf8Status::kIncomplete, 1},
        Case{"\xc2z", Utf8Status::kInvalid, 1}, Case{"\xe0\x80\x80", Utf8Status::kInvalid, 1},
        Case{"\xe2\x96", Utf8Status::kIncomplete, 2}, Case{"\xe2\x96z", Utf8Status::kInvalid, 2},
        Case{"\xed\xa0\x80", Utf8Status::kInvalid, 1}, Case{"\xf0\x80", Utf8Status::kInvalid, 1},
        Case{"\xf0\x9f\xa6", Utf8Status::kIncomplete, 3}, Case{"\xf0\x9f\xa6z", Utf8Status::kInvalid, 3},
        Case{"\xf4\x90", Utf8Status::kInvalid, 1}, Case{"\xf5", Utf8Status::kInvalid, 1}}) {
    CAPTURE(quoted(c.text));
    CHECK(decode_utf8(c.text).status == c.status);
    CHECK(int{decode_utf8(c.text).n_bytes} == c.n_bytes);
  }
}

TEST_CASE("classes of characters") {
  for (const uint32_t c : {0x41u, 0xaau, 0x17fu, 0x1c5u, 0x430u, 0x5d0u, 0x4e00u, 0xac00u, 0x1d400u, 0x20000u}) {
    CAPTURE(c);
    const CharClass found = char_class(c);
    CHECK((found == CharClass::kUpper || found == CharClass::kLower || found == CharClass::kUncased));
  }
  for (const uint32_t c : {0x30u, 0xb2u, 0xbdu, 0x663u, 0x2168u, 0x3007u, 0x1d7d8u}) {
    CAPTURE(c);
    CHECK(char_class(c) == CharClass::kNumber);
  }
  for (const uint32_t c : {0x9u, 0xau, 0xbu, 0xcu, 0xdu, 0x20u, 0x85u, 0xa0u, 0x1680u, 0x2003u, 0x2028u, 0x3000u}) {
    CAPTURE(c);
    CHECK(char_class(c) == CharClass::kSpace);
  }
  for (const uint32_t c : {0x0u, 0x1cu, 0x200bu, 0xe000u, 0x10ffffu, 0x110000u, 0xffffffffu}) {
    CAPTURE(c);
    CHECK(char_class(c) == CharClass::kOther);
  }
  const std::pair<uint32_t, CharClass> others[] = {
      {0x41, CharClass::kUpper},       {0x1c5, CharClass::kUpper},      {0x10400, CharClass::kUpper},
      {0x61, CharClass::kLower},       {0xdf, CharClass::kLower},       {0x1e922, CharClass::kLower},
      {0xaa, CharClass::kUncased},     {0x2b0, CharClass::kUncased},    {0x20000, CharClass::kUncased},
      {0x300, CharClass::kMark},       {0xfe0f, CharClass::kMark},      {0x1d165, CharClass::kMark},
      {0x27, CharClass::kPunctuation}, {0x5f, CharClass::kPunctuation}, {0x3001, CharClass::kPunctuation},
      {0x24, CharClass::kSymbol},      {0x5e, CharClass::kSymbol},      {0xfffd, CharClass::kSymbol},
      {0x1f999, CharClass::kSymbol}};
  for (const auto& [c, expected] : others) {
    CAPTURE(c);
    CHECK(char_class(c) == expected);
  }
}

std::vector<std::string> split(const char* name, std::string_view text) {
  std::vector<std::string> pieces;
  PreTokenReader reader(find_pre_tokenizer(name), text);
  for (std::string_view piece = reader.next(); !piece.empty(); piece = reader.next()) pieces.emplace_back(piece);
  return pieces;
}

using Pieces = std::vector<std::string>;

TEST_CASE("gpt-2 splitting") {
  const auto pieces = [](std::string_view text) { return split("gpt-2", text); };
  CHECK(pieces("Hello, world!") == Pieces{"Hello", ",", " world", "!"});
  CHECK(pieces("it's we'LL x'") == Pieces{"it", "'s", " we", "'", "LL", " x", "'"});
  CHECK(pieces("'re've'll'd'm't") == Pieces{"'re", "'ve", "'ll", "'d", "'m", "'t"});
  CHECK(pieces("a  b   ") == Pieces{"a", " ", " b", "   "});
  CHECK(pieces("a\n\n b\t\tc") == Pieces{"a", "\n\n", " b", "\t", "\t", "c"});
  CHECK(pieces("a1234 5678") == Pieces{"a", "1234", " 5678"});
  CHECK(pieces("\xc3\xa9t\xc3\xa9 \xd9\xa3") == Pieces{"\xc3\xa9t\xc3\xa9", " \xd9\xa3"});
  CHECK(pieces("!'s") == Pieces{"!'", "s"});
  CHECK(pieces("a\xff\xe2\x96 b") == Pieces{"a", "\xff\xe2\x96", " b"});
  CHECK(pieces("\xc2\xa0\xc2\xa0x") == Pieces{"\xc2\xa0", "\xc2\xa0", "x"});
}

TEST_CASE("llama-3 splitting") {
  const auto pieces = [](std::string_view text) { return split("llama-bpe", text); };
  CHECK(pieces("Hello, world!\n\n x") == Pieces{"Hello", ",", " world", "!\n\n", " x"});
  CHECK(pieces("we'LL 'Sx") == Pieces{"we", "'LL", " '", "Sx"});
  CHECK(pieces("'Sx'\xc5\xbfx") == Pieces{"'S", "x", "'\xc5\xbf", "x"});
  CHECK(pieces("12345 678") == Pieces{"123", "45", " ", "678"});
  CHECK(pieces("(a\tb_c") == Pieces{"(a", "\tb", "_c"});
  CHECK(pieces("a  b") == Pieces{"a", " ", " b"});
  CHECK(pieces("a \n\n  \n  b") == Pieces{"a", " \n\n  \n", " ", " b"});
  CHECK(pieces("a\r\n1") == Pieces{"a", "\r\n", "1"});
  CHECK(pieces("\na   ") == Pieces{"\n", "a", "   "});
  CHECK(pieces(" !!\r\n!") == Pieces{" !!\r\n", "!"});
}

TEST_CASE("splitting covers any bytes") {
  const uint32_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (size_t n = random() % 50; n > 0; --n) {
      text += random() % 2 ? " \n'sa1.\t"[random() % 8] : static_cast<char>(random());
    }
    for (const char* name : {"gpt-2", "llama-bpe", "qwen35", "jais-2", "gpt-4o", "tekken", "deepseek-v3",
                             "deepseek-llm", "deepseek-coder", "falcon", "smollm", "minicpm5", "seed-coder"}) {
      std::string joined;
      for (const std::string& piece : split(name, text)) joined += piece;
      REQUIRE(joined == text);
    }
  }
}

// Takes tokens out of the text one after another, longest first.
std::vector<SpecialMatch> plain_find(std::vector<SpecialToken> tokens, std::string_view text) {
  std::stable_sort(tokens.begin(), tokens.end(), [](const SpecialToken& a, const SpecialToken& b) {
    return a.text.size() != b.text.size() ? a.text.size() > b.text.size() : a.id < b.id;
  });
  std::vector<bool> taken(text.size());
  std::vector<SpecialMatch> matches;
  for (const SpecialToken& token : tokens) {
    const size_t length = token.text.size();
    for (size_t begin = 0; begin + length <= text.size();) {
      const bool is_free = std::find(taken.begin() + static_cast<std::ptrdiff_t>(begin),
                                     taken.begin() + static_cast<std::ptrdiff_t>(begin + length),
                                     true) == taken.begin() + static_cast<std::ptrdiff_t>(begin + length);
      if (!is_free || text.substr(begin, length) != token.text) {
        ++begin;
        continue;
      }
      std::fill_n(taken.begin() + static_cast<std::ptrdiff_t>(begin), length, true);
      matches.push_back({begin, begin + length, token.id});
      begin += length;
    }
  }
  std::sort(matches.begin(), matches.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
  return matches;
}

TEST_CASE("special tokens are taken longest first") {
  const uint32_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto word = [&](size_t max_length) {
    std::string text;
    for (size_t n = 1 + random() % max_length; n > 0; --n) text += "abc"[random() % 3];
    return text;
  };
  for (int i = 0; i < 3000; ++i) {
    std::map<std::string, int32_t> texts;
    for (int32_t id = 0; id < static_cast<int32_t>(random() % 9); ++id) texts.emplace(word(5), id);
    std::vector<SpecialToken> all, always;
    for (const auto& [text, id] : texts) {
      all.push_back({text, id, random() % 2 == 0});
      if (all.back().always) always.push_back(all.back());
    }
    const SpecialTokens specials(all);
    const std::string text = word(40);
    CAPTURE(text);
    REQUIRE(specials.find(text, /*parse_special=*/true) == plain_find(all, text));
    REQUIRE(specials.find(text, /*parse_special=*/false) == plain_find(always, text));
  }
  const SpecialTokens repeated({{"ab", 1, true}, {"", 2, true}, {"ab", 3, true}});
  CHECK(repeated.find("xab", false) == std::vector<SpecialMatch>{{1, 3, 3}});
  CHECK(SpecialTokens().find("ab", true).empty());
}

// Merges the lowest rank, leftmost first, by looking at every pair again and again.
using PairMap = std::map<std::pair<SymbolId, SymbolId>, Merge>;
std::vector<Symbol> plain_merge(const PairMap& table, std::vector<Symbol> symbols) {
  while (true) {
    size_t best = symbols.size();
    Merge merge = {UINT32_MAX, 0};
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto entry = table.find({symbols[i].id, symbols[i + 1].id});
      if (entry == table.end() || entry->second.rank >= merge.rank) continue;
      best = i;
      merge = entry->second;
    }
    if (best == symbols.size()) return symbols;
    symbols[best] = {merge.result, symbols[best].n_bytes + symbols[best + 1].n_bytes};
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST_CASE("merging: short and long runs equal the plain statement") {
  const uint32_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 1500; ++i) {
    const auto below = [&](uint32_t n) { return static_cast<uint32_t>(random() % n); };
    const SymbolId n_symbols = 2 + below(12);
    PairMap pairs;
    MergeTable table;
    const size_t n_pairs = random() % 60;
    table.reserve(n_pairs);
    for (size_t pair = 0; pair < n_pairs; ++pair) {
      const SymbolId left = below(n_symbols), right = below(n_symbols);
      const Merge merge = {below(20), below(n_symbols)};
      table.add(left, right, merge);
      pairs.emplace(std::make_pair(left, right), merge);
    }
    std::vector<Symbol> symbols;
    for (size_t n = random() % 100; n > 0; --n) {
      symbols.push_back({below(20) == 0 ? kNoSymbol : below(n_symbols), 1});
    }
    const std::vector<Symbol> expected = plain_merge(pairs, symbols);
    Merger(table).merge(symbols);
    REQUIRE(symbols == expected);
  }
}

TEST_CASE("pre-tokenizers by name") {
  CHECK((find_pre_tokenizer("gpt-2").stages[0] == &split_gpt2));
  CHECK_FALSE(find_pre_tokenizer("gpt-2").ignore_merges);
  for (const char* name : {"llama-bpe", "llama3", "llama-v3"}) {
    CHECK((find_pre_tokenizer(name).stages[0] == &split_llama3));
    CHECK(find_pre_tokenizer(name).ignore_merges);
  }
  CHECK_THROWS_AS(find_pre_tokenizer("qwen9"), UnsupportedModelError);
  CHECK_THROWS_AS(find_pre_tokenizer(""), UnsupportedModelError);
}

}  // namespace
