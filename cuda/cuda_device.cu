// The CUDA device: memory, streams, and programs that are graphs (cuda/cuda_program.h).
#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>

#include "core/devices.h"
#include "cuda/cuda_program.h"

namespace hotset::cuda {
namespace {

constexpr int kOldestMajor = 7, kOldestMinor = 5;  // of the architectures that kernels are compiled for
// Left free by engines that are not told how much to take: for graphs, the runtime, and what a screen needs.
constexpr uint64_t kReserveBytes = uint64_t{512} << 20;

// Why there is no device to be used; "" when there is.
std::string problem() {
  int driver = 0, n_devices = 0, major = 0, minor = 0, is_unified = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "no NVIDIA driver";
  const cudaError_t counted = cudaGetDeviceCount(&n_devices);
  cudaGetLastError();
  if (counted == cudaErrorInsufficientDriver)
    return cat("the NVIDIA driver is for CUDA ", driver / 1000, ".", driver % 1000 / 10, ", this build needs ",
               CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10, " or newer");
  if (counted == cudaErrorNoDevice || (counted == cudaSuccess && n_devices == 0)) return "no NVIDIA card";
  if (counted != cudaSuccess) return cudaGetErrorString(counted);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
  if (major < kOldestMajor || (major == kOldestMajor && minor < kOldestMinor))
    return cat("the card has compute capability ", major, ".", minor, ", this build needs 7.5 or newer");
  cudaDeviceGetAttribute(&is_unified, cudaDevAttrUnifiedAddressing, 0);
  return is_unified ? "" : "the card and the host have no addresses in common";
}

// Memory of the card, counted by its owner.
class CardMemory final : public DeviceMemory {
 public:
  CardMemory(DeviceBytes bytes, size_t n_bytes, std::atomic<uint64_t>& used) : bytes_(std::move(bytes)), used_(used) {
    data_ = static_cast<std::byte*>(bytes_.get()), size_ = n_bytes;
  }
  ~CardMemory() override { used_ -= size_; }

 private:
  DeviceBytes bytes_;
  std::atomic<uint64_t>& used_;
};

class PinnedMemory final : public DeviceMemory {
 public:
  PinnedMemory(PinnedBytes bytes, size_t n_bytes) : bytes_(std::move(bytes)) {
    data_ = static_cast<std::byte*>(bytes_.get()), size_ = n_bytes;
  }

 private:
  PinnedBytes bytes_;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(const CudaDeviceOptions& options) : limit_(options.memory_bytes) {
    const std::string lacks = problem();
    if (!lacks.empty())
      throw DeviceError(error_text("cuda", "device", "an NVIDIA card and its driver", lacks, "use --device cpu"));
    check(cudaSetDevice(0), "cudaSetDevice");
    check(cudaGetDeviceProperties(&properties_, 0), "cudaGetDeviceProperties");
    for (Stream& stream : lanes_) stream = make_stream();
    copies_ = make_stream();
  }

  DeviceInfo info() const override {
    return {"cuda", properties_.name, cat("sm_", properties_.major, properties_.minor), 0};
  }
  std::string why_unsupported(const Op& op, const Plan& plan) const override { return cuda::why_unsupported(op, plan); }

  std::unique_ptr<DeviceMemory> alloc(size_t n_bytes) override {
    const std::lock_guard lock(mutex_);
    if (n_bytes > limit_ - used_)
      throw OutOfMemoryError(error_text("cuda", "allocation", cat("at most ", limit_ - used_, " bytes"), cat(n_bytes),
                                        "raise --vram-budget, or lower -c or -b"));
    DeviceBytes bytes;
    check(cudaMalloc(bytes.out(), std::max<size_t>(n_bytes, 1)), "cudaMalloc");
    check(cudaMemsetAsync(bytes.get(), 0, n_bytes, copies_.get()), "cudaMemsetAsync");
    check(cudaStreamSynchronize(copies_.get()), "cudaStreamSynchronize");
    used_ += n_bytes;
    return std::make_unique<CardMemory>(std::move(bytes), n_bytes, used_);
  }

  std::unique_ptr<DeviceMemory> alloc_shared(size_t n_bytes) override {
    PinnedBytes bytes;
    check(cudaHostAlloc(bytes.out(), std::max<size_t>(n_bytes, 1), cudaHostAllocMapped | cudaHostAllocPortable),
          "cudaHostAlloc");
    void* seen = nullptr;
    check(cudaHostGetDevicePointer(&seen, bytes.get(), 0), "cudaHostGetDevicePointer");
    HS_CHECK(seen == bytes.get(), "cuda pinned memory");
    std::memset(bytes.get(), 0, n_bytes);
    return std::make_unique<PinnedMemory>(std::move(bytes), n_bytes);
  }

  void upload(std::byte* at, const std::byte* from, size_t n_bytes) override {
    copy(at, from, n_bytes, cudaMemcpyHostToDevice);
  }
  void download(const std::byte* at, std::byte* to, size_t n_bytes) override {
    copy(to, at, n_bytes, cudaMemcpyDeviceToHost);
  }
  uint64_t free_bytes() const override { return limit_ == UINT64_MAX ? UINT64_MAX : limit_ - used_; }

  std::unique_ptr<Program> compile(const Plan& plan, int32_t lane, const SharedState& shared) override {
    LaunchList list = build_launches(
        plan, lane, shared, [this](size_t n) { return alloc(n); }, [this](size_t n) { return alloc_shared(n); });
    return std::make_unique<CudaProgram>(plan, lane, shared.handoff, std::move(list), stream_of(lane),
                                         properties_.multiProcessorCount, [this] { finish(); });
  }
  void launch(Program& program, const StepParams& params) override {
    static_cast<CudaProgram&>(program).launch(params);
  }
  void synchronize() override {
    for (const Stream& stream : lanes_) check(cudaStreamSynchronize(stream.get()), "a step");
  }

  bool finishes_within(std::chrono::milliseconds patience) override {
    using Clock = std::chrono::steady_clock;
    constexpr Clock::duration kSpin = std::chrono::milliseconds(2), kLongestLook = std::chrono::milliseconds(10);
    Clock::duration waited{0};
    for (Clock::time_point last = Clock::now(); !is_idle();) {
      if (waited > patience) return false;
      if (waited > kSpin) std::this_thread::sleep_for(std::chrono::microseconds(50));
      const Clock::time_point now = Clock::now();
      waited += std::min<Clock::duration>(now - last, kLongestLook);  // a longer one: the process was stopped
      last = now;
    }
    return true;
  }

 private:
  cudaStream_t stream_of(int32_t lane) const {
    return lanes_.at(static_cast<size_t>(std::max(lane - kDeviceLane, 0))).get();
  }
  // True also when a lane has failed, which synchronize() tells.
  bool is_idle() const {
    for (const Stream& stream : lanes_)
      if (cudaStreamQuery(stream.get()) == cudaErrorNotReady) return false;
    return true;
  }
  void finish() const {
    for (const Stream& stream : lanes_) cudaStreamSynchronize(stream.get());
    cudaGetLastError();
  }
  void copy(void* to, const void* from, size_t n_bytes, cudaMemcpyKind kind) {
    if (n_bytes == 0) return;
    check(cudaMemcpyAsync(to, from, n_bytes, kind, copies_.get()), "cudaMemcpyAsync");
    check(cudaStreamSynchronize(copies_.get()), "cudaStreamSynchronize");
  }

  const uint64_t limit_;
  cudaDeviceProp properties_{};
  std::mutex mutex_;  // one allocation at a time
  std::atomic<uint64_t> used_{0};
  std::array<Stream, kMaxLanes - kDeviceLane> lanes_;
  Stream copies_;
};

}  // namespace
}  // namespace hotset::cuda

namespace hotset {

CudaState cuda_state() {
  CudaState out{true, cuda::problem(), 0};
  size_t free = 0, total = 0;
  if (!out.problem.empty()) return out;
  if (cudaMemGetInfo(&free, &total) == cudaSuccess && free > cuda::kReserveBytes)
    out.free_bytes = free - cuda::kReserveBytes;
  cudaGetLastError();
  return out;
}

std::unique_ptr<Device> make_cuda_device(const CudaDeviceOptions& options) {
  return std::make_unique<cuda::CudaDevice>(options);
}

}  // namespace hotset
