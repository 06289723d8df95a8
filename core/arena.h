// Anonymous memory from the operating system.
#pragma once

#include <cstddef>

namespace hotset {

// Large pages make gathered reads of many gigabytes cheaper, but are committed 2 MiB at a time.
enum class Pages { kNormal, kHuge };

// Zero-filled memory, page-aligned, committed when touched; given back on destruction.
class Arena {
 public:
  Arena() = default;
  // Throws OutOfMemoryError. kHuge is a wish: systems without large pages give normal ones.
  Arena(size_t n_bytes, Pages pages);
  ~Arena();
  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&& other) noexcept;

  // Gives the whole pages within these bytes back to the system; they read as zeros from now on.
  void drop(const std::byte* at, size_t n_bytes);

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace hotset
