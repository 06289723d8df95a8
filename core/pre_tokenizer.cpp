#include "core/pre_tokenizer.h"

#include "core/error.h"
#include "core/unicode.h"

namespace hotset {

namespace {

struct NamedPreTokenizer {
  const char* name;
  PreTokenizer pre_tokenizer;
};

// Names that stand for one pattern share it; what the makers call their vocabulary is all that differs.
constexpr NamedPreTokenizer kPreTokenizers[] = {
    {"gpt-2", {SplitPattern::kGpt2, false, false}},       {"phi-2", {SplitPattern::kGpt2, false, false}},
    {"mpt", {SplitPattern::kGpt2, false, false}},         {"olmo", {SplitPattern::kGpt2, false, false}},
    {"jais", {SplitPattern::kGpt2, false, false}},        {"llama-bpe", {SplitPattern::kLlama3, true, true}},
    {"llama3", {SplitPattern::kLlama3, true, true}},      {"llama-v3", {SplitPattern::kLlama3, true, true}},
    {"falcon3", {SplitPattern::kLlama3, true, true}},     {"dbrx", {SplitPattern::kLlama3, false, false}},
    {"smaug-bpe", {SplitPattern::kLlama3, false, false}},
};

// Reads characters of a text with their classes. `pos` counts bytes.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  bool at_end(size_t pos) const { return pos >= text_.size(); }
  char byte(size_t pos) const { return at_end(pos) ? '\0' : text_[pos]; }
  bool is_newline(size_t pos) const { return byte(pos) == '\r' || byte(pos) == '\n'; }
  bool is(size_t pos, CharClass wanted) const { return !at_end(pos) && char_class(decode(pos).code_point) == wanted; }
  size_t next(size_t pos) const { return pos + decode(pos).n_bytes; }

  // End of the run of characters of one class that starts at `pos`, at most `max_chars` long.
  size_t run_end(size_t pos, CharClass wanted, size_t max_chars = SIZE_MAX) const {
    for (size_t i = 0; i < max_chars && is(pos, wanted); ++i) pos = next(pos);
    return pos;
  }

  // Length of 's 't 're 've 'm 'll 'd at the start of the text, 0 if there is none.
  size_t contraction_length(bool fold_case) const;

  // Length of the white space at the start of the text that `\s+(?!\S)|\s+` takes: all of it at the end of the text;
  // else the last character is left for what follows, unless it is the only one.
  size_t space_length() const;

 private:
  Utf8Char decode(size_t pos) const { return decode_utf8(text_.substr(pos)); }

  std::string_view text_;
};

size_t Scanner::contraction_length(bool fold_case) const {
  if (byte(0) != '\'') return 0;
  const auto letter = [&](size_t pos) {
    const char c = byte(pos);
    return fold_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  // U+017F, the long s, is the one other character that is one of these letters when case is ignored.
  if (fold_case && byte(1) == '\xc5' && byte(2) == '\xbf') return 3;
  const char first = letter(1), second = letter(2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if ((first == 'r' || first == 'v') && second == 'e') return 3;
  if (first == 'l' && second == 'l') return 3;
  return 0;
}

size_t Scanner::space_length() const {
  size_t pos = 0, last = 0;
  while (is(pos, CharClass::kSpace)) {
    last = pos;
    pos = next(pos);
  }
  return at_end(pos) || last == 0 ? pos : last;
}

size_t gpt2_length(const Scanner& text) {
  if (const size_t length = text.contraction_length(false)) return length;
  const size_t start = text.byte(0) == ' ' ? 1 : 0;
  for (const CharClass wanted : {CharClass::kLetter, CharClass::kNumber, CharClass::kOther}) {
    const size_t end = text.run_end(start, wanted);
    if (end > start) return end;
  }
  return text.space_length();
}

// End of `\s*[\r\n]+` at the start of the text: after the last line break of the leading white space, 0 without one.
size_t line_break_length(const Scanner& text) {
  size_t end = 0;
  for (size_t pos = 0; text.is(pos, CharClass::kSpace);) {
    const bool is_newline = text.is_newline(pos);
    pos = text.next(pos);
    if (is_newline) end = pos;
  }
  return end;
}

size_t llama3_length(const Scanner& text) {
  if (const size_t length = text.contraction_length(true)) return length;
  const bool first_may_lead = !text.is_newline(0) && !text.is(0, CharClass::kLetter) && !text.is(0, CharClass::kNumber);
  const size_t letters = first_may_lead ? text.next(0) : 0;
  const size_t letters_end = text.run_end(letters, CharClass::kLetter);
  if (letters_end > letters) return letters_end;
  if (const size_t end = text.run_end(0, CharClass::kNumber, 3)) return end;
  const size_t others = text.byte(0) == ' ' ? 1 : 0;
  size_t end = text.run_end(others, CharClass::kOther);
  if (end > others) {
    while (text.is_newline(end)) ++end;
    return end;
  }
  if (const size_t length = line_break_length(text)) return length;
  return text.space_length();
}

}  // namespace

PreTokenizer find_pre_tokenizer(const std::string& name) {
  std::string known;
  for (const NamedPreTokenizer& entry : kPreTokenizers) {
    if (name == entry.name) return entry.pre_tokenizer;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw UnsupportedModelError(error_text("tokenizer", "pre-tokenizer (tokenizer.ggml.pre)", "one of " + known,
                                         name.empty() ? "none" : quoted(name),
                                         "use a model whose tokenizer is supported, or convert it again so that the "
                                         "key names its splitting pattern"));
}

size_t pre_token_length(SplitPattern pattern, std::string_view text) {
  const Scanner scanner(text);
  return pattern == SplitPattern::kGpt2 ? gpt2_length(scanner) : llama3_length(scanner);
}

}  // namespace hotset
