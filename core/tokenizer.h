// Text to token ids and back: SentencePiece-style (BPE over scores with byte fallback) and byte-level BPE vocabularies.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace hotset {

class SpecialTokens;

// Token kinds, numbered as `tokenizer.ggml.token_type` numbers them.
enum class TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// Everything a vocabulary states, still untrusted. Token ids index `tokens`; an id of -1 means "none".
// Of equal tokens the last one is used for encoding; an empty token is never used.
struct TokenizerData {
  std::string model;                // `tokenizer.ggml.model`: "llama" (SentencePiece) or "gpt2" (byte-level BPE)
  std::string pre;                  // `tokenizer.ggml.pre`, byte-level only: "gpt-2", "llama-bpe", ...
  std::vector<std::string> tokens;  // raw bytes of each token as stored
  std::vector<float> scores;        // SentencePiece only, one per token
  std::vector<TokenType> types;     // one per token; empty = normal, except what ids and <0xXX> texts tell
  std::vector<std::string> merges;  // byte-level only, "left right" in order of rank
  int32_t bos_id = -1, eos_id = -1, eot_id = -1, eom_id = -1, unk_id = -1, pad_id = -1;
  bool add_bos = false, add_eos = false;
  bool add_space_prefix = true;  // SentencePiece: a space is put before the text and after every special token
  bool remove_extra_whitespaces = false;  // SentencePiece: spaces at the ends go, runs of spaces become one
};

struct EncodeOptions {
  bool add_special = true;     // put BOS / EOS where the vocabulary asks for them
  bool parse_special = false;  // let text such as "</s>" become the control token; never for text from users
};

// An immutable vocabulary. All members are const and may be called from several threads at once.
class Tokenizer {
 public:
  // Validates `data` and builds the look-up tables.
  // Throws ModelFormatError (sizes that do not fit, ids out of range, no byte tokens, NaN scores, broken merges) and
  // UnsupportedModelError (unknown model or pre-tokenizer; the message names it).
  static std::shared_ptr<const Tokenizer> create(TokenizerData data);
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Encodes `text`, any bytes: invalid UTF-8 is encoded byte by byte, nothing is dropped and nothing throws.
  // Cost is O(n log n) in the length of the text, whatever it contains.
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;

  // Bytes of one token as they appear inside a text (a SentencePiece token keeps its leading space). Control and
  // unknown tokens give "" unless `special`. Throws std::invalid_argument for an id outside the vocabulary.
  std::string piece(int32_t id, bool special = false) const;

  // Bytes of a sequence; the inverse of encode where the text survives: the space that encode puts before the text and
  // after special tokens is removed. Throws as piece().
  std::string decode(const std::vector<int32_t>& ids, bool special = false) const;

  int32_t n_vocab() const { return static_cast<int32_t>(data_.tokens.size()); }

  // What create() was given, except that `types` is filled in and `merges` is empty, being in the tables.
  const TokenizerData& data() const { return data_; }

  // Whether generation stops at this token: EOS, EOT, EOM and the usual end-of-turn texts ("<|im_end|>"), which become
  // control tokens even where a file calls them something else. False for an id outside the vocabulary, as is_control.
  bool is_end(int32_t id) const;
  bool is_control(int32_t id) const;

 protected:
  // Checks what both kinds have in common and fills in the types.
  explicit Tokenizer(TokenizerData data);

  // Appends the tokens of a non-empty text between special tokens.
  virtual void encode_text(std::string_view text, std::vector<int32_t>& ids) const = 0;

  TokenType type(int32_t id) const { return data_.types[static_cast<size_t>(id)]; }

  static constexpr std::string_view kEscapedSpace = "\xe2\x96\x81";  // U+2581, a space inside SentencePiece tokens

  // A SentencePiece token with spaces for U+2581.
  static std::string unescaped(std::string_view token);

  // Whether a token may come out of merging: a text must never become a control token by accident.
  bool is_mergeable(int32_t id) const;

  TokenizerData data_;
  std::vector<std::string> pieces_;  // bytes of each token in text, filled by the derived class

 private:
  friend class StreamDecoder;

  void check_sizes_and_ids() const;
  void fill_in_types();

  // Appends a token's bytes. `at_start`: a leading SentencePiece space is dropped; updated for the next token.
  void append_piece(int32_t id, bool special, bool& at_start, std::string& text) const;

  std::shared_ptr<const SpecialTokens> specials_;
};

// Bytes of each piece that a pre-tokenizer (`tokenizer.ggml.pre`) cuts a text into; merging stays within them.
// Throws UnsupportedModelError for an unknown name.
std::vector<size_t> pre_token_lengths(const std::string& name, std::string_view text);

// Turns a stream of tokens into text that never ends inside a UTF-8 character.
// Bytes that cannot become valid are passed on as U+FFFD, one for each maximal subpart (see unicode.h), as soon as that
// is certain.
class StreamDecoder {
 public:
  // `continuation`: the text follows a prompt, so a leading SentencePiece space is kept. Control tokens give no text.
  explicit StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool continuation = true);

  // Adds a token, returns the text that became complete (possibly ""). Throws std::invalid_argument for an id outside
  // the vocabulary.
  std::string push(int32_t id);

  // Returns what is left, an incomplete character as U+FFFD, and starts anew.
  std::string flush();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string pending_;  // at most 3 bytes, the start of a character
  bool continuation_;
  bool at_start_;
};

}  // namespace hotset
