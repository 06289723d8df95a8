// Part gather of gpu_probe: read bandwidth of rows at random against a dense read, by row size.
#pragma once

#include "gpu_probe_cuda.cuh"

namespace hotset::probe {

constexpr std::uint32_t kSums = 1024;        // checksums are spread over many words, so that atomics do not queue up
constexpr std::uint32_t kReadThreads = 256;  // 8 warps per block
constexpr std::uint32_t kLoads = 8;          // 16-byte loads per thread that may be in flight
constexpr std::uint32_t kDenseTiles = 4;     // tiles of kReadThreads * kLoads * 16 bytes per block of the dense read
constexpr double kDensity = 0.1;             // share of the rows that is read

/// Fills `n_words` words with the pattern of rows_sum.
__global__ void fill_kernel(std::uint32_t* words, std::uint64_t n_words) {
  const std::uint64_t n_threads = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t j = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; j < n_words; j += n_threads) {
    words[j] = static_cast<std::uint32_t>(kFactor * j + kOffset);
  }
}

__device__ inline std::uint32_t word_sum(uint4 v) { return v.x + v.y + v.z + v.w; }

/// Adds the sums of a warp's lanes to one of the kSums words.
__device__ inline void add_warp_sum(std::uint32_t sum, std::uint32_t* sums) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffffu, sum, distance);
  if (threadIdx.x % 32 == 0) atomicAdd(sums + blockIdx.x % kSums, sum);
}

/// Reads the rows listed in `rows`, each of kChunks * 512 bytes, once. A warp takes one row, or as many short ones
/// as give every lane kLoads independent loads; its lanes read 16 bytes each, side by side.
template <std::uint32_t kChunks>
__global__ void __launch_bounds__(kReadThreads)
    gather_kernel(const uint4* data, const std::uint32_t* rows, std::uint32_t n_rows, std::uint32_t* sums) {
  constexpr std::uint32_t kRows = kChunks < kLoads ? kLoads / kChunks : 1;
  constexpr std::uint32_t kStep = kChunks < kLoads ? kChunks : kLoads;
  const std::uint32_t lane = threadIdx.x % 32;
  const std::uint32_t first = (blockIdx.x * (kReadThreads / 32) + threadIdx.x / 32) * kRows;
  const uint4* row[kRows];
  for (std::uint32_t r = 0; r < kRows; ++r) {
    const std::uint32_t listed = first + r < n_rows ? rows[first + r] : rows[0];
    row[r] = data + std::uint64_t{listed} * (kChunks * 32) + lane;
  }
  std::uint32_t sum = 0;
  for (std::uint32_t c = 0; c < kChunks; c += kStep) {
    uint4 v[kRows][kStep];
#pragma unroll
    for (std::uint32_t r = 0; r < kRows; ++r) {
#pragma unroll
      for (std::uint32_t k = 0; k < kStep; ++k) v[r][k] = __ldcs(row[r] + (c + k) * 32);
    }
#pragma unroll
    for (std::uint32_t r = 0; r < kRows; ++r) {
#pragma unroll
      for (std::uint32_t k = 0; k < kStep; ++k) sum += first + r < n_rows ? word_sum(v[r][k]) : 0;
    }
  }
  add_warp_sum(sum, sums);
}

/// Reads everything in order: a block takes kDenseTiles tiles that lie side by side. The ceiling for gather_kernel.
__global__ void __launch_bounds__(kReadThreads) dense_kernel(const uint4* data, std::uint32_t* sums) {
  std::uint32_t sum = 0;
  for (std::uint32_t tile = 0; tile < kDenseTiles; ++tile) {
    const std::uint64_t first = (std::uint64_t{blockIdx.x} * kDenseTiles + tile) * (kReadThreads * kLoads);
    const uint4* from = data + first + threadIdx.x;
    uint4 v[kLoads];
#pragma unroll
    for (std::uint32_t k = 0; k < kLoads; ++k) v[k] = __ldcs(from + k * kReadThreads);
#pragma unroll
    for (std::uint32_t k = 0; k < kLoads; ++k) sum += word_sum(v[k]);
  }
  add_warp_sum(sum, sums);
}

constexpr std::uint64_t kDenseBlockBytes = std::uint64_t{kReadThreads} * kLoads * 16 * kDenseTiles;

/// The buffer that is read, its checksums, and the lists of rows in device memory.
class ReadBuffer {
 public:
  /// Takes at most a third of the free memory and 4 GiB: far more than any cache, little enough to fill quickly.
  explicit ReadBuffer(const Probe& probe) : probe_(probe), sums_(device_memory(kSums * 4)) {
    std::size_t free_bytes = 0, total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
    n_bytes_ = std::min<std::uint64_t>(std::uint64_t{4} << 30, free_bytes / 3) / kDenseBlockBytes * kDenseBlockBytes;
    if (n_bytes_ < (64 << 20)) throw Error("[gather] free memory: expected 192 MiB, got less; free some");
    data_ = device_memory(n_bytes_);
    list_ = device_memory(2 * max_list() * 4);
    fill_kernel<<<probe.n_sm * 8, 256, 0, probe.stream.get()>>>(words(), n_bytes_ / 4);
    check(cudaGetLastError(), "fill_kernel");
    probe.finish();
  }

  std::uint64_t n_bytes() const { return n_bytes_; }
  std::uint32_t* words() const { return static_cast<std::uint32_t*>(data_.get()); }
  const uint4* data() const { return static_cast<const uint4*>(data_.get()); }
  std::uint32_t* sums() const { return static_cast<std::uint32_t*>(sums_.get()); }
  std::uint32_t* list(int which) const { return static_cast<std::uint32_t*>(list_.get()) + which * max_list(); }

  void put_list(int which, const std::vector<std::uint32_t>& rows) const {
    probe_.copy(list(which), rows.data(), rows.size() * 4);
  }

  void clear_sums() const { probe_.clear(sums_, kSums * 4); }

  /// Throws unless the checksums add up to `expected`.
  void check_sums(std::uint32_t expected) const {
    std::vector<std::uint32_t> sums_here(kSums);
    probe_.copy(sums_here.data(), sums(), kSums * 4);
    std::uint32_t sum = 0;
    for (const std::uint32_t part : sums_here) sum += part;
    if (sum != expected) {
      throw Error("[gather] checksum: expected " + std::to_string(expected) + ", got " + std::to_string(sum) +
                  "; the figures of this row are void");
    }
  }

 private:
  std::uint64_t max_list() const { return n_bytes_ / 512; }

  const Probe& probe_;
  DeviceMemory sums_, data_, list_;
  std::uint64_t n_bytes_ = 0;
};

/// Median GB/s of the dense read, its checksum checked.
inline double measure_dense(const Probe& probe, const ReadBuffer& buffer, double seconds) {
  const auto n_blocks = static_cast<unsigned>(buffer.n_bytes() / kDenseBlockBytes);
  std::uint32_t n_launches = 0;
  const auto once = [&] {
    ++n_launches;
    return probe.device_us([&] {
      dense_kernel<<<n_blocks, kReadThreads, 0, probe.stream.get()>>>(buffer.data(), buffer.sums());
    });
  };
  buffer.clear_sums();
  once();
  const Summary us = summarize(repeat(seconds, 3, 10000, once));
  buffer.check_sums(n_launches * pattern_sum(0, buffer.n_bytes() / 4));
  return gbps(static_cast<double>(buffer.n_bytes()), us.median);
}

/// Median GB/s of gathering two lists of rows in turn, four times each per sample, the checksum checked.
template <std::uint32_t kChunks>
double measure_gather(const Probe& probe, const ReadBuffer& buffer, double seconds,
                      const std::vector<std::uint32_t> (&lists)[2]) {
  constexpr std::uint32_t kRowsPerBlock = (kChunks < kLoads ? kLoads / kChunks : 1) * (kReadThreads / 32);
  const auto n_rows = static_cast<std::uint32_t>(lists[0].size());
  const unsigned n_blocks = (n_rows + kRowsPerBlock - 1) / kRowsPerBlock;
  for (int which : {0, 1}) buffer.put_list(which, lists[which]);
  constexpr int kRounds = 4;
  std::uint32_t n_samples = 0;
  const auto once = [&] {
    ++n_samples;
    return probe.device_us([&] {
      for (int i = 0; i < 2 * kRounds; ++i) {
        const std::uint32_t* list = buffer.list(i % 2);
        gather_kernel<kChunks>
            <<<n_blocks, kReadThreads, 0, probe.stream.get()>>>(buffer.data(), list, n_rows, buffer.sums());
      }
    });
  };
  buffer.clear_sums();
  once();
  const Summary us = summarize(repeat(seconds, 3, 10000, once));
  buffer.check_sums(n_samples * kRounds * (rows_sum(lists[0], kChunks * 128) + rows_sum(lists[1], kChunks * 128)));
  return gbps(2.0 * kRounds * n_rows * kChunks * 512, us.median);
}

/// Measures rows of kChunks * 512 bytes, listed at random and ascending, and adds the row of the table.
template <std::uint32_t kChunks>
void add_gather_row(Table& table, const Probe& probe, const ReadBuffer& buffer, double seconds, double dense_gbps) {
  const std::uint32_t row_bytes = kChunks * 512;
  const auto n_rows = static_cast<std::uint32_t>(buffer.n_bytes() / row_bytes);
  const auto n_read = static_cast<std::uint32_t>(n_rows * kDensity);
  std::vector<std::uint32_t> lists[2] = {pick_rows(n_rows, n_read, 1), pick_rows(n_rows, n_read, 2)};
  const double ascending = measure_gather<kChunks>(probe, buffer, seconds, lists);
  shuffle_rows(lists[0], 3);
  shuffle_rows(lists[1], 4);
  const double random = measure_gather<kChunks>(probe, buffer, seconds, lists);
  table.add({static_cast<double>(row_bytes), static_cast<double>(n_read), random, random / dense_gbps, ascending,
             ascending / dense_gbps});
}

/// Part gather: a dense read, then a tenth of the rows by row size from 0.5 to 16 KiB.
inline void probe_gather(const Probe& probe, std::deque<Table>& tables) {
  const double seconds = probe.seconds / 13;
  const ReadBuffer buffer(probe);
  const double dense = measure_dense(probe, buffer, seconds);
  Table& ceiling = tables.emplace_back(Table{"dense read", {"buffer_bytes", "dense_gbps"}, {}});
  ceiling.add({static_cast<double>(buffer.n_bytes()), dense});
  Table& table = tables.emplace_back(
      Table{"gathered read, 10 % of the rows",
            {"row_bytes", "rows", "random_gbps", "random_to_dense", "ascending_gbps", "ascending_to_dense"},
            {}});
  add_gather_row<1>(table, probe, buffer, seconds, dense);
  add_gather_row<2>(table, probe, buffer, seconds, dense);
  add_gather_row<4>(table, probe, buffer, seconds, dense);
  add_gather_row<8>(table, probe, buffer, seconds, dense);
  add_gather_row<16>(table, probe, buffer, seconds, dense);
  add_gather_row<32>(table, probe, buffer, seconds, dense);
}

}  // namespace hotset::probe
