#include "core/mmap_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace hotset {
namespace {

// Closes a file descriptor at the end of the scope; a mapping survives it.
struct FileDescriptor {
  int value;
  ~FileDescriptor() {
    if (value >= 0) ::close(value);
  }
};

[[noreturn]] void fail_open(const std::string& path, const std::string& got) {
  throw Error(error_text("file", quoted(path, 300), "a readable file", got, "check the path"));
}

}  // namespace

std::shared_ptr<const MmapFile> MmapFile::open(const std::string& path) {
  const FileDescriptor fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (fd.value < 0) fail_open(path, std::strerror(errno));
  struct stat status;
  if (::fstat(fd.value, &status) != 0) fail_open(path, std::strerror(errno));
  if (S_ISDIR(status.st_mode)) fail_open(path, "a directory");
  if (!S_ISREG(status.st_mode)) fail_open(path, "something that is not a regular file");
  if (status.st_size == 0) fail_open(path, "an empty file");
  const size_t size = static_cast<size_t>(status.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.value, 0);
  if (data == MAP_FAILED) fail_open(path, std::strerror(errno));
  return std::shared_ptr<const MmapFile>(new MmapFile(static_cast<const std::byte*>(data), size));
}

std::shared_ptr<const MmapFile> MmapFile::with_zeros(std::span<const std::byte> start, size_t n_bytes) {
  void* data = ::mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    throw OutOfMemoryError(error_text("file", "address space", cat(n_bytes, " bytes"), std::strerror(errno),
                                      "raise the limit of this process (ulimit -v)"));
  if (!start.empty()) std::memcpy(data, start.data(), start.size());
  return std::shared_ptr<const MmapFile>(new MmapFile(static_cast<const std::byte*>(data), n_bytes));
}

void MmapFile::drop_pages(const std::byte* at, size_t n_bytes) const {
  if (at < data_ || at + n_bytes > data_ + size_) return;
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t offset = static_cast<size_t>(at - data_);
  const size_t begin = (offset + page - 1) / page * page, end = (offset + n_bytes) / page * page;
  if (begin < end) ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

void MmapFile::prefer_large_pages() const { ::madvise(const_cast<std::byte*>(data_), size_, MADV_HUGEPAGE); }

MmapFile::~MmapFile() { ::munmap(const_cast<std::byte*>(data_), size_); }

MemoryFile::MemoryFile(const std::string& name) : fd_(::memfd_create(name.c_str(), MFD_CLOEXEC)) {
  if (fd_ < 0)
    throw OutOfMemoryError(
        error_text("file", "file in memory", "success", std::strerror(errno), "write to a disk instead"));
}

MemoryFile::~MemoryFile() { ::close(fd_); }

}  // namespace hotset
