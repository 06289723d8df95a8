// UTF-8 decoding and the few Unicode properties that tokenizers ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hotset {

// What the splitting patterns distinguish: \p{Lu} and \p{Lt}, \p{Ll}, the letters without case (\p{Lm} and \p{Lo}),
// \p{M}, \p{N}, \p{P}, \p{S}, \s (the property White_Space) and the rest. The generator of the table knows the order.
enum class CharClass : uint8_t { kOther, kUpper, kLower, kUncased, kMark, kNumber, kPunctuation, kSymbol, kSpace };

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

// Classes of the code points below kNumBmp, for loops that ask for every character.
constexpr uint32_t kNumBmp = 0x10000;
const CharClass* bmp_classes();

// Runs of code points of one class, ascending, from U+0000 on: first code point << 4 | class (unicode_tables.cpp).
extern const uint32_t kCharRuns[];
extern const size_t kNumCharRuns;

}  // namespace hotset
