// What `hotset bench --machine` measured: how fast this machine reads weights, and a GPU's part of it. See docs/FORMATS.md, "machine.json".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hotset {

// Whole rows of row_bytes, a share `density` of them chosen at random, read in ascending order.
struct GatheredRate {
  int64_t row_bytes = 0;
  double density = 0;  // above 0, up to 1
  double gbps = 0;
  int32_t streams = 1;     // the way of reading that was fastest: rows that one thread reads in turn, line by line,
  int32_t ahead_rows = 0;  // and distance of the software prefetch
};

struct ReadRates {
  std::string pages;  // "normal" | "huge"
  int32_t n_threads = 0;
  double dense_gbps = 0;
  int32_t dense_streams = 1;
  std::vector<GatheredRate> gathered;
};

// A GPU reading its own memory.
struct GpuRates {
  std::string name;  // "" = unknown
  uint64_t memory_bytes = 0;
  double dense_gbps = 0;
  std::vector<GatheredRate> gathered;  // `streams` and `ahead_rows` mean nothing here

  // As MachineRates::gathered_gbps; the dense rate when no gathered rates were measured.
  double gathered_gbps(double row_bytes, double density) const;
};

// Copies between pinned host memory and the GPU.
struct PcieRates {
  double h2d_gbps = 0;
  double d2h_gbps = 0;
};

struct MachineRates {
  std::string cpu;  // "" = unknown
  int32_t n_cores = 0;
  uint64_t memory_bytes = 0;
  uint64_t cache_bytes = 0;   // of the last level, all that these cores have
  uint64_t buffer_bytes = 0;  // of the memory that was read
  std::vector<ReadRates> read;
  std::optional<GpuRates> gpu;       // each nothing until it was measured
  std::optional<PcieRates> pcie;
  std::optional<double> handoff_us;  // a flag to the host and one back, without the vectors that go along
  std::string gpu_reason;            // why there are no rates of a GPU

  // The machine's read bandwidth with that many threads: the better kind of pages, of the nearest measured number of
  // threads below n_threads, else of the smallest.
  double dense_gbps(int32_t n_threads) const;

  // The same for gathered rows, between the measured sizes and densities by interpolation in their logarithms, beyond
  // them as at the nearest; at density 1 the dense rate. 0 when no gathered rates were measured.
  double gathered_gbps(int32_t n_threads, double row_bytes, double density) const;

  // Densities at which gathered rates of that many threads were measured, ascending, each once.
  std::vector<double> densities(int32_t n_threads) const;
};

inline constexpr int64_t kMachineRatesVersion = 1;

// Throws Error for a text that is no machine.json of this version; `where` names it. Unknown members are ignored.
MachineRates parse_machine_rates(const std::string& where, std::string_view text);

// Reads a file. Throws Error also when it is missing or longer than kMaxJsonBytes.
MachineRates load_machine_rates(const std::string& path);

}  // namespace hotset
