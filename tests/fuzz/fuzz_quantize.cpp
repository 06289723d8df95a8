// libFuzzer target for quantising model files: whatever the bytes, the result is a file that can be read or a hotset
// error. The first byte chooses type, layout and mixture, the rest is the file.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "core/error.h"
#include "core/gguf.h"
#include "core/quantize_model.h"

namespace {

using namespace hotset;

void require(bool condition) {
  if (!condition) std::abort();
}

// A file in memory, by the name that other code can open.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* bytes, size_t size) : fd_(::memfd_create("fuzz", 0)) {
    require(fd_ >= 0 && ::write(fd_, bytes, size) == static_cast<ssize_t>(size));
  }
  ~MemoryFile() { ::close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  if (size < 2) return 0;
  static const char* const kTypes[] = {"q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q2_k", "q3_k_m", "q4_1",
                                      "q5_0", "q5_1", "iq4_nl", "iq4_xs", "mxfp4", "f16", "bf16", "f32"};
  QuantizeOptions options;
  options.type = kTypes[bytes[0] & 15];
  options.layout = (bytes[0] & 16) ? "gguf" : "neuron";
  options.pure = (bytes[0] & 32) != 0;
  options.n_threads = 1;
  const MemoryFile input(bytes + 1, size - 1);
  static const std::string out = "/dev/shm/fuzz_quantize-" + std::to_string(::getpid()) + ".gguf";
  try {
    const QuantizeResult result = quantize_model(input.path(), out, options);
    require(GgufFile::open(out)->size_bytes() == result.output_bytes);
  } catch (const Error& error) {
    require(std::strchr(error.what(), '\n') == nullptr);
  }
  ::unlink(out.c_str());
  return 0;
}
