// Part graph of gpu_probe: what launching a graph costs, and each node in it.
#pragma once

#include "gpu_probe_memop.cuh"

namespace hotset::probe {

__global__ void empty_kernel() {}

/// Host times of one way to start `n` nodes, per launch.
struct LaunchTimes {
  std::vector<double> call_us;   // until the launching calls have returned
  std::vector<double> total_us;  // until the host knows that the device is done
};

/// Launches by `start()` and waits for the end, again and again for `seconds`.
template <class Start>
LaunchTimes time_launches(const Probe& probe, double seconds, Start&& start) {
  LaunchTimes times;
  times.total_us = repeat(seconds, 10, 100000, [&] {
    const auto begin = Clock::now();
    start();
    times.call_us.push_back(seconds_since(begin) * 1e6);
    probe.finish();
    return seconds_since(begin) * 1e6;
  });
  times.call_us.erase(times.call_us.begin(), times.call_us.begin() + 3);  // warm-up
  times.total_us.erase(times.total_us.begin(), times.total_us.begin() + 3);
  return times;
}

/// Adds the row of `n` nodes; returns the median total in microseconds.
inline double add_launch_row(Table& table, const char* what, std::uint32_t n, double make_us,
                             const LaunchTimes& times) {
  const Summary call = summarize(times.call_us), total = summarize(times.total_us);
  const auto n_samples = static_cast<double>(total.n);
  table.add({what, static_cast<double>(n), make_us, call.median, total.median, total.p99, n_samples});
  return total.median;
}

/// Measures a chain of `n` nodes that `add(chain)` adds one by one; returns the median total in microseconds.
template <class Add>
double measure_chain(Table& table, const Probe& probe, double seconds, const char* what, std::uint32_t n, Add&& add) {
  const auto begin = Clock::now();
  Chain chain(probe.driver);
  for (std::uint32_t i = 0; i < n; ++i) add(chain);
  const GraphExec exec = chain.instantiate(probe.stream);
  probe.finish();
  const double make_us = seconds_since(begin) * 1e6;
  return add_launch_row(table, what, n, make_us, time_launches(probe, seconds, [&] { launch(exec, probe); }));
}

/// Measures `n` launches of an empty kernel into the stream, without a graph.
inline double measure_stream(Table& table, const Probe& probe, double seconds, std::uint32_t n) {
  const auto start = [&] {
    for (std::uint32_t i = 0; i < n; ++i) empty_kernel<<<1, 1, 0, probe.stream.get()>>>();
    check(cudaGetLastError(), "empty_kernel");
  };
  return add_launch_row(table, "kernels without a graph", n, std::nan(""), time_launches(probe, seconds, start));
}

/// Part graph: chains of 1, 10, 100 and 500 nodes of each kind.
inline void probe_graph(const Probe& probe, std::deque<Table>& tables) {
  Table& table = tables.emplace_back(
      Table{"launch of chains", {"nodes are", "n", "make_us", "call_us", "total_us", "total_p99_us", "samples"}, {}});
  Table& slopes = tables.emplace_back(
      Table{"cost per node, from 100 to 500 nodes", {"nodes are", "per_node_us", "why not"}, {}});
  const std::vector<std::uint32_t> sizes = {1, 10, 100, 500};
  const double seconds = probe.seconds / (3 * sizes.size());
  const auto measure_all = [&](const char* what, const auto& measure) {
    std::vector<double> total_us;
    for (const std::uint32_t n : sizes) total_us.push_back(measure(n));
    slopes.add({what, (total_us[3] - total_us[2]) / (sizes[3] - sizes[2])});
  };
  measure_all("kernels without a graph", [&](std::uint32_t n) { return measure_stream(table, probe, seconds, n); });
  measure_all("empty kernels", [&](std::uint32_t n) {
    const auto add = [](Chain& chain) { chain.add_kernel(empty_kernel, 1, 1); };
    return measure_chain(table, probe, seconds, "empty kernels", n, add);
  });
  const MappedWords words(probe, 1);
  try {
    measure_all("memop writes", [&](std::uint32_t n) {
      const auto add = [&](Chain& chain) { chain.add_memops({write_value(words.device(0), 1)}); };
      return measure_chain(table, probe, seconds, "memop writes", n, add);
    });
  } catch (const Error& error) {  // not every driver has these nodes
    if (probe.watchdog.fired()) throw;
    slopes.add({"memop writes", std::nan(""), error.what()});
  }
}

}  // namespace hotset::probe
