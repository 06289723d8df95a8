#include "tools/scored_text.h"

#include <algorithm>

namespace hotset::cli {

void add_text_flags(Args& args, TextFlags& flags) {
  args.text("-f,--file", "FILE", "the text; - reads stdin", flags.file);
  args.integer("-c,--ctx-size", "tokens of a chunk; its second half is scored", flags.n_ctx, {3, kContextRange.high});
  args.integer("--chunks", "score only the first N chunks, at least 2; -1 = all", flags.n_chunks, {-1, 1 << 30});
}

void check_text_flags(const Args& args, const TextFlags& flags) {
  if (flags.file.empty()) {
    throw UsageError(error_text(args.command(), "no text", "-f FILE", "none", "add -f FILE"));
  }
  if (flags.n_chunks == 0 || flags.n_chunks == 1) {
    throw UsageError(error_text(args.command(), "bad value of --chunks", "-1 or at least 2", cat(flags.n_chunks),
                                "correct the value"));
  }
}

std::vector<int32_t> scored_tokens(const Args& args, const TextFlags& flags, const Tokenizer& tokenizer) {
  std::vector<int32_t> tokens = tokenizer.encode(flags.file == "-" ? read_stdin() : read_file(flags.file));
  const auto n_tokens = static_cast<int64_t>(tokens.size());
  if (n_tokens < 2 * flags.n_ctx) {
    throw Error(error_text(args.command(), "text", cat("at least ", 2 * flags.n_ctx, " tokens"), cat(n_tokens),
                           "use a longer text or a smaller -c"));
  }
  if (flags.n_chunks > 0) tokens.resize(static_cast<size_t>(std::min(n_tokens, flags.n_chunks * flags.n_ctx)));
  return tokens;
}

void show_progress(int64_t n_done, int64_t n_chunks, double value) {
  if (!stderr_is_terminal()) return;
  write_stderr(text_of("[%lld]%.4lf,%s", static_cast<long long>(n_done), value, n_done == n_chunks ? "\n" : ""));
}

}  // namespace hotset::cli
