#include "cpu/virtual_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "core/error.h"

namespace hotset::cpu {
namespace {

constexpr size_t kPageBytes = 4096;

[[noreturn]] void fail(uint64_t free_bytes, size_t n_bytes) {
  throw OutOfMemoryError(error_text("virtual device", "allocation", cat("at most ", free_bytes, " bytes"), cat(n_bytes),
                                    "raise --vram-budget, or lower -c or -b"));
}

const std::byte* find(const auto& pieces, const std::byte* at, const auto& base, const auto& other) {
  const auto next = pieces.upper_bound(at);
  if (next == pieces.begin()) return nullptr;
  const auto& piece = std::prev(next)->second;
  const size_t offset = static_cast<size_t>(at - base(piece));
  return offset < piece.size ? other(piece) + offset : nullptr;
}

}  // namespace

class VirtualPiece final : public DeviceMemory {
 public:
  VirtualPiece(VirtualMemory& owner, size_t n_bytes, bool is_real) : owner_(owner), piece_(owner.map(n_bytes)) {
    data_ = is_real ? piece_.real : piece_.handed;
    size_ = n_bytes;
  }
  ~VirtualPiece() override { owner_.unmap(piece_, size_); }

 private:
  VirtualMemory& owner_;
  const VirtualMemory::Piece piece_;
};

std::unique_ptr<DeviceMemory> VirtualMemory::alloc(size_t n_bytes) {
  return std::make_unique<VirtualPiece>(*this, n_bytes, false);
}
std::unique_ptr<DeviceMemory> VirtualMemory::alloc_real(size_t n_bytes) {
  return std::make_unique<VirtualPiece>(*this, n_bytes, true);
}

VirtualMemory::Piece VirtualMemory::map(size_t n_bytes) {
  const std::lock_guard lock(mutex_);
  if (++n_allocs_ == fail_alloc_ || n_bytes > limit_ - used_) fail(limit_ - used_, n_bytes);
  Piece out{nullptr, nullptr, (std::max<size_t>(n_bytes, 1) + kPageBytes - 1) / kPageBytes * kPageBytes};
  const int file = ::memfd_create("hotset-virtual-device", MFD_CLOEXEC);
  const bool is_sized = file >= 0 && ::ftruncate(file, static_cast<off_t>(out.size)) == 0;
  void* const real = is_sized ? ::mmap(nullptr, out.size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
  void* const handed = real != MAP_FAILED ? ::mmap(nullptr, out.size, PROT_NONE, MAP_SHARED, file, 0) : MAP_FAILED;
  if (file >= 0) ::close(file);
  if (handed == MAP_FAILED) {
    if (real != MAP_FAILED) ::munmap(real, out.size);
    fail(limit_ - used_, n_bytes);
  }
  out.handed = static_cast<std::byte*>(handed), out.real = static_cast<std::byte*>(real);
  by_handed_[out.handed] = out, by_real_[out.real] = out;
  used_ += n_bytes;
  return out;
}

void VirtualMemory::unmap(const Piece& piece, size_t n_bytes) {
  const std::lock_guard lock(mutex_);
  by_handed_.erase(piece.handed), by_real_.erase(piece.real);
  ::munmap(piece.handed, piece.size), ::munmap(piece.real, piece.size);
  used_ -= n_bytes;
}

std::byte* VirtualMemory::real(const std::byte* at, size_t n_bytes) const {
  if (at == nullptr) return nullptr;
  const std::lock_guard lock(mutex_);
  const auto base = [](const Piece& piece) { return piece.handed; };
  const auto other = [](const Piece& piece) { return piece.real; };
  const std::byte* const out = find(by_handed_, at, base, other);
  HS_CHECK(out != nullptr && (n_bytes == 0 || find(by_handed_, at + n_bytes - 1, base, other) == out + n_bytes - 1),
           "virtual device memory");
  return const_cast<std::byte*>(out);
}

std::byte* VirtualMemory::handed(const std::byte* real) const {
  const std::lock_guard lock(mutex_);
  const auto base = [](const Piece& piece) { return piece.real; };
  const auto other = [](const Piece& piece) { return piece.handed; };
  return const_cast<std::byte*>(find(by_real_, real, base, other));
}

uint64_t VirtualMemory::free_bytes() const {
  const std::lock_guard lock(mutex_);
  return limit_ == UINT64_MAX ? UINT64_MAX : limit_ - used_;
}

}  // namespace hotset::cpu
