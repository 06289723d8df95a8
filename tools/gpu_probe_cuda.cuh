// CUDA ground of gpu_probe: the check of every call, owners of handles, mapped words, graph chains, driver functions.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>
#include <cudaTypedefs.h>

#include <memory>
#include <type_traits>

#include "gpu_probe_host.cuh"

namespace hotset::probe {

/// Throws if a CUDA call failed. Takes runtime and driver results: both number their errors alike.
template <class Result>
void check(Result result, const char* call) {
  static_assert(std::is_same_v<Result, cudaError_t> || std::is_same_v<Result, CUresult>, "a CUDA result");
  const auto error = static_cast<cudaError_t>(result);
  if (error == cudaSuccess) return;
  throw Error(std::string("[") + call + "] result: expected success, got " + cudaGetErrorName(error) + " (" +
              cudaGetErrorString(error) + "); see docs/GPU.md");
}

/// Owns a CUDA handle; `kDestroy` frees it. Its error is dropped: a destructor cannot throw.
template <class T, auto kDestroy>
class Handle {
 public:
  Handle() = default;
  explicit Handle(T raw) : raw_(raw) {}
  Handle(Handle&& other) noexcept : raw_(std::exchange(other.raw_, T{})) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(raw_, other.raw_);
    return *this;
  }
  ~Handle() {
    if (raw_) kDestroy(raw_);
  }
  T get() const { return raw_; }
  T* out() { return &raw_; }  // for calls that return the handle; it must be empty

 private:
  T raw_{};
};

using Stream = Handle<cudaStream_t, cudaStreamDestroy>;
using Event = Handle<cudaEvent_t, cudaEventDestroy>;
using Graph = Handle<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Handle<cudaGraphExec_t, cudaGraphExecDestroy>;
using DeviceMemory = Handle<void*, cudaFree>;
using PinnedMemory = Handle<void*, cudaFreeHost>;

inline Stream make_stream() {
  Stream stream;
  check(cudaStreamCreateWithFlags(stream.out(), cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return stream;
}

inline Event make_event() {
  Event event;
  check(cudaEventCreate(event.out()), "cudaEventCreate");
  return event;
}

inline DeviceMemory device_memory(std::size_t n_bytes) {
  DeviceMemory memory;
  check(cudaMalloc(memory.out(), n_bytes), "cudaMalloc");
  return memory;
}

/// Pinned host memory that the device can reach.
inline PinnedMemory pinned_memory(std::size_t n_bytes) {
  PinnedMemory memory;
  check(cudaHostAlloc(memory.out(), n_bytes, cudaHostAllocMapped | cudaHostAllocPortable), "cudaHostAlloc");
  return memory;
}

/// Device address of pinned memory.
template <class T>
T* device_address(const PinnedMemory& memory) {
  void* address = nullptr;
  check(cudaHostGetDevicePointer(&address, memory.get(), 0), "cudaHostGetDevicePointer");
  return static_cast<T*>(address);
}

/// Driver functions that the runtime does not offer, found at run time so that libcuda is not linked.
struct DriverApi {
  PFN_cuStreamBatchMemOp_v11070 stream_batch_mem_op = nullptr;
  PFN_cuGraphAddBatchMemOpNode_v11070 graph_add_batch_mem_op_node = nullptr;
  PFN_cuGraphExecBatchMemOpNodeSetParams_v11070 graph_exec_batch_mem_op_node_set_params = nullptr;
  PFN_cuCtxGetCurrent_v4000 ctx_get_current = nullptr;

  bool has_memop_nodes() const {
    return graph_add_batch_mem_op_node && graph_exec_batch_mem_op_node_set_params && ctx_get_current;
  }
};

/// Looks `name` up in the driver as of CUDA `version` (11070 = 11.7); leaves null where the driver lacks it.
template <class Function>
void find_driver_function(const char* name, unsigned version, Function& function) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t result = cudaGetDriverEntryPointByVersion(name, &address, version, cudaEnableDefault, &found);
  check(result, "cudaGetDriverEntryPointByVersion");
  function = found == cudaDriverEntryPointSuccess ? reinterpret_cast<Function>(address) : nullptr;
}

inline DriverApi find_driver_api() {
  DriverApi api;
  find_driver_function("cuStreamBatchMemOp", 11070, api.stream_batch_mem_op);
  find_driver_function("cuGraphAddBatchMemOpNode", 11070, api.graph_add_batch_mem_op_node);
  find_driver_function("cuGraphExecBatchMemOpNodeSetParams", 11070, api.graph_exec_batch_mem_op_node_set_params);
  find_driver_function("cuCtxGetCurrent", 4000, api.ctx_get_current);
  return api;
}

/// What every part needs. Lives as long as the program; used by the main thread only.
struct Probe {
  Watchdog& watchdog;
  DriverApi driver;
  Stream stream = make_stream();
  double seconds = 0;  // for the measurements of one part
  std::uint32_t n_sm = 0;

  /// Waits for the stream without blocking in a CUDA call. Once the watchdog has fired it waits on, because the device
  /// is being released, and then throws.
  void finish() const {
    cudaError_t state = cudaStreamQuery(stream.get());
    while (state == cudaErrorNotReady) state = cudaStreamQuery(stream.get());
    check(state, "cudaStreamQuery");
    watchdog.check_time();
  }

  /// Microseconds that the device needs for what `enqueue()` puts on the stream, by events.
  template <class Enqueue>
  double device_us(Enqueue&& enqueue) const {
    check(cudaEventRecord(before.get(), stream.get()), "cudaEventRecord");
    enqueue();
    check(cudaGetLastError(), "launch");
    check(cudaEventRecord(after.get(), stream.get()), "cudaEventRecord");
    finish();
    float ms = 0;
    check(cudaEventElapsedTime(&ms, before.get(), after.get()), "cudaEventElapsedTime");
    return ms * 1e3;
  }

  /// Copies and waits for it. All work is on `stream`, which does not wait for the default stream, so this does not
  /// use the default stream either.
  void copy(void* to, const void* from, std::size_t n_bytes) const {
    check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDefault, stream.get()), "cudaMemcpyAsync");
    finish();
  }

  /// Sets device memory to zero.
  void clear(const DeviceMemory& memory, std::size_t n_bytes) const {
    check(cudaMemsetAsync(memory.get(), 0, n_bytes, stream.get()), "cudaMemsetAsync");
    finish();
  }

  Event before = make_event(), after = make_event();
};

inline double gbps(double n_bytes, double us) { return n_bytes / us * 1e-3; }

/// Words in mapped pinned memory, each on its own 128 bytes, zero at first, all released by the watchdog.
class MappedWords {
 public:
  MappedWords(const Probe& probe, std::uint32_t n_words)
      : probe_(probe), n_words_(n_words), memory_(pinned_memory(n_words * std::size_t{kStride} * 4)) {
    device_ = device_address<std::uint32_t>(memory_);
    fill(0);
    for (std::uint32_t i = 0; i < n_words_; ++i) probe_.watchdog.watch(host(i));
  }
  MappedWords(const MappedWords&) = delete;
  MappedWords& operator=(const MappedWords&) = delete;

  // After an exception the device may still wait on these words: release it and let it end before they are freed.
  ~MappedWords() {
    for (std::uint32_t i = 0; i < n_words_; ++i) probe_.watchdog.unwatch(host(i));
    while (cudaStreamQuery(probe_.stream.get()) == cudaErrorNotReady) fill(kAbort);
  }

  std::uint32_t* host(std::uint32_t i) const { return static_cast<std::uint32_t*>(memory_.get()) + i * kStride; }
  std::uint32_t* device(std::uint32_t i) const { return device_ + i * kStride; }

 private:
  void fill(std::uint32_t value) const {
    for (std::uint32_t i = 0; i < n_words_; ++i) store_word(host(i), value);
  }

  static constexpr std::uint32_t kStride = 32;
  const Probe& probe_;
  const std::uint32_t n_words_;
  PinnedMemory memory_;
  std::uint32_t* device_ = nullptr;
};

inline CUstreamBatchMemOpParams wait_geq(const std::uint32_t* device_word, std::uint32_t value) {
  CUstreamBatchMemOpParams op{};
  op.waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
  op.waitValue.address = reinterpret_cast<CUdeviceptr>(device_word);
  op.waitValue.value = value;
  op.waitValue.flags = CU_STREAM_WAIT_VALUE_GEQ;
  return op;
}

inline CUstreamBatchMemOpParams write_value(const std::uint32_t* device_word, std::uint32_t value) {
  CUstreamBatchMemOpParams op{};
  op.writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
  op.writeValue.address = reinterpret_cast<CUdeviceptr>(device_word);
  op.writeValue.value = value;
  op.writeValue.flags = CU_STREAM_WRITE_VALUE_DEFAULT;
  return op;
}

using MemOps = std::vector<CUstreamBatchMemOpParams>;

/// A graph that is a chain: every node added depends on the one before.
class Chain {
 public:
  explicit Chain(const DriverApi& driver) : driver_(driver) {
    check(cudaGraphCreate(graph_.out(), 0), "cudaGraphCreate");
  }

  /// Adds a kernel; `args` must have exactly the kernel's parameter types.
  template <class... Args>
  void add_kernel(void (*kernel)(Args...), dim3 grid, dim3 block, std::common_type_t<Args>... args) {
    void* pointers[] = {&args..., nullptr};
    cudaKernelNodeParams params{};
    params.func = reinterpret_cast<void*>(kernel);
    params.gridDim = grid;
    params.blockDim = block;
    params.kernelParams = pointers;
    cudaGraphNode_t node;
    check(cudaGraphAddKernelNode(&node, graph_.get(), last(), n_last(), &params), "cudaGraphAddKernelNode");
    nodes_.push_back(node);
  }

  /// Adds a callback into the host; `data` must outlive the launches.
  void add_host(cudaHostFn_t function, void* data) {
    const cudaHostNodeParams params{function, data};
    cudaGraphNode_t node;
    check(cudaGraphAddHostNode(&node, graph_.get(), last(), n_last(), &params), "cudaGraphAddHostNode");
    nodes_.push_back(node);
  }

  /// Adds one batch memory-op node; returns it for set_memops.
  cudaGraphNode_t add_memops(MemOps ops) {
    const auto params = node_params(ops);
    cudaGraphNode_t node;
    check(driver_.graph_add_batch_mem_op_node(&node, graph_.get(), last(), n_last(), &params),
          "cuGraphAddBatchMemOpNode");
    nodes_.push_back(node);
    return node;
  }

  /// Gives the node of an executable graph new addresses and values for its next launches.
  void set_memops(const GraphExec& exec, cudaGraphNode_t node, MemOps ops) const {
    const auto params = node_params(ops);
    check(driver_.graph_exec_batch_mem_op_node_set_params(exec.get(), node, &params),
          "cuGraphExecBatchMemOpNodeSetParams");
  }

  std::size_t n_nodes() const { return nodes_.size(); }

  /// Instantiates and uploads, so that a launch allocates nothing.
  GraphExec instantiate(const Stream& stream) const {
    GraphExec exec;
    check(cudaGraphInstantiateWithFlags(exec.out(), graph_.get(), 0), "cudaGraphInstantiateWithFlags");
    check(cudaGraphUpload(exec.get(), stream.get()), "cudaGraphUpload");
    return exec;
  }

 private:
  CUDA_BATCH_MEM_OP_NODE_PARAMS node_params(MemOps& ops) const {
    if (!driver_.has_memop_nodes()) {
      throw Error("[memop] driver: expected batch memory-op nodes (11.7), got none; update the driver");
    }
    CUDA_BATCH_MEM_OP_NODE_PARAMS params{};
    check(driver_.ctx_get_current(&params.ctx), "cuCtxGetCurrent");
    params.count = static_cast<unsigned>(ops.size());
    params.paramArray = ops.data();
    return params;
  }

  const cudaGraphNode_t* last() const { return nodes_.empty() ? nullptr : &nodes_.back(); }
  std::size_t n_last() const { return nodes_.empty() ? 0 : 1; }

  const DriverApi& driver_;
  Graph graph_;
  std::vector<cudaGraphNode_t> nodes_;
};

inline void launch(const GraphExec& exec, const Probe& probe) {
  check(cudaGraphLaunch(exec.get(), probe.stream.get()), "cudaGraphLaunch");
}

}  // namespace hotset::probe
