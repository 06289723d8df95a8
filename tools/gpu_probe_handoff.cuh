// Part handoff of gpu_probe: what a hand-off from device to host and back costs, by the way the device waits.
#pragma once

#include "gpu_probe_memop.cuh"

namespace hotset::probe {

// Payload of a hand-off in each direction: a row of 4096 floats, as x and y of a layer are.
constexpr std::uint32_t kPayloadThreads = 1024;  // one block, 16 bytes a thread
constexpr std::uint32_t kPayloadWords = 4 * kPayloadThreads;

/// Device counters of one variant.
struct Counters {
  std::uint32_t step;      // launches so far
  std::uint32_t n_errors;  // payload words that were not what the host had stored
};

/// Device addresses that kernels of a hand-off use, and which hand-off it is.
struct HandoffArgs {
  std::uint32_t *to_host, *to_device;
  uint4 *payload_out, *payload_in;
  Counters* counters;
  std::uint32_t value;  // of the flags: number of the hand-off in its launch, from 1
};

__device__ inline void send_flag(std::uint32_t* word, std::uint32_t value) {
  __threadfence_system();
  *static_cast<volatile std::uint32_t*>(word) = value;
}

__device__ inline void poll_flag(const std::uint32_t* word, std::uint32_t value) {
  while (*static_cast<const volatile std::uint32_t*>(word) < value) {
  }
  __threadfence_system();
}

/// Value of every payload word of this hand-off; differs from launch to launch, so stale data shows.
__device__ inline std::uint32_t payload_value(const HandoffArgs& args) {
  return args.counters->step * kHandoffs + args.value;
}

/// One thread stores the flag.
__global__ void flag_kernel(HandoffArgs args) { send_flag(args.to_host, args.value); }

/// One thread stores the flag and polls for the answer.
__global__ void flag_poll_kernel(HandoffArgs args) {
  send_flag(args.to_host, args.value);
  poll_flag(args.to_device, args.value);
}

/// All hand-offs of a launch in one kernel: no nodes, only the bus.
__global__ void ping_pong_kernel(HandoffArgs args) {
  for (std::uint32_t i = 1; i <= kHandoffs; ++i) {
    send_flag(args.to_host, i);
    poll_flag(args.to_device, i);
  }
}

/// Stores the payload and then the flag. Every thread fences its own store before the barrier, so thread 0's flag is
/// behind all of them.
__global__ void produce_kernel(HandoffArgs args) {
  const std::uint32_t v = payload_value(args);
  args.payload_out[threadIdx.x] = make_uint4(v, v, v, v);
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) send_flag(args.to_host, args.value);
}

/// Reads the host's payload, past the caches, and counts wrong words; first polls for the flag if `kPoll`.
template <bool kPoll>
__global__ void consume_kernel(HandoffArgs args) {
  if (kPoll) {
    if (threadIdx.x == 0) poll_flag(args.to_device, args.value);
    __syncthreads();
  }
  const std::uint32_t v = payload_value(args);
  const uint4 got = __ldcv(args.payload_in + threadIdx.x);
  const std::uint32_t n_wrong = (got.x != v) + (got.y != v) + (got.z != v) + (got.w != v);
  if (n_wrong) atomicAdd(&args.counters->n_errors, n_wrong);
}

/// Last node of a launch: sets the host's word back and counts the launch.
__global__ void end_launch_kernel(HandoffArgs args) {
  *static_cast<volatile std::uint32_t*>(args.to_device) = 0;
  ++args.counters->step;
}

/// Words, payloads and counters of one variant; fresh for each.
class HandoffMemory {
 public:
  explicit HandoffMemory(const Probe& probe)
      : payload_(pinned_memory(2 * kPayloadWords * 4)),
        counters_(device_memory(sizeof(Counters))),
        words_(probe, 2) {
    std::fill_n(payload(0), 2 * kPayloadWords, 0u);
    probe.clear(counters_, sizeof(Counters));
  }

  Mailbox mailbox() const { return {words_.host(0), words_.host(1)}; }

  /// Host address of the payload from the device (0) or to it (1).
  std::uint32_t* payload(int which) const {
    return static_cast<std::uint32_t*>(payload_.get()) + which * kPayloadWords;
  }

  HandoffArgs args(std::uint32_t value) const {
    uint4* out = device_address<uint4>(payload_);
    auto* counters = static_cast<Counters*>(counters_.get());
    return {words_.device(0), words_.device(1), out, out + kPayloadThreads, counters, value};
  }

  std::uint32_t n_device_errors(const Probe& probe) const {
    Counters counters{};
    probe.copy(&counters, counters_.get(), sizeof counters);
    return counters.n_errors;
  }

 private:
  PinnedMemory payload_;
  DeviceMemory counters_;
  MappedWords words_;  // last: its destructor waits for the device
};

/// One way to hand off: adds the nodes of hand-off `args.value` to the chain.
struct HandoffVariant {
  const char* name;
  void (*add)(Chain& chain, const HandoffArgs& args);
  bool has_payload;
  bool has_memops;  // may be impossible here; that is an answer, not a failure
};

inline const std::vector<HandoffVariant>& handoff_variants() {
  static const std::vector<HandoffVariant> variants = {
      {"one kernel for all, polls",
       [](Chain& chain, const HandoffArgs& args) {
         if (args.value == 1) chain.add_kernel(ping_pong_kernel, 1, 1, args);
       },
       false, false},
      {"kernel: flag and poll",
       [](Chain& chain, const HandoffArgs& args) { chain.add_kernel(flag_poll_kernel, 1, 1, args); }, false,
       false},
      {"memop: flag and wait",
       [](Chain& chain, const HandoffArgs& args) {
         chain.add_memops({write_value(args.to_host, args.value), wait_geq(args.to_device, args.value)});
       },
       false, true},
      {"kernel: flag; memop: wait",
       [](Chain& chain, const HandoffArgs& args) {
         chain.add_kernel(flag_kernel, 1, 1, args);
         chain.add_memops({wait_geq(args.to_device, args.value)});
       },
       false, true},
      {"16 KiB out; kernel polls, 16 KiB in",
       [](Chain& chain, const HandoffArgs& args) {
         chain.add_kernel(produce_kernel, 1, kPayloadThreads, args);
         chain.add_kernel(consume_kernel<true>, 1, kPayloadThreads, args);
       },
       true, false},
      {"16 KiB out; memop: wait; 16 KiB in",
       [](Chain& chain, const HandoffArgs& args) {
         chain.add_kernel(produce_kernel, 1, kPayloadThreads, args);
         chain.add_memops({wait_geq(args.to_device, args.value)});
         chain.add_kernel(consume_kernel<false>, 1, kPayloadThreads, args);
       },
       true, true},
  };
  return variants;
}

/// The host's work in a hand-off with payload: counts wrong words of the device's row and stores its own.
inline std::uint32_t exchange_payload(const HandoffMemory& memory, std::uint32_t value) {
  const std::uint32_t* in = memory.payload(0);
  std::uint32_t n_wrong = 0;
  for (std::uint32_t i = 0; i < kPayloadWords; ++i) n_wrong += in[i] != value;
  std::fill_n(memory.payload(1), kPayloadWords, value);
  return n_wrong;
}

inline void add_handoff_row(Table& table, const char* name, double n_nodes, const Replay& result, double n_wrong) {
  const Summary interval = summarize(result.interval_us);
  table.add({name, n_nodes, interval.median, interval.p99, interval.min, interval.max,
             summarize(result.launch_us).median / kHandoffs, static_cast<double>(interval.n), n_wrong});
  if (n_wrong > 0) {
    throw Error(std::string("[handoff] payload of '") + name + "': expected the other side's words, got " +
                format_number(n_wrong) + " others; do not use this way here");
  }
}

/// Measures one variant and adds its row. Interval: from one hand-off seen by the host to the next, a full round trip.
inline void measure_handoff(Table& table, const Probe& probe, double seconds, const HandoffVariant& variant) {
  const HandoffMemory memory(probe);
  Chain chain(probe.driver);
  for (std::uint32_t value = 1; value <= kHandoffs; ++value) variant.add(chain, memory.args(value));
  const double n_nodes = static_cast<double>(chain.n_nodes()) / kHandoffs;
  chain.add_kernel(end_launch_kernel, 1, 1, memory.args(0));
  const GraphExec exec = chain.instantiate(probe.stream);
  std::uint32_t step = 0, n_wrong = 0;
  const auto work = [&](std::uint32_t i) {
    if (variant.has_payload) n_wrong += exchange_payload(memory, step * kHandoffs + i + 1);
  };
  const auto answer = [&](Clock::time_point start, std::vector<double>& stamps) {
    answer_handoffs(memory.mailbox(), kHandoffs, probe.watchdog, start, stamps, work);
    ++step;
  };
  const Replay result = replay(probe, seconds, exec, [] {}, answer);
  add_handoff_row(table, variant.name, n_nodes, result, n_wrong + memory.n_device_errors(probe));
}

/// Times noted by callbacks. The callback's thread writes `n_done`, the main thread reads it; `us` is read only
/// once `n_done` says that it is full.
struct CallbackLog {
  Clock::time_point start;
  std::vector<double> us;
  std::uint32_t n_done = 0;
};

inline void CUDART_CB note_callback(void* data) {
  CallbackLog& log = *static_cast<CallbackLog*>(data);
  log.us.push_back(seconds_since(log.start) * 1e6);
  store_word(&log.n_done, log.n_done + 1);
}

/// Measures callbacks into the host: a kernel, then a host node. The main thread only watches memory meanwhile.
inline void measure_callback(Table& table, const Probe& probe, double seconds) {
  const HandoffMemory memory(probe);
  CallbackLog log;
  log.us.reserve(kHandoffs);
  Chain chain(probe.driver);
  for (std::uint32_t value = 1; value <= kHandoffs; ++value) {
    chain.add_kernel(flag_kernel, 1, 1, memory.args(value));
    chain.add_host(note_callback, &log);
  }
  const GraphExec exec = chain.instantiate(probe.stream);
  const auto update = [&] {
    log.us.clear();
    log.n_done = 0;
    log.start = Clock::now();
  };
  const auto answer = [&](Clock::time_point, std::vector<double>& stamps) {
    wait_for_word(&log.n_done, kHandoffs, probe.watchdog);
    stamps = log.us;
  };
  const Replay result = replay(probe, seconds, exec, update, answer);
  add_handoff_row(table, "kernel: flag; callback on the host", 2, result, 0);
}

/// Part handoff: 32 hand-offs per launch, each variant in its share of the time. Throws the first failure at the end.
inline void probe_handoff(const Probe& probe, std::deque<Table>& tables) {
  const std::vector<std::string> columns = {"variant", "nodes",  "median_us", "p99_us",
                                            "min_us",  "max_us", "launch_per_handoff_us",
                                            "samples", "wrong_words", "why not"};
  Table& table = tables.emplace_back(Table{"hand-off device -> host -> device, 32 per graph launch", columns, {}});
  const double seconds = probe.seconds / (handoff_variants().size() + 1);
  std::string failure;
  const auto attempt = [&](const char* name, bool may_be_impossible, const auto& measure) {
    const std::size_t n_rows = table.rows.size();
    try {
      measure();
    } catch (const Error& error) {
      if (probe.watchdog.fired()) throw;
      const double none = std::nan("");
      const bool measured = table.rows.size() > n_rows;
      if (measured) table.rows.back().back() = error.what();
      if (!measured) table.add({name, none, none, none, none, none, none, none, none, error.what()});
      if (failure.empty() && (measured || !may_be_impossible)) failure = error.what();
    }
  };
  for (const HandoffVariant& variant : handoff_variants()) {
    attempt(variant.name, variant.has_memops, [&] { measure_handoff(table, probe, seconds, variant); });
  }
  attempt("kernel: flag; callback on the host", false, [&] { measure_callback(table, probe, seconds); });
  if (!failure.empty()) throw Error(failure);
}

}  // namespace hotset::probe
