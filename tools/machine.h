// What this machine is: processor, cores, memory, read bandwidth. Everything but bench_machine is best effort and never
// throws.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/machine_rates.h"

namespace hotset::cli {

struct Machine {
  std::string cpu;                    // "" when the system does not say
  std::vector<std::string> features;  // instruction sets of interest that the system has switched on
  int n_logical = 0;                  // processors this process may use
  int n_physical = 0;                 // cores behind them
  uint64_t memory_bytes = 0;          // of the machine, or of this process's cgroup when that is less
  uint64_t free_bytes = 0;            // available without swapping
  uint64_t cache_bytes = 0;           // of the last level, all that this process's processors have; 0 = unknown
  bool has_huge_pages = false;        // given to those who ask for them
};

// Reads /proc and /sys.
Machine probe_machine();

// Reads a large buffer with `n_threads` threads for about half a second; median of bytes per second / 1e9, 0 when there
// is no memory for it. Takes at most 1/4 of `free_bytes` and 512 MiB.
double measure_read_gbps(int n_threads, uint64_t free_bytes);

// Memory of this process that is in RAM now, mapped files included; 0 when unknown.
uint64_t resident_memory_bytes();

// Where `bench --machine` keeps what it measured: hotset/machine.json in $XDG_CACHE_HOME, else in ~/.cache; "" when
// there is neither.
std::string machine_rates_path();

// What was measured on this machine; nothing when the file is missing, damaged or from other hardware: `note` then says
// which, "" when it is just missing.
std::optional<MachineRates> known_machine_rates(std::string& note);

struct MachineBenchFlags {
  std::vector<int64_t> n_threads;  // 0 = one per core; empty = powers of two up to the cores
  int64_t seconds = 40;
  std::string path;  // "" = machine_rates_path()
  bool as_json = false;
};

// `hotset bench --machine`: measures, writes the file, prints a table. Throws Error for too little memory or a place
// that cannot be written.
int bench_machine(const MachineBenchFlags& flags);

}  // namespace hotset::cli
