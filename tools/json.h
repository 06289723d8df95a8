// JSON as the commands write it, and the one shape of JSON that they read.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace hotset::cli {

// A string literal with quotes. Bytes that are not UTF-8 become U+FFFD, so that the output is always valid JSON.
std::string json_string(std::string_view text);

// The shortest text that reads back as the same number; "null" for NaN and infinity, which JSON does not have.
std::string json_number(double value);
std::string json_number(float value);

// Builds one document. Separators are put where they belong; begin and end must match.
class JsonWriter {
 public:
  JsonWriter& begin_object() { return open('{'); }
  JsonWriter& end_object() { return close('}'); }
  JsonWriter& begin_array() { return open('['); }
  JsonWriter& end_array() { return close(']'); }
  JsonWriter& key(std::string_view name);

  JsonWriter& value(std::string_view text) { return raw(json_string(text)); }
  JsonWriter& value(const std::string& text) { return raw(json_string(text)); }
  JsonWriter& value(const char* text) { return raw(json_string(text)); }
  JsonWriter& value(double number) { return raw(json_number(number)); }
  JsonWriter& value(float number) { return raw(json_number(number)); }
  JsonWriter& value(bool truth) { return raw(truth ? "true" : "false"); }
  JsonWriter& value(int32_t number) { return raw(std::to_string(number)); }
  JsonWriter& value(int64_t number) { return raw(std::to_string(number)); }
  JsonWriter& value(uint32_t number) { return raw(std::to_string(number)); }
  JsonWriter& value(uint64_t number) { return raw(std::to_string(number)); }
  JsonWriter& null() { return raw("null"); }

  template <class T>
  JsonWriter& value(const std::vector<T>& items) {
    begin_array();
    for (const T& item : items) value(item);
    return end_array();
  }

  template <class T>
  JsonWriter& field(std::string_view name, const T& content) {
    return key(name).value(content);
  }

  // A value that is JSON already.
  JsonWriter& raw(std::string_view json);

  const std::string& text() const { return text_; }

 private:
  JsonWriter& open(char bracket);
  JsonWriter& close(char bracket);

  std::string text_;
  bool needs_comma_ = false;
};

// Reads `[1, 2, 3]`, white space anywhere, nothing else. Memory is bounded by the text's length.
// Throws Error for anything that is not a list of 32-bit integers; `where` is for the message.
std::vector<int32_t> parse_json_int_list(const std::string& where, std::string_view text);

}  // namespace hotset::cli
