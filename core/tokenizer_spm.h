// SentencePiece-style vocabulary: BPE driven by scores, spaces written as U+2581, bytes where no token fits.
#pragma once

#include <array>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/tokenizer.h"
#include "core/tokenizer_merge.h"

namespace hotset {

class SpmTokenizer final : public Tokenizer {
 public:
  explicit SpmTokenizer(TokenizerData data);

 private:
  using SymbolOfText = std::unordered_map<std::string_view, SymbolId>;

  void encode_text(std::string_view text, std::vector<int32_t>& ids) const override;

  // Where a segment had characters that are no token.
  struct Unknowns {
    bool any, at_end;
  };

  // Appends the tokens of a segment. `after_unknown`: the text before it ends with an unknown character.
  Unknowns encode_segment(std::string_view segment, bool after_unknown, Merger& merger,
                          std::vector<int32_t>& ids) const;

  void fill_in_pieces();
  SymbolOfText collect_symbols();
  void find_byte_tokens(const SymbolOfText& symbols);
  void build_merges(const SymbolOfText& symbols);

  void note_joined_spaces(std::string_view token);
  std::string escaped(std::string_view text) const;

  // Bytes at the start of a text that merge among themselves only: up to a space that no token joins with what is
  // before it. Most vocabularies have no token with a space behind something else, and segments are words.
  size_t segment_length(std::string_view text) const;
  SymbolId symbol_of_unit(std::string_view unit) const;
  bool append_bytes(std::string_view unit, std::vector<int32_t>& ids) const;

  MergeTable merges_;
  std::unordered_map<uint32_t, SymbolId> unit_symbols_;  // by the unit's bytes, see unit_key
  std::array<SymbolId, 128> ascii_symbols_;
  std::array<int32_t, 256> byte_ids_;  // -1: no token for this byte
  std::array<bool, 256> joins_space_ = {};  // bytes that stand before a space inside a token
};

}  // namespace hotset
