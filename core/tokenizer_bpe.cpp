#include "core/tokenizer_bpe.h"

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "core/error.h"
#include "core/tokenizer_cache.h"
#include "core/unicode.h"

namespace hotset {

namespace {

// More bytes than this are never merged as one piece, so that 32 bits count them.
constexpr size_t kMaxPieceBytes = size_t{1} << 30;

// Byte-level vocabularies write bytes as printable characters: the visible ones of Latin-1 stand for themselves, the
// other 68 bytes in ascending order for U+0100 and up.
bool stands_for_itself(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
}

// byte_of_character[c]: the byte that U+00000..U+0143 stand for, -1 for none.
std::array<int, 256 + 68> make_byte_of_character() {
  std::array<int, 256 + 68> bytes;
  bytes.fill(-1);
  size_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) bytes[stands_for_itself(byte) ? byte : next++] = static_cast<int>(byte);
  return bytes;
}

// The bytes that a token text stands for; nothing if it has a character outside the alphabet.
std::optional<std::string> bytes_of_token(std::string_view token) {
  static const std::array<int, 256 + 68> kByteOfCharacter = make_byte_of_character();
  std::string bytes;
  for (size_t pos = 0; pos < token.size();) {
    const Utf8Char c = decode_utf8(token.substr(pos));
    if (c.code_point >= kByteOfCharacter.size() || kByteOfCharacter[c.code_point] < 0) return std::nullopt;
    bytes += static_cast<char>(kByteOfCharacter[c.code_point]);
    pos += c.n_bytes;
  }
  return bytes;
}

}  // namespace

SymbolIndex::SymbolIndex(size_t n_vocab) : next_(static_cast<SymbolId>(n_vocab)) {
  size_t n_slots = 1024;
  while (n_slots < 2 * n_vocab) n_slots *= 2;
  slots_.resize(n_slots);
}

size_t SymbolIndex::slot_of(std::string_view text, size_t hash) const {
  size_t i = hash & (slots_.size() - 1);
  while (slots_[i].symbol != kNoSymbol && (slots_[i].hash != hash || slots_[i].text != text)) {
    i = (i + 1) & (slots_.size() - 1);
  }
  return i;
}

void SymbolIndex::insert(std::string_view text, size_t hash, SymbolId symbol) {
  if (2 * (n_used_ + 1) > slots_.size()) {
    const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(2 * slots_.size()));
    for (const Slot& slot : old) {
      if (slot.symbol != kNoSymbol) slots_[slot_of(slot.text, slot.hash)] = slot;
    }
  }
  Slot& slot = slots_[slot_of(text, hash)];
  if (slot.symbol == kNoSymbol) ++n_used_;
  slot = {text, hash, symbol};
}

void SymbolIndex::set_token(std::string_view text, int32_t id) {
  insert(text, hash_of(text), static_cast<SymbolId>(id));
}

SymbolId SymbolIndex::number(const std::string& text) {
  const size_t hash = hash_of(text);
  const SymbolId known = slots_[slot_of(text, hash)].symbol;
  if (known != kNoSymbol) return known;
  texts_.push_back(text);
  insert(texts_.back(), hash, next_);
  return next_++;
}

BpeTokenizer::BpeTokenizer(TokenizerData data)
    : Tokenizer(std::move(data)), pre_tokenizer_(find_pre_tokenizer(data_.pre)), symbols_(data_.tokens.size()) {
  fill_in_pieces();
  find_byte_tokens();
  build_merges();
}

void BpeTokenizer::fill_in_pieces() {
  pieces_.reserve(data_.tokens.size());
  for (int32_t id = 0; id < n_vocab(); ++id) {
    const std::string& token = data_.tokens[static_cast<size_t>(id)];
    const std::optional<std::string> bytes = is_mergeable(id) ? bytes_of_token(token) : std::nullopt;
    const bool is_verbatim = !bytes || type(id) == TokenType::kUserDefined;
    pieces_.push_back(is_verbatim ? token : *bytes);
    if (bytes && !bytes->empty() && pieces_.back() == *bytes) symbols_.set_token(pieces_.back(), id);
  }
}

void BpeTokenizer::find_byte_tokens() {
  for (size_t byte = 0; byte < byte_symbols_.size(); ++byte) {
    byte_symbols_[byte] = symbols_.number(std::string(1, static_cast<char>(byte)));
    if (byte_symbols_[byte] < data_.tokens.size()) byte_ids_[byte] = {static_cast<int32_t>(byte_symbols_[byte])};
  }
  // Some makers leave out the bytes that no valid UTF-8 contains; then U+FFFD stands for them.
  std::vector<int32_t> replacement;
  for (const size_t byte : {0xefu, 0xbfu, 0xbdu}) {
    replacement.insert(replacement.end(), byte_ids_[byte].begin(), byte_ids_[byte].end());
  }
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    if (!byte_ids_[byte].empty()) continue;
    const bool is_in_utf8 = byte < 0xc0 || (byte > 0xc1 && byte < 0xf5);
    if (data_.unk_id >= 0) {
      byte_ids_[byte] = {data_.unk_id};
    } else if (!is_in_utf8 && replacement.size() == 3) {
      byte_ids_[byte] = replacement;
    } else {
      throw ModelFormatError(error_text("tokenizer", cat("token for byte ", byte),
                                        "one for every byte, or an unknown token", "none",
                                        "convert the model again with its full byte alphabet"));
    }
  }
}

void BpeTokenizer::build_merges() {
  merges_.reserve(data_.merges.size());
  for (size_t rank = 0; rank < data_.merges.size(); ++rank) {
    const std::string& merge = data_.merges[rank];
    const size_t space = merge.find(' ');
    if (space == std::string::npos || space == 0 || space + 1 == merge.size() ||
        merge.find(' ', space + 1) != std::string::npos) {
      throw ModelFormatError(error_text("tokenizer", cat("merge ", rank), "two texts with one space between",
                                        quoted(merge), "get an intact copy of the model"));
    }
    const auto left = bytes_of_token(std::string_view(merge).substr(0, space));
    const auto right = bytes_of_token(std::string_view(merge).substr(space + 1));
    if (!left || !right) continue;  // outside the alphabet: no text gets there
    const SymbolId left_symbol = symbols_.number(*left), right_symbol = symbols_.number(*right);
    merges_.add(left_symbol, right_symbol, {static_cast<uint32_t>(rank), symbols_.number(*left + *right)});
  }
  std::vector<std::string>().swap(data_.merges);
}

void BpeTokenizer::encode_text(std::string_view text, std::vector<int32_t>& ids) const {
  TokenCache cache(text.size());
  Merger merger(merges_);
  PreTokenReader pre_tokens(pre_tokenizer_, text);
  for (std::string_view piece = pre_tokens.next(); !piece.empty(); piece = pre_tokens.next()) {
    if (cache.append(piece, ids)) continue;
    const size_t n_before = ids.size();
    for (size_t begin = 0; begin < piece.size(); begin += kMaxPieceBytes) {
      encode_piece(piece.substr(begin, kMaxPieceBytes), merger, ids);
    }
    cache.store(piece, std::span(ids).subspan(n_before));
  }
}

void BpeTokenizer::encode_piece(std::string_view piece, Merger& merger, std::vector<int32_t>& ids) const {
  const SymbolId whole = pre_tokenizer_.ignore_merges ? symbols_.find(piece) : kNoSymbol;
  if (whole < data_.tokens.size()) {
    ids.push_back(static_cast<int32_t>(whole));
    return;
  }
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  for (const char c : piece) symbols.push_back({byte_symbols_[static_cast<uint8_t>(c)], 1});
  merger.merge(symbols);
  for (const Symbol& symbol : symbols) {
    if (symbol.id < data_.tokens.size()) {
      ids.push_back(static_cast<int32_t>(symbol.id));
    } else {
      for (const char c : piece.substr(0, symbol.n_bytes)) {
        const std::vector<int32_t>& spelled = byte_ids_[static_cast<uint8_t>(c)];
        ids.insert(ids.end(), spelled.begin(), spelled.end());
      }
    }
    piece.remove_prefix(symbol.n_bytes);
  }
}

std::vector<size_t> pre_token_lengths(const std::string& name, std::string_view text) {
  PreTokenReader reader(find_pre_tokenizer(name), text);
  std::vector<size_t> lengths;
  for (std::string_view piece = reader.next(); !piece.empty(); piece = reader.next()) lengths.push_back(piece.size());
  return lengths;
}

}  // namespace hotset
