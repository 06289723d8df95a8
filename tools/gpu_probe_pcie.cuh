// Parts pcie and zerocopy of gpu_probe: how fast data moves between host and device, by copies and by kernels.
#pragma once

#include <cstring>

#include "gpu_probe_cuda.cuh"

namespace hotset::probe {

// ---- part pcie ----

constexpr std::size_t kMaxCopyBytes = std::size_t{256} << 20;

/// Median microseconds per copy when `n_copies` are queued and then waited for, by the host's clock.
inline double copy_us(const Probe& probe, double seconds, int n_copies, void* to, const void* from,
                      std::size_t n_bytes) {
  const auto once = [&] {
    const auto start = Clock::now();
    for (int i = 0; i < n_copies; ++i) {
      check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDefault, probe.stream.get()), "cudaMemcpyAsync");
    }
    probe.finish();
    return seconds_since(start) * 1e6 / n_copies;
  };
  once();
  return summarize(repeat(seconds, 3, 10000, once)).median;
}

/// Part pcie: rates of queued copies by size, from and to pinned and pageable memory, and the time of one pinned copy.
inline void probe_pcie(const Probe& probe, std::deque<Table>& tables) {
  const PinnedMemory pinned = pinned_memory(kMaxCopyBytes);
  const DeviceMemory device = device_memory(kMaxCopyBytes);
  std::vector<unsigned char> pageable(kMaxCopyBytes);
  auto* bytes = static_cast<unsigned char*>(pinned.get());
  for (std::size_t i = 0; i < kMaxCopyBytes; ++i) bytes[i] = static_cast<unsigned char>(i * 37 >> 3);
  probe.copy(device.get(), pinned.get(), kMaxCopyBytes);
  probe.copy(pageable.data(), device.get(), kMaxCopyBytes);
  if (std::memcmp(pageable.data(), pinned.get(), kMaxCopyBytes) != 0) {
    throw Error("[pcie] copy there and back: expected the same bytes, got others; do not trust this machine");
  }
  Table& table = tables.emplace_back(Table{"copies between host (h) and device (d)",
                                           {"bytes", "queued", "pinned_h2d_gbps", "pinned_d2h_gbps",
                                            "pageable_h2d_gbps", "pageable_d2h_gbps", "one_h2d_us", "one_d2h_us"},
                                           {}});
  const std::size_t sizes[] = {16 << 10, 64 << 10, 256 << 10, 1 << 20, 16 << 20, kMaxCopyBytes};
  const double seconds = probe.seconds / (6 * 6);
  for (const std::size_t n_bytes : sizes) {
    const int n_copies = static_cast<int>(std::min<std::size_t>(32, kMaxCopyBytes / n_bytes));
    const auto rate = [&](void* to, const void* from) {
      return gbps(static_cast<double>(n_bytes), copy_us(probe, seconds, n_copies, to, from, n_bytes));
    };
    void *p = pinned.get(), *d = device.get(), *v = pageable.data();
    table.add({static_cast<double>(n_bytes), static_cast<double>(n_copies), rate(d, p), rate(p, d), rate(d, v),
               rate(v, d), copy_us(probe, seconds, 1, d, p, n_bytes), copy_us(probe, seconds, 1, p, d, n_bytes)});
  }
}

// ---- part zerocopy ----

/// Stores `value` into `n` times 16 bytes of mapped host memory.
__global__ void store_kernel(uint4* out, std::uint32_t n, std::uint32_t value) {
  for (std::uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    out[i] = make_uint4(value, value, value, value);
  }
  __threadfence_system();
}

/// Loads `n` times 16 bytes of mapped host memory past the caches and adds the words up.
__global__ void load_kernel(const uint4* in, std::uint32_t n, std::uint32_t* sum) {
  std::uint32_t mine = 0;
  for (std::uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    const uint4 v = __ldcv(in + i);
    mine += v.x + v.y + v.z + v.w;
  }
  atomicAdd(sum, mine);
}

constexpr int kChainSteps = 1000;

/// One thread: kChainSteps stores, each followed by a system-wide fence.
__global__ void store_chain_kernel(std::uint32_t* word) {
  for (int i = 0; i < kChainSteps; ++i) {
    *static_cast<volatile std::uint32_t*>(word) = i;
    __threadfence_system();
  }
}

/// One thread: kChainSteps loads, each of which tells where the next one goes.
__global__ void load_chain_kernel(const std::uint32_t* next, std::uint32_t* end) {
  std::uint32_t at = 0;
  for (int i = 0; i < kChainSteps; ++i) at = __ldcv(next + at);
  *end = at;
}

constexpr std::size_t kMaxMappedBytes = 16 << 20;
constexpr std::uint32_t kChainStride = 32;  // words: one 128-byte line per step

/// Pinned memory for the kernels, and a word for their results.
struct MappedBuffer {
  PinnedMemory memory = pinned_memory(kMaxMappedBytes);
  DeviceMemory result = device_memory(4);
  std::uint32_t* words() const { return static_cast<std::uint32_t*>(memory.get()); }
};

/// Median time of storing and loading `n_bytes` by `n_blocks` blocks, checked at the end; adds a row for each.
inline void add_mapped_rows(Table& table, const Probe& probe, double seconds, const MappedBuffer& buffer,
                            std::uint32_t n_bytes, std::uint32_t n_blocks) {
  auto* mapped = device_address<uint4>(buffer.memory);
  auto* sum = static_cast<std::uint32_t*>(buffer.result.get());
  cudaStream_t stream = probe.stream.get();
  std::uint32_t value = 0, n_loads = 0;
  const auto store = [&] { store_kernel<<<n_blocks, 256, 0, stream>>>(mapped, n_bytes / 16, ++value); };
  const auto load = [&] { load_kernel<<<n_blocks, 256, 0, stream>>>(mapped, n_bytes / 16, (++n_loads, sum)); };
  const auto add = [&](const char* what, const auto& enqueue) {
    probe.device_us(enqueue);
    const Summary us = summarize(repeat(seconds, 3, 10000, [&] { return probe.device_us(enqueue); }));
    const double rate = gbps(n_bytes, us.median);
    table.add({what, static_cast<double>(n_bytes), static_cast<double>(n_blocks), rate, us.median, us.p99});
  };
  add("kernel stores to host", store);
  const bool stored = std::all_of(buffer.words(), buffer.words() + n_bytes / 4, [&](auto w) { return w == value; });
  probe.clear(buffer.result, 4);
  add("kernel loads from host", load);
  std::uint32_t got = 0;
  probe.copy(&got, sum, 4);
  if (!stored || got != n_loads * (n_bytes / 4) * value) {
    throw Error("[zerocopy] words: expected the values stored, got others; do not use mapped memory here");
  }
}

/// Adds the time of one fenced store and of one dependent load.
inline void add_latency_rows(Table& table, const Probe& probe, double seconds, const MappedBuffer& buffer) {
  const std::uint32_t n_lines = 4096;
  for (std::uint32_t line = 0; line < n_lines; ++line) {  // 1237 is odd: the chain visits every line
    buffer.words()[line * kChainStride] = (line + 1237) % n_lines * kChainStride;
  }
  auto* mapped = device_address<std::uint32_t>(buffer.memory);
  auto* end = static_cast<std::uint32_t*>(buffer.result.get());
  cudaStream_t stream = probe.stream.get();
  const auto add = [&](const char* what, const auto& enqueue) {
    probe.device_us(enqueue);
    const Summary us = summarize(repeat(seconds, 3, 1000, [&] { return probe.device_us(enqueue); }));
    table.add({what, us.median / kChainSteps});
  };
  add("one dependent 4-byte load from host", [&] { load_chain_kernel<<<1, 1, 0, stream>>>(mapped, end); });
  std::uint32_t got = 0;
  probe.copy(&got, end, 4);
  if (got != kChainSteps * 1237u % n_lines * kChainStride) {
    throw Error("[zerocopy] chain: expected the end of the chain, got another line; do not use mapped memory here");
  }
  add("one 4-byte store to host with a fence", [&] { store_chain_kernel<<<1, 1, 0, stream>>>(mapped); });
}

/// GB/s of a copy within the device, bytes read and bytes written both counted.
inline void add_device_copy(Table& table, const Probe& probe, double seconds) {
  std::size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  const std::size_t n_bytes = std::min<std::size_t>(std::size_t{1} << 30, free_bytes / 4) / 4096 * 4096;
  const DeviceMemory from = device_memory(n_bytes), to = device_memory(n_bytes);
  probe.clear(from, n_bytes);
  const auto enqueue = [&] {
    check(cudaMemcpyAsync(to.get(), from.get(), n_bytes, cudaMemcpyDefault, probe.stream.get()), "cudaMemcpyAsync");
  };
  probe.device_us(enqueue);
  const Summary us = summarize(repeat(seconds, 3, 1000, [&] { return probe.device_us(enqueue); }));
  table.add({static_cast<double>(n_bytes), gbps(2.0 * static_cast<double>(n_bytes), us.median)});
}

/// Part zerocopy: kernels that store to and load from mapped pinned memory; a copy within the device for comparison.
inline void probe_zerocopy(const Probe& probe, std::deque<Table>& tables) {
  const double seconds = probe.seconds / 21;  // 18 rates, 2 latencies, 1 copy
  const MappedBuffer buffer;
  Table& rates = tables.emplace_back(
      Table{"kernels on mapped pinned memory", {"what", "bytes", "blocks", "gbps", "median_us", "p99_us"}, {}});
  for (const std::uint32_t n_bytes : {16u << 10, 256u << 10, static_cast<std::uint32_t>(kMaxMappedBytes)}) {
    for (const std::uint32_t n_blocks : {1u, 8u, probe.n_sm}) {
      add_mapped_rows(rates, probe, seconds, buffer, n_bytes, n_blocks);
    }
  }
  Table& latencies = tables.emplace_back(Table{"latency on mapped pinned memory", {"what", "us"}, {}});
  add_latency_rows(latencies, probe, seconds, buffer);
  Table& copies = tables.emplace_back(Table{"copy within the device, read + write", {"bytes", "gbps"}, {}});
  add_device_copy(copies, probe, seconds);
}

}  // namespace hotset::probe
