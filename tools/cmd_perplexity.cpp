// `hotset perplexity`: how well a model predicts a text, chunked as llama-perplexity does it.
#include "tools/json.h"
#include "tools/scored_text.h"

namespace hotset::cli {
namespace {

struct PerplexityFlags {
  TextFlags text;
  bool as_json = false;
  ModelFlags model;
  DeviceFlags device;
  ComputeFlags compute;
};

void declare(Args& args, PerplexityFlags& flags) {
  add_text_flags(args, flags.text);
  args.flag("--json", "print one JSON object", flags.as_json);
  add_model_flags(args, flags.model);
  args.integer("-t,--threads", "CPU threads; 0 = one per core", flags.compute.n_threads, kThreadRange);
  args.integer("-b,--batch-size", "tokens computed at once", flags.compute.n_batch, kBatchRange);
  add_device_flags(args, flags.device);
}

void print_json(const PerplexityFlags& flags, const Model& model, const EngineInfo& info,
                const PerplexityResult& result) {
  JsonWriter json;
  json.begin_object().field("model", model.path()).field("type", model.type_text()).field("file", flags.text.file);
  json.field("ppl", result.ppl()).field("ppl_error", result.ppl_error());
  json.field("nll_mean", result.nll_mean).field("nll_error", result.nll_error).field("n_scored", result.n_scored);
  json.field("n_ctx", flags.text.n_ctx).field("mode", info.mode).field("device", info.device).field("isa", info.isa);
  json.field("n_threads", info.n_threads).field("build_commit", build_commit()).end_object();
  write_stdout(json.text() + "\n");
}

}  // namespace

int cmd_perplexity(const Words& words) {
  Args args("perplexity", "Scores a text. The last line is 'Final estimate: PPL = X +/- Y'.");
  PerplexityFlags flags;
  declare(args, flags);
  if (parse_or_help(args, words)) return kExitDone;
  check_text_flags(args, flags.text);

  const auto model = open_model(flags.model);
  const std::vector<int32_t> tokens = scored_tokens(args, flags.text, model->tokenizer());
  flags.compute.n_ctx = flags.text.n_ctx;
  const auto engine = Engine::create(model, engine_options(flags.model, flags.device, flags.compute));
  check_device_flags(flags.device, engine->info());
  write_note(engine_line(*model, engine->info()));

  const auto progress = [](int64_t n_done, int64_t n_chunks, const PerplexityResult& so_far) {
    show_progress(n_done, n_chunks, so_far.ppl());
  };
  const PerplexityResult result = perplexity(*engine, tokens, flags.text.n_ctx, progress, interrupt_check());
  if (flags.as_json) {
    print_json(flags, *model, engine->info(), result);
  } else {
    write_stdout(text_of("Final estimate: PPL = %.4lf +/- %.5lf\n", result.ppl(), result.ppl_error()));
  }
  return kExitDone;
}

}  // namespace hotset::cli
