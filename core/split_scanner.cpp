#include "core/split_scanner.h"

namespace hotset {

size_t Scanner::contraction_length(size_t pos, bool fold_case) const {
  if (byte(pos) != '\'') return 0;
  const auto letter = [&](size_t i) {
    const char c = byte(pos + i);
    return fold_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  // U+017F, the long s, is the one other character that is one of these letters when case is ignored.
  if (fold_case && byte(pos + 1) == '\xc5' && byte(pos + 2) == '\xbf') return 3;
  const char first = letter(1), second = letter(2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if ((first == 'r' || first == 'v') && second == 'e') return 3;
  if (first == 'l' && second == 'l') return 3;
  return 0;
}

size_t Scanner::line_break_end() const {
  size_t end = 0;
  for (size_t pos = 0; is(pos, kSpaces);) {
    const bool is_break = is_newline(pos);
    pos = next(pos);
    if (is_break) end = pos;
  }
  return end;
}

size_t Scanner::spaces_end() const {
  size_t pos = 0, last = 0;
  for (Char c = at(0); c.set & kSpaces; c = at(pos)) {
    last = pos;
    pos += c.n_bytes;
  }
  return at_end(pos) || last == 0 ? pos : last;
}

}  // namespace hotset
