#include "tools/machine.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <new>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

namespace hotset::cli {
namespace {

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

// Eight independent sums keep enough loads in flight; the result is used so that nothing is optimised away.
uint64_t sum_words(const uint64_t* words, size_t n) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i + 8 <= n; i += 8) {
    for (size_t j = 0; j < 8; ++j) sums[j] += words[i + j];
  }
  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  return sum;
}

// Runs `work(thread)` on n threads and waits for all.
template <class Work>
void on_threads(int n, const Work& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < n; ++i) threads.emplace_back(work, static_cast<size_t>(i));
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

Machine probe_machine() {
  Machine machine;
  read_cpuinfo(machine);
  read_memory(machine);
  return machine;
}

double measure_read_gbps(int n_threads, uint64_t free_bytes) {
  using Clock = std::chrono::steady_clock;
  n_threads = std::max(n_threads, 1);
  const size_t n_each = std::min<uint64_t>(free_bytes / 4, uint64_t{512} << 20) / sizeof(uint64_t) /
                        static_cast<size_t>(n_threads) / 8 * 8;
  if (n_each == 0) return 0;
  const size_t n_words = n_each * static_cast<size_t>(n_threads);
  const std::unique_ptr<uint64_t[]> words(new (std::nothrow) uint64_t[n_words]);
  if (words == nullptr) return 0;
  // Each thread writes its own part first, so that the pages exist and lie near it.
  on_threads(n_threads, [&](size_t i) { std::fill_n(words.get() + i * n_each, n_each, i); });
  std::atomic<uint64_t> sink{0};
  double best_gbps = 0;
  const auto end = Clock::now() + std::chrono::milliseconds(500);
  do {
    const auto start = Clock::now();
    on_threads(n_threads, [&](size_t i) { sink += sum_words(words.get() + i * n_each, n_each); });
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best_gbps = std::max(best_gbps, static_cast<double>(n_words * sizeof(uint64_t)) / seconds / 1e9);
  } while (Clock::now() < end);
  return best_gbps;
}

}  // namespace hotset::cli
