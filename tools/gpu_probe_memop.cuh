// Part memop of gpu_probe: do batch memory-op nodes work in graphs, and what does replaying them cost?
#pragma once

#include "gpu_probe_cuda.cuh"

namespace hotset::probe {

constexpr std::uint32_t kHandoffs = 32;  // hand-offs per launch, as a model of 32 layers has them

inline void must(bool ok, const char* what) {
  if (!ok) throw Error(std::string("[memop] ") + what + ": expected so, got not so; use the polling kernel");
}

/// Throws unless the stream stays busy, and `result` stays 0, for two milliseconds.
inline void must_stay_waiting(const Probe& probe, const std::uint32_t* result) {
  const auto start = Clock::now();
  while (seconds_since(start) < 2e-3) {
    const cudaError_t state = cudaStreamQuery(probe.stream.get());
    if (state != cudaSuccess && state != cudaErrorNotReady) check(state, "cudaStreamQuery");
    must(state == cudaErrorNotReady && load_word(result) == 0, "the device waits while the value is too small");
  }
}

/// Checks wait (>= 5) then write (7), put to the device by `enqueue(ops)`: held by 4, released by 5, by a value there
/// beforehand, and by kAbort. The flag is word 0, the result word 1.
template <class Enqueue>
void check_wait_and_write(const Probe& probe, Enqueue&& enqueue) {
  const MappedWords words(probe, 2);
  const MemOps ops = {wait_geq(words.device(0), 5), write_value(words.device(1), 7)};
  auto go = enqueue(ops);
  const auto must_end = [&](const char* what) {
    probe.finish();
    must(load_word(words.host(1)) == 7, what);
    store_word(words.host(1), 0);
  };
  store_word(words.host(0), 4);
  go();
  must_stay_waiting(probe, words.host(1));
  store_word(words.host(0), 5);
  must_end("the written value arrives after the wait");
  go();
  must_end("a wait for a value already there ends at once");
  store_word(words.host(0), 0);
  go();
  must_stay_waiting(probe, words.host(1));
  store_word(words.host(0), kAbort);
  must_end("the abort value releases the wait");
}

/// Adds a row: whether `attempt()` got through, else why not. Only the watchdog's error goes on.
template <class Attempt>
void add_check(Table& table, const Probe& probe, const char* name, Attempt&& attempt) {
  try {
    attempt();
    table.add({name, true});
  } catch (const Error& error) {
    if (probe.watchdog.fired()) throw;
    table.add({name, false, error.what()});
  }
}

inline void check_on_stream(const Probe& probe) {
  must(probe.driver.stream_batch_mem_op != nullptr, "the driver has cuStreamBatchMemOp");
  check_wait_and_write(probe, [&](const MemOps& ops) {
    return [&probe, ops = MemOps(ops)]() mutable {
      const auto n = static_cast<unsigned>(ops.size());
      check(probe.driver.stream_batch_mem_op(probe.stream.get(), n, ops.data(), 0), "cuStreamBatchMemOp");
    };
  });
}

inline void check_in_graph(const Probe& probe) {
  check_wait_and_write(probe, [&](const MemOps& ops) {
    Chain chain(probe.driver);
    chain.add_memops(ops);
    return [&probe, exec = chain.instantiate(probe.stream)] { launch(exec, probe); };
  });
}

/// What one scheme of replaying a graph of hand-offs took.
struct Replay {
  std::vector<double> update_us, launch_us;  // per launch
  std::vector<double> interval_us;           // between neighbouring hand-offs of a launch
};

/// Replays for `seconds`: `update()`, launch, `answer(start, stamps)`, wait for the end.
template <class Update, class Answer>
Replay replay(const Probe& probe, double seconds, const GraphExec& exec, Update&& update, Answer&& answer) {
  Replay result;
  const auto begin = Clock::now();
  for (int n = 0; n < 10 || seconds_since(begin) < seconds; ++n) {
    auto start = Clock::now();
    update();
    const double update_us = seconds_since(start) * 1e6;
    std::vector<double> stamps;
    stamps.reserve(kHandoffs);
    start = Clock::now();
    launch(exec, probe);
    answer(start, stamps);
    probe.finish();
    const double launch_us = seconds_since(start) * 1e6;
    if (n < 3) continue;  // warm-up
    result.update_us.push_back(update_us);
    result.launch_us.push_back(launch_us);
    append_intervals(stamps, result.interval_us);
  }
  return result;
}

/// Scheme 1: one growing counter; every node gets its new value before every launch.
inline Replay replay_updated_counter(const Probe& probe, double seconds) {
  const MappedWords words(probe, 2);
  Mailbox box{words.host(0), words.host(1)};
  const auto ops = [&](std::uint32_t i) -> MemOps {
    return {write_value(words.device(0), box.base + i + 1), wait_geq(words.device(1), box.base + i + 1)};
  };
  Chain chain(probe.driver);
  std::vector<cudaGraphNode_t> nodes;
  for (std::uint32_t i = 0; i < kHandoffs; ++i) nodes.push_back(chain.add_memops(ops(i)));
  const GraphExec exec = chain.instantiate(probe.stream);
  const auto update = [&] {
    box.base += kHandoffs;
    for (std::uint32_t i = 0; i < kHandoffs; ++i) chain.set_memops(exec, nodes[i], ops(i));
  };
  return replay(probe, seconds, exec, update, [&](Clock::time_point start, std::vector<double>& stamps) {
    answer_handoffs(box, kHandoffs, probe.watchdog, start, stamps, [](std::uint32_t) {});
  });
}

/// Scheme 2: a pair of words per hand-off, fixed values; each node sets its word back after its wait.
inline Replay replay_reset_flags(const Probe& probe, double seconds) {
  const MappedWords words(probe, 2 * kHandoffs);
  Chain chain(probe.driver);
  for (std::uint32_t i = 0; i < kHandoffs; ++i) {
    const std::uint32_t *to_host = words.device(2 * i), *to_device = words.device(2 * i + 1);
    chain.add_memops({write_value(to_host, 1), wait_geq(to_device, 1), write_value(to_device, 0)});
  }
  const GraphExec exec = chain.instantiate(probe.stream);
  return replay(probe, seconds, exec, [] {}, [&](Clock::time_point start, std::vector<double>& stamps) {
    for (std::uint32_t i = 0; i < kHandoffs; ++i) {
      wait_for_word(words.host(2 * i), 1, probe.watchdog);
      stamps.push_back(seconds_since(start) * 1e6);
      store_word(words.host(2 * i), 0);
      store_word(words.host(2 * i + 1), 1);
    }
  });
}

/// Scheme 3: one pair of words, fixed values 1..n; the last node of the graph sets the host's word back.
inline Replay replay_reset_at_end(const Probe& probe, double seconds) {
  const MappedWords words(probe, 2);
  const Mailbox box{words.host(0), words.host(1)};
  Chain chain(probe.driver);
  for (std::uint32_t i = 0; i < kHandoffs; ++i) {
    chain.add_memops({write_value(words.device(0), i + 1), wait_geq(words.device(1), i + 1)});
  }
  chain.add_memops({write_value(words.device(1), 0)});
  const GraphExec exec = chain.instantiate(probe.stream);
  return replay(probe, seconds, exec, [] {}, [&](Clock::time_point start, std::vector<double>& stamps) {
    answer_handoffs(box, kHandoffs, probe.watchdog, start, stamps, [](std::uint32_t) {});
  });
}

inline void add_replay(Table& table, const Probe& probe, const char* name, Replay (*run)(const Probe&, double)) {
  try {
    const Replay result = run(probe, probe.seconds / 3);
    const Summary interval = summarize(result.interval_us);
    table.add({name, true, static_cast<double>(result.launch_us.size()), interval.median, interval.p99,
               summarize(result.launch_us).median / kHandoffs, summarize(result.update_us).median / kHandoffs});
  } catch (const Error& error) {
    if (probe.watchdog.fired()) throw;
    const double none = std::nan("");
    table.add({name, false, none, none, none, none, none, error.what()});
  }
}

/// Part memop. A driver or device that cannot do it is an answer, not a failure.
inline void probe_memop(const Probe& probe, std::deque<Table>& tables) {
  Table& checks = tables.emplace_back(
      Table{"batch memory operations on mapped pinned memory", {"check", "works", "why not"}, {}});
  const auto attribute = [&](const char* name, cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, 0), "cudaDeviceGetAttribute");
    checks.add({name, value != 0});
  };
  attribute("device says: waits can flush remote writes", cudaDevAttrCanFlushRemoteWrites);
  attribute("device says: host can register memory", cudaDevAttrHostRegisterSupported);
  attribute("device says: native atomics with the host", cudaDevAttrHostNativeAtomicSupported);
  checks.add({"driver has the graph node functions", probe.driver.has_memop_nodes()});
  add_check(checks, probe, "wait and write on a stream", [&] { check_on_stream(probe); });
  add_check(checks, probe, "wait and write in a graph, replayed", [&] { check_in_graph(probe); });

  Table& replays = tables.emplace_back(Table{"replay of a graph of 32 hand-offs, one node each",
                                             {"scheme", "works", "launches", "handoff_median_us", "handoff_p99_us",
                                              "launch_per_handoff_us", "update_per_node_us", "why not"},
                                             {}});
  add_replay(replays, probe, "growing counter, nodes updated", replay_updated_counter);
  add_replay(replays, probe, "own words, each reset by its node", replay_reset_flags);
  add_replay(replays, probe, "one pair, reset by the last node", replay_reset_at_end);
}

}  // namespace hotset::probe
