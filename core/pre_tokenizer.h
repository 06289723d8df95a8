// Splits text into the pieces that byte-level BPE may merge within ("pre-tokens").
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "core/split_stages.h"

namespace hotset {

constexpr size_t kMaxSplitStages = 6;

// What a value of `tokenizer.ggml.pre` means.
struct PreTokenizer {
  std::array<SplitStage, kMaxSplitStages> stages;  // from the first on; unused ones are null
  bool ignore_merges;  // a pre-token that is a vocabulary item is taken whole, without looking at the merges
  bool add_bos;        // a file that does not say otherwise wants BOS before the text
};

// Looks up a pre-tokenizer by its name in the file.
// Throws UnsupportedModelError that names it, when it is unknown or empty: a wrong split degrades a model silently.
PreTokenizer find_pre_tokenizer(const std::string& name);

// Reads the pre-tokens of a text one after another. Bytes that are not UTF-8 count as characters that are neither
// letter, number, mark, punctuation, symbol nor space. The text must outlive the reader.
class PreTokenReader {
 public:
  PreTokenReader(const PreTokenizer& pre_tokenizer, std::string_view text);

  // The next pre-token; empty at the end of the text. All of them make up the text.
  std::string_view next();

 private:
  std::array<SplitStage, kMaxSplitStages> stages_;
  size_t n_stages_ = 0;
  std::array<std::string_view, kMaxSplitStages> rest_;  // what each stage has still to cut
};

}  // namespace hotset
