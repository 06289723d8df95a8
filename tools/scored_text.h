// What the commands that score a text share: -f, -c, --chunks, and the tokens they ask for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/common.h"

namespace hotset::cli {

struct TextFlags {
  std::string file;
  int64_t n_ctx = 512;
  int64_t n_chunks = -1;
};

void add_text_flags(Args& args, TextFlags& flags);

// Throws UsageError without -f and for a number of chunks that makes no sense.
void check_text_flags(const Args& args, const TextFlags& flags);

// The whole text as tokens, cut to the chunks that are wanted. Throws Error when it is too short to score: the library
// says the same, but only when the engine is there.
std::vector<int32_t> scored_tokens(const Args& args, const TextFlags& flags, const Tokenizer& tokenizer);

// Writes `[chunk]value,` to stderr when that is a terminal.
void show_progress(int64_t n_done, int64_t n_chunks, double value);

}  // namespace hotset::cli
