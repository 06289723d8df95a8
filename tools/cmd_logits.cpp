// `hotset logits`: the logits of every position of a token list, as a NumPy file.
#include <algorithm>

#include "tools/common.h"
#include "tools/json.h"
#include "tools/npy.h"

namespace hotset::cli {
namespace {

// Computes n_batch positions at a time, so that memory does not grow with the length of the list.
void write_logits(Engine& engine, std::span<const int32_t> tokens, size_t n_batch, NpyWriter& out) {
  Session session = engine.open_session();
  while (!tokens.empty()) {
    const std::span<const int32_t> chunk = tokens.first(std::min(n_batch, tokens.size()));
    const Engine::Entry entry{&session, chunk, /*all_logits=*/true};
    engine.advance(std::span(&entry, 1), interrupt_check());
    out.write(session.all_logits());
    tokens = tokens.subspan(chunk.size());
  }
}

std::vector<int32_t> token_list(const Args& args, const std::string& text) {
  if (text == "-") return parse_json_int_list("stdin", read_stdin());
  const std::vector<int64_t> values = parse_int_list(args.command(), "--tokens", text, {0, INT32_MAX});
  return {values.begin(), values.end()};
}

}  // namespace

int cmd_logits(const Words& words) {
  Args args("logits", "Writes float32 logits (n_tokens, n_vocab) of every position to a .npy file.");
  ModelFlags model_flags;
  DeviceFlags device_flags;
  ComputeFlags compute_flags;
  std::string tokens_text;
  std::string path;
  args.text("--tokens", "ID,..", "token ids, nothing added; - reads a JSON list from stdin", tokens_text);
  args.text("-o,--output", "FILE", "the .npy file; - is stdout", path);
  add_model_flags(args, model_flags);
  add_compute_flags(args, compute_flags);
  add_device_flags(args, device_flags);
  if (parse_or_help(args, words)) return kExitDone;
  if (!args.given("--tokens") || path.empty()) {
    throw UsageError(error_text("logits", "missing options", "--tokens 1,2,3 -o FILE.npy",
                                args.given("--tokens") ? "no -o" : "no --tokens", "add it"));
  }

  const std::vector<int32_t> tokens = token_list(args, tokens_text);
  if (tokens.empty()) {
    throw UsageError(error_text("logits", "no tokens", "at least one id", "an empty list", "add an id"));
  }
  const auto model = open_model(model_flags);
  check_token_ids("logits", tokens, model->tokenizer().n_vocab(), /*usage=*/true);
  const auto engine = Engine::create(model, engine_options(model_flags, device_flags, compute_flags));
  check_device_flags(device_flags, engine->info());
  const auto n_tokens = static_cast<int64_t>(tokens.size());
  if (n_tokens > engine->info().n_ctx) {
    throw ContextLengthError(error_text("logits", "tokens do not fit the context",
                                        cat("at most ", engine->info().n_ctx), cat(n_tokens), "use a larger -c"));
  }
  NpyWriter out(path, n_tokens, model->config().n_vocab);
  write_logits(*engine, tokens, static_cast<size_t>(compute_flags.n_batch), out);
  out.finish();
  return kExitDone;
}

}  // namespace hotset::cli
