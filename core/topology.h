// What the machine has: processors, cores and memory, as far as this process may use them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace hotset {

// One physical core, seen through the processors (hyper-threads) of it that this process may use.
struct CpuCore {
  std::vector<int32_t> processors;  // ascending, at least one
  int32_t node = 0;                 // NUMA node
  int32_t l3 = 0;                   // lowest processor that shares its level-3 cache; -1 when the system does not say
  int64_t speed = 0;                // capacity or highest frequency, comparable between cores; 0 = not known
  bool performance = true;          // false: a slower kind of a hybrid CPU
};

// The processors that this process may use, grouped into cores.
struct Topology {
  std::vector<CpuCore>
      cores;                  // best first: performance cores, by node, each node's level-3 caches in turn; never empty
  int32_t n_processors = 1;   // of all cores
  int32_t n_performance = 1;  // cores of the fastest kind, the first ones of `cores`; all when there is one kind
  double quota = 0;           // processors' worth of time that the control group allows; 0 = no limit

  // One thread per performance core, but no more than the quota has time for: a team that overdraws it is stopped as a
  // whole for the rest of each period. At least 1.
  int32_t default_threads() const;

  // NUMA nodes of all cores, ascending.
  std::vector<int32_t> nodes() const;
};

// Where a team of threads is kept: "off" = wherever the scheduler likes; "on" = each on its own core, in the order of
// `cores`; "auto" = on a hybrid CPU off the slower cores, as long as there are enough others. A thread with one core
// for itself waits where another process has taken it, and so in the end does its team; in a set it can move.
// Returns the processors of each thread (see ThreadPool); empty when nothing is to be restricted.
std::vector<std::vector<int32_t>> place_threads(const Topology& topology, int32_t n_threads, const std::string& pin);

// Reads the files below `root` + "/sys" and "/proc". `allowed` lists the processors that may be used (empty = those of
// this thread's affinity mask). What is missing or makes no sense counts as not there: one core per processor, one
// node, one kind, no quota. Never throws for what the files say.
Topology read_topology(const std::string& root = "", std::vector<int32_t> allowed = {});

// read_topology().default_threads(), for work that any number of threads may share.
int32_t physical_cores();

// One line for people: "14 cores (6 performance), 20 processors; 6 threads by default: one per performance core".
std::string describe(const Topology& topology);

// Spreads pages that are not yet committed evenly over NUMA nodes; false when the system refuses, which does no harm.
bool interleave_pages(void* data, size_t n_bytes, const std::vector<int32_t>& nodes);

// "0-3,8" as numbers, ascending; empty when the text is anything else, or names a number above 8191.
std::vector<int32_t> parse_cpu_list(const std::string& text);

// Bytes of memory of the machine, or of the control group's limit when that is lower; 0 when unknown.
uint64_t physical_memory_bytes(const std::string& root = "");

// Bytes that this process may still take without paging: what the machine has free, and no more than the control
// group's limit leaves beside what the group holds and cannot drop at once; 0 when unknown.
uint64_t available_memory_bytes(const std::string& root = "");

}  // namespace hotset
