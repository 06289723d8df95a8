// Binds a loaded model with its engine: loading, vocabulary, logits, figures.
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <functional>
#include <map>
#include <string_view>
#include <tuple>
#include <utility>

#include "python/bindings.h"

namespace hotset::python {

namespace {

using Log = std::function<void(bool, const std::string&)>;
using Logits = nb::ndarray<nb::numpy, float, nb::ndim<2>, nb::c_contig>;

// Calls the Python function `log(is_warning, line)`; an error inside it is reported, not thrown, as LogSink asks.
LogSink log_sink(const Log& log) {
  return [log](LogLevel level, const std::string& line) {
    if (exiting()) return;
    nb::gil_scoped_acquire acquire;
    try {
      log(level == LogLevel::kWarning, line);
    } catch (nb::python_error& error) {
      error.discard_as_unraisable("hotset log");
    }
  };
}

void load_engine(NativeEngine* self, const std::string& path, const std::string& activation, EngineOptions options,
                 const Log& log) {
  options.log = log_sink(log);
  const ModelOptions model_options{activation, options.log};
  std::shared_ptr<const Model> model;
  std::shared_ptr<Engine> engine;
  {
    ReleasedGil release;
    model = Model::load(path, model_options);
    engine = Engine::create(model, options);
  }
  new (self) NativeEngine(std::move(model), std::move(engine));
}

// A special token of the vocabulary; None for one it lacks.
std::optional<int32_t> token_or_none(int32_t id) { return id >= 0 ? std::optional(id) : std::nullopt; }

const TokenizerData& vocabulary(const NativeEngine& self) { return self.model().tokenizer().data(); }

std::vector<int32_t> tokenize(const NativeEngine& self, nb::bytes text, bool add_special, bool parse_special) {
  const std::string_view view(text.c_str(), text.size());
  ReleasedGil release;
  return self.model().tokenizer().encode(view, {add_special, parse_special});
}

nb::bytes detokenize(const NativeEngine& self, const std::vector<int32_t>& ids, bool special) {
  const std::string text = [&] {
    ReleasedGil release;
    return self.model().tokenizer().decode(ids, special);
  }();
  return nb::bytes(text.data(), text.size());
}

// Fills `out` (n_tokens, n_vocab). Computed in chunks, so that the session never holds all rows a second time.
void fill_logits(Engine& engine, std::span<const int32_t> tokens, const StopCheck& stop, float* out) {
  constexpr size_t kChunk = 512;
  Session session = engine.open_session();
  for (size_t begin = 0; begin < tokens.size(); begin += kChunk) {
    const size_t n = std::min(kChunk, tokens.size() - begin);
    const Engine::Entry entry{&session, tokens.subspan(begin, n), true};
    engine.advance({&entry, 1}, stop);
    const std::span<const float> rows = session.all_logits();
    out = std::copy(rows.begin(), rows.end(), out);
  }
}

// To be called before memory is taken for logits, which is n_vocab times that of the tokens.
void check_fits(const Engine& engine, size_t n_tokens) {
  const int64_t n_ctx = engine.info().n_ctx;
  if (n_tokens <= static_cast<size_t>(n_ctx)) return;
  throw ContextLengthError(
      error_text("logits", "tokens", cat("at most ", n_ctx), cat(n_tokens), "use fewer or raise the context (n_ctx)"));
}

Logits logits(const NativeEngine& self, const std::vector<int32_t>& tokens) {
  const size_t n_vocab = static_cast<size_t>(self.model().config().n_vocab);
  std::unique_ptr<float[]> values;
  Interrupt interrupt;
  compute_without_gil(interrupt, [&] {
    check_fits(*self.engine(), tokens.size());
    values = std::make_unique_for_overwrite<float[]>(tokens.size() * n_vocab);
    fill_logits(*self.engine(), tokens, interrupt.stop_check(), values.get());
  });
  nb::capsule owner(values.get(), [](void* data) noexcept { delete[] static_cast<float*>(data); });
  return Logits(values.release(), {tokens.size(), n_vocab}, owner);
}

nb::dict stats(const NativeEngine& self) {
  const EngineInfo info = [&] {
    ReleasedGil release;
    return self.engine()->info();
  }();
  const Model& model = self.model();
  nb::dict out;
  out["model"] = model.type_text();
  out["model_size"] = model.size_bytes();
  out["model_n_params"] = model.n_params();
  out["device"] = info.device;
  out["isa"] = info.isa;
  out["mode"] = info.mode;
  out["predictor"] = info.predictor;
  out["kv_type"] = info.kv_type;
  out["n_threads"] = info.n_threads;
  out["n_ctx"] = info.n_ctx;
  out["weight_bytes"] = info.weight_bytes;
  out["weight_bytes_per_token"] = info.weight_bytes_per_token;
  out["skippable_bytes_per_token"] = info.skippable_bytes_per_token;
  out["relayout_bytes"] = info.relayout_bytes;
  out["detect_bytes_per_token"] = info.detect_bytes_per_token;
  out["predictor_bytes"] = info.predictor_bytes;
  out["predictor_bytes_per_token"] = info.predictor_bytes_per_token;
  const UnitCounts counts = self.engine()->unit_counts();
  out["active_share"] = counts.share();
  out["over_selection"] = info.predictor.empty() ? std::nullopt : counts.over_selection();
  out["kv_bytes_per_position"] = info.kv_bytes_per_position;
  out["buffer_bytes"] = info.buffer_bytes;
  out["device_bytes"] = info.device_bytes;
  out["device_weight_bytes"] = info.device_weight_bytes;
  out["device_kv_bytes"] = info.device_kv_bytes;
  out["arena_bytes"] = info.arena_bytes;
  out["shared_bytes"] = info.shared_bytes;
  out["cold_share"] = info.device == "cpu" ? std::nullopt : counts.cold_share();
  out["n_swaps"] = info.n_swaps;
  out["gpu_active_share"] = info.device == "cpu" ? nb::none() : nb::cast(info.gpu_active_share);
  return out;
}

// Tokens that text becomes only where it is asked to be parsed for them, with their bytes; of equal ones the last.
std::vector<std::pair<int32_t, nb::bytes>> control_tokens(const NativeEngine& self) {
  const TokenizerData& data = vocabulary(self);
  std::map<std::string_view, int32_t> found;
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    const bool is_control = data.types[id] == TokenType::kControl || data.types[id] == TokenType::kUnknown;
    if (is_control && !data.tokens[id].empty()) found[data.tokens[id]] = static_cast<int32_t>(id);
  }
  std::vector<std::pair<int32_t, nb::bytes>> out;
  for (const auto& [text, id] : found) out.emplace_back(id, nb::bytes(text.data(), text.size()));
  return out;
}

// As bytes: what is in a file may be no UTF-8.
std::vector<std::pair<nb::bytes, nb::bytes>> chat_templates(const NativeEngine& self) {
  std::vector<std::pair<nb::bytes, nb::bytes>> out;
  for (const auto& [name, text] : self.model().chat_templates())
    out.emplace_back(nb::bytes(name.data(), name.size()), nb::bytes(text.data(), text.size()));
  return out;
}

using MetadataRow = std::tuple<std::string, std::string, std::string>;

std::vector<MetadataRow> metadata(const NativeEngine& self) {
  ReleasedGil release;
  std::vector<MetadataRow> rows;
  for (const auto& entry : inspect(self.model().path()).metadata) {
    rows.emplace_back(entry.key, entry.type, entry.value);
  }
  return rows;
}

}  // namespace

void bind_engine(nb::module_& module) {
  nb::class_<NativeEngine>(module, "Engine", "A loaded model and the engine that runs it.")
      .def(
          "__init__",
          [](NativeEngine* self, const std::string& path, const std::string& activation, const std::string& mode,
             const std::string& predictor, const std::string& sidecar, const std::string& device,
             const std::string& kv_type, const std::string& kv_place, std::optional<uint64_t> vram_budget,
             const std::string& adapt, const std::string& pin, int64_t n_ctx, int32_t n_threads, int32_t n_batch, const Log& log) {
            EngineOptions options;
            options.mode = mode;
            options.predictor = predictor;
            options.sidecar = sidecar;
            options.device = device;
            options.kv_type = kv_type;
            options.kv_place = kv_place;
            options.vram_budget = vram_budget;
            options.adapt = adapt;
            options.pin = pin;
            options.n_ctx = n_ctx;
            options.n_threads = n_threads;
            options.n_batch = n_batch;
            load_engine(self, path, activation, std::move(options), log);
          },
          nb::arg("path"), nb::kw_only(), nb::arg("activation"), nb::arg("mode"), nb::arg("predictor"),
          nb::arg("sidecar"), nb::arg("device"), nb::arg("kv_type"), nb::arg("kv_place"),
          nb::arg("vram_budget").none(), nb::arg("adapt"), nb::arg("pin"), nb::arg("n_ctx"), nb::arg("n_threads"), nb::arg("n_batch"),
          nb::arg("log"))
      .def("tokenize", &tokenize, nb::arg("text"), nb::arg("add_special"), nb::arg("parse_special"))
      .def("detokenize", &detokenize, nb::arg("ids"), nb::arg("special"))
      .def("logits", &logits, nb::arg("tokens"), "Logits (n_tokens, n_vocab) of every position.")
      .def("stats", &stats, nb::sig("def stats(self) -> dict[str, typing.Any]"))
      .def("metadata", &metadata, "Tuples (key, type, value) of the file, as `hotset inspect` shows them.")
      .def_prop_ro("fingerprint",
                   [](const NativeEngine& self) {
                     ReleasedGil release;
                     return self.model().fingerprint();
                   })
      .def_prop_ro("chat_templates", &chat_templates, "Names and texts of the file's chat templates.")
      .def_prop_ro("control_tokens", &control_tokens, "Ids and texts of tokens that plain text never becomes.")
      .def_prop_ro("bos_id", [](const NativeEngine& self) { return token_or_none(vocabulary(self).bos_id); })
      .def_prop_ro("eos_id", [](const NativeEngine& self) { return token_or_none(vocabulary(self).eos_id); })
      .def_prop_ro("adds_bos", [](const NativeEngine& self) { return vocabulary(self).add_bos; })
      .def_prop_ro("name", [](const NativeEngine& self) { return self.model().name(); })
      .def_prop_ro("n_vocab", [](const NativeEngine& self) { return self.model().config().n_vocab; });
}

}  // namespace hotset::python
