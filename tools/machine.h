// What this machine is: processor, cores, memory, read bandwidth. Everything is best effort and never throws.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hotset::cli {

struct Machine {
  std::string cpu;                    // "" when the system does not say
  std::vector<std::string> features;  // instruction sets of interest that the system has switched on
  int n_logical = 0;                  // processors this process may use
  int n_physical = 0;                 // cores behind them
  uint64_t memory_bytes = 0;          // of the machine, or of this process's cgroup when that is less
  uint64_t free_bytes = 0;            // available without swapping
};

// Reads /proc and /sys.
Machine probe_machine();

// Reads a large buffer with `n_threads` threads for about half a second; bytes per second / 1e9 of the best pass,
// 0 when there is no memory for it. Takes at most 1/4 of `free_bytes` and 512 MiB.
double measure_read_gbps(int n_threads, uint64_t free_bytes);

}  // namespace hotset::cli
