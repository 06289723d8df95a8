// A file being written that a reader sees whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace hotset {

// The data goes into a new file beside the target, which takes the target's name in finish(); until then, and after any
// failure, the target is what it was. A target that is a device (/dev/null) or has no name of its own (a file in
// memory) is written to directly; one that is a symbolic link stays a link. Not thread-safe.
class AtomicFile {
 public:
  // Creates the file. Throws Error when that fails.
  explicit AtomicFile(std::string path);
  // Removes what was written, unless finish() was reached.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // Throws Error on a full disk and any other failure, after which only destruction is left.
  void write(const void* data, size_t n_bytes);

  // In place of further writes: makes the file n_bytes long, the new ones a hole that reads as zeros. Throws Error.
  void grow_to(uint64_t n_bytes);

  // Gives the file its name, once all its bytes are on the disk. Throws Error.
  void finish();

 private:
  [[noreturn]] void fail(const std::string& what, int error) const;

  std::string path_;       // as given, for messages
  std::string target_;     // links followed
  std::string temporary_;  // "" when there is none to rename or remove
  int fd_ = -1;
};

}  // namespace hotset
