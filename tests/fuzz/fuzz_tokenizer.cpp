// libFuzzer target for the tokenizers: hostile vocabularies are refused or work, and text survives encode and decode.
//
// Input: one byte chooses. Fixed vocabularies: the rest is text. Otherwise: settings, then token and merge texts, each
// a length byte and its bytes, then text.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/tokenizer.h"
#include "tests/cpp/tiny_vocabularies.h"

namespace {

using namespace hotset;

void require(bool condition) {
  if (!condition) std::abort();
}

// Reads values off the front of the input; zeros once it is used up.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  uint8_t byte() {
    const std::string text = take(1);
    return text.empty() ? 0 : static_cast<uint8_t>(text[0]);
  }
  std::string take(size_t n) {
    const std::string text(rest_.substr(0, n));
    rest_.remove_prefix(text.size());
    return text;
  }
  std::string text() { return take(byte()); }
  std::string rest() { return take(rest_.size()); }

 private:
  std::string_view rest_;
};

// Encodes and decodes in every way; whatever the vocabulary, nothing may throw or leave the vocabulary.
void exercise(const std::shared_ptr<const Tokenizer>& tokenizer, const std::string& text) {
  for (const bool parse_special : {false, true}) {
    const std::vector<int32_t> ids = tokenizer->encode(text, {.add_special = true, .parse_special = parse_special});
    StreamDecoder decoder(tokenizer, /*continuation=*/false);
    for (const int32_t id : ids) {
      require(id >= 0 && id < tokenizer->n_vocab());
      require(decoder.push(id).size() <= 3 * (tokenizer->piece(id).size() + 3));
      tokenizer->is_end(id);
    }
    decoder.flush();
    tokenizer->decode(ids);
    tokenizer->decode(ids, /*special=*/true);
  }
}

// What stands for a space in SentencePiece does not survive, nor is a space known behind the unknown token.
std::string without_lost_texts(std::string text) {
  for (bool again = true; again;) {
    again = false;
    for (const std::string_view lost : {"\xe2\x96\x81", "<unk>"}) {
      const size_t at = text.find(lost);
      if (at == std::string::npos) continue;
      text.erase(at, lost.size());
      again = true;
    }
  }
  return text;
}

// Texts of full vocabularies survive.
void round_trip(const std::shared_ptr<const Tokenizer>& tokenizer, std::string text) {
  if (tokenizer->data().model == "llama") text = without_lost_texts(std::move(text));
  require(tokenizer->decode(tokenizer->encode(text)) == text);
  EncodeOptions options;
  options.parse_special = true;
  options.add_special = false;
  require(tokenizer->decode(tokenizer->encode(text, options), /*special=*/true) == text);
}

// Names of pre-tokenizers, one for every stage that there is.
constexpr const char* kPreTokenizers[] = {"gpt-2",          "llama-bpe", "qwen35",      "seed-coder",
                                          "gpt-4o",         "tekken",    "deepseek-v3", "deepseek-llm",
                                          "deepseek-coder", "falcon",    "jais-2"};

TokenizerData with_pre(TokenizerData data, const char* pre) {
  data.pre = pre;
  return data;
}

TokenizerData read_vocabulary(Input& input) {
  const uint8_t start = input.byte();
  TokenizerData data = start % 4 == 0 ? tiny_spm() : start % 4 == 1 ? tiny_bpe() : TokenizerData();
  if (start % 4 > 1) data.model = start % 4 == 2 ? "llama" : "gpt2";
  if (start & 16) data.pre = kPreTokenizers[input.byte() % std::size(kPreTokenizers)];
  data.add_bos = start & 64;
  data.add_space_prefix = !(start & 128);
  for (int32_t* id : {&data.bos_id, &data.eos_id, &data.unk_id, &data.eot_id}) {
    *id = static_cast<int8_t>(input.byte());
  }
  const uint8_t flags = input.byte();
  data.add_eos = flags & 1;
  data.remove_extra_whitespaces = flags & 2;
  if (flags & 4) data.types.clear();
  for (int n = input.byte(); n > 0; --n) {
    data.tokens.push_back(input.text());
    const uint8_t kind = input.byte();
    if (!(flags & 4)) data.types.push_back(static_cast<TokenType>(kind % 8));
    float score = static_cast<float>(kind);
    if (kind == 255) std::memcpy(&score, input.take(sizeof score).append(sizeof score, '\xff').data(), sizeof score);
    data.scores.push_back(score);
  }
  for (int n = input.byte(); n > 0; --n) data.merges.push_back(input.text());
  return data;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static const std::vector<std::shared_ptr<const Tokenizer>> kFixed = [] {
    std::vector<std::shared_ptr<const Tokenizer>> fixed = {Tokenizer::create(tiny_spm())};
    for (const char* pre : kPreTokenizers) fixed.push_back(Tokenizer::create(with_pre(tiny_bpe(), pre)));
    return fixed;
  }();
  Input input(bytes, size);
  const uint8_t choice = input.byte();
  if (choice % 2 == 0) {
    const std::string text = input.rest();
    for (const auto& tokenizer : kFixed) {
      round_trip(tokenizer, text);
      exercise(tokenizer, text);
    }
    return 0;
  }
  TokenizerData data = read_vocabulary(input);
  std::shared_ptr<const Tokenizer> tokenizer;
  try {
    tokenizer = Tokenizer::create(std::move(data));
  } catch (const ModelFormatError&) {
    return 0;
  } catch (const UnsupportedModelError&) {
    return 0;
  }
  exercise(tokenizer, input.rest());
  return 0;
}
