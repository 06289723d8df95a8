#include "core/tokenizer_merge.h"

#include <algorithm>
#include <functional>

namespace hotset {

namespace {

constexpr uint32_t kNone = UINT32_MAX;

// Below this many symbols, scanning for the lowest rank beats the heap (words have 4 to 8).
constexpr size_t kShort = 32;

void erase_swallowed(std::vector<Symbol>& symbols) {
  symbols.erase(std::remove_if(symbols.begin(), symbols.end(), [](const Symbol& s) { return s.n_bytes == 0; }),
                symbols.end());
}

}  // namespace

void MergeTable::reserve(size_t n_pairs) {
  size_t n_slots = 2;
  shift_ = 63;
  while (n_slots < 2 * n_pairs) {
    n_slots *= 2;
    --shift_;
  }
  slots_.assign(n_slots, Slot());
}

void MergeTable::add(SymbolId left, SymbolId right, Merge merge) {
  Slot& slot = slots_[slot_of(left, right)];
  if (slot.left == kNoSymbol) slot = {left, right, merge};
}

void Merger::merge(std::vector<Symbol>& symbols) {
  if (symbols.size() < kShort) {
    merge_short(symbols);
  } else {
    merge_long(symbols);
  }
}

void Merger::merge_short(std::vector<Symbol>& symbols) {
  const Merge* merges[kShort];  // merges[i] joins symbols i and i + 1
  const auto look_up = [&](size_t i) { merges[i] = table_.find(symbols[i].id, symbols[i + 1].id); };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) look_up(i);
  while (symbols.size() > 1) {
    const size_t n_pairs = symbols.size() - 1;
    size_t best = n_pairs;
    for (size_t i = 0; i < n_pairs; ++i) {
      if (merges[i] != nullptr && (best == n_pairs || merges[i]->rank < merges[best]->rank)) best = i;
    }
    if (best == n_pairs) return;
    symbols[best] = {merges[best]->result, symbols[best].n_bytes + symbols[best + 1].n_bytes};
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    std::copy(merges + best + 1, merges + n_pairs, merges + best);
    if (best > 0) look_up(best - 1);
    if (best + 1 < symbols.size()) look_up(best);
  }
}

void Merger::push(const std::vector<Symbol>& symbols, uint32_t left) {
  if (left == kNone || next_[left] == kNone) return;
  const Merge* merge = table_.find(symbols[left].id, symbols[next_[left]].id);
  if (merge == nullptr) return;
  queue_.push_back(static_cast<uint64_t>(merge->rank) << 32 | left);
}

void Merger::merge_long(std::vector<Symbol>& symbols) {
  const uint32_t n = static_cast<uint32_t>(symbols.size());
  previous_.resize(n);
  next_.resize(n);
  for (uint32_t i = 0; i < n; ++i) {
    previous_[i] = i == 0 ? kNone : i - 1;
    next_[i] = i + 1 == n ? kNone : i + 1;
  }
  queue_.clear();
  for (uint32_t i = 0; i + 1 < n; ++i) push(symbols, i);
  std::make_heap(queue_.begin(), queue_.end(), std::greater<>());

  const auto push_to_heap = [&](uint32_t left) {
    const size_t n_before = queue_.size();
    push(symbols, left);
    if (queue_.size() > n_before) std::push_heap(queue_.begin(), queue_.end(), std::greater<>());
  };
  while (!queue_.empty()) {
    std::pop_heap(queue_.begin(), queue_.end(), std::greater<>());
    const uint32_t left = static_cast<uint32_t>(queue_.back()), rank = static_cast<uint32_t>(queue_.back() >> 32);
    queue_.pop_back();
    const uint32_t right = next_[left];
    if (symbols[left].n_bytes == 0 || right == kNone) continue;
    // The pair may have changed since it was queued; whatever pair stands here now is due if it has the same rank.
    const Merge* merge = table_.find(symbols[left].id, symbols[right].id);
    if (merge == nullptr || merge->rank != rank) continue;
    symbols[left] = {merge->result, symbols[left].n_bytes + symbols[right].n_bytes};
    symbols[right].n_bytes = 0;
    next_[left] = next_[right];
    if (next_[left] != kNone) previous_[next_[left]] = left;
    push_to_heap(previous_[left]);
    push_to_heap(left);
  }
  erase_swallowed(symbols);
}

}  // namespace hotset
