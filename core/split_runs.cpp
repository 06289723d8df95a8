#include <algorithm>

#include "core/split_scanner.h"
#include "core/split_stages.h"

namespace hotset {

namespace {

struct CodeRange {
  uint32_t first, last;
};

// The letters of DeepSeek LLM's pattern: with case, in the Unicode version of its makers.
constexpr CodeRange kCasedLetters[] = {
    {0x41, 0x5a},       {0x61, 0x7a},       {0xb5, 0xb5},       {0xc0, 0xd6},       {0xd8, 0xf6},
    {0xf8, 0x1ba},      {0x1bc, 0x1bf},     {0x1c4, 0x293},     {0x295, 0x2af},     {0x370, 0x373},
    {0x376, 0x377},     {0x37b, 0x37d},     {0x37f, 0x37f},     {0x386, 0x386},     {0x388, 0x38a},
    {0x38c, 0x38c},     {0x38e, 0x3a1},     {0x3a3, 0x3f5},     {0x3f7, 0x481},     {0x48a, 0x52f},
    {0x531, 0x556},     {0x10a0, 0x10c5},   {0x13a0, 0x13f5},   {0x13f8, 0x13fd},   {0x1c90, 0x1cba},
    {0x1cbd, 0x1cbf},   {0x1d00, 0x1d2b},   {0x1d6b, 0x1d77},   {0x1d79, 0x1d9a},   {0x1e00, 0x1f15},
    {0x1f18, 0x1f1d},   {0x1f20, 0x1f45},   {0x1f48, 0x1f4d},   {0x1f50, 0x1f57},   {0x1f59, 0x1f59},
    {0x1f5b, 0x1f5b},   {0x1f5d, 0x1f5d},   {0x1f5f, 0x1f7d},   {0x1f80, 0x1fb4},   {0x1fb6, 0x1fbc},
    {0x1fbe, 0x1fbe},   {0x1fc2, 0x1fc4},   {0x1fc6, 0x1fcc},   {0x1fd0, 0x1fd3},   {0x1fd6, 0x1fdb},
    {0x1fe0, 0x1fec},   {0x1ff2, 0x1ff4},   {0x1ff6, 0x1ffc},   {0x2102, 0x2102},   {0x2107, 0x2107},
    {0x210a, 0x2113},   {0x2115, 0x2115},   {0x2119, 0x211d},   {0x2124, 0x2124},   {0x2126, 0x2126},
    {0x2128, 0x2128},   {0x212a, 0x212d},   {0x212f, 0x2134},   {0x2139, 0x2139},   {0x213c, 0x213f},
    {0x2145, 0x2149},   {0x214e, 0x214e},   {0x2183, 0x2184},   {0x2c00, 0x2c7b},   {0x2c7e, 0x2ce4},
    {0x2ceb, 0x2cee},   {0x2cf2, 0x2cf3},   {0xa640, 0xa66d},   {0xa680, 0xa69b},   {0xa722, 0xa76f},
    {0xa771, 0xa787},   {0xa78b, 0xa78e},   {0xab70, 0xabbf},   {0xfb00, 0xfb06},   {0xfb13, 0xfb17},
    {0xff21, 0xff3a},   {0xff41, 0xff5a},   {0x10400, 0x1044f}, {0x104b0, 0x104d3}, {0x104d8, 0x104fb},
    {0x10c80, 0x10cb2}, {0x10cc0, 0x10cf2}, {0x118a0, 0x118df}, {0x1e900, 0x1e943},
};
// Its marks: the printable ASCII characters that are neither letter nor digit nor space, their full-width forms, quotes
// and the ideographic space, comma and full stop. The pattern's ":-~" does contain the ASCII letters.
constexpr CodeRange kWideMarks[] = {{0x21, 0x2f},     {0x3a, 0x7e},     {0x2018, 0x201f},
                                    {0x3000, 0x3002}, {0xff01, 0xff0f}, {0xff1a, 0xff5e}};
constexpr CodeRange kAsian[] = {{0x800, 0x9fa5}, {0xac00, 0xd7ff}};
constexpr CodeRange kHanKana[] = {{0x3040, 0x30ff}, {0x4e00, 0x9fa5}};

template <size_t n>
bool is_in(const CodeRange (&ranges)[n], const Scanner::Char& c) {
  if (c.n_bytes == 0) return false;
  const CodeRange* found = std::lower_bound(ranges, ranges + n, c.code_point,
                                            [](const CodeRange& range, uint32_t value) { return range.last < value; });
  return found != ranges + n && found->first <= c.code_point;
}

bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }

// First piece for `[set]+`, the set given by what tells its members.
template <typename IsMember>
size_t run_or_gap(const Scanner& text, IsMember is_member) {
  Scanner::Char c = text.at(0);
  const bool wanted = is_member(c);
  size_t end = 0;
  do {
    end += c.n_bytes;
    c = text.at(end);
  } while (c.n_bytes != 0 && is_member(c) == wanted);
  return end;
}

// First piece for `\s?[set]+`.
template <typename IsMember>
size_t spaced_run_or_gap(const Scanner& text, IsMember is_member) {
  const auto matches = [&](size_t pos) {
    const Scanner::Char c = text.at(pos);
    return is_member(c) || ((c.set & kSpaces) && is_member(text.at(pos + c.n_bytes)));
  };
  size_t end = text.next(0);
  if (matches(0)) {
    for (Scanner::Char c = text.at(end); is_member(c); c = text.at(end)) end += c.n_bytes;
  } else {
    while (!text.at_end(end) && !matches(end)) end = text.next(end);
  }
  return end;
}

size_t set_runs(std::string_view text, CharSet set) {
  return run_or_gap(Scanner(text), [&](const Scanner::Char& c) { return (c.set & set) != 0; });
}

}  // namespace

size_t split_each_number(std::string_view text) {
  const Scanner scanner(text);
  return scanner.is(0, kNumbers) ? scanner.next(0) : set_runs(text, kNumbers);
}

size_t split_three_numbers(std::string_view text) {
  const Scanner scanner(text);
  return scanner.is(0, kNumbers) ? scanner.run_end(0, kNumbers, 3) : set_runs(text, kNumbers);
}

size_t split_punctuation(std::string_view text) {
  return run_or_gap(Scanner(text), [](const Scanner::Char& c) {
    return (c.set & kPunctuationSet) || (c.code_point < 0x80 && (c.set & kSymbols));
  });
}

// Falcon looks for digits after it has replaced bytes by characters, so that the bytes which become one of the numbers
// U+00B2, B3, B9, BC, BD and BE are digits, and characters that contain them come apart.
size_t split_digit_bytes(std::string_view text) {
  constexpr std::string_view kNumberBytes = "0123456789\xb2\xb3\xb9\xbc\xbd\xbe";
  const bool wanted = kNumberBytes.find(text[0]) != std::string_view::npos;
  const size_t end = wanted ? text.find_first_not_of(kNumberBytes) : text.find_first_of(kNumberBytes);
  return std::min(end, text.size());
}

size_t split_three_digits(std::string_view text) {
  const auto matches = [&](size_t pos) {
    return pos + 3 <= text.size() && is_ascii_digit(text[pos]) && is_ascii_digit(text[pos + 1]) &&
           is_ascii_digit(text[pos + 2]);
  };
  if (matches(0)) return 3;
  size_t end = 1;
  while (end < text.size() && !matches(end)) ++end;
  return end;
}

size_t split_newlines(std::string_view text) {
  return text[0] == '\r' || text[0] == '\n' ? 1 : std::min(text.find_first_of("\r\n"), text.size());
}

size_t split_space_letters(std::string_view text) {
  return spaced_run_or_gap(Scanner(text), [](const Scanner::Char& c) { return (c.set & kLetters) != 0; });
}

size_t split_space_marks(std::string_view text) {
  return spaced_run_or_gap(Scanner(text), [](const Scanner::Char& c) { return (c.set & kPunctuationSet) != 0; });
}

size_t split_cased_words(std::string_view text) {
  return spaced_run_or_gap(Scanner(text), [](const Scanner::Char& c) { return is_in(kCasedLetters, c); });
}

size_t split_wide_marks(std::string_view text) {
  return spaced_run_or_gap(Scanner(text), [](const Scanner::Char& c) { return is_in(kWideMarks, c); });
}

size_t split_trailing_spaces(std::string_view text) {
  const Scanner scanner(text);
  size_t spaces = 0, pos = 0;  // start of the last run of white space so far
  for (Scanner::Char c = scanner.at(0); c.n_bytes != 0; c = scanner.at(pos)) {
    pos += c.n_bytes;
    if (!(c.set & kSpaces)) spaces = pos;
  }
  return spaces > 0 ? spaces : pos;
}

size_t split_asian(std::string_view text) {
  return run_or_gap(Scanner(text), [](const Scanner::Char& c) { return is_in(kAsian, c); });
}

size_t split_han_kana(std::string_view text) {
  return run_or_gap(Scanner(text), [](const Scanner::Char& c) { return is_in(kHanKana, c); });
}

size_t split_space_powers(std::string_view text) {
  constexpr size_t kMaxSpaces = 512;
  const Scanner scanner(text);
  // A single space may lead a word, and line breaks stay with the white space before them.
  if (text.back() == '\n' || text.back() == '\r' || !scanner.is(scanner.next(0), kSpaces)) return text.size();
  size_t n_spaces = 0;
  for (size_t pos = 0; n_spaces < kMaxSpaces && scanner.is(pos, kSpaces); pos = scanner.next(pos)) ++n_spaces;
  size_t n_taken = kMaxSpaces;
  while (n_taken > n_spaces) n_taken /= 2;
  return scanner.run_end(0, kSpaces, n_taken);
}

}  // namespace hotset
