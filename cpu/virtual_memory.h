// Memory of a pretend accelerator: pieces that the device reads and writes, and for each as much address space without
// access, whose addresses the host is given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "core/arena.h"
#include "core/device.h"

namespace hotset::cpu {

// All pieces of a device. Thread-safe.
class VirtualMemory {
 public:
  // `fail_alloc`: that allocation, counted from 1, fails; 0 = none.
  VirtualMemory(uint64_t limit, int64_t fail_alloc) : limit_(limit), fail_alloc_(fail_alloc) {}
  VirtualMemory(const VirtualMemory&) = delete;
  VirtualMemory& operator=(const VirtualMemory&) = delete;

  // Zero-filled; data() is an address for the device's programs. Throws OutOfMemoryError. Must not outlive this.
  std::unique_ptr<DeviceMemory> alloc(size_t n_bytes);
  // The same with an address that this process can use, for programs' own memory.
  std::unique_ptr<DeviceMemory> alloc_real(size_t n_bytes);

  // Where the device reads what lies at `at`, which must be within a piece for n_bytes; null stays null.
  std::byte* real(const std::byte* at, size_t n_bytes = 0) const;
  // The address that the host is given for a real one.
  std::byte* handed(const std::byte* real) const;

  uint64_t free_bytes() const;

 private:
  friend class VirtualPiece;
  struct Piece {
    std::byte *handed, *real;
    size_t size;  // asked for; the mapping ends with its page
  };
  Piece map(size_t n_bytes);
  void unmap(const Piece& piece);

  const uint64_t limit_;
  const int64_t fail_alloc_;
  mutable std::mutex mutex_;  // guards what follows
  uint64_t used_ = 0;
  int64_t n_allocs_ = 0;
  std::map<const std::byte*, Piece> by_handed_, by_real_;  // by first address
  std::map<const std::byte*, Arena> memory_;               // by `real`
};

}  // namespace hotset::cpu
