#include "tools/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

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

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw Error(error_text(path, what, "a writable place", std::strerror(errno), "choose another -o"));
}

}  // namespace

OutputFile::OutputFile(const std::string& path) : path_(path) {
  if (path_ == "-") return;
  struct stat status {};
  const bool exists = stat(path_.c_str(), &status) == 0;
  if (exists && !S_ISREG(status.st_mode)) {
    fd_ = open(path_.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd_ < 0) fail(path_, "cannot open output");
    return;
  }
  char resolved[PATH_MAX];
  if (exists && realpath(path_.c_str(), resolved) != nullptr) path_ = resolved;  // a symbolic link stays in place
  const std::string beside = cat(path_, ".", getpid(), ".tmp");
  fd_ = open(beside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) fail(path_, "cannot create output");
  temporary_ = beside;
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) close(fd_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void OutputFile::write(const void* data, size_t n_bytes) {
  const char* bytes = static_cast<const char*>(data);
  if (fd_ < 0) return write_stdout({bytes, n_bytes});
  while (n_bytes > 0) {
    const ssize_t n = ::write(fd_, bytes, n_bytes);
    if (n < 0 && errno == EINTR) {
      if (interrupted()) throw Interrupted();
      continue;
    }
    if (n < 0 && errno == EPIPE) throw BrokenPipe();
    if (n < 0) fail(path_, "cannot write output");
    bytes += n;
    n_bytes -= static_cast<size_t>(n);
  }
}

void OutputFile::finish() {
  if (fd_ >= 0 && close(std::exchange(fd_, -1)) != 0) fail(path_, "cannot write output");
  if (temporary_.empty()) return;
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, "cannot rename output");
  temporary_.clear();
}

}  // namespace hotset::cli
