// Formats: Linux Documentation/ABI/stable/sysfs-devices-system-cpu, -node; admin-guide/cgroup-v2 (cpu.max) and
// scheduler/sched-bwc (cgroup v1).
#include "core/topology.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>
#include <tuple>

#include "core/error.h"

namespace hotset {
namespace {

constexpr int32_t kMaxProcessors = 8192;
constexpr int32_t kMaxNodes = 1024;
// A core below this share of the fastest one's speed is of a slower kind. Favoured cores of one kind differ by a few
// percent, kinds by a third or more (Zen 5 and 5c: 0.65).
constexpr double kSameKind = 0.7;

// The first line of a small file; "" when there is none.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line(16384, '\0');
  file.getline(line.data(), static_cast<std::streamsize>(line.size()));
  line.resize(line.find('\0'));
  return line;
}

// A whole number of a text that holds nothing else but spaces around it; `other` when it is not one.
int64_t number(const std::string& text, int64_t other) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  const size_t end = text.find_last_not_of(" \t\r\n");
  if (begin == std::string::npos) return other;
  int64_t value = 0;
  const char* stop = text.data() + end + 1;
  const auto [at, error] = std::from_chars(text.data() + begin, stop, value);
  return error == std::errc() && at == stop ? value : other;
}

bool contains(const std::vector<int32_t>& sorted, int32_t value) {
  return std::binary_search(sorted.begin(), sorted.end(), value);
}

std::vector<int32_t> affinity() {
  std::vector<cpu_set_t> mask(kMaxProcessors / CPU_SETSIZE);
  const size_t n_bytes = mask.size() * sizeof(cpu_set_t);
  std::vector<int32_t> out;
  if (::sched_getaffinity(0, n_bytes, mask.data()) == 0)
    for (int32_t cpu = 0; cpu < kMaxProcessors; ++cpu)
      if (CPU_ISSET_S(static_cast<size_t>(cpu), n_bytes, mask.data())) out.push_back(cpu);
  return out;
}

// Processors of `cpu` that the list in `path` gives; only itself when the list makes no sense.
std::vector<int32_t> group_of(const std::string& path, int32_t cpu) {
  std::vector<int32_t> list = parse_cpu_list(first_line(path));
  return contains(list, cpu) ? list : std::vector<int32_t>{cpu};
}

int32_t l3_of(const std::string& folder, int32_t cpu) {
  for (int index = 0; index < 8; ++index) {
    const std::string cache = cat(folder, "/cache/index", index);
    if (number(first_line(cache + "/level"), 0) == 3) return group_of(cache + "/shared_cpu_list", cpu).front();
  }
  return -1;
}

std::map<int32_t, int32_t> nodes_by_processor(const std::string& root) {
  const std::string folder = root + "/sys/devices/system/node";
  std::map<int32_t, int32_t> out;
  for (const int32_t node : parse_cpu_list(first_line(folder + "/online"))) {
    if (node >= kMaxNodes) break;
    for (const int32_t cpu : parse_cpu_list(first_line(cat(folder, "/node", node, "/cpulist")))) out.emplace(cpu, node);
  }
  return out;
}

// What ranks a core. cpu_capacity (ARM and newer x86 kernels) counts the kind of core, cpuinfo_max_freq comes close.
int64_t speed_of(const std::string& folder, const char* file) {
  return std::clamp<int64_t>(number(first_line(folder + file), 0), 0, int64_t{1} << 40);
}

// Sets speeds from one file per core, if every core has it.
bool read_speeds(std::vector<CpuCore>& cores, const std::string& cpus, const char* file) {
  for (CpuCore& core : cores) {
    core.speed = speed_of(cat(cpus, "/cpu", core.processors[0]), file);
    if (core.speed == 0) {
      for (CpuCore& each : cores) each.speed = 0;
      return false;
    }
  }
  return true;
}

// Tells performance cores from others: by Intel's list of efficiency cores, else by speed.
void classify(std::vector<CpuCore>& cores, const std::string& root) {
  const std::string cpus = root + "/sys/devices/system/cpu";
  if (!read_speeds(cores, cpus, "/cpu_capacity")) read_speeds(cores, cpus, "/cpufreq/cpuinfo_max_freq");
  std::vector<int32_t> slow = parse_cpu_list(first_line(root + "/sys/devices/cpu_atom/cpus"));
  const std::vector<int32_t> low_power = parse_cpu_list(first_line(root + "/sys/devices/cpu_lowpower/cpus"));
  slow.insert(slow.end(), low_power.begin(), low_power.end());
  std::sort(slow.begin(), slow.end());
  int64_t fastest = 0;
  for (const CpuCore& core : cores) fastest = std::max(fastest, core.speed);
  for (CpuCore& core : cores)
    core.performance = slow.empty() ? static_cast<double>(core.speed) >= kSameKind * static_cast<double>(fastest)
                                    : !contains(slow, core.processors[0]);
  if (std::none_of(cores.begin(), cores.end(), [](const CpuCore& core) { return core.performance; }))
    for (CpuCore& core : cores) core.performance = true;  // this process may use only the slower kind
}

// Best first. Within a node the level-3 caches take turns: each brings its own cache and its own way to memory.
void sort_cores(std::vector<CpuCore>& cores) {
  std::stable_sort(cores.begin(), cores.end(), [](const CpuCore& a, const CpuCore& b) { return a.speed > b.speed; });
  std::map<std::tuple<bool, int32_t, int32_t>, int32_t> n_before;
  std::vector<std::tuple<bool, int32_t, int32_t, size_t>> keys;
  for (size_t i = 0; i < cores.size(); ++i) {
    const bool slow = !cores[i].performance;
    keys.emplace_back(slow, cores[i].node, n_before[{slow, cores[i].node, cores[i].l3}]++, i);
    if (cores[i].l3 < 0) std::get<2>(keys.back()) = 0;
  }
  std::sort(keys.begin(), keys.end());
  std::vector<CpuCore> sorted;
  for (const auto& key : keys) sorted.push_back(std::move(cores[std::get<3>(key)]));
  cores = std::move(sorted);
}

// The lowest limit on the way from the process's group `path` up to the mounted root, read by `limit(folder)`.
template <class Limit>
double lowest_limit(const std::string& mount, std::string path, const Limit& limit) {
  if (path.find("..") != std::string::npos || path.size() > 4096) path.clear();  // outside of what is mounted here
  double out = 0;
  while (true) {
    const double here = limit(mount + path);
    if (here > 0 && (out == 0 || here < out)) out = here;
    if (path.empty()) return out;
    path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
  }
}

double share(int64_t quota, int64_t period) {
  return quota > 0 && period > 0 ? static_cast<double>(quota) / static_cast<double>(period) : 0;
}

double read_quota(const std::string& root) {
  const std::string mount = root + "/sys/fs/cgroup";
  std::ifstream groups(root + "/proc/self/cgroup");
  double out = 0;
  const auto take = [&](double limit) { out = limit > 0 && (out == 0 || limit < out) ? limit : out; };
  const auto v2 = [](const std::string& folder) {  // "QUOTA PERIOD" or "max PERIOD"
    std::istringstream words(first_line(folder + "/cpu.max"));
    std::string quota, period;
    words >> quota >> period;
    return share(number(quota, 0), number(period, 0));
  };
  const auto v1 = [](const std::string& folder) {
    return share(number(first_line(folder + "/cpu.cfs_quota_us"), 0),
                 number(first_line(folder + "/cpu.cfs_period_us"), 0));
  };
  std::string line;
  for (int n = 0; n < 64 && std::getline(groups, line); ++n) {  // ID:CONTROLLERS:PATH
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    const std::string path = line.size() == second + 2 ? "" : line.substr(second + 1);
    if (names.empty()) take(lowest_limit(mount, path, v2));
    if (("," + names + ",").find(",cpu,") == std::string::npos) continue;
    take(lowest_limit(mount + "/" + names, path, v1));
    if (names != "cpu") take(lowest_limit(mount + "/cpu", path, v1));
  }
  return out;
}

// Files of a control group's memory, version 2 and 1, below the root, which is where a container sees its own group.
struct MemoryGroup {
  const char *limit, *used, *stat;
  const char* cache;  // pages of files that can be dropped at once, a line of `stat`
};
constexpr MemoryGroup kMemoryGroups[] = {
    {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file"},
    {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
     "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file"}};

// The number a file begins with; 0 when it does not ("max"), or is not there.
uint64_t first_number(const std::string& path) {
  std::ifstream file(path);
  uint64_t out = 0;
  return file >> out ? out : 0;
}

// The number behind a name at the start of a line; 0 when there is none.
uint64_t named_number(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  std::string word, rest;
  for (uint64_t value = 0; file >> word >> value; std::getline(file, rest))
    if (word == name) return value;
  return 0;
}

}  // namespace

std::vector<int32_t> parse_cpu_list(const std::string& text) {
  std::vector<int32_t> out;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    const size_t dash = part.find('-', 1);
    const int64_t low = number(part.substr(0, dash), -1);
    const int64_t high = dash == std::string::npos ? low : number(part.substr(dash + 1), -1);
    if (low < 0 || high < low || high >= kMaxProcessors || out.size() > size_t{kMaxProcessors}) return {};
    for (int64_t i = low; i <= high; ++i) out.push_back(static_cast<int32_t>(i));
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

Topology read_topology(const std::string& root, std::vector<int32_t> allowed) {
  const std::string cpus = root + "/sys/devices/system/cpu";
  if (allowed.empty()) allowed = affinity();
  if (allowed.empty()) allowed = {0};
  std::sort(allowed.begin(), allowed.end());
  std::vector<int32_t> usable;
  const std::vector<int32_t> online = parse_cpu_list(first_line(cpus + "/online"));
  std::set_intersection(allowed.begin(), allowed.end(), online.begin(), online.end(), std::back_inserter(usable));
  if (usable.empty()) usable = allowed;
  const std::map<int32_t, int32_t> nodes = nodes_by_processor(root);
  Topology out;
  std::map<int32_t, size_t> core_of;  // by the lowest sibling
  for (const int32_t cpu : usable) {
    const std::string folder = cat(cpus, "/cpu", cpu);
    const int32_t first = group_of(folder + "/topology/thread_siblings_list", cpu).front();
    const auto [at, is_new] = core_of.emplace(first, out.cores.size());
    if (is_new) {
      const auto node = nodes.find(cpu);
      out.cores.push_back({{}, node == nodes.end() ? 0 : node->second, l3_of(folder, cpu), 0, true});
    }
    out.cores[at->second].processors.push_back(cpu);
  }
  classify(out.cores, root);
  sort_cores(out.cores);
  out.n_processors = static_cast<int32_t>(usable.size());
  out.n_performance = static_cast<int32_t>(
      std::count_if(out.cores.begin(), out.cores.end(), [](const CpuCore& core) { return core.performance; }));
  out.quota = read_quota(root);
  return out;
}

int32_t Topology::default_threads() const {
  const double limit = quota > 0 ? std::max(1.0, std::floor(quota)) : n_performance;
  return static_cast<int32_t>(std::min<double>(n_performance, limit));
}

int32_t physical_cores() { return read_topology().default_threads(); }

std::vector<int32_t> Topology::nodes() const {
  std::vector<int32_t> out;
  for (const CpuCore& core : cores) out.push_back(core.node);
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

std::vector<std::vector<int32_t>> place_threads(const Topology& topology, int32_t n_threads, const std::string& pin) {
  const size_t n = static_cast<size_t>(std::max(n_threads, 1));
  std::vector<std::vector<int32_t>> out;
  // With more threads than cores some share one, and the scheduler knows better which.
  if (pin == "off" || n > topology.cores.size()) return out;
  if (pin == "on") {
    for (size_t i = 0; i < n; ++i) out.push_back({topology.cores[i].processors[0]});
    return out;
  }
  const size_t n_performance = static_cast<size_t>(topology.n_performance);
  if (n > n_performance || n_performance == topology.cores.size()) return out;
  std::vector<int32_t> fast;
  for (size_t i = 0; i < n_performance; ++i)
    fast.insert(fast.end(), topology.cores[i].processors.begin(), topology.cores[i].processors.end());
  out.assign(n, fast);
  return out;
}

std::string describe(const Topology& topology) {
  const auto count = [](int64_t n, const char* what) { return cat(n, " ", what, n == 1 ? "" : "s"); };
  const int64_t n_cores = static_cast<int64_t>(topology.cores.size());
  const bool hybrid = topology.n_performance < n_cores;
  std::string out = count(n_cores, "core");
  if (hybrid) out += cat(" (", topology.n_performance, " performance)");
  out += ", " + count(topology.n_processors, "processor");
  if (topology.nodes().size() > 1) out += ", " + count(static_cast<int64_t>(topology.nodes().size()), "memory node");
  const int32_t n = topology.default_threads();
  out += cat("; ", count(n, "thread"), " by default: ");
  if (n == topology.n_performance) return out + (hybrid ? "one per performance core" : "one per core");
  return out + cat("the control group allows the time of ", topology.quota);
}

bool interleave_pages(void* data, size_t n_bytes, const std::vector<int32_t>& nodes) {
#ifdef SYS_mbind
  constexpr int kInterleave = 3;  // MPOL_INTERLEAVE of linux/mempolicy.h, which not every system installs
  constexpr size_t kBits = 8 * sizeof(unsigned long);
  std::vector<unsigned long> mask(kMaxNodes / kBits);
  for (const int32_t node : nodes) {
    if (node < 0 || node >= kMaxNodes) return false;
    mask[static_cast<size_t>(node) / kBits] |= 1ul << (static_cast<size_t>(node) % kBits);
  }
  return ::syscall(SYS_mbind, data, n_bytes, kInterleave, mask.data(), kMaxNodes + 1, 0) == 0;
#else
  return data == nullptr && n_bytes == 0 && nodes.empty();
#endif
}

uint64_t physical_memory_bytes(const std::string& root) {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const long page_bytes = ::sysconf(_SC_PAGE_SIZE);
  uint64_t out = pages > 0 && page_bytes > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(page_bytes) : 0;
  for (const MemoryGroup& group : kMemoryGroups) {
    const uint64_t limit = first_number(root + group.limit);
    if (limit > 0) out = out == 0 ? limit : std::min(out, limit);
  }
  return out;
}

uint64_t available_memory_bytes(const std::string& root) {
  uint64_t out = named_number(root + "/proc/meminfo", "MemAvailable:") * 1024;
  for (const MemoryGroup& group : kMemoryGroups) {
    const uint64_t limit = first_number(root + group.limit), used = first_number(root + group.used);
    if (limit == 0) continue;
    const uint64_t held = used - std::min(used, named_number(root + group.stat, group.cache));
    out = std::min(out, limit - std::min(limit, held));
  }
  return out;
}

}  // namespace hotset
