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

  void fill_in_pieces();
  SymbolOfText collect_symbols();
  void find_byte_tokens(const SymbolOfText& symbols);
  void build_merges(const SymbolOfText& symbols);

  static bool has_inner_space(std::string_view token);
  std::string escaped(std::string_view text) const;
  size_t segment_length(std::string_view text) const;
  SymbolId symbol_of_unit(std::string_view unit) const;
  bool append_bytes(std::string_view unit, std::vector<int32_t>& ids) const;

  MergeTable merges_;
  std::unordered_map<uint32_t, SymbolId> unit_symbols_;  // by the unit's bytes, see unit_key
  std::array<SymbolId, 128> ascii_symbols_;
  std::array<int32_t, 256> byte_ids_;  // -1: no token for this byte
  bool words_are_independent_ = true;  // no token has a space behind something else
};

}  // namespace hotset
