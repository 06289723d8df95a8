#include "core/tokenizer_spm.h"

#include <algorithm>
#include <functional>
#include <span>
#include <utility>

#include "core/error.h"
#include "core/tokenizer_cache.h"
#include "core/unicode.h"

namespace hotset {

namespace {

// More bytes than this are never merged as one run, so that 32 bits count them.
constexpr size_t kMaxSegmentBytes = size_t{1} << 30;

// Length of the first unit of a text, what merging starts from: a character, or a byte that is not UTF-8.
size_t unit_length(std::string_view text) {
  const Utf8Char c = decode_utf8(text);
  return c.status == Utf8Status::kValid ? c.n_bytes : 1;
}

// The bytes of a unit as a number. No two units share one: a character of n bytes has its top bits set by UTF-8.
uint32_t unit_key(std::string_view unit) {
  uint32_t key = 0;
  for (const char c : unit) key = key << 8 | static_cast<uint8_t>(c);
  return key;
}

// The byte that a token text "<0xXX>" stands for, -1 for any other text.
int byte_of_token(std::string_view token) {
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  const int high = digit(token[3]), low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

// Drops spaces at both ends and all but one of a run of spaces.
std::string without_extra_spaces(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c != ' ' || (!result.empty() && result.back() != ' ')) result += c;
  }
  if (!result.empty() && result.back() == ' ') result.pop_back();
  return result;
}

}  // namespace

SpmTokenizer::SpmTokenizer(TokenizerData data) : Tokenizer(std::move(data)) {
  if (data_.scores.size() != data_.tokens.size()) {
    throw ModelFormatError(error_text("tokenizer", "tokenizer.ggml.scores", cat(data_.tokens.size(), " scores"),
                                      cat(data_.scores.size()), "get an intact copy of the model"));
  }
  for (size_t id = 0; id < data_.scores.size(); ++id) {
    if (data_.scores[id] - data_.scores[id] == 0.0f) continue;
    throw ModelFormatError(error_text("tokenizer", cat("score of token ", id), "a finite number",
                                      cat(data_.scores[id]), "get an intact copy of the model"));
  }
  fill_in_pieces();
  const SymbolOfText symbols = collect_symbols();
  find_byte_tokens(symbols);
  build_merges(symbols);
}

void SpmTokenizer::fill_in_pieces() {
  pieces_.reserve(data_.tokens.size());
  byte_ids_.fill(-1);
  for (int32_t id = 0; id < n_vocab(); ++id) {
    const std::string& token = data_.tokens[static_cast<size_t>(id)];
    TokenType& type = data_.types[static_cast<size_t>(id)];
    const int byte = byte_of_token(token);
    if (type == TokenType::kByte && byte < 0) {
      throw ModelFormatError(error_text("tokenizer", cat("text of byte token ", id), "<0x00> to <0xFF>", quoted(token),
                                        "get an intact copy of the model"));
    }
    if (byte >= 0 && (type == TokenType::kByte || type == TokenType::kNormal)) {
      type = TokenType::kByte;
      byte_ids_[static_cast<size_t>(byte)] = id;
      pieces_.emplace_back(1, static_cast<char>(byte));
    } else if (is_mergeable(id)) {
      pieces_.push_back(unescaped(token));
    } else {
      pieces_.push_back(token);
    }
  }
}

SpmTokenizer::SymbolOfText SpmTokenizer::collect_symbols() {
  SymbolOfText symbols;
  symbols.reserve(data_.tokens.size());
  for (int32_t id = 0; id < n_vocab(); ++id) {
    const std::string& token = data_.tokens[static_cast<size_t>(id)];
    if (is_mergeable(id) && !token.empty()) symbols[token] = static_cast<SymbolId>(id);
  }
  ascii_symbols_.fill(kNoSymbol);
  SymbolId next = static_cast<SymbolId>(n_vocab());
  for (int32_t id = 0; id < n_vocab(); ++id) {
    if (!is_mergeable(id)) continue;
    const std::string_view token = data_.tokens[static_cast<size_t>(id)];
    note_joined_spaces(token);
    for (size_t pos = 0; pos < token.size();) {
      const std::string_view unit = token.substr(pos, unit_length(token.substr(pos)));
      pos += unit.size();
      const auto [entry, is_new] = symbols.try_emplace(unit, next);
      if (is_new) ++next;
      unit_symbols_[unit_key(unit)] = entry->second;
      if (unit_key(unit) < ascii_symbols_.size()) ascii_symbols_[unit_key(unit)] = entry->second;
    }
  }
  return symbols;
}

void SpmTokenizer::find_byte_tokens(const SymbolOfText& symbols) {
  int n_missing = 0;
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    const char text = static_cast<char>(byte);
    const auto entry = symbols.find(std::string_view(&text, 1));
    if (byte_ids_[byte] < 0 && entry != symbols.end() && entry->second < data_.tokens.size()) {
      byte_ids_[byte] = static_cast<int32_t>(entry->second);
    }
    if (byte_ids_[byte] < 0) ++n_missing;
  }
  if (n_missing > 0 && data_.unk_id < 0) {
    throw ModelFormatError(error_text("tokenizer", "tokens for what no other token covers",
                                      "byte tokens <0x00> to <0xFF> or an unknown token", cat(n_missing, " missing"),
                                      "convert the model again with its byte tokens or unknown_token_id"));
  }
}

void SpmTokenizer::build_merges(const SymbolOfText& symbols) {
  std::vector<float> ranked = data_.scores;
  std::sort(ranked.begin(), ranked.end(), std::greater<>());
  ranked.erase(std::unique(ranked.begin(), ranked.end()), ranked.end());
  const auto rank_of = [&](float score) {
    return static_cast<uint32_t>(std::lower_bound(ranked.begin(), ranked.end(), score, std::greater<>()) -
                                 ranked.begin());
  };
  // Only splits into two lengths that occur are looked up, lest a long token cost its length squared.
  std::vector<bool> has_length;
  for (const auto& [text, symbol] : symbols) {
    if (has_length.size() <= text.size()) has_length.resize(text.size() + 1);
    has_length[text.size()] = true;
  }
  struct Pair {
    SymbolId left, right;
    Merge merge;
  };
  std::vector<Pair> pairs;
  for (const auto& [text, symbol] : symbols) {
    if (symbol >= data_.tokens.size()) continue;
    for (size_t pos = unit_length(text); pos < text.size(); pos += unit_length(text.substr(pos))) {
      if (!has_length[pos] || !has_length[text.size() - pos]) continue;
      const auto left = symbols.find(text.substr(0, pos)), right = symbols.find(text.substr(pos));
      if (left == symbols.end() || right == symbols.end()) continue;
      pairs.push_back({left->second, right->second, {rank_of(data_.scores[symbol]), symbol}});
    }
  }
  merges_.reserve(pairs.size());
  for (const Pair& pair : pairs) merges_.add(pair.left, pair.right, pair.merge);
}

std::string SpmTokenizer::escaped(std::string_view text) const {
  std::string trimmed;
  if (data_.remove_extra_whitespaces) {
    trimmed = without_extra_spaces(text);
    text = trimmed;
  }
  std::string result;
  if (text.empty()) return result;
  result.reserve(text.size() + text.size() / 2);
  if (data_.add_space_prefix) result += kEscapedSpace;
  for (const char c : text) {
    if (c == ' ') {
      result += kEscapedSpace;
    } else {
      result += c;
    }
  }
  return result;
}

void SpmTokenizer::note_joined_spaces(std::string_view token) {
  for (size_t pos = 0; (pos = token.find(kEscapedSpace, pos)) != std::string_view::npos; pos += kEscapedSpace.size()) {
    const bool is_joined = pos > 0 && !token.substr(0, pos).ends_with(kEscapedSpace);
    if (is_joined) joins_space_[static_cast<uint8_t>(token[pos - 1])] = true;
  }
}

size_t SpmTokenizer::segment_length(std::string_view text) const {
  const size_t limit = std::min(text.size(), kMaxSegmentBytes);
  for (size_t pos = 0;;) {
    while (text.substr(pos, kEscapedSpace.size()) == kEscapedSpace) pos += kEscapedSpace.size();
    pos = text.find(kEscapedSpace, pos);
    if (pos >= limit) return limit;
    if (!joins_space_[static_cast<uint8_t>(text[pos - 1])]) return pos;
  }
}

SymbolId SpmTokenizer::symbol_of_unit(std::string_view unit) const {
  const uint32_t key = unit_key(unit);
  if (key < ascii_symbols_.size()) return ascii_symbols_[key];
  const auto entry = unit_symbols_.find(key);
  return entry == unit_symbols_.end() ? kNoSymbol : entry->second;
}

bool SpmTokenizer::append_bytes(std::string_view unit, std::vector<int32_t>& ids) const {
  const auto id_of = [&](char c) { return byte_ids_[static_cast<uint8_t>(c)]; };
  if (std::any_of(unit.begin(), unit.end(), [&](char c) { return id_of(c) < 0; })) return false;
  for (const char c : unit) ids.push_back(id_of(c));
  return true;
}

void SpmTokenizer::encode_text(std::string_view text, std::vector<int32_t>& ids) const {
  const std::string buffer = escaped(text);
  TokenCache cache(buffer.size());
  Merger merger(merges_);
  bool after_unknown = false;  // a run of unknown characters is one unknown token, as in SentencePiece
  for (std::string_view rest = buffer; !rest.empty();) {
    const std::string_view segment = rest.substr(0, segment_length(rest));
    rest.remove_prefix(segment.size());
    if (cache.append(segment, ids)) {
      after_unknown = false;
      continue;
    }
    const size_t n_before = ids.size();
    const Unknowns unknowns = encode_segment(segment, after_unknown, merger, ids);
    if (!unknowns.any) cache.store(segment, std::span(ids).subspan(n_before));
    after_unknown = unknowns.at_end;
  }
}

SpmTokenizer::Unknowns SpmTokenizer::encode_segment(std::string_view segment, bool after_unknown, Merger& merger,
                                                    std::vector<int32_t>& ids) const {
  std::vector<Symbol> symbols;
  symbols.reserve(segment.size());
  for (size_t pos = 0; pos < segment.size();) {
    const std::string_view unit = segment.substr(pos, unit_length(segment.substr(pos)));
    symbols.push_back({symbol_of_unit(unit), static_cast<uint32_t>(unit.size())});
    pos += unit.size();
  }
  merger.merge(symbols);
  Unknowns unknowns = {.any = false, .at_end = after_unknown};
  for (const Symbol& symbol : symbols) {
    const std::string_view span = segment.substr(0, symbol.n_bytes);
    segment.remove_prefix(symbol.n_bytes);
    const bool is_token = symbol.id < data_.tokens.size();
    if (is_token) ids.push_back(static_cast<int32_t>(symbol.id));
    const bool is_unknown = !is_token && !append_bytes(span, ids);
    if (is_unknown && !unknowns.at_end) ids.push_back(data_.unk_id);
    unknowns.at_end = is_unknown;
    unknowns.any = unknowns.any || is_unknown;
  }
  return unknowns;
}

}  // namespace hotset
