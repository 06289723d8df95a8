// Byte-pair merging, shared by both kinds of vocabulary: symbols, the table of pairs that merge, and the merge loop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace hotset {

// A symbol is a token id, or a number from n_vocab up for a text that merges further but is no token itself.
using SymbolId = uint32_t;
constexpr SymbolId kNoSymbol = UINT32_MAX;  // a text that no pair contains; never merges

// What a pair becomes, and when: the lowest rank merges first, the leftmost of equal ranks.
struct Merge {
  uint32_t rank;
  SymbolId result;
};

// Hash table (left, right) -> Merge; about 32 bytes a pair.
class MergeTable {
 public:
  MergeTable() : slots_(1) {}

  // Makes room for `n_pairs` in all. Must come before the first add.
  void reserve(size_t n_pairs);

  // Adds a pair; the first of equal pairs stays.
  void add(SymbolId left, SymbolId right, Merge merge);

  // The merge of a pair, or null.
  const Merge* find(SymbolId left, SymbolId right) const {
    const Slot& slot = slots_[slot_of(left, right)];
    return slot.left == kNoSymbol ? nullptr : &slot.merge;
  }

 private:
  struct Slot {
    SymbolId left = kNoSymbol, right = kNoSymbol;  // left == kNoSymbol: empty; at least one slot always is
    Merge merge = {0, 0};
  };

  // Where the pair is, or the empty slot where it would go. Linear probing over a power of two, at most half full.
  size_t slot_of(SymbolId left, SymbolId right) const {
    const uint64_t key = static_cast<uint64_t>(left) << 32 | right;
    size_t i = static_cast<size_t>((key * 0x9e3779b97f4a7c15u) >> shift_) & (slots_.size() - 1);
    while (slots_[i].left != kNoSymbol && (slots_[i].left != left || slots_[i].right != right)) {
      i = (i + 1) & (slots_.size() - 1);
    }
    return i;
  }

  std::vector<Slot> slots_;
  unsigned shift_ = 63;
};

// A run of text that is one symbol. `n_bytes` is 0 once it has become part of the symbol to its left.
struct Symbol {
  SymbolId id;
  uint32_t n_bytes;
};

// Merges neighbours until no pair of the table is left and removes what was swallowed.
// O(n log n) in the number of symbols. An object keeps its buffers: one per thread, many calls.
class Merger {
 public:
  explicit Merger(const MergeTable& table) : table_(table) {}
  void merge(std::vector<Symbol>& symbols);

 private:
  void merge_short(std::vector<Symbol>& symbols);
  void merge_long(std::vector<Symbol>& symbols);
  void push(const std::vector<Symbol>& symbols, uint32_t left);

  const MergeTable& table_;
  std::vector<uint32_t> previous_, next_;  // linked list over the symbols that are left
  std::vector<uint64_t> queue_;            // heap of rank << 32 | index of the left symbol; entries may be outdated
};

}  // namespace hotset
