// The steps that pre-tokenizers are made of, each written as the regular expression it stands for.
//
// A stage gives the length of the first piece of a text that is not empty: at least one byte, ending between two
// characters. What its expression does not match is a piece too, up to the next match ("Isolated" in Hugging Face's
// words). Expressions and the order of stages are those of the models' own tokenizer.json files; a later stage sees one
// piece of the stage before it, as if it were the whole text. Cutting a text piece by piece costs O(n) altogether.
#pragma once

#include <cstddef>
#include <string_view>

namespace hotset {

using SplitStage = size_t (*)(std::string_view text);

// split_words.cpp: patterns that match everything. C stands for (?i:'s|'t|'re|'ve|'m|'ll|'d), U for the letters that
// are no lower case and marks, [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}], and V for those that are no upper case and marks.

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t split_gpt2(std::string_view text);
// C|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
size_t split_llama3(std::string_view text);
// C|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
size_t split_qwen2(std::string_view text);
// C|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
size_t split_qwen35(std::string_view text);
// C|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+
size_t split_seed_coder(std::string_view text);
// [^\r\n\p{L}\p{N}]?U*V+C?|[^\r\n\p{L}\p{N}]?U+V*C?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
size_t split_gpt4o(std::string_view text);
// [^\r\n\p{L}\p{N}]?U*V+|[^\r\n\p{L}\p{N}]?U+V*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
size_t split_tekken(std::string_view text);
// [!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
// (this one leaves out numbers and control characters)
size_t split_deepseek_v3(std::string_view text);

// split_runs.cpp: patterns that take something out of a text.

size_t split_each_number(std::string_view text);      // \p{N}
size_t split_three_numbers(std::string_view text);    // \p{N}{1,3}
size_t split_punctuation(std::string_view text);      // [\p{P}!-/:-@\[-`{-~]+
size_t split_digit_bytes(std::string_view text);      // numbers of the byte alphabet: see there
size_t split_three_digits(std::string_view text);     // [0-9][0-9][0-9]
size_t split_newlines(std::string_view text);         // [\r\n]
size_t split_space_letters(std::string_view text);    // \s?\p{L}+
size_t split_space_marks(std::string_view text);      // \s?\p{P}+
size_t split_cased_words(std::string_view text);      // \s?[A-Za-z..]+, the cased letters of Unicode 11
size_t split_wide_marks(std::string_view text);       // \s?[!-/:-~U+FF01-FF0F U+FF1A-FF5E U+2018-201F U+3000-3002]+
size_t split_trailing_spaces(std::string_view text);  // \s+$
size_t split_asian(std::string_view text);            // [U+0800-9FA5 U+AC00-D7FF]+
size_t split_han_kana(std::string_view text);         // [U+4E00-9FA5 U+3040-30FF]+
size_t split_space_powers(std::string_view text);     // \s{512}|\s{256}|..|\s{2}|\s of pieces that split_llama3 left

}  // namespace hotset
