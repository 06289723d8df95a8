// A file mapped for reading, and files that are memory only. The only place that asks the operating system for file
// contents.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace hotset {

// Read-only private mapping of a whole file; unmapped on destruction.
class MmapFile {
 public:
  // Throws Error naming the path when it is missing, not a regular file, empty or cannot be mapped.
  static std::shared_ptr<const MmapFile> open(const std::string& path);
  // In place of a file of n_bytes of which only the first are known: those, then zeros, which take address space but no
  // memory. Throws OutOfMemoryError.
  static std::shared_ptr<const MmapFile> with_zeros(std::span<const std::byte> start, size_t n_bytes);
  ~MmapFile();
  MmapFile(const MmapFile&) = delete;
  MmapFile& operator=(const MmapFile&) = delete;

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

  // Takes the whole pages within [at, at + n_bytes) out of this process's memory; they are read again when touched.
  // Nothing happens to memory outside of the mapping.
  void drop_pages(const std::byte* at, size_t n_bytes) const;

  // Asks for large pages from here on, where the system has them for files: what is read from the disk then is cached in
  // pieces of 2 MiB, which take one entry of the address tables, and are counted as ours once any of it is touched.
  void prefer_large_pages() const;

 private:
  MmapFile(const std::byte* data, size_t size) : data_(data), size_(size) {}
  const std::byte* data_;
  size_t size_;
};

// An empty file without a name in memory. It lives as long as this object or a mapping of it.
class MemoryFile {
 public:
  // `name` is for the system's lists. Throws OutOfMemoryError.
  explicit MemoryFile(const std::string& name);
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  // Opens the file, while this object lives.
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

}  // namespace hotset
