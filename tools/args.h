// Command-line options as a table: each flag is declared once, with its help text, its check and its target.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace hotset::cli {

// The command line is wrong: exit code 2. what() has the shape of every hotset error.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct IntRange {
  int64_t low = std::numeric_limits<int64_t>::min();
  int64_t high = std::numeric_limits<int64_t>::max();
};

struct RealRange {
  float low;
  float high;
  bool excludes_low = false;
};

// Values of options, checked in full: trailing characters, overflow, NaN and infinity are refused.
// `where` and `option` are for the message. All throw UsageError.
int64_t parse_int(const std::string& where, const std::string& option, const std::string& text, IntRange range);
float parse_real(const std::string& where, const std::string& option, const std::string& text, RealRange range);
std::vector<int64_t> parse_int_list(const std::string& where, const std::string& option, const std::string& text,
                                    IntRange range);
// "8GiB", "8000MiB", "7.5G" (binary), "8GB" (decimal), "1024" (bytes).
uint64_t parse_size(const std::string& where, const std::string& option, const std::string& text);

// Fewest insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
size_t edit_distance(const std::string& a, const std::string& b);

// The candidate with the smallest edit distance; "" when there are none.
std::string nearest(const std::string& name, const std::vector<std::string>& candidates);

// The options of one command. Targets keep their value unless the option is given; the last of several wins.
class Args {
 public:
  Args(std::string command, std::string summary);

  // `names` is a comma-separated list such as "-p,--prompt".
  void flag(const std::string& names, const std::string& help, bool& target);
  void text(const std::string& names, const std::string& value, const std::string& help, std::string& target);
  void integer(const std::string& names, const std::string& help, int64_t& target, IntRange range);
  void real(const std::string& names, const std::string& help, float& target, RealRange range);
  void int_list(const std::string& names, const std::string& help, std::vector<int64_t>& target, IntRange range);
  void size(const std::string& names, const std::string& help, std::string& target);  // a size or "auto", kept as text
  // `choices` is "a|b|c".
  void choice(const std::string& names, const std::string& choices, const std::string& help, std::string& target);
  // The next argument without a name; they are taken in the order of declaration.
  void positional(const std::string& value, const std::string& help, std::string& target);

  // Reads the words after the command's name. Returns true when help was asked for: show help() and stop.
  // Throws UsageError; an unknown option names the nearest known one.
  [[nodiscard]] bool parse(const std::vector<std::string>& words);

  bool given(const std::string& name) const { return given_.count(name) != 0; }
  std::string help() const;
  const std::string& command() const { return command_; }

 private:
  struct Option {
    std::vector<std::string> names;
    std::string value;  // "" = takes none
    std::string help;
    std::function<void(const std::string&)> set;
  };
  void add(const std::string& names, const std::string& value, const std::string& help,
           std::function<void(const std::string&)> set);
  const Option& find(const std::string& name) const;
  void take_positional(const std::string& word);

  std::string command_;
  std::string summary_;
  std::vector<Option> options_;
  std::vector<Option> positional_;
  std::set<std::string> given_;     // every name of each option that was given
};

}  // namespace hotset::cli
