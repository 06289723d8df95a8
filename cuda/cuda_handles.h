// Owners of what the CUDA runtime hands out, and the check of every call.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "core/error.h"

namespace hotset::cuda {

// Throws if a CUDA call failed: OutOfMemoryError for want of memory, else DeviceError.
inline void check(cudaError_t result, const char* call) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // it is told here; the next call shall not tell it again
  const std::string got = cat(cudaGetErrorName(result), " (", cudaGetErrorString(result), ")");
  if (result == cudaErrorMemoryAllocation)
    throw OutOfMemoryError(error_text("cuda", call, "memory", got, "lower --vram-budget, -c or -b"));
  throw DeviceError(error_text("cuda", call, "success", got, "see docs/GPU.md, or use --device cpu"));
}

// Owns a handle, which kDestroy gives back. Its error is dropped: a destructor cannot throw.
template <class T, auto kDestroy>
class Handle {
 public:
  Handle() = default;
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
using Graph = Handle<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Handle<cudaGraphExec_t, cudaGraphExecDestroy>;
using DeviceBytes = Handle<void*, cudaFree>;
using PinnedBytes = Handle<void*, cudaFreeHost>;
using RegisteredBytes = Handle<void*, cudaHostUnregister>;  // host memory of somebody else, pinned

inline Stream make_stream() {
  Stream stream;
  check(cudaStreamCreateWithFlags(stream.out(), cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return stream;
}

}  // namespace hotset::cuda
