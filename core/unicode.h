// UTF-8 decoding and the few Unicode properties that tokenizers ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hotset {

// What the splitting patterns distinguish: \p{L}, \p{N}, \s (the property White_Space) and the rest.
enum class CharClass : uint8_t { kOther, kLetter, kNumber, kSpace };

enum class Utf8Status : uint8_t {
  kValid,
  kInvalid,     // cannot become valid, whatever follows
  kIncomplete,  // the text ends inside a character that is valid so far
};

// One step of decoding. `n_bytes` is the length of the character when valid, else of the maximal subpart of an
// ill-formed subsequence (Unicode 16, section 3.9, table 3-8): what one U+FFFD stands for. At least 1.
struct Utf8Char {
  uint32_t code_point;
  uint8_t n_bytes;
  Utf8Status status;
};

constexpr uint32_t kReplacementCharacter = 0xfffd;

// Decodes the character at the start of `text`, which must not be empty. Overlong forms, surrogates and values above
// U+10FFFF are invalid; the code point is then kReplacementCharacter.
Utf8Char decode_utf8(std::string_view text);

// Class of a code point; kOther for anything above U+10FFFF.
CharClass char_class(uint32_t code_point);

// Ranges of code points of one class, ascending, disjoint (unicode_tables.cpp).
struct CharRange {
  uint32_t first, last;
  CharClass char_class;
};
extern const CharRange kCharRanges[];
extern const size_t kNumCharRanges;

}  // namespace hotset
