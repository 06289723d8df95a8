#include "core/machine_rates.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>

#include "core/error.h"
#include "core/json.h"

namespace hotset {
namespace {

using Kind = JsonValue::Kind;

constexpr double kMaxGbps = 1e6;
constexpr int64_t kMaxStreams = 64;
constexpr size_t kMaxEntries = 256;                // of a list
constexpr int64_t kMaxBytes = int64_t{1} << 53;  // integers up to here are exact in JSON's numbers

// Typed look-ups in one object of the document; `path` is for the message.
class Members {
 public:
  Members(const std::string& where, std::string path, const JsonValue& value)
      : where_(where), path_(std::move(path)), value_(value) {
    if (!value.is(Kind::kObject)) fail(path_, "an object");
  }

  const JsonValue& need(const std::string& key, const char* expected) const {
    const JsonValue* found = value_.find(key);
    if (!found) fail(path_ + "." + key, expected);
    return *found;
  }

  double number(const std::string& key, double low, double high) const {
    const JsonValue& found = need(key, "a number");
    if (!found.is(Kind::kNumber) || found.number < low || found.number > high)
      fail(path_ + "." + key, cat("a number from ", low, " to ", high));
    return found.number;
  }

  int64_t integer(const std::string& key, int64_t low, int64_t high) const {
    const double found = number(key, static_cast<double>(low), static_cast<double>(high));
    if (found != std::floor(found)) fail(path_ + "." + key, "an integer");
    return static_cast<int64_t>(found);
  }

  // The member, unless it is null or not there.
  const JsonValue* optional(const std::string& key) const {
    const JsonValue* found = value_.find(key);
    return found && !found->is(Kind::kNull) ? found : nullptr;
  }

  // null reads as "".
  std::string text(const std::string& key) const {
    const JsonValue& found = need(key, "a text");
    if (found.is(Kind::kNull)) return "";
    if (!found.is(Kind::kText)) fail(path_ + "." + key, "a text");
    return found.text;
  }

  // One Members for each object of a list.
  std::vector<Members> list(const std::string& key) const {
    const JsonValue& found = need(key, "a list");
    if (!found.is(Kind::kArray) || found.items.size() > kMaxEntries)
      fail(path_ + "." + key, cat("a list of at most ", kMaxEntries));
    std::vector<Members> out;
    for (const JsonValue& item : found.items)
      out.emplace_back(where_, cat(path_, ".", key, "[", out.size(), "]"), item);
    return out;
  }

  [[noreturn]] void fail(const std::string& path, const std::string& expected) const {
    throw Error(error_text(where_, "bad machine rates at " + path, expected, "something else or nothing",
                           "run 'hotset bench --machine' again"));
  }

 private:
  const std::string& where_;
  std::string path_;
  const JsonValue& value_;
};

std::vector<GatheredRate> gathered_rates(const Members& members, bool of_cpu) {
  std::vector<GatheredRate> out;
  std::set<std::pair<int64_t, double>> seen;
  for (const Members& each : members.list("gathered")) {
    GatheredRate rate;
    rate.row_bytes = each.integer("row_bytes", 1, int64_t{1} << 40);
    rate.density = each.number("density", 1e-6, 1);
    rate.gbps = each.number("gbps", 1e-6, kMaxGbps);
    if (of_cpu) {
      rate.streams = static_cast<int32_t>(each.integer("streams", 1, kMaxStreams));
      rate.ahead_rows = static_cast<int32_t>(each.integer("ahead_rows", 0, 1 << 20));
    }
    if (!seen.insert({rate.row_bytes, rate.density}).second) each.fail("row_bytes, density", "each pair once");
    out.push_back(rate);
  }
  return out;
}

ReadRates read_rates(const Members& members) {
  ReadRates out;
  out.pages = members.text("pages");
  if (out.pages != "normal" && out.pages != "huge") members.fail("pages", "normal or huge");
  out.n_threads = static_cast<int32_t>(members.integer("n_threads", 1, 65536));
  out.dense_gbps = members.number("dense_gbps", 1e-6, kMaxGbps);
  out.dense_streams = static_cast<int32_t>(members.integer("dense_streams", 1, kMaxStreams));
  out.gathered = gathered_rates(members, /*of_cpu=*/true);
  return out;
}

GpuRates gpu_rates(const Members& members) {
  GpuRates out;
  out.name = members.text("name");
  out.memory_bytes = static_cast<uint64_t>(members.integer("memory_bytes", 1, kMaxBytes));
  out.dense_gbps = members.number("dense_gbps", 1e-6, kMaxGbps);
  out.gathered = gathered_rates(members, /*of_cpu=*/false);
  return out;
}

// The measured thread count that stands for `n_threads`; 0 when there is none.
int32_t nearest_threads(const std::vector<ReadRates>& read, int32_t n_threads) {
  int32_t below = 0, smallest = 0;
  for (const ReadRates& rates : read) {
    if (rates.n_threads <= n_threads) below = std::max(below, rates.n_threads);
    if (smallest == 0 || rates.n_threads < smallest) smallest = rates.n_threads;
  }
  return below > 0 ? below : smallest;
}

// Where `value` lies between two neighbours of the ascending list: index of the lower one, and the share of the upper.
struct Place {
  size_t below = 0, above = 0;
  double share = 0;
};

Place place_of(const std::vector<double>& values, double value) {
  const size_t above = static_cast<size_t>(std::lower_bound(values.begin(), values.end(), value) - values.begin());
  if (above == 0) return {0, 0, 0};
  if (above == values.size()) return {above - 1, above - 1, 0};
  const double low = std::log(values[above - 1]), high = std::log(values[above]);
  return {above - 1, above, (std::log(value) - low) / (high - low)};
}

double mixed(double low, double high, double share) { return low + (high - low) * share; }

// Rate at (row_bytes, density) from a grid that may have holes at no place that was measured with the others.
double interpolated(double dense_gbps, const std::vector<GatheredRate>& gathered, double row_bytes, double density) {
  std::set<double> size_set, density_set{1.0};
  for (const GatheredRate& each : gathered) {
    size_set.insert(static_cast<double>(each.row_bytes));
    density_set.insert(each.density);
  }
  const std::vector<double> sizes(size_set.begin(), size_set.end()), densities(density_set.begin(), density_set.end());
  const auto at = [&](size_t size, size_t place) {
    for (const GatheredRate& each : gathered)
      if (static_cast<double>(each.row_bytes) == sizes[size] && each.density == densities[place]) return each.gbps;
    return dense_gbps;  // density 1
  };
  const Place s = place_of(sizes, row_bytes), d = place_of(densities, density);
  return mixed(mixed(at(s.below, d.below), at(s.below, d.above), d.share),
               mixed(at(s.above, d.below), at(s.above, d.above), d.share), s.share);
}

}  // namespace

double MachineRates::dense_gbps(int32_t n_threads) const {
  double best = 0;
  const int32_t measured = nearest_threads(read, n_threads);
  for (const ReadRates& rates : read)
    if (rates.n_threads == measured) best = std::max(best, rates.dense_gbps);
  return best;
}

double MachineRates::gathered_gbps(int32_t n_threads, double row_bytes, double density) const {
  double best = 0;
  const int32_t measured = nearest_threads(read, n_threads);
  for (const ReadRates& rates : read)
    if (rates.n_threads == measured && !rates.gathered.empty())
      best = std::max(best, interpolated(rates.dense_gbps, rates.gathered, row_bytes, density));
  return best;
}

std::vector<double> MachineRates::densities(int32_t n_threads) const {
  std::set<double> out;
  const int32_t measured = nearest_threads(read, n_threads);
  for (const ReadRates& rates : read)
    if (rates.n_threads == measured)
      for (const GatheredRate& each : rates.gathered) out.insert(each.density);
  return {out.begin(), out.end()};
}

double GpuRates::gathered_gbps(double row_bytes, double density) const {
  return gathered.empty() ? dense_gbps : interpolated(dense_gbps, gathered, row_bytes, density);
}

MachineRates parse_machine_rates(const std::string& where, std::string_view text) {
  const JsonValue document = parse_json(where, text);
  const Members root(where, "", document);
  if (root.text("format") != "hotset-machine") root.fail(".format", "\"hotset-machine\"");
  root.integer("version", kMachineRatesVersion, kMachineRatesVersion);
  MachineRates out;
  const Members hardware(where, ".hardware", root.need("hardware", "an object"));
  out.cpu = hardware.text("cpu");
  out.n_cores = static_cast<int32_t>(hardware.integer("n_cores", 1, 65536));
  out.memory_bytes = static_cast<uint64_t>(hardware.integer("memory_bytes", 0, kMaxBytes));
  out.cache_bytes = static_cast<uint64_t>(hardware.integer("cache_bytes", 0, kMaxBytes));
  out.buffer_bytes = static_cast<uint64_t>(root.integer("buffer_bytes", 1, kMaxBytes));
  std::set<std::pair<std::string, int32_t>> seen;
  for (const Members& each : root.list("read")) {
    out.read.push_back(read_rates(each));
    if (!seen.insert({out.read.back().pages, out.read.back().n_threads}).second)
      each.fail(".read", "each pair of pages and n_threads once");
  }
  if (out.read.empty()) root.fail(".read", "at least one entry");
  if (const JsonValue* gpu = root.optional("gpu")) out.gpu = gpu_rates(Members(where, ".gpu", *gpu));
  if (const JsonValue* value = root.optional("pcie")) {
    const Members pcie(where, ".pcie", *value);
    out.pcie = PcieRates{pcie.number("h2d_gbps", 1e-6, kMaxGbps), pcie.number("d2h_gbps", 1e-6, kMaxGbps)};
  }
  if (root.optional("handoff_us")) out.handoff_us = root.number("handoff_us", 0, 1e9);
  out.gpu_reason = root.text("gpu_reason");
  return out;
}

MachineRates load_machine_rates(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxJsonBytes + 1, '\0');  // one more than is allowed: parse_json refuses it
  if (file) file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file && file.gcount() == 0)
    throw Error(error_text(quoted(path, 300), "machine rates", "a readable file", "none or an empty one",
                           "run 'hotset bench --machine'"));
  text.resize(static_cast<size_t>(file.gcount()));
  return parse_machine_rates(quoted(path, 300), text);
}

}  // namespace hotset
