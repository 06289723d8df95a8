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

CharClass class_of_run(size_t run) { return static_cast<CharClass>(kCharRuns[run] & 0xf); }

std::array<CharClass, kNumBmp> make_bmp_classes() {
  std::array<CharClass, kNumBmp> classes;
  for (size_t run = 0; run < kNumCharRuns && kCharRuns[run] >> 4 < kNumBmp; ++run) {
    const uint32_t end = run + 1 < kNumCharRuns ? kCharRuns[run + 1] >> 4 : kNumBmp;
    std::fill(classes.begin() + (kCharRuns[run] >> 4), classes.begin() + std::min(end, kNumBmp), class_of_run(run));
  }
  return classes;
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

const CharClass* bmp_classes() {
  static const std::array<CharClass, kNumBmp> kClasses = make_bmp_classes();
  return kClasses.data();
}

CharClass char_class(uint32_t code_point) {
  if (code_point < kNumBmp) return bmp_classes()[code_point];
  if (code_point > 0x10ffff) return CharClass::kOther;
  const uint32_t* after = std::upper_bound(kCharRuns, kCharRuns + kNumCharRuns, code_point << 4 | 0xf);
  return class_of_run(static_cast<size_t>(after - kCharRuns) - 1);
}

}  // namespace hotset
