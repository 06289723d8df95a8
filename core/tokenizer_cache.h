// Remembers the tokens of short pieces while a text is encoded: most words of a text have occurred in it before.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace hotset {

// A table in which each piece has one place, where it replaces what was there. Small texts get a small table, so that
// making one costs no more than a share of encoding them. Not for several threads: one object per call.
class TokenCache {
 public:
  explicit TokenCache(size_t text_bytes) {
    size_t n_entries = kMinEntries;
    while (n_entries < kMaxEntries && n_entries * kBytesPerEntry < text_bytes) n_entries *= 2;
    entries_.resize(n_entries);
  }

  // Appends the tokens of a piece to `ids` and returns true if they are known.
  bool append(std::string_view piece, std::vector<int32_t>& ids) const {
    if (piece.size() > kMaxPieceBytes) return false;
    const Key key = key_of(piece);
    const Entry& entry = entries_[place_of(key)];
    if (entry.key != key) return false;
    ids.insert(ids.end(), entry.ids.begin(), entry.ids.begin() + entry.n_ids);
    return true;
  }

  // Keeps the tokens of a piece, unless either is long.
  void store(std::string_view piece, std::span<const int32_t> ids) {
    if (piece.empty() || piece.size() > kMaxPieceBytes || ids.size() > kMaxIds) return;
    const Key key = key_of(piece);
    Entry& entry = entries_[place_of(key)];
    entry.key = key;
    entry.n_ids = static_cast<uint32_t>(ids.size());
    std::copy(ids.begin(), ids.end(), entry.ids.begin());
  }

 private:
  static constexpr size_t kMaxPieceBytes = 23, kMaxIds = 5;
  static constexpr size_t kMinEntries = 16, kMaxEntries = 16384, kBytesPerEntry = 16;
  using Key = std::array<uint64_t, 3>;  // the bytes of a piece, zeros, and its length in the last byte

  struct Entry {
    Key key = {};  // a piece has at least one byte, so no key is all zeros
    uint32_t n_ids = 0;
    std::array<int32_t, kMaxIds> ids;
  };

  static Key key_of(std::string_view piece) {
    Key key = {};
    std::memcpy(key.data(), piece.data(), piece.size());
    key[2] |= static_cast<uint64_t>(piece.size()) << 56;  // little-endian: the byte behind the 23 of the piece
    return key;
  }
  size_t place_of(const Key& key) const {
    const uint64_t sum = key[0] ^ (key[1] * 0xff51afd7ed558ccdu) ^ (key[2] * 0xc4ceb9fe1a85ec53u);
    const uint64_t mixed = sum * 0x9e3779b97f4a7c15u;
    return static_cast<size_t>(mixed >> 40) & (entries_.size() - 1);
  }

  std::vector<Entry> entries_;  // a power of two
};

}  // namespace hotset
