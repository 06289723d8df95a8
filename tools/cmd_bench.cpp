// `hotset bench`: throughput as llama-bench reports it: `pp512` is a prompt of 512 tokens, `tg128` 128 decode steps,
// `tg128 @ d4096` the same in a context that holds 4096 tokens already.
#include <algorithm>
#include <cctype>
#include <cmath>
#include <optional>
#include <utility>

#include "tools/common.h"
#include "tools/json.h"
#include "tools/machine.h"
#include "tools/recipe.h"

namespace hotset::cli {
namespace {

constexpr const char* kFormats = "md|csv|json|jsonl";

struct BenchFlags {
  std::vector<int64_t> n_prompt{512};
  std::vector<int64_t> n_gen{128};
  std::vector<int64_t> n_depth{0};
  std::vector<int64_t> n_threads{0};
  std::vector<int64_t> n_batch{512};
  int64_t n_repeat = 5;
  std::string output = "md";
  bool as_json = false;
  bool machine = false;
  int64_t machine_seconds = 40;
  std::string synth;
  ModelFlags model;
  DeviceFlags device;
};

// What a token of a test computed and read: the bytes are those of the units that were computed.
struct Activity {
  double weight_bytes_per_token = 0;
  std::optional<double> active_share;  // nothing where all units were computed without looking
  std::optional<double> cold_share;    // of the active units those that the host computed
  uint64_t n_swaps = 0;                // of hot and cold units, meanwhile
  std::optional<double> over_selection;  // in mode predict: candidates for each active unit
};

// Of the steps between two readings of the engine's counters.
Activity activity_between(const EngineInfo& info, UnitCounts before, UnitCounts after) {
  const UnitCounts counts = after - before;
  Activity out;
  out.active_share = counts.share();
  out.cold_share = counts.cold_share();
  if (!info.predictor.empty()) out.over_selection = counts.over_selection();
  out.weight_bytes_per_token =
      static_cast<double>(info.weight_bytes_per_token + info.predictor_bytes_per_token) -
      (1 - counts.computed_share().value_or(1)) * static_cast<double>(info.skippable_bytes_per_token) -
      (1 - counts.candidate_share().value_or(1)) * static_cast<double>(info.detect_bytes_per_token);
  return out;
}

// One test on one engine.
struct Row {
  const Model* model = nullptr;
  std::string source;  // its path or recipe
  EngineInfo info;
  double machine_gbps = 0;  // measured read bandwidth with as many threads; 0 = unknown
  Activity activity;
  int64_t n_batch = 0;
  int64_t n_prompt = 0;  // one of the two is 0
  int64_t n_gen = 0;
  int64_t n_depth = 0;  // tokens in the context before the test
  std::vector<double> samples_ts;

  std::string test() const {
    return cat(n_prompt > 0 ? "pp" : "tg", n_tokens(), n_depth > 0 ? cat(" @ d", n_depth) : "");
  }
  int64_t n_tokens() const { return std::max(n_prompt, n_gen); }
  double mean() const {
    double sum = 0;
    for (const double sample : samples_ts) sum += sample;
    return sum / static_cast<double>(samples_ts.size());
  }
  double deviation() const {
    if (samples_ts.size() < 2) return 0;
    double sum = 0;
    for (const double sample : samples_ts) sum += (sample - mean()) * (sample - mean());
    return std::sqrt(sum / static_cast<double>(samples_ts.size() - 1));
  }
  // Of weights, and of keys and values at the positions up to the token's own. Only decode reads them once a token; a
  // prompt's tokens share them.
  std::optional<double> bytes_per_token() const {
    if (n_gen == 0) return std::nullopt;
    const double n_positions = static_cast<double>(n_depth) + static_cast<double>(n_gen + 1) / 2;
    return activity.weight_bytes_per_token + n_positions * static_cast<double>(info.kv_bytes_per_position);
  }
  std::optional<double> gbps() const {
    if (n_gen == 0) return std::nullopt;
    return *bytes_per_token() * mean() / 1e9;
  }
  std::optional<double> bandwidth_share() const {
    if (n_gen == 0 || machine_gbps == 0) return std::nullopt;
    return *gbps() / machine_gbps;
  }
  // As it was, or where nobody looked as it was planned.
  double gpu_active_share() const {
    return activity.cold_share ? 1 - *activity.cold_share : info.gpu_active_share;
  }
  uint64_t ram_bytes() const {
    return info.weight_bytes + info.predictor_bytes + info.buffer_bytes +
           info.kv_bytes_per_position * static_cast<uint64_t>(n_depth + n_tokens());
  }
};

// The one list of what a row says; `is_text` values are quoted. "null" stands for what was not measured.
struct Field {
  const char* name;
  std::string value;
  bool is_text = false;
};

std::vector<Field> row_fields(const Row& row) {
  JsonWriter samples;
  samples.value(row.samples_ts);
  const auto number = [](std::optional<double> value) { return value ? json_number(*value) : "null"; };
  return {{"model", row.source, true},
          {"model_size", cat(row.model->size_bytes())},
          {"model_n_params", cat(row.model->n_params())},
          {"arch", row.model->config().arch_name, true},
          {"type", row.model->type_text(), true},
          {"mode", row.info.mode, true},
          {"predictor", row.info.predictor, true},
          {"predictor_bytes", cat(row.info.predictor_bytes)},
          {"device", row.info.device, true},
          {"gpu", "null"},
          {"n_threads", cat(row.info.n_threads)},
          {"n_batch", cat(row.n_batch)},
          {"isa", row.info.isa, true},
          {"kv_type", row.info.kv_type, true},
          {"test", row.test(), true},
          {"n_prompt", cat(row.n_prompt)},
          {"n_gen", cat(row.n_gen)},
          {"n_depth", cat(row.n_depth)},
          {"avg_ts", json_number(row.mean())},
          {"stddev_ts", json_number(row.deviation())},
          {"samples_ts", samples.text()},
          {"gbps", number(row.gbps())},
          {"bytes_per_token", number(row.bytes_per_token())},
          {"bandwidth_share", number(row.bandwidth_share())},
          {"vram_bytes", cat(row.info.device_bytes)},
          {"ram_bytes", cat(row.ram_bytes())},
          {"active_share", number(row.activity.active_share)},
          {"over_selection", number(row.activity.over_selection)},
          {"gpu_active_share", row.info.device == "cpu" ? "null" : json_number(row.gpu_active_share())},
          {"cold_share", row.info.device == "cpu" ? "null" : number(row.activity.cold_share)},
          {"n_swaps", cat(row.activity.n_swaps)},
          {"version", version(), true},
          {"build_commit", build_commit(), true}};
}

std::string json_object(const Row& row) {
  JsonWriter json;
  json.begin_object();
  for (const Field& field : row_fields(row)) {
    json.key(field.name);
    field.is_text ? json.value(field.value) : json.raw(field.value);
  }
  json.end_object();
  return json.text();
}

std::string csv_quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
  return out + "\"";
}

std::string csv_line(const Row& row, bool is_header) {
  std::string out;
  for (const Field& field : row_fields(row)) {
    const std::string value = is_header ? field.name : field.value == "null" ? "" : csv_quoted(field.value);
    out += (out.empty() ? "" : ",") + value;
  }
  return out + "\n";
}

std::string table_line(const Row& row, bool shows_batch) {
  const double n_params = static_cast<double>(row.model->n_params());
  const std::string params = n_params < 1e9 ? text_of("%.2f M", n_params / 1e6) : text_of("%.2f B", n_params / 1e9);
  const auto gbps = row.gbps(), share = row.bandwidth_share();
  std::string backend = row.info.device;
  for (char& c : backend) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  std::string out = text_of("| %-30s | %10s | %10s | %-10s | %7d | ", row.model->type_text().substr(0, 100).c_str(),
                            bytes_text(row.model->size_bytes()).c_str(), params.c_str(), backend.c_str(),
                            row.info.n_threads);
  if (shows_batch) out += text_of("%7lld | ", static_cast<long long>(row.n_batch));
  out += text_of("%15s | %20s | ", row.test().c_str(), text_of("%.2f ± %.2f", row.mean(), row.deviation()).c_str());
  return out + text_of("%7s | %5s |\n", gbps ? text_of("%.2f", *gbps).c_str() : "",
                       share ? text_of("%.1f", 100 * *share).c_str() : "");
}

std::string table_head(bool shows_batch) {
  const std::string batch_name = shows_batch ? "n_batch | " : "";
  const std::string batch_rule = shows_batch ? "------: | " : "";
  return text_of("| %-30s | %10s | %10s | %-10s | %7s | %s%15s | %19s | %7s | %5s |\n", "model", "size", "params",
                 "backend", "threads", batch_name.c_str(), "test", "t/s", "GB/s", "bw %") +
         "| ------------------------------ | ---------: | ---------: | ---------- | ------: | " + batch_rule +
         "--------------: | ------------------: | ------: | ----: |\n";
}

// Prints rows as they come, in the format that was asked for.
class Report {
 public:
  Report(std::string format, bool shows_batch) : format_(std::move(format)), shows_batch_(shows_batch) {}

  void add(const Row& row) {
    const bool is_first = n_rows_++ == 0;
    if (format_ == "json") return write_stdout((is_first ? "[\n  " : ",\n  ") + json_object(row));
    if (format_ == "jsonl") return write_stdout(json_object(row) + "\n");
    if (format_ == "csv") return write_stdout((is_first ? csv_line(row, true) : "") + csv_line(row, false));
    write_stdout((is_first ? table_head(shows_batch_) : "") + table_line(row, shows_batch_));
  }

  void finish() {
    if (format_ == "json") write_stdout(n_rows_ == 0 ? "[]\n" : "\n]\n");
    if (format_ == "md") write_stdout(cat("\nbuild: ", build_commit(), " (", version(), ")\n"));
  }

 private:
  std::string format_;
  bool shows_batch_;
  int64_t n_rows_ = 0;
};

// `n` tokens of an English text; ids in turn where the vocabulary makes nothing of it.
std::vector<int32_t> text_tokens(const Tokenizer& tokenizer, int64_t n) {
  constexpr const char* kText =
      "Early in the morning the old fisherman rowed out to the island, because the wind had turned and the sea was "
      "calm. He counted 12 boats near the harbour, and said to his daughter: \"Today we shall not be alone.\" ";
  std::vector<int32_t> tokens = tokenizer.encode(kText);
  const size_t n_text = tokens.size();
  tokens.resize(static_cast<size_t>(std::max<int64_t>(n, 1)));
  for (size_t i = n_text; i < tokens.size(); ++i) {
    tokens[i] = n_text > 1 ? tokens[1 + (i - 1) % (n_text - 1)]  // BOS stays at the start
                           : static_cast<int32_t>(i % static_cast<size_t>(tokenizer.n_vocab()));
  }
  return tokens;
}

int64_t longest(const std::vector<int64_t>& list) { return *std::max_element(list.begin(), list.end()); }

// Milliseconds of one run after what the session holds: the prompt at once, or the tokens one after another.
double run_once(Session& session, std::span<const int32_t> tokens, bool one_by_one) {
  const int64_t n_past = session.n_past();
  const Stopwatch watch;
  const size_t step = one_by_one ? 1 : tokens.size();
  for (size_t i = 0; i < tokens.size(); i += step) session.prefill(tokens.subspan(i, step), interrupt_check());
  const double ms = watch.ms();
  session.truncate(n_past);
  return ms;
}

void show_progress(const std::string& text) {
  if (stderr_is_terminal()) write_stderr(text);
}

// Fills a session that is still empty with the first row.n_depth tokens, untimed, and times what follows them.
void measure(Engine& engine, Session& session, std::span<const int32_t> tokens, int64_t n_repeat, Row& row) {
  const size_t n_depth = static_cast<size_t>(row.n_depth), n_tokens = static_cast<size_t>(row.n_tokens());
  if (n_depth > 0 && session.n_past() == 0) {
    show_progress(cat("\rdepth ", n_depth, " "));
    session.prefill(tokens.first(n_depth), interrupt_check());
  }
  const bool one_by_one = row.n_prompt == 0;
  const std::span<const int32_t> all = tokens.subspan(n_depth, n_tokens);
  run_once(session, one_by_one ? all.first(std::min<size_t>(n_tokens, 8)) : all, one_by_one);  // warm-up
  const UnitCounts before = engine.unit_counts();
  const uint64_t n_swaps = engine.info().n_swaps;
  for (int64_t i = 0; i < n_repeat; ++i) {
    show_progress(cat("\r", row.test(), " ", i + 1, "/", n_repeat, " "));
    row.samples_ts.push_back(per_second(row.n_tokens(), run_once(session, all, one_by_one)));
  }
  show_progress("\r\033[K");
  row.activity = activity_between(row.info, before, engine.unit_counts());
  row.activity.n_swaps = engine.info().n_swaps - n_swaps;
}

void declare(Args& args, BenchFlags& flags) {
  constexpr IntRange kTokens{0, kContextRange.high};
  args.int_list("-p,--n-prompt", "prompt lengths (512); 0 = none", flags.n_prompt, kTokens);
  args.int_list("-n,--n-gen", "tokens to generate (128); 0 = none", flags.n_gen, kTokens);
  args.int_list("-d,--n-depth", "tokens that the context holds before a test (0)", flags.n_depth, kTokens);
  args.integer("-r,--repetitions", "timed runs of each test (5)", flags.n_repeat, {1, 100000});
  args.int_list("-t,--threads", "CPU threads; 0 = one per core", flags.n_threads, kThreadRange);
  args.int_list("-b,--batch-size", "prompt tokens computed at once (512)", flags.n_batch, kBatchRange);
  args.text("-o,--output", kFormats, "how to print; with --machine the FILE to write", flags.output);
  args.flag("--json", "same as -o json; with --machine print what is written", flags.as_json);
  add_model_flags(args, flags.model);
  add_device_flags(args, flags.device);
  args.flag("--machine", "measure this machine's read rates into machine.json, no model", flags.machine);
  args.integer("--seconds", "time to spend on --machine (40)", flags.machine_seconds, {1, 3600});
  args.text("--synth", "RECIPE", "bench a model made in memory: 'shape=llama-1b type=q4_0 sparsity=0.9', see 'synth'",
            flags.synth);
}

void check_flags(const Args& args, const BenchFlags& flags) {
  const bool is_format = cat("|", kFormats, "|").find("|" + flags.output + "|") != std::string::npos;
  if (args.given("-o") && is_format == flags.machine) {
    throw UsageError(error_text("bench", "bad value of -o,--output", flags.machine ? "a file's name" : kFormats,
                                quoted(flags.output),
                                flags.machine ? "use --json to print JSON" : "correct the value"));
  }
  for (const char* name : {"-m", "--synth", "-p", "-n", "-d", "-r", "-b"}) {
    if (!flags.machine || !args.given(name)) continue;
    throw UsageError(error_text("bench", "contradicting flags", "--machine with -t, -o, --seconds and --json only",
                                name, "drop one of them"));
  }
}

// What the flags ask of `bench --machine`.
MachineBenchFlags machine_flags(const Args& args, const BenchFlags& flags) {
  MachineBenchFlags out;
  if (args.given("-t")) out.n_threads = flags.n_threads;
  if (args.given("-o")) out.path = flags.output;
  out.seconds = flags.machine_seconds;
  out.as_json = flags.as_json;
  return out;
}

// The model that -m names or --synth describes.
std::shared_ptr<const Model> bench_model(const Args& args, const BenchFlags& flags) {
  if (!args.given("--synth")) return open_model(flags.model);
  if (args.given("-m") || args.given("-hf"))
    throw UsageError(error_text("bench", "two models", "-m FILE or --synth RECIPE", "both", "drop one"));
  return load_synth(parse_recipe("bench --synth", flags.synth), synth_options(0), model_options(flags.model));
}

int64_t longest_test(const BenchFlags& flags) { return std::max(longest(flags.n_prompt), longest(flags.n_gen)); }

// All tests of one engine: depth by depth, each filled once.
void run_tests(const BenchFlags& flags, Engine& engine, const Row& base, Report& report) {
  const int64_t n_tokens = longest(flags.n_depth) + longest_test(flags);
  const std::vector<int32_t> tokens = text_tokens(engine.model().tokenizer(), n_tokens);
  for (const int64_t n_depth : flags.n_depth) {
    Session session = engine.open_session();
    const auto run_test = [&](int64_t n_prompt, int64_t n_gen) {
      if (n_prompt + n_gen == 0) return;
      Row row = base;
      row.n_prompt = n_prompt;
      row.n_gen = n_gen;
      row.n_depth = n_depth;
      measure(engine, session, tokens, flags.n_repeat, row);
      report.add(row);
    };
    for (const int64_t n_prompt : flags.n_prompt) run_test(n_prompt, 0);
    for (const int64_t n_gen : flags.n_gen) run_test(0, n_gen);
  }
}

void run_bench(const BenchFlags& flags, const std::shared_ptr<const Model>& model) {
  ComputeFlags compute;
  compute.n_ctx = std::max<int64_t>(longest(flags.n_depth) + longest_test(flags), 1);
  std::string note;
  const auto rates = known_machine_rates(note);
  if (!note.empty()) write_note("note: " + note);
  Report report(flags.as_json ? "json" : flags.output, flags.n_batch.size() > 1);
  bool is_first = true;
  for (const int64_t n_threads : flags.n_threads) {
    for (const int64_t n_batch : flags.n_batch) {
      compute.n_threads = n_threads;
      compute.n_batch = n_batch;
      const auto engine = Engine::create(model, engine_options(flags.model, flags.device, compute));
      if (std::exchange(is_first, false)) check_device_flags(flags.device, engine->info());
      Row row;
      row.model = model.get();
      row.source = flags.synth.empty() ? model->path() : "synth " + flags.synth;
      row.info = engine->info();
      row.machine_gbps = rates ? rates->dense_gbps(row.info.n_threads) : 0;
      row.n_batch = n_batch;
      run_tests(flags, *engine, row, report);
    }
  }
  report.finish();
}

}  // namespace

int cmd_bench(const Words& words) {
  Args args("bench", "Measures tokens per second. Lists such as -t 1,2 are swept.");
  BenchFlags flags;
  declare(args, flags);
  if (parse_or_help(args, words)) return kExitDone;
  check_flags(args, flags);
  if (flags.machine) return bench_machine(machine_flags(args, flags));

  run_bench(flags, bench_model(args, flags));
  return kExitDone;
}

}  // namespace hotset::cli
