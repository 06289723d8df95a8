#include "core/synth_vocabulary.h"

#include <string>

namespace hotset {
namespace {

constexpr char kSpace[] = "\xe2\x96\x81";  // U+2581, how SentencePiece writes a space
constexpr char kLetters[] = "etaoinshrdlcumwfgypbvkjxqz";
constexpr size_t kNLetters = sizeof kLetters - 1;

// The `index`-th text of n letters.
std::string letters(size_t index, int n) {
  std::string out(static_cast<size_t>(n), ' ');
  for (size_t at = out.size(); at-- > 0; index /= kNLetters) out[at] = kLetters[index % kNLetters];
  return out;
}

}  // namespace

TokenizerData synth_vocabulary(int64_t n_vocab) {
  TokenizerData data;
  data.model = "llama";
  data.unk_id = 0, data.bos_id = 1, data.eos_id = 2;
  const size_t n = static_cast<size_t>(n_vocab);
  const auto add = [&](const std::string& text, TokenType type) {
    if (data.tokens.size() == n) return;
    const bool is_piece = type == TokenType::kNormal;
    data.scores.push_back(is_piece ? -static_cast<float>(data.tokens.size()) : 0.0f);
    data.tokens.push_back(text);
    data.types.push_back(type);
  };
  add("<unk>", TokenType::kUnknown);
  add("<s>", TokenType::kControl);
  add("</s>", TokenType::kControl);
  for (int byte = 0; byte < 256; ++byte) {
    char text[8];
    std::snprintf(text, sizeof text, "<0x%02X>", byte);
    add(text, TokenType::kByte);
  }
  add(kSpace, TokenType::kNormal);
  for (char c = '!'; c <= '~'; ++c) add(std::string(1, c), TokenType::kNormal);
  size_t n_texts = kNLetters;
  for (int n_letters = 1; data.tokens.size() < n; ++n_letters, n_texts *= kNLetters)
    for (size_t i = 0; i < n_texts && data.tokens.size() < n; ++i) {
      const std::string text = letters(i, n_letters);
      add(kSpace + text, TokenType::kNormal);
      if (n_letters > 1) add(text, TokenType::kNormal);  // single letters are there
    }
  return data;
}

}  // namespace hotset
