#include "tools/args.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>

#include "core/error.h"

namespace hotset::cli {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t start = 0;
  for (;;) {
    const size_t end = text.find(separator, start);
    parts.push_back(text.substr(start, end - start));
    if (end == std::string::npos) return parts;
    start = end + 1;
  }
}

std::string range_text(IntRange range) {
  const bool low = range.low != std::numeric_limits<int64_t>::min();
  const bool high = range.high != std::numeric_limits<int64_t>::max();
  if (low && high) return cat("an integer from ", range.low, " to ", range.high);
  return low ? cat("an integer of at least ", range.low) : high ? cat("an integer up to ", range.high) : "an integer";
}

std::string range_text(RealRange range) {
  if (range.excludes_low) return cat("a number above ", range.low, ", up to ", range.high);
  return cat("a number from ", range.low, " to ", range.high);
}

[[noreturn]] void bad_value(const std::string& where, const std::string& option, const std::string& expected,
                            const std::string& got) {
  throw UsageError(error_text(where, "bad value of " + option, expected, quoted(got), "correct the value"));
}

// One number with nothing before or after it.
template <class T>
bool read_number(const std::string& text, T& value) {
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  return !text.empty() && result.ec == std::errc() && result.ptr == end;
}

}  // namespace

int64_t parse_int(const std::string& where, const std::string& option, const std::string& text, IntRange range) {
  int64_t value = 0;
  if (!read_number(text, value) || value < range.low || value > range.high) {
    bad_value(where, option, range_text(range), text);
  }
  return value;
}

float parse_real(const std::string& where, const std::string& option, const std::string& text, RealRange range) {
  double parsed = 0;
  const bool is_number = read_number(text, parsed) && std::abs(parsed) <= std::numeric_limits<float>::max();
  const float value = is_number ? static_cast<float>(parsed) : 0;  // checked as float: a tiny number may become 0
  if (!is_number || value < range.low || value > range.high || (range.excludes_low && value == range.low)) {
    bad_value(where, option, range_text(range), text);
  }
  return value;
}

std::vector<int64_t> parse_int_list(const std::string& where, const std::string& option, const std::string& text,
                                    IntRange range) {
  std::vector<int64_t> values;
  for (const std::string& part : split(text, ',')) {
    int64_t value = 0;
    if (!read_number(part, value) || value < range.low || value > range.high) {
      bad_value(where, option, range_text(range) + ", or several with commas between", text);
    }
    values.push_back(value);
  }
  return values;
}

uint64_t parse_size(const std::string& where, const std::string& option, const std::string& text) {
  static const std::pair<const char*, double> kUnits[] = {
      {"", 1},           {"B", 1},          {"K", 0x1p10},     {"KiB", 0x1p10}, {"KB", 1e3},      {"M", 0x1p20},
      {"MiB", 0x1p20},   {"MB", 1e6},       {"G", 0x1p30},     {"GiB", 0x1p30}, {"GB", 1e9},      {"T", 0x1p40},
      {"TiB", 0x1p40},   {"TB", 1e12}};
  const size_t n_digits = std::min(text.find_first_not_of("0123456789."), text.size());
  double value = 0;
  if (read_number(text.substr(0, n_digits), value)) {
    for (const auto& [unit, factor] : kUnits) {
      if (text.substr(n_digits) == unit && value * factor < 0x1p60) return static_cast<uint64_t>(value * factor);
    }
  }
  bad_value(where, option, "a size such as 8GiB or 8000MiB, or auto", text);
}

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> cost(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) cost[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) cost[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = cost[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
      cost[i][j] = std::min({cost[i - 1][j] + 1, cost[i][j - 1] + 1, replace});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) cost[i][j] = std::min(cost[i][j], cost[i - 2][j - 2] + 1);
    }
  }
  return cost[a.size()][b.size()];
}

std::string nearest(const std::string& name, const std::vector<std::string>& candidates) {
  const std::string start = name.substr(0, 64);  // longer ones are no slip of the finger
  std::string best;
  size_t best_distance = std::numeric_limits<size_t>::max();
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(start, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

Args::Args(std::string command, std::string summary) : command_(std::move(command)), summary_(std::move(summary)) {}

void Args::add(const std::string& names, const std::string& value, const std::string& help,
               std::function<void(const std::string&)> set) {
  options_.push_back({split(names, ','), value, help, std::move(set)});
}

void Args::flag(const std::string& names, const std::string& help, bool& target) {
  add(names, "", help, [&target](const std::string&) { target = true; });
}

void Args::text(const std::string& names, const std::string& value, const std::string& help, std::string& target) {
  add(names, value, help, [&target](const std::string& text) { target = text; });
}

void Args::integer(const std::string& names, const std::string& help, int64_t& target, IntRange range) {
  add(names, "N", help,
      [this, names, range, &target](const std::string& text) { target = parse_int(command_, names, text, range); });
}

void Args::real(const std::string& names, const std::string& help, float& target, RealRange range) {
  add(names, "X", help, [this, names, range, &target](const std::string& text) {
    target = parse_real(command_, names, text, range);
  });
}

void Args::int_list(const std::string& names, const std::string& help, std::vector<int64_t>& target, IntRange range) {
  add(names, "N,..", help, [this, names, range, &target](const std::string& text) {
    target = parse_int_list(command_, names, text, range);
  });
}

void Args::size(const std::string& names, const std::string& help, std::string& target) {
  add(names, "SIZE", help, [this, names, &target](const std::string& text) {
    if (text != "auto") parse_size(command_, names, text);
    target = text;
  });
}

void Args::choice(const std::string& names, const std::string& choices, const std::string& help, std::string& target) {
  add(names, choices, help, [this, names, choices, &target](const std::string& text) {
    const std::vector<std::string> known = split(choices, '|');
    if (std::find(known.begin(), known.end(), text) == known.end()) bad_value(command_, names, choices, text);
    target = text;
  });
}

void Args::positional(const std::string& value, const std::string& help, std::string& target) {
  positional_.push_back({{value}, value, help, [&target](const std::string& text) { target = text; }});
}

const Args::Option& Args::find(const std::string& name) const {
  std::vector<std::string> known;
  for (const Option& option : options_) {
    if (std::find(option.names.begin(), option.names.end(), name) != option.names.end()) return option;
    known.insert(known.end(), option.names.begin(), option.names.end());
  }
  known.push_back("--help");
  throw UsageError(error_text(command_, "unknown option", "an option of 'hotset " + command_ + "'", quoted(name),
                              "did you mean " + nearest(name, known) + "? 'hotset " + command_ +
                                  " --help' lists all"));
}

void Args::take_positional(const std::string& word) {
  for (const Option& option : positional_) {
    if (!given_.insert(option.names[0]).second) continue;
    option.set(word);
    return;
  }
  const std::string remedy = "see 'hotset " + command_ + " --help'";
  throw UsageError(error_text(command_, "unexpected argument", "options only", quoted(word), remedy));
}

bool Args::parse(const std::vector<std::string>& words) {
  for (size_t i = 0; i < words.size(); ++i) {
    std::string name = words[i];
    if (name == "-h" || name == "--help") return true;
    if (name.size() < 2 || name[0] != '-') {
      take_positional(name);
      continue;
    }
    const size_t equals = name.rfind("--", 0) == 0 ? name.find('=') : std::string::npos;
    const bool has_inline = equals != std::string::npos;
    const std::string inline_value = has_inline ? name.substr(equals + 1) : "";
    name = name.substr(0, equals);
    const Option& option = find(name);
    const bool takes_value = !option.value.empty();
    if (has_inline && !takes_value) bad_value(command_, name, "no value", inline_value);
    if (takes_value && !has_inline && i + 1 == words.size()) {
      throw UsageError(error_text(command_, "missing value", name + " " + option.value, "nothing after " + name,
                                  "add the value"));
    }
    option.set(!takes_value ? "" : has_inline ? inline_value : words[++i]);
    given_.insert(option.names.begin(), option.names.end());
  }
  return false;
}

std::string Args::help() const {
  constexpr size_t kColumn = 34;
  std::string arguments;
  for (const Option& option : positional_) arguments += " " + option.value;
  std::string out = "usage: hotset " + command_ + arguments + " [options]\n\n" + summary_ + "\n\noptions:\n";
  const auto line = [&](std::string left, const std::string& right) {
    left = "  " + left;
    left += left.size() + 2 > kColumn ? "\n" + std::string(kColumn, ' ') : std::string(kColumn - left.size(), ' ');
    out += left + right + "\n";
  };
  for (const Option& option : positional_) line(option.value, option.help);
  for (const Option& option : options_) {
    std::string left;
    for (const std::string& name : option.names) left += (left.empty() ? "" : ", ") + name;
    line(option.value.empty() ? left : left + " " + option.value, option.help);
  }
  line("-h, --help", "show this text");
  return out;
}

}  // namespace hotset::cli
