// Byte-level BPE vocabulary (GPT-2, Llama 3): text is split by a pattern, then bytes merge within the pieces by rank.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/pre_tokenizer.h"
#include "core/tokenizer.h"
#include "core/tokenizer_merge.h"

namespace hotset {

// Numbers texts: tokens by their ids, anything else that occurs in merges from n_vocab up. An open-addressing table of
// views, since a large vocabulary asks a million times while it is loaded (std::unordered_map took twice as long).
class SymbolIndex {
 public:
  explicit SymbolIndex(size_t n_vocab);

  // `text` must outlive the index.
  void set_token(std::string_view text, int32_t id);

  // The number of a text; a new one if it has none.
  SymbolId number(const std::string& text);

  // The number of a text, kNoSymbol if it has none.
  SymbolId find(std::string_view text) const { return slots_[slot_of(text, hash_of(text))].symbol; }

 private:
  struct Slot {
    std::string_view text;
    size_t hash = 0;
    SymbolId symbol = kNoSymbol;  // kNoSymbol: empty
  };

  static size_t hash_of(std::string_view text) { return std::hash<std::string_view>()(text); }
  size_t slot_of(std::string_view text, size_t hash) const;
  void insert(std::string_view text, size_t hash, SymbolId symbol);

  std::vector<Slot> slots_;  // a power of two, at most half full
  size_t n_used_ = 0;
  std::deque<std::string> texts_;  // of symbols that are no tokens
  SymbolId next_;
};

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(TokenizerData data);

 private:
  void encode_text(std::string_view text, std::vector<int32_t>& ids) const override;

  void encode_piece(std::string_view piece, Merger& merger, std::vector<int32_t>& ids) const;

  void fill_in_pieces();
  void find_byte_tokens();
  void build_merges();

  PreTokenizer pre_tokenizer_;
  MergeTable merges_;
  SymbolIndex symbols_;
  std::array<SymbolId, 256> byte_symbols_;
  std::array<std::vector<int32_t>, 256> byte_ids_;  // tokens that spell a byte
};

}  // namespace hotset
