#include "core/prefix_cache.h"

#include <algorithm>

namespace hotset {

size_t common_beginning(std::span<const int32_t> a, std::span<const int32_t> b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

void PrefixCache::keep(std::span<const int32_t> tokens, std::span<const int32_t> blocks) {
  if (n_sequences_ <= 0 || tokens.size() < kLeastMatch) return;
  for (auto each = kept_.begin(); each != kept_.end();) {
    const size_t n = common_beginning(each->tokens, tokens);
    if (n == tokens.size()) {
      kept_.splice(kept_.begin(), kept_, each);
      return;
    }
    const auto current = each++;
    if (n < current->tokens.size()) continue;
    release(*current);
    kept_.erase(current);
  }
  kept_.push_front({{tokens.begin(), tokens.end()}, {blocks.begin(), blocks.end()}});
  for (const int32_t block : blocks) pool_.share(block);
  if (kept_.size() > static_cast<size_t>(n_sequences_)) drop_oldest();
}

PrefixCache::Match PrefixCache::find(std::span<const int32_t> tokens) {
  Match out;
  auto best = kept_.end();
  for (auto each = kept_.begin(); each != kept_.end(); ++each) {
    const size_t n = common_beginning(each->tokens, tokens);
    if (n <= out.n_positions) continue;
    out.n_positions = n;
    best = each;
  }
  if (out.n_positions < kLeastMatch) return {};
  const size_t n_blocks = (out.n_positions + block_positions_ - 1) / block_positions_;
  out.blocks.assign(best->blocks.begin(), best->blocks.begin() + static_cast<std::ptrdiff_t>(n_blocks));
  for (const int32_t block : out.blocks) pool_.share(block);
  kept_.splice(kept_.begin(), kept_, best);
  return out;
}

bool PrefixCache::drop_oldest() {
  if (kept_.empty()) return false;
  release(kept_.back());
  kept_.pop_back();
  return true;
}

void PrefixCache::release(const Kept& kept) {
  for (const int32_t block : kept.blocks) pool_.release(block);
}

}  // namespace hotset
