// `hotset kld`: how far a mode's predictions are from dense on the same weights. Both engines share the mapped model
// and read the text together, so no file of logits is needed.
#include "tools/json.h"
#include "tools/scored_text.h"

namespace hotset::cli {
namespace {

struct KldFlags {
  TextFlags text;
  std::string base_kv_type;  // "" = as --kv-type
  std::string base_weights = "same";
  bool as_json = false;
  ModelFlags model;
  DeviceFlags device;
  ComputeFlags compute;
};

void declare(Args& args, KldFlags& flags) {
  add_text_flags(args, flags.text);
  args.flag("--json", "print one JSON object", flags.as_json);
  add_model_flags(args, flags.model);
  args.integer("-t,--threads", "CPU threads; 0 = one per core", flags.compute.n_threads, kThreadRange);
  args.integer("-b,--batch-size", "tokens computed at once", flags.compute.n_batch, kBatchRange);
  add_device_flags(args, flags.device);
  args.choice("--base-kv-type", "auto|f16|f32|q8_0", "number format of the dense side's KV cache (as --kv-type)",
              flags.base_kv_type);
  args.choice("--base-weights", "same|file",
              "dense on the weights that the mode uses, or on the file's, where a standard file was laid out anew",
              flags.base_weights);
}

double ppl_ratio(const KldResult& result) { return result.other.ppl() / result.base.ppl(); }

std::string json_report(const KldFlags& flags, const Engine& base_engine, const Engine& engine, const KldResult& result) {
  const Model& model = engine.model();
  const EngineInfo base = base_engine.info(), other = engine.info();
  const UnitCounts counts = engine.unit_counts();
  JsonWriter json;
  json.begin_object().field("model", model.path()).field("type", model.type_text()).field("file", flags.text.file);
  json.field("mean_kld", result.mean_kld).field("kld_error", result.kld_error);
  json.field("kld_p999", result.kld_p999).field("kld_max", result.kld_max).field("same_top", result.same_top);
  json.field("ppl", result.other.ppl()).field("ppl_base", result.base.ppl()).field("ppl_ratio", ppl_ratio(result));
  json.field("n_tokens", result.n_scored).field("n_ctx", flags.text.n_ctx);
  json.field("mode", other.mode).field("mode_base", base.mode).field("base_weights", flags.base_weights);
  json.field("predictor", other.predictor).field("predictor_bytes", other.predictor_bytes);
  if (counts.share()) json.field("active_share", *counts.share());
  if (counts.over_selection() && !other.predictor.empty()) json.field("over_selection", *counts.over_selection());
  json.field("kv_type", other.kv_type).field("kv_type_base", base.kv_type);
  json.field("device", other.device).field("isa", other.isa).field("n_threads", other.n_threads);
  json.field("build_commit", build_commit()).end_object();
  return json.text() + "\n";
}

std::string text_report(const Engine& engine, const KldResult& result) {
  std::string out = cat("tokens     ", result.n_scored, " scored\n");
  out += text_of("mean KLD   %.6g +/- %.2g\n", result.mean_kld, result.kld_error);
  out += text_of("99.9 %% KLD %.6g, largest %.6g\n", result.kld_p999, result.kld_max);
  out += text_of("same top   %.4f %%\n", 100 * result.same_top);
  out += text_of("PPL        %.4f, dense %.4f, ratio %.6f\n", result.other.ppl(), result.base.ppl(), ppl_ratio(result));
  const UnitCounts counts = engine.unit_counts();
  if (counts.share()) out += text_of("active     %.2f %% of the units\n", 100 * *counts.share());
  if (!engine.info().predictor.empty() && counts.over_selection())
    out += text_of("candidates %.3f for each active unit\n", *counts.over_selection());
  return out;
}

}  // namespace

int cmd_kld(const Words& words) {
  Args args("kld",
            "Compares a mode's predictions with dense ones on the same weights: KL divergence, same top token, PPL.");
  KldFlags flags;
  declare(args, flags);
  if (parse_or_help(args, words)) return kExitDone;
  check_text_flags(args, flags.text);

  const auto model = open_model(flags.model);
  const std::vector<int32_t> tokens = scored_tokens(args, flags.text, model->tokenizer());
  flags.compute.n_ctx = flags.text.n_ctx;
  const EngineOptions options = engine_options(flags.model, flags.device, flags.compute);
  EngineOptions base_options = options;
  base_options.mode = "dense";
  base_options.predictor.clear();
  if (!flags.base_kv_type.empty()) base_options.kv_type = flags.base_kv_type;
  const auto other = Engine::create(model, options);
  if (flags.base_weights == "same") base_options.weights_from = other;
  const auto base = Engine::create(model, base_options);
  check_device_flags(flags.device, other->info());
  write_note(engine_line(*model, other->info()));
  write_note(cat("against mode ", base->info().mode, ", kv ", base->info().kv_type));

  const auto progress = [](int64_t n_done, int64_t n_chunks, const KldResult& so_far) {
    show_progress(n_done, n_chunks, so_far.mean_kld);
  };
  const KldResult result = kl_divergence(*base, *other, tokens, flags.text.n_ctx, progress, interrupt_check());
  write_stdout(flags.as_json ? json_report(flags, *base, *other, result) : text_report(*other, result));
  return kExitDone;
}

}  // namespace hotset::cli
