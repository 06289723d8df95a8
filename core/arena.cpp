#include "core/arena.h"

#include <sys/mman.h>

#include <cstdint>
#include <utility>

#include "core/error.h"

namespace hotset {
namespace {

constexpr size_t kPageBytes = 4096;

}  // namespace

Arena::Arena(size_t n_bytes, Pages pages) {
  void* data = MAP_FAILED;
  if (n_bytes <= SIZE_MAX - kPageBytes) {
    size_ = (n_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
    data = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (data == MAP_FAILED)
    throw OutOfMemoryError(error_text("memory", "allocation", cat(n_bytes, " bytes"), "a refusal by the system",
                                      "lower -c, use fewer sequences or a smaller model"));
  data_ = static_cast<std::byte*>(data);
#if defined(MADV_HUGEPAGE)
  if (pages == Pages::kHuge) ::madvise(data, size_, MADV_HUGEPAGE);
#endif
}

void Arena::drop(const std::byte* at, size_t n_bytes) {
  const size_t offset = static_cast<size_t>(at - data_);
  const size_t begin = (offset + kPageBytes - 1) / kPageBytes * kPageBytes;
  const size_t end = (offset + n_bytes) / kPageBytes * kPageBytes;
  if (begin < end) ::madvise(data_ + begin, end - begin, MADV_DONTNEED);
}

Arena::~Arena() {
  if (data_) ::munmap(data_, size_);
}

Arena::Arena(Arena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace hotset
