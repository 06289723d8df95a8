// Stands in for the CUDA device in builds without it: the same symbols, a clear message.
#include "core/devices.h"
#include "core/error.h"

namespace hotset {

CudaState cuda_state() { return {false, "this build has no CUDA", 0}; }

std::unique_ptr<Device> make_cuda_device(const CudaDeviceOptions&) {
  throw DeviceError(error_text("cuda", "device", "a build with CUDA", cuda_state().problem,
                               "use --device cpu"));
}

}  // namespace hotset
