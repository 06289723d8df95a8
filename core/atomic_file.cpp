#include "core/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "core/error.h"

namespace hotset {
namespace {

constexpr size_t kPieceBytes = size_t{64} << 20;  // of one system call
constexpr int kNameTries = 100;

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  std::error_code error;
  const std::filesystem::path resolved = std::filesystem::canonical(path_, error);
  target_ = error ? path_ : resolved.string();  // what is not there yet is its own target
  struct stat status;
  const bool exists = ::stat(target_.c_str(), &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) fail("output", EISDIR);
  if (exists && (!S_ISREG(status.st_mode) || status.st_nlink == 0)) {
    fd_ = ::open(target_.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd_ < 0) fail("open", errno);
    return;
  }
  const std::filesystem::path folder = std::filesystem::path(target_).parent_path();
  for (int i = 0; i < kNameTries; ++i) {
    const std::string name = (folder / cat(".hotset-", ::getpid(), "-", i, ".tmp")).string();
    fd_ = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ >= 0) {
      temporary_ = name;
      return;
    }
    if (errno != EEXIST) break;
  }
  fail("create", errno);
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const std::string& what, int error) const {
  throw Error(error_text("file " + quoted(path_, 300), what, "success", std::strerror(error),
                         "check the path and the free space"));
}

void AtomicFile::write(const void* data, size_t n_bytes) {
  const char* at = static_cast<const char*>(data);
  while (n_bytes > 0) {
    const ssize_t done = ::write(fd_, at, std::min(n_bytes, kPieceBytes));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) fail("write", done < 0 ? errno : EIO);
    at += done;
    n_bytes -= static_cast<size_t>(done);
  }
}

void AtomicFile::grow_to(uint64_t n_bytes) {
  if (::ftruncate(fd_, static_cast<off_t>(n_bytes)) != 0) fail("write", errno);
}

void AtomicFile::finish() {
  HS_CHECK(fd_ >= 0, "atomic_file");
  // A file renamed before its bytes are on the disk may be empty after a crash. Devices know no fsync (EINVAL).
  if (::fsync(fd_) != 0 && !temporary_.empty()) fail("write", errno);
  const int closed = ::close(fd_);
  fd_ = -1;
  if (closed != 0) fail("write", errno);
  if (temporary_.empty()) return;
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail("rename", errno);
  temporary_.clear();
}

}  // namespace hotset
