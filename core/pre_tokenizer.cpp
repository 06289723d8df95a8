#include "core/pre_tokenizer.h"

#include "core/error.h"

namespace hotset {

namespace {

struct NamedPreTokenizer {
  const char* name;
  PreTokenizer pre_tokenizer;
};

constexpr PreTokenizer kGpt2 = {{split_gpt2}, false, false};
constexpr PreTokenizer kDigitsGpt2 = {{split_each_number, split_gpt2}, false, false};
constexpr PreTokenizer kLlama3 = {{split_llama3}, true, true};
constexpr PreTokenizer kCl100k = {{split_llama3}, false, false};
constexpr PreTokenizer kGlm4 = {{split_llama3}, true, false};
constexpr PreTokenizer kQwen2 = {{split_qwen2}, false, false};
constexpr PreTokenizer kGpt4o = {{split_gpt4o}, false, false};
constexpr PreTokenizer kDeepseekV3 = {{split_three_numbers, split_han_kana, split_deepseek_v3}, false, false};
constexpr PreTokenizer kDeepseekLlm = {
    {split_newlines, split_cased_words, split_wide_marks, split_trailing_spaces, split_asian, split_each_number},
    false,
    false};
constexpr PreTokenizer kDeepseekCoder = {
    {split_newlines, split_space_letters, split_space_marks, split_asian, split_each_number}, false, false};
constexpr PreTokenizer kFalcon = {{split_punctuation, split_gpt2, split_digit_bytes, split_three_digits}, false, false};

// Names are llama.cpp's; what the makers call their vocabulary is all that differs between names of one pattern. Where
// llama.cpp's expressions differ from the model's own tokenizer.json, that file counts: deepseek-llm takes numbers one
// by one, falcon parts numbers of any length from what is around them, tekken and gpt-4o ask for the case of all
// letters and take marks for letters.
constexpr NamedPreTokenizer kPreTokenizers[] = {
    {"gpt-2", kGpt2},
    {"phi-2", kGpt2},
    {"mpt", kGpt2},
    {"olmo", kGpt2},
    {"jais", kGpt2},
    {"starcoder", kDigitsGpt2},
    {"refact", kDigitsGpt2},
    {"command-r", kDigitsGpt2},
    {"smollm", kDigitsGpt2},
    {"codeshell", kDigitsGpt2},
    {"exaone", kDigitsGpt2},
    {"minerva-7b", kDigitsGpt2},
    {"llama-bpe", kLlama3},
    {"llama3", kLlama3},
    {"llama-v3", kLlama3},
    {"falcon3", kLlama3},
    {"lfm2", kLlama3},
    {"dbrx", kCl100k},
    {"smaug-bpe", kCl100k},
    {"chatglm-bpe", kCl100k},
    {"glm4", kGlm4},
    {"minicpm5", {{split_three_numbers, split_llama3}, true, false}},
    {"jais-2", {{split_llama3, split_space_powers}, false, false}},
    {"qwen2", kQwen2},
    {"deepseek-r1-qwen", kQwen2},
    {"stablelm2", kQwen2},
    {"hunyuan", kQwen2},
    {"megrez", kQwen2},
    {"bailingmoe", kQwen2},
    {"bailingmoe2", kQwen2},
    {"llada-moe", kQwen2},
    {"grok-2", kQwen2},
    {"qwen35", {{split_qwen35}, false, false}},
    {"seed-coder", {{split_seed_coder}, false, false}},
    {"gpt-4o", kGpt4o},
    {"llama4", kGpt4o},
    {"minimax-m2", kGpt4o},
    {"tekken", {{split_tekken}, true, true}},
    {"deepseek-v3", kDeepseekV3},
    {"hunyuan-dense", kDeepseekV3},
    {"deepseek-llm", kDeepseekLlm},
    {"deepseek-coder", kDeepseekCoder},
    {"falcon", kFalcon},
};

}  // namespace

PreTokenizer find_pre_tokenizer(const std::string& name) {
  std::string known;
  for (const NamedPreTokenizer& entry : kPreTokenizers) {
    if (name == entry.name) return entry.pre_tokenizer;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw UnsupportedModelError(error_text("tokenizer", "pre-tokenizer (tokenizer.ggml.pre)", "one of " + known,
                                         name.empty() ? "none" : quoted(name),
                                         "use a model whose tokenizer is supported, or convert it again so that the "
                                         "key names its splitting pattern"));
}

PreTokenReader::PreTokenReader(const PreTokenizer& pre_tokenizer, std::string_view text)
    : stages_(pre_tokenizer.stages) {
  while (n_stages_ < kMaxSplitStages && stages_[n_stages_] != nullptr) ++n_stages_;
  rest_[0] = text;
}

std::string_view PreTokenReader::next() {
  size_t stage = n_stages_ - 1;
  while (rest_[stage].empty()) {
    if (stage == 0) return {};
    --stage;
  }
  while (true) {
    const std::string_view piece = rest_[stage].substr(0, stages_[stage](rest_[stage]));
    rest_[stage].remove_prefix(piece.size());
    if (++stage == n_stages_) return piece;
    rest_[stage] = piece;
  }
}

}  // namespace hotset
