#include "core/tokenizer_gguf.h"

#include <utility>

#include "core/error.h"
#include "core/pre_tokenizer.h"

namespace hotset {

namespace {

// Reads `tokenizer.ggml.<name>`.
class VocabularyKeys {
 public:
  explicit VocabularyKeys(const GgufFile& file) : file_(file) {}

  std::string text(const char* name) const { return file_.get_string(key(name)).value_or(""); }
  bool flag(const char* name, bool missing) const { return file_.get_bool(key(name)).value_or(missing); }

  // Throws ModelFormatError for what does not fit a token id; -1 and 4294967295 mean "none".
  int32_t id(const char* name, int32_t missing) const {
    const auto value = file_.get_int(key(name));
    if (!value) return missing;
    if (*value == -1 || *value == UINT32_MAX) return -1;
    if (*value < 0 || *value > INT32_MAX) {
      throw ModelFormatError(error_text(file_.name(), key(name), "a token id", cat(*value),
                                        "get an intact copy of the model"));
    }
    return static_cast<int32_t>(*value);
  }

  std::vector<std::string> texts(const char* name) const {
    return file_.get_string_array(key(name)).value_or(std::vector<std::string>());
  }
  std::vector<float> floats(const char* name) const {
    return file_.get_float_array(key(name)).value_or(std::vector<float>());
  }
  std::vector<TokenType> types(const char* name) const {
    std::vector<TokenType> types;
    for (const int64_t value : file_.get_int_array(key(name)).value_or(std::vector<int64_t>())) {
      const bool is_known = value >= 1 && value <= 6;
      types.push_back(static_cast<TokenType>(is_known ? value : 0));  // 0 is refused by Tokenizer::create
    }
    return types;
  }

 private:
  static std::string key(const char* name) { return std::string("tokenizer.ggml.") + name; }

  const GgufFile& file_;
};

}  // namespace

TokenizerData tokenizer_data_from_gguf(const GgufFile& file) {
  const VocabularyKeys keys(file);
  TokenizerData data;
  data.model = keys.text("model");
  data.pre = keys.text("pre");
  data.tokens = keys.texts("tokens");
  if (data.tokens.empty()) {
    throw ModelFormatError(error_text(file.name(), "tokenizer.ggml.tokens", "the vocabulary", "none",
                                      "use a file that contains its tokenizer"));
  }
  const bool is_spm = data.model == "llama", is_bpe = data.model == "gpt2";
  if (is_spm) data.scores = keys.floats("scores");
  data.types = keys.types("token_type");
  if (is_bpe) data.merges = keys.texts("merges");

  // SentencePiece numbers its special tokens so unless told otherwise; byte-level vocabularies have no such custom.
  const auto custom = [&](int32_t id) { return is_spm && static_cast<size_t>(id) < data.tokens.size() ? id : -1; };
  data.unk_id = keys.id("unknown_token_id", custom(0));
  data.bos_id = keys.id("bos_token_id", custom(1));
  data.eos_id = keys.id("eos_token_id", custom(2));
  data.eot_id = keys.id("eot_token_id", -1);
  data.eom_id = keys.id("eom_token_id", -1);
  // Some makers name a padding token beyond the vocabulary. Nothing here pads, so that is no reason to refuse a model.
  data.pad_id = keys.id("padding_token_id", -1);
  if (data.pad_id >= static_cast<int64_t>(data.tokens.size())) data.pad_id = -1;

  const bool usually_adds_bos = is_spm || (is_bpe && find_pre_tokenizer(data.pre).add_bos);
  data.add_bos = keys.flag("add_bos_token", usually_adds_bos && data.bos_id >= 0);
  data.add_eos = keys.flag("add_eos_token", false);
  data.add_space_prefix = keys.flag("add_space_prefix", is_spm);
  data.remove_extra_whitespaces = keys.flag("remove_extra_whitespaces", false);
  return data;
}

}  // namespace hotset
