// A strict reader of small JSON documents (RFC 8259): hostile input ends in an Error, memory is bounded by the length.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace hotset {

// One value of a document; owns what it holds.
struct JsonValue {
  enum class Kind { kNull, kBool, kNumber, kText, kArray, kObject };

  Kind kind = Kind::kNull;
  bool truth = false;
  double number = 0;
  std::string text;
  std::vector<JsonValue> items;   // of an array or an object, in the document's order
  std::vector<std::string> keys;  // of an object: item i is the member keys[i]

  bool is(Kind wanted) const { return kind == wanted; }
  // The member of an object; nullptr when this is no object or has none of that name.
  const JsonValue* find(std::string_view key) const;
};

// Longest text and deepest nesting of arrays and objects that are read. A value takes up to about 100 bytes of memory.
inline constexpr size_t kMaxJsonBytes = 256 << 10;
inline constexpr int kMaxJsonDepth = 16;

// Throws Error, naming `where` and the byte, for anything that is not one JSON value: also duplicate keys, bytes that
// are not UTF-8, lone surrogates, numbers beyond double, and texts beyond the limits above.
JsonValue parse_json(const std::string& where, std::string_view text);

}  // namespace hotset
