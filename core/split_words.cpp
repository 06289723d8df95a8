#include "core/split_scanner.h"
#include "core/split_stages.h"

namespace hotset {

namespace {

// What tells apart the patterns that descend from cl100k.
struct WordRules {
  CharSet words;            // what a word consists of
  size_t max_digits;        // numbers in one piece
  std::string_view breaks;  // what may follow a run of other characters
};

constexpr WordRules kLlama3 = {kLetters, 3, "\r\n"};
constexpr WordRules kQwen2 = {kLetters, 1, "\r\n"};
constexpr WordRules kQwen35 = {kLetters | kMarks, 1, "\r\n"};
constexpr WordRules kSeedCoder = {kLetters, 1, ""};

constexpr CharSet kNoLower = set_of(CharClass::kUpper) | kUncasedSet | kMarks;
constexpr CharSet kNoUpper = set_of(CharClass::kLower) | kUncasedSet | kMarks;

// End of `[^\r\n\p{L}\p{N}]?` at the start of a text.
size_t lead_end(const Scanner& text) {
  const Scanner::Char first = text.at(0);
  return text.is_newline(0) || (first.set & (kLetters | kNumbers)) ? 0 : first.n_bytes;
}

// End of what follows words and numbers in the patterns here: ` ?[other]+[breaks]*|\s*[\r\n]+|\s+(?!\S)|\s+`; 0 if
// there is none.
size_t others_end(const Scanner& text, CharSet others, std::string_view breaks) {
  const size_t start = text.byte(0) == ' ' ? 1 : 0;
  const size_t end = text.run_end(start, others);
  if (end > start) return text.bytes_end(end, breaks);
  if (const size_t line_break = text.line_break_end()) return line_break;
  return text.spaces_end();
}

size_t cl100k_end(const Scanner& text, const WordRules& rules) {
  if (const size_t end = text.contraction_length(0, /*fold_case=*/true)) return end;
  const size_t lead = lead_end(text);
  for (const size_t start : {lead, size_t{0}}) {  // a mark may lead a word or belong to it
    const size_t end = text.run_end(start, rules.words);
    if (end > start) return end;
  }
  if (const size_t end = text.run_end(0, kNumbers, rules.max_digits)) return end;
  return others_end(text, all_but(kSpaces | rules.words | kNumbers), rules.breaks);
}

// End of `U*V+` at `start`, `start` if it does not match there. V+ gets what follows the U's; failing that, the last of
// them that is a V too.
size_t capitalized_end(const Scanner& text, size_t start) {
  size_t pos = start, last_both = start;
  for (Scanner::Char c = text.at(pos); c.set & kNoLower; c = text.at(pos)) {
    pos += c.n_bytes;
    if (c.set & kNoUpper) last_both = pos;
  }
  const size_t end = text.run_end(pos, kNoUpper);
  return end > pos ? end : last_both;
}

// End of `[^\r\n\p{L}\p{N}]?U*V+|[^\r\n\p{L}\p{N}]?U+V*`, 0 without a match. Where the first alternative does not
// match, no V follows the U's of the second.
size_t cased_word_end(const Scanner& text) {
  const size_t lead = lead_end(text);
  for (const size_t start : {lead, size_t{0}}) {
    const size_t end = capitalized_end(text, start);
    if (end > start) return end;
  }
  const size_t end = text.run_end(lead, kNoLower);
  return end > lead ? end : 0;
}

size_t o200k_end(const Scanner& text, bool has_contractions, size_t max_digits) {
  if (const size_t end = cased_word_end(text)) {
    return has_contractions ? end + text.contraction_length(end, /*fold_case=*/true) : end;
  }
  if (const size_t end = text.run_end(0, kNumbers, max_digits)) return end;
  return others_end(text, all_but(kSpaces | kLetters | kNumbers), "\r\n/");
}

bool is_ascii_letter(char c) { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }

// End of DeepSeek V3's pattern at the start of a text, 0 where it does not match.
size_t deepseek_v3_end(const Scanner& text) {
  const Scanner::Char first = text.at(0);
  if (first.code_point < 0x80 && (first.set & (kPunctuationSet | kSymbols)) && is_ascii_letter(text.byte(1))) {
    size_t end = 2;
    while (is_ascii_letter(text.byte(end))) ++end;
    return end;
  }
  const bool leads = !text.is_newline(0) && !(first.set & (kLetters | kPunctuationSet | kSymbols));
  for (const size_t start : {leads ? size_t{first.n_bytes} : 0, size_t{0}}) {
    const size_t end = text.run_end(start, kLetters | kMarks);
    if (end > start) return end;
  }
  return others_end(text, kPunctuationSet | kSymbols, "\r\n");
}

}  // namespace

size_t split_gpt2(std::string_view piece) {
  const Scanner text(piece);
  if (const size_t end = text.contraction_length(0, /*fold_case=*/false)) return end;
  const size_t start = text.byte(0) == ' ' ? 1 : 0;
  const CharSet first = text.at(start).set;
  for (const CharSet wanted : {kLetters, kNumbers, all_but(kLetters | kNumbers | kSpaces)}) {
    if (first & wanted) return text.run_end(start, wanted);
  }
  return text.spaces_end();
}

size_t split_llama3(std::string_view text) { return cl100k_end(Scanner(text), kLlama3); }
size_t split_qwen2(std::string_view text) { return cl100k_end(Scanner(text), kQwen2); }
size_t split_qwen35(std::string_view text) { return cl100k_end(Scanner(text), kQwen35); }
size_t split_seed_coder(std::string_view text) { return cl100k_end(Scanner(text), kSeedCoder); }
size_t split_gpt4o(std::string_view text) { return o200k_end(Scanner(text), /*has_contractions=*/true, 3); }
size_t split_tekken(std::string_view text) { return o200k_end(Scanner(text), /*has_contractions=*/false, 1); }

size_t split_deepseek_v3(std::string_view piece) {
  if (const size_t end = deepseek_v3_end(Scanner(piece))) return end;
  size_t end = 0;
  do {
    end += Scanner(piece.substr(end)).next(0);
  } while (end < piece.size() && deepseek_v3_end(Scanner(piece.substr(end))) == 0);
  return end;
}

}  // namespace hotset
