// Reads characters of a text with their classes: what the splitting scanners have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/unicode.h"

namespace hotset {

// A set of character classes. The end of a text is in no set, so that runs end there.
using CharSet = uint16_t;

constexpr CharSet set_of(CharClass char_class) { return static_cast<CharSet>(1u << static_cast<unsigned>(char_class)); }

constexpr CharSet kUncasedSet = set_of(CharClass::kUncased), kMarks = set_of(CharClass::kMark);
constexpr CharSet kNumbers = set_of(CharClass::kNumber), kSpaces = set_of(CharClass::kSpace);
constexpr CharSet kPunctuationSet = set_of(CharClass::kPunctuation), kSymbols = set_of(CharClass::kSymbol);
constexpr CharSet kLetters = set_of(CharClass::kUpper) | set_of(CharClass::kLower) | kUncasedSet;
constexpr CharSet kAnyChar = 0x1ff;

constexpr CharSet all_but(CharSet set) { return static_cast<CharSet>(kAnyChar & ~set); }

// Positions count bytes. Bytes that are not UTF-8 are characters of class kOther, one for each maximal subpart.
class Scanner {
 public:
  struct Char {
    uint32_t code_point;
    CharSet set;      // the one class of the character; 0 at the end of the text
    uint8_t n_bytes;  // 0 at the end of the text
  };

  explicit Scanner(std::string_view text) : text_(text), classes_(bmp_classes()) {}

  size_t size() const { return text_.size(); }
  bool at_end(size_t pos) const { return pos >= text_.size(); }
  char byte(size_t pos) const { return at_end(pos) ? '\0' : text_[pos]; }
  bool is_newline(size_t pos) const { return byte(pos) == '\r' || byte(pos) == '\n'; }

  Char at(size_t pos) const {
    if (at_end(pos)) return {0, 0, 0};
    const uint8_t first = static_cast<uint8_t>(text_[pos]);
    if (first < 0x80) return {first, set_of(classes_[first]), 1};
    const Utf8Char c = decode_utf8(text_.substr(pos));
    const bool is_valid = c.status == Utf8Status::kValid;
    const CharClass char_class = !is_valid                ? CharClass::kOther
                                 : c.code_point < kNumBmp ? classes_[c.code_point]
                                                          : hotset::char_class(c.code_point);
    return {c.code_point, set_of(char_class), c.n_bytes};
  }
  bool is(size_t pos, CharSet set) const { return at(pos).set & set; }
  size_t next(size_t pos) const { return pos + at(pos).n_bytes; }

  // End of the run of characters of a set that starts at `pos`, at most `max_chars` long.
  size_t run_end(size_t pos, CharSet set, size_t max_chars = SIZE_MAX) const {
    for (size_t i = 0; i < max_chars; ++i) {
      const Char c = at(pos);
      if (!(c.set & set)) break;
      pos += c.n_bytes;
    }
    return pos;
  }

  // End of the run of bytes out of `bytes` that starts at `pos`.
  size_t bytes_end(size_t pos, std::string_view bytes) const {
    while (!at_end(pos) && bytes.find(text_[pos]) != std::string_view::npos) ++pos;
    return pos;
  }

  // Length of 's 't 're 've 'm 'll 'd at `pos`, 0 if there is none.
  size_t contraction_length(size_t pos, bool fold_case) const;

  // End of `\s*[\r\n]+` at the start of the text: after the last line break of the leading white space, 0 without one.
  size_t line_break_end() const;

  // End of `\s+(?!\S)|\s+` at the start of the text: all white space at the end of the text; else the last character is
  // left for what follows, unless it is the only one.
  size_t spaces_end() const;

 private:
  std::string_view text_;
  const CharClass* classes_;
};

}  // namespace hotset
