// A made-up SentencePiece vocabulary of any size.
#pragma once

#include <cstdint>

#include "core/tokenizer.h"

namespace hotset {

// The smallest and largest vocabulary that synth_vocabulary makes.
constexpr int64_t kLeastSynthVocabulary = 384;
constexpr int64_t kMostSynthVocabulary = 400000;

// <unk>, <s>, </s>, 256 byte tokens, the printable ASCII characters, then pieces of two, three and four letters,
// frequent letters first, each with and without a space before it. Every text has tokens; English ones get two to four
// letters each. Shorter pieces merge first.
TokenizerData synth_vocabulary(int64_t n_vocab);

}  // namespace hotset
