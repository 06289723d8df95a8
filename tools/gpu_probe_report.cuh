// What gpu_probe says and is asked, without CUDA: errors, statistics, options, tables, JSON.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace hotset::probe {

/// A failure to report as `[where] what: expected X, got Y; do Z`.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Wrong use of the command line (exit code 2).
struct UsageError : Error {
  using Error::Error;
};

using Clock = std::chrono::steady_clock;

/// Seconds from `start` to now.
inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// ---- statistics ----

/// Order statistics of a set of samples, in the unit of the samples.
struct Summary {
  std::size_t n = 0;
  double min = 0, median = 0, p99 = 0, max = 0;
};

/// Returns the nearest-rank quantile `q` in (0, 1] of ascending, non-empty `sorted`.
inline double quantile(const std::vector<double>& sorted, double q) {
  if (sorted.empty()) throw Error("[quantile] samples: expected at least one, got none; measure before summarising");
  const double rank = std::ceil(q * static_cast<double>(sorted.size()));
  const std::size_t index = rank < 1 ? 0 : static_cast<std::size_t>(rank) - 1;
  return sorted[std::min(index, sorted.size() - 1)];
}

/// Summarises `samples`; throws on an empty set.
inline Summary summarize(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const double median = quantile(samples, 0.5);
  return {samples.size(), samples.front(), median, quantile(samples, 0.99), samples.back()};
}

/// Calls `measure() -> double` until `seconds` are over or `max_n` samples are taken, but at least `min_n` times.
template <class Measure>
std::vector<double> repeat(double seconds, std::size_t min_n, std::size_t max_n, Measure&& measure) {
  std::vector<double> samples;
  const auto start = Clock::now();
  while (samples.size() < min_n || (samples.size() < max_n && seconds_since(start) < seconds)) {
    samples.push_back(measure());
  }
  return samples;
}

// ---- options ----

/// What the command line asks for.
struct Options {
  double seconds = 3.0;           // time for the measurements of one part
  std::string json_path;          // empty: no file
  std::vector<std::string> only;  // empty: every part
  bool list = false, help = false, self_test = false;
};

/// Parses the arguments after the program name; throws UsageError.
inline Options parse_options(const std::vector<std::string>& args, const std::vector<std::string>& part_names) {
  Options options;
  std::string known;
  for (const std::string& name : part_names) known += (known.empty() ? "" : ", ") + name;
  for (std::size_t i = 0; i < args.size(); ++i) {
    const std::string& flag = args[i];
    const auto value = [&]() -> const std::string& {
      if (i + 1 == args.size()) throw UsageError("[args] " + flag + ": expected a value, got none; see --help");
      return args[++i];
    };
    if (flag == "--help" || flag == "-h") {
      options.help = true;
    } else if (flag == "--list") {
      options.list = true;
    } else if (flag == "--self-test") {
      options.self_test = true;
    } else if (flag == "--json") {
      options.json_path = value();
    } else if (flag == "--only") {
      const std::string& part = value();
      if (std::find(part_names.begin(), part_names.end(), part) == part_names.end()) {
        throw UsageError("[args] --only: expected one of " + known + ", got '" + part + "'; see --list");
      }
      options.only.push_back(part);
    } else if (flag == "--seconds") {
      const std::string& text = value();
      char* end = nullptr;
      options.seconds = std::strtod(text.c_str(), &end);
      if (text.empty() || *end != '\0' || !(options.seconds >= 0.1 && options.seconds <= 60)) {
        throw UsageError("[args] --seconds: expected a number from 0.1 to 60, got '" + text + "'; see --help");
      }
    } else {
      throw UsageError("[args] flag: expected --seconds, --only, --json, --list, --self-test or --help, got '" + flag +
                       "'; see --help");
    }
  }
  return options;
}

// ---- tables and JSON ----

/// One value of a table. (std::variant with a string makes gcc 12 warn of uninitialized use where there is none.)
struct Cell {
  enum class Kind { text, number, flag };

  Cell(const char* value) : text(value) {}
  Cell(std::string value) : text(std::move(value)) {}
  Cell(double value) : kind(Kind::number), number(value) {}
  Cell(bool value) : kind(Kind::flag), number(value) {}

  Kind kind = Kind::text;
  double number = 0;  // not finite: a dash in the table, null in JSON
  std::string text;
};

/// A titled table; a column's unit is the end of its name (`_us`, `_gbps`, `_bytes`).
struct Table {
  std::string title;
  std::vector<std::string> columns;
  std::vector<std::vector<Cell>> rows;

  /// Appends a row; missing cells on the right become empty text.
  void add(std::vector<Cell> row) {
    if (row.size() > columns.size()) throw Error("[table] " + title + ": expected fewer cells; give it more columns");
    row.resize(columns.size(), Cell(""));
    rows.push_back(std::move(row));
  }
};

/// Result of one part. `tables` keeps what was measured before a failure.
struct PartResult {
  std::string name, status, error;  // status: running, ok or failed
  double seconds = 0;
  std::deque<Table> tables;  // deque: a part holds references to its tables while it adds more
};

/// Everything the program found out.
struct Report {
  std::vector<std::pair<std::string, Cell>> machine;
  std::deque<PartResult> parts;
};

/// Formats a number for people: whole numbers whole, others with three or four digits.
inline std::string format_number(double x) {
  if (!std::isfinite(x)) return "-";
  const double size = std::fabs(x);
  const bool whole = x == std::floor(x) && size < 1e15;
  char text[64];
  std::snprintf(text, sizeof text, whole ? "%.0f" : size >= 100 ? "%.1f" : size >= 1 ? "%.2f" : "%.4f", x);
  return text;
}

inline std::string format_cell(const Cell& cell) {
  if (cell.kind == Cell::Kind::number) return format_number(cell.number);
  if (cell.kind == Cell::Kind::flag) return cell.number != 0 ? "yes" : "no";
  return cell.text;
}

/// Renders a table with aligned columns: the first and any text on the left, numbers on the right.
inline std::string render(const Table& table) {
  std::vector<std::size_t> width;
  for (const std::string& column : table.columns) width.push_back(column.size());
  for (const auto& row : table.rows) {
    for (std::size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], format_cell(row[c]).size());
  }
  std::string out = table.title + "\n";
  const auto line = [&](const std::function<std::pair<std::string, bool>(std::size_t)>& cell) {
    std::string text = " ";
    for (std::size_t c = 0; c < width.size(); ++c) {
      const auto [content, to_right] = cell(c);
      const std::string fill(width[c] - content.size(), ' ');
      text += " " + (to_right ? fill + content : content + fill) + " ";
    }
    out += text.substr(0, text.find_last_not_of(' ') + 1) + "\n";
  };
  const auto is_number = [&](std::size_t r, std::size_t c) {
    return r < table.rows.size() && table.rows[r][c].kind == Cell::Kind::number;
  };
  line([&](std::size_t c) { return std::pair(table.columns[c], is_number(0, c)); });
  for (std::size_t r = 0; r < table.rows.size(); ++r) {
    line([&](std::size_t c) { return std::pair(format_cell(table.rows[r][c]), is_number(r, c)); });
  }
  return out;
}

/// Quotes `text` as a JSON string; control characters are escaped, other bytes are passed on.
inline std::string json_quote(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(c));
      out += code;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

inline std::string json_cell(const Cell& cell) {
  if (cell.kind == Cell::Kind::text) return json_quote(cell.text);
  if (cell.kind == Cell::Kind::flag) return cell.number != 0 ? "true" : "false";
  if (!std::isfinite(cell.number)) return "null";
  char text[40];
  std::snprintf(text, sizeof text, "%.12g", cell.number);
  return text;
}

inline std::string json_table(const Table& table) {
  std::string out = "{\"title\": " + json_quote(table.title) + ", \"rows\": [";
  for (std::size_t r = 0; r < table.rows.size(); ++r) {
    out += r ? ",\n      {" : "\n      {";
    for (std::size_t c = 0; c < table.columns.size(); ++c) {
      out += (c ? ", " : "") + json_quote(table.columns[c]) + ": " + json_cell(table.rows[r][c]);
    }
    out += "}";
  }
  return out + "]}";
}

/// Writes the report as JSON: `{"machine": {..}, "parts": [{name, status, error, seconds, tables: [{title, rows}]}]}`.
inline std::string to_json(const Report& report) {
  std::string out = "{\"gpu_probe\": 1,\n \"machine\": {";
  for (std::size_t i = 0; i < report.machine.size(); ++i) {
    const auto& [name, cell] = report.machine[i];
    out += (i ? ",\n   " : "\n   ") + json_quote(name) + ": " + json_cell(cell);
  }
  out += "},\n \"parts\": [";
  for (std::size_t p = 0; p < report.parts.size(); ++p) {
    const PartResult& part = report.parts[p];
    out += (p ? ",\n  {" : "\n  {") + std::string("\"name\": ") + json_quote(part.name) +
           ", \"status\": " + json_quote(part.status) + ", \"error\": " + json_quote(part.error) +
           ", \"seconds\": " + json_cell(part.seconds) + ",\n   \"tables\": [";
    for (std::size_t t = 0; t < part.tables.size(); ++t) {
      out += (t ? ",\n    " : "\n    ") + json_table(part.tables[t]);
    }
    out += "]}";
  }
  return out + "]}\n";
}

/// Replaces the file `path` with `text`; throws if it cannot be written whole.
inline void write_file(const std::string& path, const std::string& text) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  const bool written = file && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  const bool closed = file && std::fclose(file) == 0;
  if (!written || !closed) {
    throw Error("[json] " + path + ": expected a file that can be written, got an error; give another path to --json");
  }
}

}  // namespace hotset::probe
