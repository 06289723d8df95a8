#include "core/tokenizer.h"

#include <algorithm>
#include <deque>
#include <stdexcept>
#include <utility>

#include "core/error.h"
#include "core/tokenizer_bpe.h"
#include "core/tokenizer_special.h"
#include "core/tokenizer_spm.h"
#include "core/unicode.h"

namespace hotset {

namespace {

// Texts of tokens that end a turn or a document in the models people use. None is ever meant as text.
constexpr std::string_view kEndTexts[] = {
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>",
    "<end_of_turn>", "<|end_of_turn|>", "<EOT>", "_<EOT>", "<|eot|>", "<|return|>",
    "<\xef\xbd\x9c" "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
};

constexpr std::string_view kReplacementText = "\xef\xbf\xbd";  // U+FFFD

bool is_end_text(std::string_view token) {
  return std::find(std::begin(kEndTexts), std::end(kEndTexts), token) != std::end(kEndTexts);
}

[[noreturn]] void throw_format(const std::string& what, const std::string& expected, const std::string& got) {
  throw ModelFormatError(error_text("tokenizer", what, expected, got, "get an intact copy of the model"));
}

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::create(TokenizerData data) {
  if (data.model == "llama") return std::make_shared<SpmTokenizer>(std::move(data));
  if (data.model == "gpt2") return std::make_shared<BpeTokenizer>(std::move(data));
  throw UnsupportedModelError(error_text("tokenizer", "tokenizer model (tokenizer.ggml.model)",
                                         "llama (SentencePiece BPE) or gpt2 (byte-level BPE)",
                                         data.model.empty() ? "none" : quoted(data.model),
                                         "use a model with one of these tokenizers"));
}

Tokenizer::Tokenizer(TokenizerData data) : data_(std::move(data)) {
  check_sizes_and_ids();
  fill_in_types();
  std::vector<SpecialToken> specials;
  std::deque<std::string> spaced;
  for (int32_t id = 0; id < n_vocab(); ++id) {
    std::string_view text = data_.tokens[static_cast<size_t>(id)];
    const bool is_user_defined = type(id) == TokenType::kUserDefined;
    if (is_user_defined && data_.model == "llama" && text.find(kEscapedSpace) != std::string_view::npos) {
      // Gemma's runs of spaces: SentencePiece looks for them where spaces are U+2581 already, we before that.
      text = spaced.emplace_back(unescaped(text));
    }
    if (is_user_defined || type(id) == TokenType::kControl || type(id) == TokenType::kUnknown) {
      specials.push_back({text, id, is_user_defined});
    }
  }
  specials_ = std::make_shared<const SpecialTokens>(std::move(specials));
}

void Tokenizer::check_sizes_and_ids() const {
  constexpr size_t kMaxTokens = size_t{1} << 30;
  const size_t n = data_.tokens.size();
  if (n == 0 || n > kMaxTokens) throw_format("number of tokens", cat("1 to ", kMaxTokens), cat(n));
  if (!data_.types.empty() && data_.types.size() != n) {
    throw_format("tokenizer.ggml.token_type", cat(n, " types"), cat(data_.types.size()));
  }
  for (size_t id = 0; id < data_.types.size(); ++id) {
    const int32_t type = static_cast<int32_t>(data_.types[id]);
    if (type < 1 || type > 6) throw_format(cat("type of token ", id), "1 to 6", cat(type));
  }
  const std::pair<const char*, int32_t> ids[] = {{"bos", data_.bos_id},     {"eos", data_.eos_id},
                                                 {"eot", data_.eot_id},     {"eom", data_.eom_id},
                                                 {"unknown", data_.unk_id}, {"padding", data_.pad_id}};
  for (const auto& [name, id] : ids) {
    if (id < -1 || id >= n_vocab()) throw_format(cat(name, " token id"), cat("0 to ", n - 1), cat(id));
  }
  if (data_.add_bos && data_.bos_id < 0) throw_format("bos token id", "one, since add_bos_token is set", "none");
  if (data_.add_eos && data_.eos_id < 0) throw_format("eos token id", "one, since add_eos_token is set", "none");
}

void Tokenizer::fill_in_types() {
  if (data_.types.empty()) {
    data_.types.assign(data_.tokens.size(), TokenType::kNormal);
    for (const int32_t id : {data_.bos_id, data_.eos_id, data_.eot_id, data_.eom_id, data_.pad_id}) {
      if (id >= 0) data_.types[static_cast<size_t>(id)] = TokenType::kControl;
    }
    if (data_.unk_id >= 0) data_.types[static_cast<size_t>(data_.unk_id)] = TokenType::kUnknown;
  }
  for (size_t id = 0; id < data_.tokens.size(); ++id) {
    if (is_end_text(data_.tokens[id])) data_.types[id] = TokenType::kControl;
  }
}

std::string Tokenizer::unescaped(std::string_view token) {
  std::string text;
  for (size_t found; (found = token.find(kEscapedSpace)) != std::string_view::npos;) {
    text.append(token.substr(0, found)) += ' ';
    token.remove_prefix(found + kEscapedSpace.size());
  }
  return text.append(token);
}

bool Tokenizer::is_mergeable(int32_t id) const {
  return type(id) == TokenType::kNormal || type(id) == TokenType::kUserDefined || type(id) == TokenType::kUnused;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<int32_t> ids;
  if (options.add_special && data_.add_bos) ids.push_back(data_.bos_id);
  size_t begin = 0;
  for (const SpecialMatch& match : specials_->find(text, options.parse_special)) {
    if (match.begin > begin) encode_text(text.substr(begin, match.begin - begin), ids);
    ids.push_back(match.id);
    begin = match.end;
  }
  if (begin < text.size()) encode_text(text.substr(begin), ids);
  if (options.add_special && data_.add_eos) ids.push_back(data_.eos_id);
  return ids;
}

std::string Tokenizer::piece(int32_t id, bool special) const {
  std::string text;
  bool at_start = false;
  append_piece(id, special, at_start, text);
  return text;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, bool special) const {
  std::string text;
  bool at_start = true;
  for (const int32_t id : ids) append_piece(id, special, at_start, text);
  return text;
}

void Tokenizer::append_piece(int32_t id, bool special, bool& at_start, std::string& text) const {
  if (id < 0 || id >= n_vocab()) {
    throw std::invalid_argument(error_text("tokenizer", "token id", cat("0 to ", n_vocab() - 1), cat(id),
                                           "pass ids of this model's vocabulary"));
  }
  const bool is_hidden = type(id) == TokenType::kControl || type(id) == TokenType::kUnknown;
  const std::string& piece = pieces_[static_cast<size_t>(id)];
  const bool is_matched = type(id) == TokenType::kControl || type(id) == TokenType::kUserDefined;
  const bool has_prefix = data_.model == "llama" && data_.add_space_prefix;
  const bool drops_space = at_start && has_prefix && !is_matched && !piece.empty() && piece[0] == ' ';
  if (!is_hidden || special) text.append(piece, drops_space ? 1 : 0);
  at_start = is_matched;
}

bool Tokenizer::is_end(int32_t id) const {
  if (id < 0 || id >= n_vocab()) return false;
  return id == data_.eos_id || id == data_.eot_id || id == data_.eom_id ||
         is_end_text(data_.tokens[static_cast<size_t>(id)]);
}

bool Tokenizer::is_control(int32_t id) const {
  return id >= 0 && id < n_vocab() && type(id) == TokenType::kControl;
}

StreamDecoder::StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool continuation)
    : tokenizer_(std::move(tokenizer)), continuation_(continuation), at_start_(!continuation) {}

std::string StreamDecoder::push(int32_t id) {
  tokenizer_->append_piece(id, /*special=*/false, at_start_, pending_);
  std::string complete;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Char c = decode_utf8(rest);
    if (c.status == Utf8Status::kIncomplete) break;
    complete += c.status == Utf8Status::kValid ? rest.substr(0, c.n_bytes) : kReplacementText;
    rest.remove_prefix(c.n_bytes);
  }
  pending_ = std::string(rest);
  return complete;
}

std::string StreamDecoder::flush() {
  at_start_ = !continuation_;
  return std::exchange(pending_, "").empty() ? std::string() : std::string(kReplacementText);
}

}  // namespace hotset
