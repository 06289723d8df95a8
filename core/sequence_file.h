// Files that hold a sequence: its tokens and their keys and values. Layout: docs/FORMATS.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/mmap_file.h"
#include "core/plan.h"

namespace hotset {

// What a sequence belongs to. Keys and values mean the same only where all of it is equal.
struct SequenceOrigin {
  std::string fingerprint;   // 32 digits, see core/fingerprint.h
  uint64_t computation = 0;  // digest of the weights as they are computed with, see EngineImpl::sequence_origin
  KvLayout kv;
  int64_t n_vocab = 0;
};

// A file that was read and checked. Views point into its mapping.
class SequenceFile {
 public:
  // Reads what belongs to `origin` and has at most n_ctx positions. Nothing is allocated but what the checked number of
  // tokens takes. Throws Error (cannot be opened), ModelFormatError (damaged, of another model or KV type),
  // ContextLengthError.
  static SequenceFile load(const std::string& path, const SequenceOrigin& origin, int64_t n_ctx);
  // The same from memory, which must outlive it; `name` is for messages.
  static SequenceFile parse(std::span<const std::byte> bytes, const SequenceOrigin& origin, int64_t n_ctx,
                            const std::string& name);

  const std::vector<int32_t>& tokens() const { return tokens_; }
  // Block i of the sequence, kv.block_bytes() bytes; rows beyond the last position are zero.
  const std::byte* block(size_t i) const { return blocks_ + i * block_bytes_; }

 private:
  std::shared_ptr<const MmapFile> file_;
  std::vector<int32_t> tokens_;
  const std::byte* blocks_ = nullptr;
  size_t block_bytes_ = 0;
};

// Writes a sequence. `read_block(i, out)` puts its block i, kv.block_bytes() bytes, to `out`. `path` holds the whole
// file or, after an Error, what it held before.
void write_sequence(const std::string& path, const SequenceOrigin& origin, std::span<const int32_t> tokens,
                    const std::function<void(size_t, std::byte*)>& read_block);

// Digest of bytes, continued from `state`: no defence against forgery. Pieces must be multiples of 8 bytes but the
// last.
uint64_t digest(uint64_t state, const void* data, size_t n_bytes);
constexpr uint64_t kDigestStart = 0xcbf29ce484222325u;

}  // namespace hotset
