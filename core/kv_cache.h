// Blocks of keys and values, handed out to sequences and counted, so that sequences can share a common beginning.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace hotset {

// Which blocks of a region of device memory are in use. Knows addresses only as offsets; not thread-safe.
class KvBlockPool {
 public:
  // A pool of at most n_blocks blocks.
  explicit KvBlockPool(int64_t n_blocks) : n_blocks_(n_blocks) {}

  // Takes a free block with a count of 1, the lowest numbers first; -1 when all are in use.
  int32_t take();
  // One more sequence uses the block.
  void share(int32_t block) { ++counts_[static_cast<size_t>(block)]; }
  // One sequence less; at 0 the block is free again.
  void release(int32_t block);

  int32_t count(int32_t block) const { return counts_[static_cast<size_t>(block)]; }
  int64_t n_free() const { return n_blocks_ - n_used_; }
  int64_t n_used() const { return n_used_; }

 private:
  int64_t n_blocks_;
  int64_t n_used_ = 0;
  std::vector<int32_t> counts_;  // grows as blocks are first used
  std::vector<int32_t> free_;    // released blocks, reused last-in first-out
};

}  // namespace hotset
