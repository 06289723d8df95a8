#include "tools/npy.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "tools/io.h"

namespace hotset::cli {
namespace {

static_assert(std::endian::native == std::endian::little, "values are written as they lie in memory");

// Magic, version, length, then a Python dictionary padded so that the data starts at a multiple of 64.
std::string npy_header(int64_t n_rows, int64_t n_cols) {
  std::string dict = cat("{'descr': '<f4', 'fortran_order': False, 'shape': (", n_rows, ", ", n_cols, "), }");
  constexpr size_t kPrefix = 10;
  dict.append(63 - (kPrefix + dict.size()) % 64, ' ');
  dict += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(dict.size() & 0xff);
  header += static_cast<char>(dict.size() >> 8);
  return header + dict;
}

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw Error(error_text(path, what, "a writable place", std::strerror(errno), "choose another -o"));
}

}  // namespace

NpyWriter::Target::Target(const std::string& wanted) : path(wanted) {
  if (path == "-") return;
  struct stat status {};
  const bool exists = stat(path.c_str(), &status) == 0;
  if (exists && !S_ISREG(status.st_mode)) {
    fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) fail(path, "cannot open output");
    return;
  }
  char resolved[PATH_MAX];
  if (exists && realpath(path.c_str(), resolved) != nullptr) path = resolved;  // a symbolic link stays in place
  const std::string beside = cat(path, ".", getpid(), ".tmp");
  fd = open(beside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) fail(path, "cannot create output");
  temporary = beside;
}

NpyWriter::Target::~Target() {
  if (fd >= 0) close(fd);
  if (!temporary.empty()) unlink(temporary.c_str());
}

NpyWriter::NpyWriter(const std::string& path, int64_t n_rows, int64_t n_cols)
    : target_(path), n_missing_(n_rows * n_cols) {
  const std::string header = npy_header(n_rows, n_cols);
  write_bytes(header.data(), header.size());
}

void NpyWriter::write_bytes(const void* data, size_t n_bytes) {
  const char* bytes = static_cast<const char*>(data);
  if (target_.fd < 0) return write_stdout({bytes, n_bytes});
  while (n_bytes > 0) {
    const ssize_t n = ::write(target_.fd, bytes, n_bytes);
    if (n < 0 && errno == EINTR) {
      if (interrupted()) throw Interrupted();
      continue;
    }
    if (n < 0 && errno == EPIPE) throw BrokenPipe();
    if (n < 0) fail(target_.path, "cannot write output");
    bytes += n;
    n_bytes -= static_cast<size_t>(n);
  }
}

void NpyWriter::write(std::span<const float> values) {
  n_missing_ -= static_cast<int64_t>(values.size());
  HS_CHECK(n_missing_ >= 0, "npy");
  write_bytes(values.data(), values.size_bytes());
}

void NpyWriter::finish() {
  HS_CHECK(n_missing_ == 0, "npy");
  if (target_.fd >= 0 && close(std::exchange(target_.fd, -1)) != 0) fail(target_.path, "cannot write output");
  if (target_.temporary.empty()) return;
  if (std::rename(target_.temporary.c_str(), target_.path.c_str()) != 0) fail(target_.path, "cannot rename output");
  target_.temporary.clear();
}

}  // namespace hotset::cli
