// Reads the vocabulary of a GGUF file.
#pragma once

#include "core/gguf.h"
#include "core/tokenizer.h"

namespace hotset {

// Collects the `tokenizer.ggml.*` keys. Keys that a file leaves out get the defaults of its kind of vocabulary.
// Throws ModelFormatError (no tokens, values of a wrong type) and UnsupportedModelError (unknown pre-tokenizer); all
// other checks are Tokenizer::create's.
TokenizerData tokenizer_data_from_gguf(const GgufFile& file);

}  // namespace hotset
