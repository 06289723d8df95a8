#include "cpu/virtual_memory.h"

#include <sys/mman.h>

#include <algorithm>

#include "core/error.h"

namespace hotset::cpu {
namespace {

constexpr size_t kPageBytes = 4096;

[[noreturn]] void fail(uint64_t free_bytes, size_t n_bytes) {
  throw OutOfMemoryError(error_text("virtual device", "allocation", cat("at most ", free_bytes, " bytes"), cat(n_bytes),
                                    "raise --vram-budget, or lower -c or -b"));
}

size_t mapped_bytes(size_t n_bytes) {
  return (std::max<size_t>(n_bytes, 1) + kPageBytes - 1) / kPageBytes * kPageBytes;
}

// The piece that holds all of [at, at + n_bytes), by first addresses; null if none does.
const auto* find(const auto& pieces, const std::byte* at, size_t n_bytes) {
  const auto next = pieces.upper_bound(at);
  if (next == pieces.begin()) return static_cast<decltype(&next->second)>(nullptr);
  const auto& [first, piece] = *std::prev(next);
  const size_t offset = static_cast<size_t>(at - first);
  return offset <= piece.size && n_bytes <= piece.size - offset ? &piece : nullptr;
}

}  // namespace

class VirtualPiece final : public DeviceMemory {
 public:
  VirtualPiece(VirtualMemory& owner, size_t n_bytes, bool is_real) : owner_(owner), piece_(owner.map(n_bytes)) {
    data_ = is_real ? piece_.real : piece_.handed;
    size_ = n_bytes;
  }
  ~VirtualPiece() override { owner_.unmap(piece_); }

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

// What the host is given is address space alone: no memory needs to lie there.
VirtualMemory::Piece VirtualMemory::map(size_t n_bytes) {
  const std::lock_guard lock(mutex_);
  if (++n_allocs_ == fail_alloc_ || n_bytes > limit_ - used_) fail(limit_ - used_, n_bytes);
  const size_t n_mapped = mapped_bytes(n_bytes);
  Arena memory(n_mapped, Pages::kHuge);
  void* const handed = ::mmap(nullptr, n_mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (handed == MAP_FAILED) fail(limit_ - used_, n_bytes);
  const Piece out{static_cast<std::byte*>(handed), memory.data(), n_bytes};
  by_handed_[out.handed] = by_real_[out.real] = out;
  memory_[out.real] = std::move(memory);
  used_ += n_bytes;
  return out;
}

void VirtualMemory::unmap(const Piece& piece) {
  const std::lock_guard lock(mutex_);
  by_handed_.erase(piece.handed), by_real_.erase(piece.real), memory_.erase(piece.real);
  ::munmap(piece.handed, mapped_bytes(piece.size));
  used_ -= piece.size;
}

std::byte* VirtualMemory::real(const std::byte* at, size_t n_bytes) const {
  if (at == nullptr) return nullptr;
  const std::lock_guard lock(mutex_);
  const auto* const piece = find(by_handed_, at, n_bytes);
  HS_CHECK(piece != nullptr, "virtual device memory");
  return piece->real + (at - piece->handed);
}

std::byte* VirtualMemory::handed(const std::byte* real) const {
  const std::lock_guard lock(mutex_);
  const auto* const piece = find(by_real_, real, 0);
  return piece != nullptr ? piece->handed + (real - piece->real) : nullptr;
}

uint64_t VirtualMemory::free_bytes() const {
  const std::lock_guard lock(mutex_);
  return limit_ == UINT64_MAX ? UINT64_MAX : limit_ - used_;
}

}  // namespace hotset::cpu
