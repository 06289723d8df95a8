#include "core/model_config.h"

#include <charconv>
#include <cmath>

#include "core/error.h"
#include "core/gguf.h"

namespace hotset {
namespace {

constexpr char kRemedy[] = "download or convert the file again";

// Reads `<arch>.<name>` keys of one file with the checks every number gets.
class ConfigReader {
 public:
  ConfigReader(const GgufFile& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}

  std::string key(const std::string& name) const { return prefix_ + "." + name; }

  [[noreturn]] void fail(const std::string& name, const std::string& expected, const std::string& got) const {
    throw ModelFormatError(error_text("config", "key " + quoted(key(name)), expected, got, kRemedy));
  }
  [[noreturn]] void unsupported(const std::string& name, const std::string& expected, const std::string& got) const {
    throw UnsupportedModelError(error_text("config", "key " + quoted(key(name)), expected, got,
                                           "use a model of a kind that `hotset inspect` says will run"));
  }

  int64_t integer(const std::string& name, int64_t low, int64_t high, int64_t fallback = -1) const {
    const std::optional<int64_t> value = file_.get_int(key(name));
    if (!value && fallback < 0) fail(name, cat("an integer from ", low, " to ", high), "nothing");
    const int64_t out = value.value_or(fallback);
    if (out < low || out > high) fail(name, cat("an integer from ", low, " to ", high), cat(out));
    return out;
  }

  float number(const std::string& name, double low, double high, double fallback) const {
    const std::optional<double> value = file_.get_float(key(name));
    if (!value && std::isnan(fallback)) fail(name, cat("a number from ", low, " to ", high), "nothing");
    const double out = value.value_or(fallback);
    if (!(out >= low && out <= high)) fail(name, cat("a number from ", low, " to ", high), cat(out));
    return static_cast<float>(out);
  }

  // Head counts and FFN sizes may be an array with one value per layer; only equal values are built.
  int64_t per_layer(const std::string& name, int64_t n_layer, int64_t low, int64_t high, int64_t fallback = -1) const {
    const GgufValue* value = file_.find(key(name));
    if (!value || value->type != GgufType::kArray) return integer(name, low, high, fallback);
    const uint64_t n = std::get<GgufArray>(value->value).n;
    if (n != static_cast<uint64_t>(n_layer)) fail(name, cat(n_layer, " values"), cat(n));
    const std::vector<int64_t> values = *file_.get_int_array(key(name));
    for (const int64_t each : values) {
      if (each < low || each > high) fail(name, cat("integers from ", low, " to ", high), cat(each));
      if (each != values[0]) unsupported(name, "the same value in every layer", "different ones");
    }
    return values[0];
  }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

void read_yarn(const ConfigReader& reader, ModelConfig& config) {
  Yarn& yarn = config.yarn;
  yarn.factor = reader.number("rope.scaling.factor", 1, 1e6, std::nan(""));
  yarn.n_ctx_original = reader.integer("rope.scaling.original_context_length", 1, int64_t{1} << 30, config.n_ctx_train);
  yarn.attention_factor = reader.number("rope.scaling.attn_factor", 1e-3, 1e3, 1);
  yarn.beta_fast = reader.number("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32);
  yarn.beta_slow = reader.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1);
  if (yarn.beta_slow >= yarn.beta_fast)
    reader.fail("rope.scaling.yarn_beta_slow", cat("less than yarn_beta_fast, ", yarn.beta_fast), cat(yarn.beta_slow));
  // What a file may say beside these is of other models, or a run time's choice.
  if (reader.number("rope.scaling.yarn_ext_factor", -1, 1, 1) != 1)
    reader.unsupported("rope.scaling.yarn_ext_factor", "1", "another value");
  if (reader.number("rope.scaling.yarn_log_multiplier", 0, 100, 0) != 0)
    reader.unsupported("rope.scaling.yarn_log_multiplier", "0", "another value");
}

void read_rope(const GgufFile& file, const ConfigReader& reader, ModelConfig& config) {
  if (config.arch->positions != Positions::kRope) return;
  config.n_rot = reader.integer("rope.dimension_count", 2, config.head_dim, config.head_dim);
  if (config.n_rot % 2 != 0) reader.fail("rope.dimension_count", "an even number", cat(config.n_rot));
  config.rope_freq_base = reader.number("rope.freq_base", 1, 1e12, 10000);
  if (config.arch->rope_base_local > 0)
    config.rope_freq_base_local = reader.number("rope.freq_base_swa", 1, 1e12, config.arch->rope_base_local);
  // A factor without a type is that of linear scaling, as llama.cpp reads it; 0 is none.
  const bool has_factor = reader.number("rope.scaling.factor", 0, 1e6, 0) > 0;
  const std::string type =
      file.get_string(reader.key("rope.scaling.type")).value_or(has_factor ? "linear" : "none");
  if (type == "linear") {
    config.rope_scale = reader.number("rope.scaling.factor", 1e-3, 1e6, std::nan(""));
  } else if (type == "yarn") {
    read_yarn(reader, config);
  } else if (type != "none") {
    reader.unsupported("rope.scaling.type",
                       "none, linear or yarn (llama3 scaling comes as the tensor rope_freqs.weight)", quoted(type));
  } else {  // the older spelling of linear scaling, if it is there
    config.rope_scale = reader.number("rope.scale_linear", 1e-3, 1e6, 1);
  }
}

// The window of every layer, from one length and which layers have it.
void read_windows(const GgufFile& file, const ConfigReader& reader, ModelConfig& config) {
  const int64_t window = reader.integer("attention.sliding_window", 0, int64_t{1} << 30, 0);
  config.windows.assign(static_cast<size_t>(config.n_layer), window);
  const std::string name = "attention.sliding_window_pattern";
  const GgufValue* pattern = file.find(reader.key(name));
  if (pattern && pattern->type == GgufType::kArray) {
    const std::vector<int64_t> has_window = *file.get_int_array(reader.key(name));
    if (has_window.size() != config.windows.size())
      reader.fail(name, cat(config.n_layer, " values"), cat(has_window.size()));
    for (size_t i = 0; i < config.windows.size(); ++i) config.windows[i] = has_window[i] != 0 ? window : 0;
    return;
  }
  const int64_t every = reader.integer(name, 0, 1024, config.arch->full_layer_every);
  for (int64_t layer = every - 1; every > 0 && layer < config.n_layer; layer += every)
    config.windows[static_cast<size_t>(layer)] = 0;
}

void read_scales(const ConfigReader& reader, ModelConfig& config) {
  const bool by_width = config.arch->n_layer_scaled_by_width == config.n_layer;
  const int64_t usual = by_width ? std::max<int64_t>(1, config.n_embd / config.n_head) : config.head_dim;
  config.attention_scale = reader.number("attention.scale", 0, 1e6, 0);
  if (config.attention_scale == 0) config.attention_scale = 1.0f / std::sqrt(static_cast<float>(usual));
  config.attention_softcap = reader.number("attn_logit_softcapping", 0, 1e6, 0);
  config.logit_softcap = reader.number("final_logit_softcapping", 0, 1e6, 0);
  if (config.arch->scales_embedding) config.embedding_scale = std::sqrt(static_cast<float>(config.n_embd));
}

// "fatrelu:0.01" as the activation and its threshold; nothing else has one.
std::optional<float> take_threshold(std::string& name) {
  const size_t colon = name.find(':');
  if (colon == std::string::npos || name.substr(0, colon) != activation_name(Activation::kFatRelu)) return std::nullopt;
  float out = 0;
  const char* const end = name.data() + name.size();
  const auto result = std::from_chars(name.data() + colon + 1, end, out);
  if (result.ec != std::errc() || result.ptr != end) return std::nullopt;
  name.resize(colon);
  return out;
}

void read_threshold(const ConfigReader& reader, std::optional<float> chosen, ModelConfig& config) {
  const std::string key = "hidden_activation_threshold";
  if (config.activation != Activation::kFatRelu) return;
  config.activation_threshold = chosen ? *chosen : reader.number(key, 0, 1e6, std::nan(""));
  if (!(config.activation_threshold >= 0 && config.activation_threshold <= 1e6f))
    throw std::invalid_argument(error_text("config", "--activation fatrelu", "a threshold from 0 to 1e6",
                                           cat(config.activation_threshold), "name one, such as fatrelu:0.01"));
}

void read_activation(const GgufFile& file, const ConfigReader& reader, const std::string& chosen, ModelConfig& config) {
  const std::optional<std::string> stated = file.get_string(reader.key("hidden_activation"));
  config.activation = config.arch->usual_activation;
  config.activation_stated = stated.has_value() || !chosen.empty();
  std::string name = chosen.empty() ? stated.value_or(activation_name(config.activation)) : chosen;
  const std::optional<float> threshold = take_threshold(name);
  const std::optional<Activation> activation = parse_activation(name);
  if (!activation && !chosen.empty())
    throw std::invalid_argument(
        error_text("config", "--activation", known_activations(), quoted(name), "choose one of them"));
  if (!activation) reader.unsupported("hidden_activation", known_activations(), quoted(name));
  if (*activation == Activation::kDRelu && !config.arch->gated)
    reader.unsupported("hidden_activation", "an activation for units without a gate", quoted(name));
  config.activation = *activation;
  read_threshold(reader, threshold, config);
}

}  // namespace

ModelConfig read_model_config(const GgufFile& file, const std::string& activation) {
  const std::optional<std::string> name = file.get_string("general.architecture");
  if (!name)
    throw ModelFormatError(error_text("config", "key \"general.architecture\"", "a string", "nothing", kRemedy));
  ModelConfig config;
  config.arch_name = *name;
  config.arch = find_architecture(*name);
  if (!config.arch)
    throw UnsupportedModelError(error_text("config", "architecture", known_architectures(), quoted(*name),
                                           "use a model of one of these families"));
  const ConfigReader reader(file, *name);
  config.n_layer = reader.integer("block_count", 1, 1024);
  config.n_embd = reader.integer("embedding_length", 1, 1 << 20);
  config.n_ff = reader.per_layer("feed_forward_length", config.n_layer, 1, 1 << 24);
  config.n_head = reader.per_layer("attention.head_count", config.n_layer, 1, 1 << 14);
  config.n_head_kv = reader.per_layer("attention.head_count_kv", config.n_layer, 1, 1 << 14, config.n_head);
  if (config.n_head % config.n_head_kv != 0)
    reader.fail("attention.head_count_kv", cat("a divisor of ", config.n_head, " heads"), cat(config.n_head_kv));
  if (config.n_head / config.n_head_kv > 256)
    reader.unsupported("attention.head_count", "at most 256 heads per KV head", cat(config.n_head / config.n_head_kv));
  if (!file.find(reader.key("attention.key_length")) && config.n_embd % config.n_head != 0)
    reader.fail("attention.head_count", cat("a divisor of ", config.n_embd), cat(config.n_head));
  config.head_dim = reader.integer("attention.key_length", 2, 1 << 12, config.n_embd / config.n_head);
  const int64_t value_dim = reader.integer("attention.value_length", 1, 1 << 12, config.head_dim);
  if (value_dim != config.head_dim)
    reader.unsupported("attention.value_length", cat(config.head_dim, " as the keys have"), cat(value_dim));
  config.n_ctx_train = reader.integer("context_length", 1, int64_t{1} << 30);
  const bool is_rms = config.arch->norm == NormKind::kRms;
  config.norm_eps =
      reader.number(is_rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon", 0, 1, std::nan(""));
  if (reader.integer("expert_count", 0, 1 << 16, 0) != 0)
    reader.unsupported("expert_count", "a dense model", "experts");
  read_rope(file, reader, config);
  read_windows(file, reader, config);
  read_scales(reader, config);
  read_activation(file, reader, activation, config);
  return config;
}

}  // namespace hotset
