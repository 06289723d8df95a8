// `hotset perplexity`: how well a model predicts a text, chunked as llama-perplexity does it.
#include <algorithm>

#include "tools/common.h"
#include "tools/json.h"

namespace hotset::cli {
namespace {

struct PerplexityFlags {
  std::string file;
  int64_t n_ctx = 512;
  int64_t n_chunks = -1;
  bool as_json = false;
  ModelFlags model;
  DeviceFlags device;
  ComputeFlags compute;
};

void declare(Args& args, PerplexityFlags& flags) {
  args.text("-f,--file", "FILE", "the text; - reads stdin", flags.file);
  args.integer("-c,--ctx-size", "tokens of a chunk; its second half is scored", flags.n_ctx, {3, kContextRange.high});
  args.integer("--chunks", "score only the first N chunks, at least 2; -1 = all", flags.n_chunks, {-1, 1 << 30});
  args.flag("--json", "print one JSON object", flags.as_json);
  add_model_flags(args, flags.model);
  args.integer("-t,--threads", "CPU threads; 0 = one per core", flags.compute.n_threads, kThreadRange);
  args.integer("-b,--batch-size", "tokens computed at once", flags.compute.n_batch, kBatchRange);
  add_device_flags(args, flags.device);
}

// The whole text as tokens, cut to the chunks that are wanted. Throws Error when it is too short to score: perplexity()
// says the same, but only when the engine is there.
std::vector<int32_t> read_tokens(const PerplexityFlags& flags, const Tokenizer& tokenizer) {
  std::vector<int32_t> tokens = tokenizer.encode(flags.file == "-" ? read_stdin() : read_file(flags.file));
  const auto n_tokens = static_cast<int64_t>(tokens.size());
  if (n_tokens < 2 * flags.n_ctx) {
    throw Error(error_text("perplexity", "text", cat("at least ", 2 * flags.n_ctx, " tokens"), cat(n_tokens),
                           "use a longer text or a smaller -c"));
  }
  if (flags.n_chunks > 0) tokens.resize(static_cast<size_t>(std::min(n_tokens, flags.n_chunks * flags.n_ctx)));
  return tokens;
}

void print_json(const PerplexityFlags& flags, const Model& model, const EngineInfo& info,
                const PerplexityResult& result) {
  JsonWriter json;
  json.begin_object().field("model", model.path()).field("type", model.type_text()).field("file", flags.file);
  json.field("ppl", result.ppl()).field("ppl_error", result.ppl_error());
  json.field("nll_mean", result.nll_mean).field("nll_error", result.nll_error).field("n_scored", result.n_scored);
  json.field("n_ctx", flags.n_ctx).field("mode", info.mode).field("device", info.device).field("isa", info.isa);
  json.field("n_threads", info.n_threads).field("build_commit", build_commit()).end_object();
  write_stdout(json.text() + "\n");
}

}  // namespace

int cmd_perplexity(const Words& words) {
  Args args("perplexity", "Scores a text. The last line is 'Final estimate: PPL = X +/- Y'.");
  PerplexityFlags flags;
  declare(args, flags);
  if (parse_or_help(args, words)) return kExitDone;
  if (flags.file.empty()) {
    throw UsageError(error_text("perplexity", "no text", "-f FILE", "none", "add -f FILE"));
  }
  if (flags.n_chunks == 0 || flags.n_chunks == 1) {
    throw UsageError(error_text("perplexity", "bad value of --chunks", "-1 or at least 2", cat(flags.n_chunks),
                                "correct the value"));
  }

  const auto model = open_model(flags.model);
  const std::vector<int32_t> tokens = read_tokens(flags, model->tokenizer());
  flags.compute.n_ctx = flags.n_ctx;
  const auto engine = Engine::create(model, engine_options(flags.model, flags.device, flags.compute));
  check_device_flags(flags.device, engine->info());
  write_note(engine_line(*model, engine->info()));

  const bool show_progress = stderr_is_terminal();
  const auto progress = [&](int64_t n_done, int64_t n_chunks, const PerplexityResult& so_far) {
    if (!show_progress) return;
    write_stderr(text_of("[%lld]%.4lf,%s", static_cast<long long>(n_done), so_far.ppl(),
                         n_done == n_chunks ? "\n" : ""));
  };
  const PerplexityResult result = perplexity(*engine, tokens, flags.n_ctx, progress, interrupt_check());
  if (flags.as_json) {
    print_json(flags, *model, engine->info(), result);
  } else {
    write_stdout(text_of("Final estimate: PPL = %.4lf +/- %.5lf\n", result.ppl(), result.ppl_error()));
  }
  return kExitDone;
}

}  // namespace hotset::cli
