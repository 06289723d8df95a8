// `hotset run`: completes a prompt. stdout carries only the generated text (or, with --json, one object).
#include <algorithm>
#include <filesystem>
#include <random>

#include "tools/common.h"
#include "tools/json.h"
#include "tools/statistics_file.h"

namespace hotset::cli {
namespace {

struct RunFlags {
  PromptFlags prompt;
  ModelFlags model;
  DeviceFlags device;
  ComputeFlags compute;
  GenerateOptions generate;
  std::string save_stats;
  int64_t seed = -1;
  int64_t top_k = 40;
  int64_t repeat_last_n = 64;
  std::string prompt_cache;  // file, "" = none
  bool cache_all = false;
  bool cache_read_only = false;
  bool parse_special = false;
  bool as_json = false;
};

void declare(Args& args, RunFlags& flags) {
  SamplerOptions& sampler = flags.generate.sampler;
  add_prompt_flags(args, flags.prompt);
  args.integer("-n,--predict,--n-predict", "tokens to generate (256); -1 = no limit", flags.generate.max_tokens,
               {-1, 1 << 30});
  add_model_flags(args, flags.model);
  add_compute_flags(args, flags.compute);
  add_device_flags(args, flags.device);
  args.real("--temp", "temperature (0.8); 0 = always the likeliest token", sampler.temperature, {0, 1e6});
  args.integer("--top-k", "draw from the K likeliest (40); 0 = off", flags.top_k, {0, 1 << 30});
  args.real("--top-p", "draw from this share of probability (0.95); 1 = off", sampler.top_p,
            {0, 1, /*excludes_low=*/true});
  args.real("--min-p", "least probability relative to the likeliest (0.05); 0 = off", sampler.min_p, {0, 1});
  args.real("--repeat-penalty", "make recent tokens less likely (1.0 = off)", sampler.repeat_penalty, {1e-3, 1e3});
  args.integer("--repeat-last-n", "how many tokens are recent (64); -1 = all", flags.repeat_last_n, {-1, 1 << 30});
  args.integer("-s,--seed", "seed of the draws; -1 = random", flags.seed, {-1, INT64_MAX});
  args.flag("--ignore-eos", "go on after an end token", flags.generate.ignore_eos);
  args.flag("--context-shift", "at the end of the context forget the older half instead of failing",
            flags.generate.context_shift);
  args.text("--prompt-cache", "FILE", "compute only what differs from the prompt saved here, and save this one",
            flags.prompt_cache);
  args.flag("--prompt-cache-all", "save what was generated too", flags.cache_all);
  args.flag("--prompt-cache-ro", "read the file, never write it", flags.cache_read_only);
  args.flag("--special", "show control tokens", flags.generate.special);
  args.flag("--parse-special", "let text such as </s> in the prompt become the control token", flags.parse_special);
  args.text("--save-stats", "FILE", "keep which units were active, as `hotset profile` does (.npz); with --adapt",
            flags.save_stats);
  args.flag("--json", "print one JSON object instead of the text", flags.as_json);
}

// The seed is always chosen here, so that it can be told and a run repeated.
void finish_options(RunFlags& flags) {
  SamplerOptions& sampler = flags.generate.sampler;
  sampler.top_k = static_cast<int32_t>(flags.top_k);
  sampler.repeat_last_n = static_cast<int32_t>(flags.repeat_last_n);
  sampler.seed = flags.seed >= 0 ? static_cast<uint64_t>(flags.seed) : std::random_device()();
}

// The prompt's tokens; an empty text is BOS alone where the vocabulary has one.
std::vector<int32_t> prompt_tokens(const Tokenizer& tokenizer, const std::string& text, bool parse_special) {
  EncodeOptions options;
  options.parse_special = parse_special;
  std::vector<int32_t> tokens = tokenizer.encode(text, options);
  if (tokens.empty() && tokenizer.data().bos_id >= 0) tokens.push_back(tokenizer.data().bos_id);
  if (tokens.empty()) {
    throw UsageError(error_text("run", "empty prompt", "some text, as this vocabulary has no BOS", "none", "add text"));
  }
  return tokens;
}

// What was generated, as it is delivered to stdout and kept for --json.
struct Outcome {
  std::string text;
  std::vector<int32_t> ids;
  FinishReason finish = FinishReason::kNone;
  std::string error;  // what ended it instead
};

// Generates to the end, or until Ctrl-C (kCancelled). When this throws, `outcome` holds the text so far.
void generate(Generation& generation, bool streams, Outcome& outcome) {
  // Cancelling, unlike stopping, still delivers text that was held back.
  const StopCheck stop = [&generation] {
    if (interrupted()) generation.cancel();
    return interrupted();
  };
  try {
    while (generation.next(stop)) {
      for (const GeneratedToken& token : generation.tokens()) {
        outcome.text += token.text;
        if (token.id >= 0) outcome.ids.push_back(token.id);
        outcome.finish = token.finish;
        if (streams) write_stdout(token.text);
      }
    }
    if (outcome.finish == FinishReason::kNone) outcome.finish = FinishReason::kLength;  // -n 0
  } catch (const Interrupted&) {
    outcome.finish = FinishReason::kCancelled;
  }
}

// Hands the saved sequence, if there is one, to the engine, which reuses its beginning; returns its tokens.
std::vector<int32_t> load_prompt_cache(Engine& engine, const RunFlags& flags) {
  if (flags.prompt_cache.empty()) return {};
  std::error_code error;  // of a file that may be there: loading says it better
  if (!std::filesystem::exists(flags.prompt_cache, error) && !error) return {};
  Session session = engine.load_session(flags.prompt_cache);
  std::vector<int32_t> tokens = session.tokens();
  session.retire();
  return tokens;
}

bool begins_with(const std::vector<int32_t>& text, const std::vector<int32_t>& beginning) {
  return beginning.size() <= text.size() && std::equal(beginning.begin(), beginning.end(), text.begin());
}

// Saves what was computed of the prompt, with --prompt-cache-all also what followed, unless the file has it (`cached`).
// Ends the generation.
void save_prompt_cache(Generation& generation, const std::vector<int32_t>& prompt, const std::vector<int32_t>& cached,
                       const RunFlags& flags) {
  if (flags.prompt_cache.empty() || flags.cache_read_only) return;
  Session session = generation.take_session().session;
  const std::vector<int32_t>& held = session.tokens();
  const auto end = std::mismatch(held.begin(), held.end(), prompt.begin(), prompt.end()).first;
  // After a context shift only a piece of the prompt is still there.
  if (!flags.cache_all) session.truncate(end - held.begin());
  if (!begins_with(cached, held)) session.save(flags.prompt_cache);
}

// Of the tokens that were computed.
double prompt_rate(const GenerateStats& stats) {
  return per_second(stats.n_prompt - stats.n_prompt_reused, stats.prompt_ms);
}

// The first token comes out of the prompt's last step, so it takes no part.
double generate_rate(const GenerateStats& stats) { return per_second(stats.n_generated - 1, stats.generate_ms); }

// What share of the units had to be computed, and with an accelerator how many of those the host has.
std::string units_text(const Engine& engine) {
  const UnitCounts counts = engine.unit_counts();
  const EngineInfo info = engine.info();
  if (!counts.share()) return "";
  std::string out = text_of("%.1f %% of units active", 100 * *counts.share());
  if (info.device != "cpu" && counts.cold_share()) out += text_of(", %.1f %% of these cold", 100 * *counts.cold_share());
  if (info.adapts) out += text_of(", %llu swaps", static_cast<unsigned long long>(info.n_swaps));
  return out + " | ";
}

std::string timings_line(const Engine& engine, const GenerateStats& stats, FinishReason finish) {
  const auto reused = static_cast<long long>(stats.n_prompt_reused);
  return text_of("[ Prompt: %.1f t/s | Generation: %.1f t/s | %s%s%lld + %lld tokens | %s ]\n", prompt_rate(stats),
                 generate_rate(stats), units_text(engine).c_str(),
                 reused > 0 ? text_of("%lld reused of ", reused).c_str() : "", static_cast<long long>(stats.n_prompt),
                 static_cast<long long>(stats.n_generated),
                 finish == FinishReason::kNone ? "error" : finish_reason_name(finish));
}

void print_json(const Engine& engine, const Generation& generation, const Outcome& outcome, const RunFlags& flags) {
  const EngineInfo info = engine.info();
  const GenerateStats& stats = generation.stats();
  JsonWriter json;
  json.begin_object().field("text", outcome.text).field("tokens", outcome.ids);
  if (outcome.error.empty()) {
    json.field("finish_reason", finish_reason_name(outcome.finish)).key("error").null();
  } else {
    json.key("finish_reason").null().field("error", outcome.error);
  }
  json.field("model", engine.model().path()).field("type", engine.model().type_text());
  json.field("device", info.device).field("isa", info.isa).field("mode", info.mode);
  json.field("n_threads", info.n_threads).field("n_ctx", info.n_ctx).field("seed", *flags.generate.sampler.seed);
  const auto share = engine.unit_counts().share();
  share ? json.field("active_share", *share) : json.key("active_share").null();
  const auto cold = info.device != "cpu" ? engine.unit_counts().cold_share() : std::nullopt;
  cold ? json.field("cold_share", *cold) : json.key("cold_share").null();
  json.field("n_swaps", info.n_swaps);
  json.key("timings").begin_object();
  json.field("n_prompt", stats.n_prompt).field("n_prompt_reused", stats.n_prompt_reused);
  json.field("n_generated", stats.n_generated);
  json.field("prompt_ms", stats.prompt_ms).field("prompt_ts", prompt_rate(stats));
  json.field("generate_ms", stats.generate_ms).field("generate_ts", generate_rate(stats));
  json.field("first_token_ms", stats.first_token_ms).end_object().end_object();
  write_stdout(json.text() + "\n");
}

}  // namespace

int cmd_run(const Words& words) {
  Args args("run", "Completes a prompt. The generated text goes to stdout, everything else to stderr.");
  RunFlags flags;
  declare(args, flags);
  if (parse_or_help(args, words)) return kExitDone;
  if (flags.prompt_cache.empty() && (flags.cache_all || flags.cache_read_only))
    throw UsageError(error_text("run", "--prompt-cache-all and -ro", "--prompt-cache FILE", "none", "name the file"));
  finish_options(flags);
  const std::string prompt = prompt_text(args, flags.prompt);

  const auto model = open_model(flags.model);
  const auto engine = Engine::create(model, engine_options(flags.model, flags.device, flags.compute));
  const std::vector<int32_t> tokens = prompt_tokens(model->tokenizer(), prompt, flags.parse_special);
  const std::vector<int32_t> cached = load_prompt_cache(*engine, flags);
  Generation generation(engine, {tokens}, flags.generate);
  check_device_flags(flags.device, engine->info());
  if (!flags.save_stats.empty() && !engine->info().adapts)
    throw UsageError(error_text("run", "--save-stats", "an engine that counts units: an accelerator, mode exact, --adapt on",
                                cat("device ", engine->info().device, ", mode ", engine->info().mode),
                                "use `hotset profile`"));
  const std::string seed_text = cat(", seed ", *flags.generate.sampler.seed);
  write_note(engine_line(*model, engine->info()) + (flags.generate.sampler.temperature > 0 ? seed_text : ""));

  Outcome outcome;
  const auto close_output = [&] {
    if (flags.as_json) print_json(*engine, generation, outcome, flags);
    if (!flags.as_json && stdout_is_terminal()) write_stdout("\n");
    write_stderr(timings_line(*engine, generation.stats(), outcome.finish));
    if (!flags.save_stats.empty()) write_statistics(flags.save_stats, *model, engine->activity());
  };
  try {
    generate(generation, !flags.as_json, outcome);
  } catch (const Error& error) {
    if (generation.stats().n_generated == 0) throw;
    outcome.finish = FinishReason::kNone;
    outcome.error = error.what();
    close_output();
    save_prompt_cache(generation, tokens, cached, flags);  // a prompt is worth it however its continuation ended
    throw;
  }
  close_output();
  save_prompt_cache(generation, tokens, cached, flags);
  return outcome.finish == FinishReason::kCancelled ? kExitInterrupted : kExitDone;
}

}  // namespace hotset::cli
