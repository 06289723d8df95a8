#include "core/json.h"

#include <charconv>
#include <cmath>

#include "core/error.h"
#include "core/unicode.h"

namespace hotset {
namespace {

void append_utf8(std::string& out, uint32_t code) {
  const auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xc0 | code >> 6);
  } else {
    if (code < 0x10000) {
      put(0xe0 | code >> 12);
    } else {
      put(0xf0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3f));
    }
    put(0x80 | (code >> 6 & 0x3f));
  }
  put(0x80 | (code & 0x3f));
}

// Recursive descent from left to right; recursion ends at kMaxJsonDepth.
class Reader {
  using Kind = JsonValue::Kind;

 public:
  Reader(const std::string& where, std::string_view text) : where_(where), text_(text) {}

  JsonValue document() {
    if (text_.size() > kMaxJsonBytes) fail(cat("at most ", kMaxJsonBytes, " bytes"));
    JsonValue out = value(0);
    if (skip_space() != '\0' || at_ < text_.size()) fail("nothing after the value");
    return out;
  }

 private:
  // The next byte that is no white space, not taken; NUL at the end.
  char skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos) ++at_;
    return peek();
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool take_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  JsonValue value(int depth) {
    JsonValue out;
    switch (skip_space()) {
      case '{': read_object(out, depth + 1); return out;
      case '[': read_array(out, depth + 1); return out;
      case '"':
        out.kind = Kind::kText;
        out.text = string();
        return out;
    }
    if (take_word("null")) return out;
    out.kind = Kind::kBool;
    out.truth = take_word("true");
    if (out.truth || take_word("false")) return out;
    out.kind = Kind::kNumber;
    out.number = number();
    return out;
  }

  void enter(int depth) {
    if (depth > kMaxJsonDepth) fail(cat("at most ", kMaxJsonDepth, " levels"));
    ++at_;
  }

  void read_array(JsonValue& out, int depth) {
    enter(depth);
    out.kind = Kind::kArray;
    if (skip_space() != ']') {
      do out.items.push_back(value(depth));
      while (skip_space() == ',' && take(','));
    }
    if (!take(']')) fail("',' or ']'");
  }

  void read_object(JsonValue& out, int depth) {
    enter(depth);
    out.kind = Kind::kObject;
    if (skip_space() != '}') {
      do {
        if (skip_space() != '"') fail("a key");
        std::string key = string();
        if (out.find(key)) fail("each key once");  // quadratic, in objects of a few members
        if (out.keys.size() == kMaxMembers) fail(cat("at most ", kMaxMembers, " members"));
        if (skip_space() != ':' || !take(':')) fail("':'");
        out.keys.push_back(std::move(key));
        out.items.push_back(value(depth));
      } while (skip_space() == ',' && take(','));
    }
    if (!take('}')) fail("',' or '}'");
  }

  std::string string() {
    ++at_;
    std::string out;
    while (!take('"')) {
      if (at_ >= text_.size()) fail("the end of the string");
      if (static_cast<unsigned char>(text_[at_]) < 0x20) fail("no control characters in a string");
      if (take('\\')) {
        escape(out);
        continue;
      }
      const Utf8Char c = decode_utf8(text_.substr(at_));
      if (c.status != Utf8Status::kValid) fail("UTF-8");
      out += text_.substr(at_, c.n_bytes);
      at_ += c.n_bytes;
    }
    return out;
  }

  void escape(std::string& out) {
    constexpr std::string_view kLetters = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    const size_t index = at_ < text_.size() ? kLetters.find(text_[at_]) : std::string_view::npos;
    if (index != std::string_view::npos) {
      ++at_;
      out += kMeanings[index];
      return;
    }
    if (!take('u')) fail("an escape such as \\n");
    uint32_t code = four_digits();
    if (code >= 0xd800 && code < 0xdc00 && take_word("\\u")) {
      const uint32_t low = four_digits();
      if (low < 0xdc00 || low > 0xdfff) fail("a low surrogate");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    if (code >= 0xd800 && code < 0xe000) fail("a pair of surrogates");
    append_utf8(out, code);
  }

  uint32_t four_digits() {
    uint32_t code = 0;
    const std::string_view digits = text_.substr(at_, 4);
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (digits.size() < 4 || digits[0] == '-' || result.ptr != digits.data() + 4) fail("four hexadecimal digits");
    at_ += 4;
    return code;
  }

  size_t digits() {
    const size_t start = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ - start;
  }

  double number() {
    const size_t start = at_;
    take('-');
    const bool leading_zero = peek() == '0';
    const size_t n_digits = digits();
    if (n_digits == 0 || (leading_zero && n_digits > 1)) fail("a JSON value");
    if (take('.') && digits() == 0) fail("digits after '.'");
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      if (digits() == 0) fail("digits of an exponent");
    }
    double out = 0;
    const auto result = std::from_chars(text_.data() + start, text_.data() + at_, out);
    if (result.ec != std::errc()) fail("a number that a double can hold");
    return out;
  }

  [[noreturn]] void fail(const std::string& expected) const {
    const bool at_end = at_ >= text_.size();
    const std::string got = at_end ? "the end of the text" : quoted(std::string(text_.substr(at_, 21)), 20);
    throw Error(error_text(where_, cat("bad JSON at byte ", at_), expected, got, "write the file anew"));
  }

  static constexpr size_t kMaxMembers = 256;

  const std::string& where_;
  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

const JsonValue* JsonValue::find(std::string_view key) const {
  for (size_t i = 0; i < items.size() && i < keys.size(); ++i)
    if (keys[i] == key) return &items[i];
  return nullptr;
}

JsonValue parse_json(const std::string& where, std::string_view text) { return Reader(where, text).document(); }

}  // namespace hotset
