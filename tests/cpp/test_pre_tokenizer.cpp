// Every pre-tokenizer against the pieces that Hugging Face's `tokenizers` made of the same texts, which are hard ones:
// tests/cpp/goldens/pre_tokens.txt, by tools/check_tokenizers.py.
#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <fstream>
#include <map>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "core/tokenizer.h"

namespace {

using namespace hotset;

struct Golden {
  std::vector<std::string> texts;
  std::map<std::string, std::vector<uint32_t>> hashes;  // by pre-tokenizer, one for each text
};

std::string from_hex(const std::string& digits) {
  std::string bytes;
  for (size_t i = 0; i + 1 < digits.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

Golden read_golden() {
  Golden golden;
  std::ifstream file(HOTSET_SOURCE_DIR "/tests/cpp/goldens/pre_tokens.txt");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string kind, name;
    words >> kind >> name;
    if (kind == "text") golden.texts.push_back(from_hex(name));
    if (kind != "pieces") continue;
    for (uint32_t hash; words >> std::hex >> hash;) golden.hashes[name].push_back(hash);
  }
  return golden;
}

// FNV-1a over the lengths of the pieces, each as four bytes.
uint32_t hash_of_pieces(const std::string& name, const std::string& text) {
  uint32_t hash = 0x811c9dc5;
  for (const size_t length : pre_token_lengths(name, text)) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ (static_cast<uint32_t>(length) >> shift & 0xff)) * 0x01000193;
    }
  }
  return hash;
}

using Lengths = std::vector<size_t>;

TEST_CASE("pre-tokenizers cut hard texts as Hugging Face's library does") {
  const Golden golden = read_golden();
  REQUIRE(golden.texts.size() == 300);
  REQUIRE(golden.hashes.size() >= 16);
  for (const auto& [name, hashes] : golden.hashes) {
    CAPTURE(name);
    REQUIRE(hashes.size() == golden.texts.size());
    for (size_t i = 0; i < hashes.size(); ++i) {
      CAPTURE(i);
      CHECK(hash_of_pieces(name, golden.texts[i]) == hashes[i]);
    }
  }
}

TEST_CASE("numbers by pre-tokenizer") {
  CHECK(pre_token_lengths("qwen2", "a1234 5") == Lengths{1, 1, 1, 1, 1, 1, 1});
  CHECK(pre_token_lengths("llama-bpe", "a1234 5") == Lengths{1, 3, 1, 1, 1});
  CHECK(pre_token_lengths("smollm", "a1234 5") == Lengths{1, 1, 1, 1, 1, 1, 1});
  CHECK(pre_token_lengths("falcon", "a1234 5") == Lengths{1, 3, 1, 1, 1});
  CHECK(pre_token_lengths("deepseek-llm", "a1234 5") == Lengths{1, 1, 1, 1, 1, 1, 1});
  CHECK(pre_token_lengths("falcon", "\xc3\xb2") == Lengths{1, 1});  // its second byte becomes the number U+00B2
}

TEST_CASE("capital letters by pre-tokenizer") {
  CHECK(pre_token_lengths("tekken", "HTTPServer fooBar'll") == Lengths{10, 4, 3, 3});
  CHECK(pre_token_lengths("gpt-4o", "HTTPServer fooBar'll") == Lengths{10, 4, 6});
  CHECK(pre_token_lengths("qwen2", "HTTPServer fooBar'll") == Lengths{10, 7, 3});
}

TEST_CASE("marks by pre-tokenizer") {
  const std::string text = "e\xcc\x81t";  // e, combining acute, t
  CHECK(pre_token_lengths("qwen35", text) == Lengths{4});
  CHECK(pre_token_lengths("qwen2", text) == Lengths{1, 3});
  CHECK(pre_token_lengths("gpt-2", text) == Lengths{1, 2, 1});
}

TEST_CASE("white space in powers of two") {
  CHECK(pre_token_lengths("jais-2", std::string(1000, ' ') + "a") == Lengths{512, 256, 128, 64, 32, 4, 2, 1, 2});
  CHECK(pre_token_lengths("jais-2", std::string(7, ' ')) == Lengths{4, 2, 1});
  CHECK(pre_token_lengths("jais-2", "   \n a") == Lengths{4, 2});
}

TEST_CASE("splitting takes linear time whatever the text is") {
  const size_t n = 1 << 17;  // all in all 0.1 s; an expression that looks ahead too often would take 10 s
  const auto start = std::chrono::steady_clock::now();
  for (const char* name : {"gpt-2", "llama-bpe", "qwen35", "gpt-4o", "jais-2", "deepseek-v3", "deepseek-llm",
                           "deepseek-coder", "falcon", "smollm"}) {
    for (const std::string& unit :
         {std::string(" "), std::string("A"), std::string("1"), std::string("\x01"), std::string("."),
          std::string("\xcc\x81"), std::string("\xff"), std::string(" \t"), std::string("\xe4\xb8\x80\x41")}) {
      std::string text;
      while (text.size() < n) text += unit;
      const std::vector<size_t> lengths = pre_token_lengths(name, text);
      CHECK(std::accumulate(lengths.begin(), lengths.end(), size_t{0}) == text.size());
    }
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(8));
}

}  // namespace
