// What read_topology makes of machines that are files in a temporary folder: hybrid, ARM, NUMA, containers, nonsense.
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>

#include "core/error.h"
#include "core/topology.h"

namespace {

using namespace hotset;

// A file tree that goes away with it.
class FakeMachine {
 public:
  FakeMachine() {
    char name[] = "/tmp/hotset-topology-XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    root_ = name;
  }
  ~FakeMachine() { std::filesystem::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ + path).substr(0, (root_ + path).rfind('/')));
    std::ofstream(root_ + path) << text;
  }
  void cpu(int cpu, const std::string& file, const std::string& text) {
    write(cat("/sys/devices/system/cpu/cpu", cpu, "/", file), text);
  }
  void siblings(int cpu, const std::string& list) { this->cpu(cpu, "topology/thread_siblings_list", list + "\n"); }
  void online(const std::string& list) { write("/sys/devices/system/cpu/online", list + "\n"); }
  // Reads as a process that may use processors 0 to n - 1.
  Topology read(int n) const {
    std::vector<int32_t> allowed(static_cast<size_t>(n));
    std::iota(allowed.begin(), allowed.end(), 0);
    return read_topology(root_, allowed);
  }
  const std::string& root() const { return root_; }

 private:
  std::string root_;
};

std::vector<int32_t> first_processors(const Topology& topology) {
  std::vector<int32_t> out;
  for (const CpuCore& core : topology.cores) out.push_back(core.processors[0]);
  return out;
}

// 6 performance cores with two hyper-threads (0 to 11), 8 efficiency cores (12 to 19).
void make_hybrid_laptop(FakeMachine& machine) {
  machine.online("0-19");
  for (int i = 0; i < 12; ++i) machine.siblings(i, cat(i / 2 * 2, "-", i / 2 * 2 + 1));
  for (int i = 12; i < 20; ++i) machine.siblings(i, cat(i));
  for (int i = 0; i < 20; ++i)
    machine.cpu(i, "cpufreq/cpuinfo_max_freq", i < 4 ? "5000000" : i < 12 ? "5200000" : "3900000");
  machine.write("/sys/devices/cpu_core/cpus", "0-11\n");
  machine.write("/sys/devices/cpu_atom/cpus", "12-19\n");
}

TEST_CASE("topology: lists of processors") {
  using List = std::vector<int32_t>;
  CHECK(parse_cpu_list("0-3,8,10-11\n") == List{0, 1, 2, 3, 8, 10, 11});
  CHECK(parse_cpu_list("5") == List{5});
  CHECK(parse_cpu_list(" 2 , 1-1,2") == List{1, 2});
  CHECK(parse_cpu_list("8191") == List{8191});
  for (const char* bad :
       {"", "\n", "x", "1-", "-1", "3-1", "1,,2", "0-8192", "99999999999999999999", "0x4", "1 2", "1-2-3"})
    CHECK_MESSAGE(parse_cpu_list(bad).empty(), bad);
  std::string many;
  for (int i = 0; i < 100; ++i) many += "0-8191,";
  CHECK(parse_cpu_list(many + "1").empty());  // refused, not collected
}

TEST_CASE("topology: a hybrid laptop uses its performance cores, fastest first, one thread each") {
  FakeMachine machine;
  make_hybrid_laptop(machine);
  const Topology topology = machine.read(20);
  CHECK(first_processors(topology) == std::vector<int32_t>{4, 6, 8, 10, 0, 2, 12, 13, 14, 15, 16, 17, 18, 19});
  CHECK(topology.cores[0].processors == std::vector<int32_t>{4, 5});
  CHECK(topology.n_processors == 20);
  CHECK(topology.n_performance == 6);
  CHECK(topology.default_threads() == 6);
  CHECK(describe(topology) ==
        "14 cores (6 performance), 20 processors; 6 threads by default: one per performance core");
  const auto kept = place_threads(topology, 6, "auto");
  REQUIRE(kept.size() == 6);
  for (const auto& processors : kept) CHECK(std::set<int32_t>(processors.begin(), processors.end()).size() == 12);
  CHECK(*std::max_element(kept[5].begin(), kept[5].end()) == 11);
  CHECK(place_threads(topology, 7, "auto").empty());  // asked for more: the slower cores are in
  CHECK(place_threads(topology, 8, "on") ==
        std::vector<std::vector<int32_t>>{{4}, {6}, {8}, {10}, {0}, {2}, {12}, {13}});
  CHECK(place_threads(topology, 15, "on").empty());
  CHECK(place_threads(topology, 6, "off").empty());
  // Only slower cores allowed: they are all there is.
  const Topology slow = read_topology(machine.root(), {19, 12, 13});
  CHECK(slow.default_threads() == 3);
  CHECK(place_threads(slow, 3, "auto").empty());
  // One hyper-thread of each core allowed, one core offline.
  machine.online("0-9,12-19");
  CHECK(read_topology(machine.root(), {1, 3, 5, 7, 9, 11, 12}).default_threads() == 5);
}

TEST_CASE("topology: kinds by capacity (ARM) and by frequency") {
  FakeMachine arm;
  for (int i = 0; i < 8; ++i) arm.cpu(i, "cpu_capacity", i < 4 ? "400\n" : i < 7 ? "870\n" : "1024\n");
  CHECK(first_processors(arm.read(8)) == std::vector<int32_t>{7, 4, 5, 6, 0, 1, 2, 3});
  CHECK(arm.read(8).default_threads() == 4);
  FakeMachine compact;  // Zen 5 and Zen 5c
  for (int i = 0; i < 12; ++i) compact.cpu(i, "cpufreq/cpuinfo_max_freq", i < 4 ? "5100000" : "3300000");
  CHECK(compact.read(12).default_threads() == 4);
  compact.cpu(7, "cpufreq/cpuinfo_max_freq", "fast");  // one without a number: nothing can be compared
  CHECK(compact.read(12).default_threads() == 12);
  FakeMachine favoured;  // two cores a little faster than the rest
  for (int i = 0; i < 8; ++i) favoured.cpu(i, "cpufreq/cpuinfo_max_freq", i == 3 || i == 6 ? "5800000" : "5500000");
  CHECK(favoured.read(8).default_threads() == 8);
  CHECK(first_processors(favoured.read(8)) == std::vector<int32_t>{3, 6, 0, 1, 2, 4, 5, 7});
}

TEST_CASE("topology: two sockets, nodes one after the other, caches of a node in turn") {
  FakeMachine machine;  // 2 nodes x 2 caches x 2 cores x 2 hyper-threads; second threads are 8 to 15
  machine.online("0-15");
  machine.write("/sys/devices/system/node/online", "0-2\n");
  machine.write("/sys/devices/system/node/node0/cpulist", "0-3,8-11\n");
  machine.write("/sys/devices/system/node/node1/cpulist", "4-7,12-15\n");
  machine.write("/sys/devices/system/node/node2/cpulist", "\n");  // memory only
  for (int i = 0; i < 16; ++i) {
    const int core = i % 8, pair = core / 2 * 2;
    machine.siblings(i, cat(core, ",", core + 8));
    machine.cpu(i, "cache/index2/level", "2");
    machine.cpu(i, "cache/index2/shared_cpu_list", cat(core, ",", core + 8));
    machine.cpu(i, "cache/index3/level", "3");
    machine.cpu(i, "cache/index3/shared_cpu_list", cat(pair, "-", pair + 1, ",", pair + 8, "-", pair + 9));
  }
  const Topology topology = machine.read(16);
  CHECK(first_processors(topology) == std::vector<int32_t>{0, 2, 1, 3, 4, 6, 5, 7});
  CHECK(topology.nodes() == std::vector<int32_t>{0, 1});
  CHECK(topology.default_threads() == 8);
  CHECK(describe(topology) == "8 cores, 16 processors, 2 memory nodes; 8 threads by default: one per core");
  CHECK(place_threads(topology, 8, "auto").empty());
}

TEST_CASE("topology: a container starts no more threads than its quota has time for") {
  FakeMachine machine;
  machine.online("0-63");
  const auto threads_with = [&](const std::string& groups, const std::string& path, const std::string& text) {
    machine.write("/proc/self/cgroup", groups);
    machine.write(path, text);
    const int32_t n = machine.read(64).default_threads();
    machine.write(path, "");
    return n;
  };
  const std::string top = "/sys/fs/cgroup/cpu.max";
  CHECK(threads_with("0::/\n", top, "400000 100000\n") == 4);
  CHECK(threads_with("0::/\n", top, "350000 100000\n") == 3);
  CHECK(threads_with("0::/\n", top, "50000 100000\n") == 1);
  CHECK(threads_with("0::/\n", top, "6400000 50000\n") == 64);
  for (const char* none :
       {"max 100000\n", "", "0 100000", "-1 100000", "400000", "400000 0", "400000 -5", "4e5 1e5", "x y"})
    CHECK_MESSAGE(threads_with("0::/\n", top, none) == 64, none);
  CHECK(threads_with("0::/a/b\n", "/sys/fs/cgroup/a/cpu.max", "200000 100000") == 2);  // of a group above
  CHECK(threads_with("0::/../../other\n", top, "200000 100000") == 2);
  CHECK(threads_with("garbage\n::\n0:\n\n0::/\n", top, "200000 100000") == 2);
  machine.write("/sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us", "100000\n");
  const std::string v1 = "/sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us";
  CHECK(threads_with("7:memory:/m\n4:cpu,cpuacct:/docker/x\n", v1, "800000\n") == 8);
  CHECK(threads_with("7:memory:/m\n4:cpu,cpuacct:/docker/x\n", v1, "-1\n") == 64);
  machine.write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");  // the container's group is mounted as the root
  CHECK(threads_with("4:cpu:/docker/y\n", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000\n") == 3);
}

TEST_CASE("topology: files that are missing or make no sense leave something sane") {
  const Topology nothing = read_topology("/nonexistent", {0, 1, 2});
  CHECK(first_processors(nothing) == std::vector<int32_t>{0, 1, 2});
  CHECK(nothing.default_threads() == 3);
  CHECK(nothing.nodes() == std::vector<int32_t>{0});
  for (const std::string& text :
       {std::string("\0\xff,-,", 5), std::string(1 << 20, '9'), std::string("7-5"), std::string("100")}) {
    FakeMachine machine;
    for (const char* path : {"/sys/devices/system/cpu/online", "/sys/devices/system/node/online", "/proc/self/cgroup",
                             "/sys/devices/cpu_atom/cpus", "/sys/fs/cgroup/cpu.max"})
      machine.write(path, text);
    for (int i = 0; i < 4; ++i) {
      machine.siblings(i, text);
      machine.cpu(i, "cache/index3/level", text);
      machine.cpu(i, "cpu_capacity", i == 0 ? "9223372036854775807" : text);
    }
    const Topology topology = machine.read(4);
    CHECK(topology.n_processors == 4);
    CHECK(topology.cores.size() == 4);
    CHECK(topology.default_threads() >= 1);
    CHECK(topology.default_threads() <= 4);
  }
  FakeMachine folders;  // folders where files should be
  std::filesystem::create_directories(folders.root() + "/sys/devices/system/cpu/online");
  std::filesystem::create_directories(folders.root() + "/proc/self/cgroup");
  CHECK(folders.read(2).default_threads() == 2);
}

TEST_CASE("topology: free memory is what the machine and the control group leave") {
  FakeMachine machine;
  CHECK(available_memory_bytes(machine.root()) == 0);
  machine.write("/proc/meminfo", "MemTotal:    24684100 kB\nMemFree:   1 kB\nMemAvailable:    2000 kB\nBuffers: 7 kB\n");
  CHECK(available_memory_bytes(machine.root()) == 2048000);
  const std::string v2 = "/sys/fs/cgroup/memory.", v1 = "/sys/fs/cgroup/memory/memory.";
  machine.write(v2 + "max", "max\n");
  machine.write(v2 + "current", "900000\n");
  CHECK(available_memory_bytes(machine.root()) == 2048000);
  machine.write(v2 + "max", "1000000\n");
  CHECK(physical_memory_bytes(machine.root()) == 1000000);
  CHECK(available_memory_bytes(machine.root()) == 100000);
  machine.write(v2 + "stat", "anon 5\ninactive_file 300000\nactive_file 1\n");  // cache that can be dropped
  CHECK(available_memory_bytes(machine.root()) == 400000);
  machine.write(v2 + "stat", "inactive_file 5000000\n");
  CHECK(available_memory_bytes(machine.root()) == 1000000);
  machine.write(v2 + "stat", "inactive_file x\n");
  machine.write(v2 + "current", "2000000\n");
  CHECK(available_memory_bytes(machine.root()) == 0);
  machine.write(v2 + "max", "nonsense\n");
  machine.write(v1 + "limit_in_bytes", "800000\n");
  machine.write(v1 + "usage_in_bytes", "300000\n");
  machine.write(v1 + "stat", "inactive_file 1\ntotal_inactive_file 100000\n");
  CHECK(available_memory_bytes(machine.root()) == 600000);
  CHECK(available_memory_bytes() > 0);
  CHECK(available_memory_bytes() <= physical_memory_bytes());
}

TEST_CASE("topology: this machine") {
  const Topology topology = read_topology();
  CHECK(topology.default_threads() >= 1);
  CHECK(topology.default_threads() <= topology.n_processors);
  CHECK(topology.n_processors <= static_cast<int32_t>(::sysconf(_SC_NPROCESSORS_CONF)));
}

TEST_CASE("topology: spread pages can be used, and a node that is not there is refused") {
  constexpr size_t kBytes = 1 << 20;
  void* data = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(data != MAP_FAILED);
  CHECK_FALSE(interleave_pages(data, kBytes, {-1}));
  CHECK_FALSE(interleave_pages(data, kBytes, {1 << 20}));
  CHECK_FALSE(interleave_pages(data, kBytes, {}));
  interleave_pages(data, kBytes, read_topology().nodes());  // a container may forbid the call
  std::fill_n(static_cast<char*>(data), kBytes, '\1');
  ::munmap(data, kBytes);
}

}  // namespace
