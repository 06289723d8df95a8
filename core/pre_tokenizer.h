// Splits text into the pieces that byte-level BPE may merge within ("pre-tokens").
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace hotset {

// A splitting pattern, written as the regular expression it stands for.
enum class SplitPattern : uint8_t {
  // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  kGpt2,
  // (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
  kLlama3,
};

// What a value of `tokenizer.ggml.pre` means.
struct PreTokenizer {
  SplitPattern pattern;
  bool ignore_merges;  // a pre-token that is a vocabulary item is taken whole, without looking at the merges
  bool add_bos;        // a file that does not say otherwise wants BOS before the text
};

// Looks up a pre-tokenizer by its name in the file.
// Throws UnsupportedModelError that names it, when it is unknown or empty: a wrong split degrades a model silently.
PreTokenizer find_pre_tokenizer(const std::string& name);

// Length in bytes of the first pre-token of `text`, which must not be empty. Bytes that are not UTF-8 count as
// characters that are neither letter, number nor space. Splitting a text piece by piece costs O(n) altogether.
size_t pre_token_length(SplitPattern pattern, std::string_view text);

}  // namespace hotset
