// What closed sequences leave behind, so that a later one with the same beginning need not compute it again.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <vector>

#include "core/kv_cache.h"

namespace hotset {

// Tokens and KV blocks of sequences, the most recently used first. Each counts as one more user of its blocks; they are
// given back when drop_oldest() is called or a newer sequence takes the place. Not thread-safe.
class PrefixCache {
 public:
  // Shorter matches are not worth the copy of the block that they end in.
  static constexpr size_t kLeastMatch = 8;

  // Keeps at most n_sequences, 0 = none. The pool must outlive this.
  PrefixCache(KvBlockPool& pool, int64_t block_positions, int32_t n_sequences)
      : pool_(pool), block_positions_(static_cast<size_t>(block_positions)), n_sequences_(n_sequences) {}

  // Keeps a sequence; `blocks` hold its positions in order, the last one perhaps in part. A kept sequence that begins
  // it is given back, one that it begins stands for it.
  void keep(std::span<const int32_t> tokens, std::span<const int32_t> blocks);

  // The longest kept beginning of a text. Its blocks, the last one perhaps in part, are counted for the caller.
  struct Match {
    size_t n_positions = 0;
    std::vector<int32_t> blocks;
  };
  Match find(std::span<const int32_t> tokens);

  // Gives the blocks of the least recently used sequence back; false when there is none.
  bool drop_oldest();

  size_t n_kept() const { return kept_.size(); }

 private:
  struct Kept {
    std::vector<int32_t> tokens, blocks;
  };
  void release(const Kept& kept);

  KvBlockPool& pool_;
  size_t block_positions_;
  int32_t n_sequences_;
  std::list<Kept> kept_;
};

// How many tokens two texts have in common at their beginnings.
size_t common_beginning(std::span<const int32_t> a, std::span<const int32_t> b);

}  // namespace hotset
