#include "tools/json.h"

#include <charconv>
#include <cmath>

#include "core/error.h"
#include "tools/io.h"

namespace hotset::cli {
namespace {

template <class T>
std::string number_text(T value) {
  if (!std::isfinite(value)) return "null";
  char buffer[64];
  const auto result = std::to_chars(buffer, buffer + sizeof buffer, value);
  return std::string(buffer, result.ptr);
}

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// Reads the list from left to right; knows where it is for the messages.
class IntListReader {
 public:
  IntListReader(const std::string& where, std::string_view text) : where_(where), text_(text) {}

  std::vector<int32_t> read() {
    std::vector<int32_t> values;
    take('[', "a JSON list such as [1, 2, 3]");
    if (peek() != ']') {
      values.push_back(integer());
      while (peek() == ',') {
        ++at_;
        values.push_back(integer());
      }
    }
    take(']', "',' or ']'");
    skip_space();
    if (at_ != text_.size()) fail("nothing after the list");
    return values;
  }

 private:
  void skip_space() {
    while (at_ < text_.size() && is_space(text_[at_])) ++at_;
  }
  char peek() {
    skip_space();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  void take(char c, const std::string& expected) {
    if (peek() != c || at_ == text_.size()) fail(expected);
    ++at_;
  }
  int32_t integer() {
    skip_space();
    int32_t value = 0;
    const char* start = text_.data() + at_;
    const auto result = std::from_chars(start, text_.data() + text_.size(), value);
    if (result.ec != std::errc()) fail("a 32-bit integer");
    const bool negative = *start == '-';
    const bool leading_zero = start[negative] == '0' && result.ptr - start > (negative ? 2 : 1);
    if (leading_zero) fail("an integer without leading zeros");
    at_ += static_cast<size_t>(result.ptr - start);
    return value;
  }
  [[noreturn]] void fail(const std::string& expected) const {
    const bool at_end = at_ >= text_.size();
    const std::string got = at_end ? "the end of the text" : quoted(std::string(text_.substr(at_, 21)), 20);
    const std::string remedy = "pass the output of 'hotset tokenize'";
    throw Error(error_text(where_, cat("bad list at byte ", at_), expected, got, remedy));
  }

  const std::string& where_;
  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

std::string json_string(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const unsigned char c = static_cast<unsigned char>(text[0]);
    size_t n = utf8_length(text);
    if (n == 0) {
      out += "\xef\xbf\xbd";
      n = 1;
    } else if (c == '"' || c == '\\') {
      out += '\\';
      out += text[0];
    } else if (c == '\n') {
      out += "\\n";
    } else if (c < 0x20 || c == 0x7f) {
      out += text_of("\\u%04x", c);
    } else {
      out.append(text.substr(0, n));
    }
    text.remove_prefix(n);
  }
  return out + "\"";
}

std::string json_number(double value) { return number_text(value); }
std::string json_number(float value) { return number_text(value); }

JsonWriter& JsonWriter::raw(std::string_view json) {
  if (needs_comma_) text_ += ", ";
  text_ += json;
  needs_comma_ = true;
  return *this;
}

JsonWriter& JsonWriter::key(std::string_view name) {
  raw(json_string(name));
  text_ += ": ";
  needs_comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::open(char bracket) {
  raw(std::string_view(&bracket, 1));
  needs_comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::close(char bracket) {
  text_ += bracket;
  needs_comma_ = true;
  return *this;
}

std::vector<int32_t> parse_json_int_list(const std::string& where, std::string_view text) {
  return IntListReader(where, text).read();
}

}  // namespace hotset::cli
