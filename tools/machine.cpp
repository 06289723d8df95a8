#include "tools/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#include "core/error.h"
#include "cpu/read_rates.h"

namespace hotset::cli {
namespace {

constexpr uint64_t kSmallestBuffer = uint64_t{16} << 20;

constexpr const char* kFeatures[] = {"sse4_2",      "avx",         "avx2",     "fma",      "f16c",     "avx_vnni",
                                     "avx512f",     "avx512bw",    "avx512vl", "amx_tile", "amx_int8", "amx_bf16",
                                     "avx512_vnni", "avx512_bf16", "asimd",    "asimddp",  "sve",      "i8mm"};

// "model name\t: AMD EPYC" -> {"model name", "AMD EPYC"}
std::pair<std::string, std::string> split_line(const std::string& line) {
  const size_t colon = line.find(':');
  if (colon == std::string::npos) return {};
  const size_t key_end = line.find_last_not_of(" \t", colon == 0 ? 0 : colon - 1);
  const size_t value = line.find_first_not_of(" \t", colon + 1);
  return {line.substr(0, key_end + 1), value == std::string::npos ? "" : line.substr(value)};
}

std::vector<std::string> known_features(const std::string& line) {
  std::istringstream words(line);
  std::set<std::string> present;
  for (std::string word; words >> word;) present.insert(word);
  std::vector<std::string> found;
  for (const char* name : kFeatures) {
    if (present.count(name) != 0) found.emplace_back(name);
  }
  return found;
}

void read_cpuinfo(Machine& machine) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  const bool has_mask = sched_getaffinity(0, sizeof allowed, &allowed) == 0;
  machine.n_logical = has_mask ? CPU_COUNT(&allowed) : static_cast<int>(std::thread::hardware_concurrency());
  std::set<std::pair<std::string, std::string>> cores;
  std::string package;
  int processor = -1;
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const auto [key, value] = split_line(line);
    if (key == "processor") processor = std::atoi(value.c_str());
    if (key == "model name") machine.cpu = value;
    if (key == "physical id") package = value;
    const bool is_allowed = !has_mask || (processor >= 0 && processor < CPU_SETSIZE && CPU_ISSET(processor, &allowed));
    if (key == "core id" && is_allowed) cores.insert({package, value});
    if (machine.features.empty() && (key == "flags" || key == "Features")) machine.features = known_features(value);
  }
  machine.n_physical = cores.empty() ? machine.n_logical : static_cast<int>(cores.size());
}

void read_memory(Machine& machine) {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    const auto [key, value] = split_line(line);
    if (key == "MemTotal") machine.memory_bytes = std::strtoull(value.c_str(), nullptr, 10) << 10;
    if (key == "MemAvailable") machine.free_bytes = std::strtoull(value.c_str(), nullptr, 10) << 10;
  }
  uint64_t limit = 0;
  uint64_t used = 0;
  if (!(std::ifstream("/sys/fs/cgroup/memory.max") >> limit)) return;  // "max": no limit
  std::ifstream("/sys/fs/cgroup/memory.current") >> used;
  machine.memory_bytes = std::min(machine.memory_bytes, limit);
  machine.free_bytes = std::min(machine.free_bytes, limit - std::min(used, limit));
}

// "32768K", "32M" as bytes; 0 when it is neither.
uint64_t cache_size(const std::string& text) {
  char unit = ' ';
  uint64_t value = 0;
  std::istringstream(text) >> value >> unit;
  return unit == 'K' ? value << 10 : unit == 'M' ? value << 20 : 0;
}

// Sizes of the caches of the highest level there is, each counted once however many processors share it.
void read_caches(Machine& machine) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  int top_level = 0;
  std::map<std::string, uint64_t> caches;  // by the list of processors that share it
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    for (int index = 0; index < 8; ++index) {
      const std::string folder = cat("/sys/devices/system/cpu/cpu", cpu, "/cache/index", index, "/");
      int level = 0;
      std::string size, shared;
      if (!(std::ifstream(folder + "level") >> level)) break;
      std::ifstream(folder + "size") >> size;
      std::ifstream(folder + "shared_cpu_list") >> shared;
      if (level < top_level) continue;
      if (level > top_level) caches.clear();
      top_level = level;
      caches[shared] = cache_size(size);
    }
  }
  for (const auto& [shared, n_bytes] : caches) machine.cache_bytes += n_bytes;
}

}  // namespace

Machine probe_machine() {
  Machine machine;
  read_cpuinfo(machine);
  read_memory(machine);
  read_caches(machine);
  std::string choices;
  std::getline(std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled") >> std::ws, choices);
  machine.has_huge_pages = !choices.empty() && choices.find("[never]") == std::string::npos;
  return machine;
}

double measure_read_gbps(int n_threads, uint64_t free_bytes) {
  n_threads = std::max(n_threads, 1);
  const uint64_t n_bytes = std::min<uint64_t>(free_bytes / 4, uint64_t{512} << 20);
  if (n_bytes < kSmallestBuffer) return 0;
  try {
    cpu::ReadMeter meter(n_bytes, /*huge_pages=*/false, n_threads);
    cpu::ReadSeries series = cpu::ReadSeries::dense(n_threads);
    meter.visit(series, 0.5);
    return series.rate().gbps;
  } catch (const std::exception&) {
    return 0;
  }
}

uint64_t resident_memory_bytes() {
  uint64_t size = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> size >> resident;
  const long page_bytes = sysconf(_SC_PAGESIZE);
  return page_bytes > 0 ? resident * static_cast<uint64_t>(page_bytes) : 0;
}

std::string machine_rates_path() {
  const auto folder = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value != nullptr && value[0] == '/' ? value : "";  // the specification has relative ones ignored
  };
  const std::string cache = folder("XDG_CACHE_HOME"), home = folder("HOME");
  if (cache.empty() && home.empty()) return "";
  return (cache.empty() ? home + "/.cache" : cache) + "/hotset/machine.json";
}

std::optional<MachineRates> known_machine_rates(std::string& note) {
  note.clear();
  const std::string path = machine_rates_path();
  if (path.empty() || !std::ifstream(path)) return std::nullopt;
  try {
    MachineRates rates = load_machine_rates(path);
    const Machine machine = probe_machine();
    if (rates.cpu == machine.cpu && rates.n_cores == machine.n_physical) return rates;
    note = cat("machine rates of other hardware are left out (", rates.cpu, ", ", rates.n_cores,
               " cores): run 'hotset bench --machine' here");
  } catch (const Error& error) {
    note = error.what();
  }
  return std::nullopt;
}

}  // namespace hotset::cli
