// Stands in for the CUDA device in builds without it: the same symbol, a clear message.
#include "core/devices.h"
#include "core/error.h"

namespace hotset {

std::unique_ptr<Device> make_cuda_device() {
  throw DeviceError(error_text("cuda", "device", "a build with CUDA", "a build without it",
                               "use --device cpu"));
}

}  // namespace hotset
