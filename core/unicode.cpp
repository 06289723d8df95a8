#include "core/unicode.h"

#include <algorithm>
#include <array>

namespace hotset {

namespace {

// What a lead byte promises: length of the character and the allowed range of its second byte.
struct LeadByte {
  uint8_t n_bytes, second_min, second_max;
};

LeadByte lead_byte(uint8_t byte) {
  if (byte >= 0xc2 && byte <= 0xdf) return {2, 0x80, 0xbf};
  if (byte == 0xe0) return {3, 0xa0, 0xbf};
  if (byte == 0xed) return {3, 0x80, 0x9f};
  if (byte >= 0xe1 && byte <= 0xef) return {3, 0x80, 0xbf};
  if (byte == 0xf0) return {4, 0x90, 0xbf};
  if (byte >= 0xf1 && byte <= 0xf3) return {4, 0x80, 0xbf};
  if (byte == 0xf4) return {4, 0x80, 0x8f};
  return {0, 0, 0};
}

CharClass search_class(uint32_t code_point) {
  const CharRange* end = kCharRanges + kNumCharRanges;
  const CharRange* range =
      std::lower_bound(kCharRanges, end, code_point, [](const CharRange& r, uint32_t c) { return r.last < c; });
  return range != end && range->first <= code_point ? range->char_class : CharClass::kOther;
}

}  // namespace

Utf8Char decode_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  if (byte(0) < 0x80) return {byte(0), 1, Utf8Status::kValid};
  const LeadByte lead = lead_byte(byte(0));
  if (lead.n_bytes == 0) return {kReplacementCharacter, 1, Utf8Status::kInvalid};
  uint32_t code_point = byte(0) & (0x7fu >> lead.n_bytes);
  for (uint8_t i = 1; i < lead.n_bytes; ++i) {
    if (i == text.size()) return {kReplacementCharacter, i, Utf8Status::kIncomplete};
    const uint8_t low = i == 1 ? lead.second_min : 0x80;
    const uint8_t high = i == 1 ? lead.second_max : 0xbf;
    if (byte(i) < low || byte(i) > high) return {kReplacementCharacter, i, Utf8Status::kInvalid};
    code_point = code_point << 6 | (byte(i) & 0x3fu);
  }
  return {code_point, lead.n_bytes, Utf8Status::kValid};
}

CharClass char_class(uint32_t code_point) {
  // ASCII is most of most texts; a search costs ten comparisons.
  static const std::array<CharClass, 128> kAscii = [] {
    std::array<CharClass, 128> classes{};
    for (uint32_t c = 0; c < classes.size(); ++c) classes[c] = search_class(c);
    return classes;
  }();
  return code_point < kAscii.size() ? kAscii[code_point] : search_class(code_point);
}

}  // namespace hotset
