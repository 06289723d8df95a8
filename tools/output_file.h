// A file that a command writes: a reader sees the whole of it or nothing.
#pragma once

#include <cstddef>
#include <string>

namespace hotset::cli {

// Bytes go to a temporary file beside `path`, which finish() renames. `-` writes to stdout; an existing `path` that is
// no regular file (a device, a pipe) is written directly. Without finish() the temporary file is removed.
class OutputFile {
 public:
  // Throws Error when the file cannot be made.
  explicit OutputFile(const std::string& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  // Throws Error, BrokenPipe, and Interrupted, but that only where it would have to wait.
  void write(const void* data, size_t n_bytes);

  // Makes the file visible.
  void finish();

 private:
  std::string path_;
  std::string temporary_;  // "" = written directly
  int fd_ = -1;            // -1 = stdout
};

}  // namespace hotset::cli
