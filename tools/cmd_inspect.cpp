// `hotset inspect`: what a GGUF file holds, and whether and how it will run.
#include <algorithm>
#include <charconv>
#include <map>

#include "tools/common.h"
#include "tools/json.h"

namespace hotset::cli {
namespace {

struct TypeTotal {
  int64_t n_tensors = 0;
  uint64_t n_bytes = 0;
};

std::map<std::string, TypeTotal> totals_by_type(const Inspection& inspection) {
  std::map<std::string, TypeTotal> totals;
  for (const auto& tensor : inspection.tensors) {
    TypeTotal& total = totals[tensor.type];
    total.n_tensors += 1;
    total.n_bytes += tensor.n_bytes;
  }
  return totals;
}

std::string text_report(const Inspection& inspection) {
  std::string out = cat("file      ", printable(inspection.path), ", ", bytes_text(inspection.file_bytes),
                        ", GGUF version ", inspection.version, "\n");
  out += cat("weights   ", inspection.n_params, " in ", inspection.tensors.size(), " tensors\n");
  for (const auto& [type, total] : totals_by_type(inspection)) {
    out += cat("          ", type, ": ", total.n_tensors, " tensors, ", bytes_text(total.n_bytes), "\n");
  }
  out += cat(inspection.runs ? "runs      yes: " : "runs      no: ", printable(inspection.verdict), "\n");
  if (inspection.runs) out += cat("model     fingerprint ", inspection.fingerprint, "\n");
  out += "\nmetadata\n";
  for (const auto& entry : inspection.metadata) {
    out += cat("  ", printable(entry.key), " (", entry.type, ") = ", printable(entry.value), "\n");
  }
  size_t widest = 0;
  for (const auto& tensor : inspection.tensors) widest = std::max(widest, printable(tensor.name).size());
  widest = std::min<size_t>(widest, 40);
  out += "\ntensors\n";
  for (const auto& tensor : inspection.tensors) {
    std::string name = printable(tensor.name);
    name.resize(std::max(name.size(), widest), ' ');
    out += cat("  ", name, "  ", tensor.type, "  ", tensor.shape, "  ", tensor.n_bytes, " bytes\n");
  }
  return out;
}

// The numbers of "(256, 1024)".
std::vector<int64_t> shape_numbers(const std::string& text) {
  std::vector<int64_t> numbers;
  const char* end = text.data() + text.size();
  for (const char* at = text.data(); at < end;) {
    int64_t number = 0;
    const auto result = std::from_chars(at, end, number);
    if (result.ec == std::errc()) numbers.push_back(number);
    at = result.ec == std::errc() ? result.ptr : at + 1;
  }
  return numbers;
}

std::string json_report(const Inspection& inspection) {
  JsonWriter json;
  json.begin_object();
  json.field("path", inspection.path).field("file_bytes", inspection.file_bytes).field("version", inspection.version);
  json.field("n_params", inspection.n_params).field("runs", inspection.runs).field("verdict", inspection.verdict);
  json.field("fingerprint", inspection.fingerprint);
  json.key("types").begin_object();
  for (const auto& [type, total] : totals_by_type(inspection)) {
    json.key(type).begin_object();
    json.field("n_tensors", total.n_tensors).field("n_bytes", total.n_bytes).end_object();
  }
  json.end_object();
  json.key("metadata").begin_array();
  for (const auto& entry : inspection.metadata) {
    json.begin_object().field("key", entry.key).field("type", entry.type).field("value", entry.value).end_object();
  }
  json.end_array();
  json.key("tensors").begin_array();
  for (const auto& tensor : inspection.tensors) {
    json.begin_object().field("name", tensor.name).field("type", tensor.type);
    json.field("shape", shape_numbers(tensor.shape)).field("n_bytes", tensor.n_bytes).end_object();
  }
  json.end_array();
  json.end_object();
  return json.text() + "\n";
}

}  // namespace

int cmd_inspect(const Words& words) {
  Args args("inspect",
            "Shows metadata, tensors and sizes of a GGUF file, and whether and how it will run (exit 1: it will not).");
  ModelFlags flags;
  bool as_json = false;
  args.positional("[FILE]", "same as -m FILE", flags.path);
  add_vocabulary_flags(args, flags);
  args.flag("--json", "print one JSON object", as_json);
  if (parse_or_help(args, words)) return kExitDone;

  const Inspection inspection = inspect(model_path(flags));
  write_stdout(as_json ? json_report(inspection) : text_report(inspection));
  return inspection.runs ? kExitDone : kExitFailed;
}

}  // namespace hotset::cli
