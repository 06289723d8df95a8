#include "core/kv_cache.h"

#include "core/error.h"

namespace hotset {

int32_t KvBlockPool::take() {
  int32_t block = -1;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (static_cast<int64_t>(counts_.size()) < n_blocks_) {
    block = static_cast<int32_t>(counts_.size());
    counts_.push_back(0);
  } else {
    return -1;
  }
  counts_[static_cast<size_t>(block)] = 1;
  ++n_used_;
  return block;
}

void KvBlockPool::release(int32_t block) {
  int32_t& count = counts_[static_cast<size_t>(block)];
  HS_CHECK(count > 0, "kv_cache");
  if (--count == 0) {
    free_.push_back(block);
    --n_used_;
  }
}

}  // namespace hotset
