#include "core/model.h"

#include <cmath>
#include <filesystem>

#include "core/error.h"
#include "core/fingerprint.h"
#include "core/gguf.h"
#include "core/powerinfer.h"
#include "core/quantize.h"
#include "core/sidecar.h"
#include "core/tokenizer_gguf.h"
#include "core/weights.h"

namespace hotset {
namespace {

// "7M", "1.2B": a parameter count as people say it.
std::string count_text(uint64_t n) {
  const double value = static_cast<double>(n);
  char text[32];
  if (value >= 1e9)
    std::snprintf(text, sizeof text, "%.*fB", value < 1e10 ? 1 : 0, value / 1e9);
  else if (value >= 1e6)
    std::snprintf(text, sizeof text, "%.0fM", value / 1e6);
  else
    std::snprintf(text, sizeof text, "%.0fK", value / 1e3);
  return text;
}

// The type that holds most of the bytes.
std::string main_type(const GgufFile& file) {
  const GgufTensor* best = nullptr;
  std::vector<uint64_t> bytes(64, 0);
  for (const GgufTensor& tensor : file.tensors()) {
    if (tensor.type >= bytes.size() || !find_dtype(tensor.type)) continue;
    bytes[tensor.type] += tensor.n_bytes;
    if (!best || bytes[tensor.type] > bytes[best->type]) best = &tensor;
  }
  return best ? find_dtype(best->type)->name : "?";
}

void warn_about_activation(const ModelConfig& config, const LogSink& log) {
  if (config.activation_stated) return;
  log_to(log, LogLevel::kWarning,
         cat("[model] the file does not say its activation; taking ", activation_name(config.activation),
             ", the usual one of ", config.arch_name, " (--activation overrides)"));
}

// Kind of a vocabulary, and how it splits texts where that is a matter of its name.
std::string tokenizer_text(const TokenizerData& data) {
  return data.model == "gpt2" ? cat(data.model, " with pre-tokenizer ", data.pre) : data.model;
}

// PowerInfer's files do not say their activation because PowerInfer has no other.
void tell_about_powerinfer(const Model& model, const LogSink& log) {
  log_to(log, LogLevel::kInfo,
         cat("[model] a PowerInfer file: activation ", activation_name(model.config().activation), ", ",
             model.predictor() ? "its predictor is for --mode predict" : "without a predictor"));
  const std::string index = gpu_index_beside(model.path());
  std::error_code ignored;
  if (std::filesystem::exists(index, ignored))
    log_to(log, LogLevel::kWarning,
           cat("[model] ", quoted(index, 200), " is not read: hotset places units by itself (`hotset place`)"));
}

}  // namespace

std::shared_ptr<const Model> Model::load(const std::string& path, const ModelOptions& options) {
  return of_file(GgufFile::open(path), options);
}

std::shared_ptr<const Model> Model::of_file(std::shared_ptr<const GgufFile> file, const ModelOptions& options) {
  auto model = std::shared_ptr<Model>(new Model());
  model->path_ = file->name();
  model->file_ = plain_model_file(file);
  model->config_ = read_model_config(*model->file_, options.activation);
  model->weights_ = std::make_unique<const Weights>(read_weights(*model->file_, model->config_));
  model->tokenizer_ = Tokenizer::create(tokenizer_data_from_gguf(*model->file_));
  if (model->tokenizer_->n_vocab() > model->config_.n_vocab)
    throw ModelFormatError(error_text("model", "vocabulary", cat("at most ", model->config_.n_vocab, " tokens"),
                                      cat(model->tokenizer_->n_vocab()), "convert the model again"));
  warn_about_activation(model->config_, options.log);
  model->predictor_ = read_powerinfer_predictor(*file, model->config_);
  if (file->is_powerinfer()) tell_about_powerinfer(*model, options.log);
  return model;
}

std::shared_ptr<const Tokenizer> Model::load_tokenizer(const std::string& path) {
  return Tokenizer::create(tokenizer_data_from_gguf(*plain_model_file(GgufFile::open(path))));
}

Model::~Model() = default;

std::string Model::name() const {
  if (const auto name = file_->get_string("general.name")) return *name;
  return path_.substr(path_.find_last_of('/') + 1);
}

std::string Model::type_text() const {
  return cat(config_.arch_name, " ", count_text(weights_->n_params), " ", main_type(*file_));
}

uint64_t Model::n_params() const { return weights_->n_params; }
uint64_t Model::size_bytes() const { return weights_->size_bytes; }

std::optional<TensorView> Model::tensor(const std::string& name) const {
  const GgufTensor* const found = file_->find_tensor(name);
  if (!found || found->n_bytes == 0 || !dtype_has_codec(static_cast<DType>(found->type))) return std::nullopt;
  const DType dtype = static_cast<DType>(found->type);
  const int64_t n_cols = found->shape.ne[0];
  return TensorView{found->data, dtype, n_cols, found->shape.n_elements() / n_cols, row_bytes(dtype, n_cols)};
}

std::vector<std::pair<std::string, std::string>> Model::chat_templates() const {
  const std::string kKey = "tokenizer.chat_template";
  std::vector<std::pair<std::string, std::string>> out;
  for (const auto& [key, value] : file_->metadata()) {
    const auto* text = std::get_if<std::string_view>(&value.value);
    if (!text || !key.starts_with(kKey)) continue;
    const std::string name = key.substr(kKey.size());
    if (name.empty()) out.emplace_back("default", *text);
    if (name.size() > 1 && name[0] == '.') out.emplace_back(name.substr(1), *text);
  }
  return out;
}

std::string Model::fingerprint() const { return hotset::fingerprint(*file_, config_); }
void Model::drop_pages() const { file_->drop_all_pages(); }

Inspection inspect(const std::string& path) {
  const auto file = GgufFile::open(path);
  Inspection out;
  out.path = path;
  out.file_bytes = file->size_bytes();
  out.version = file->version();
  for (const auto& [key, value] : file->metadata()) {
    std::string type = gguf_type_name(value.type);
    if (const auto* array = std::get_if<GgufArray>(&value.value)) type += cat("[", gguf_type_name(array->element), "]");
    out.metadata.push_back({key, type, gguf_value_text(value)});
  }
  for (const GgufTensor& tensor : file->tensors()) {
    const DTypeInfo* info = find_dtype(tensor.type);
    out.tensors.push_back(
        {tensor.name, info ? info->name : cat("type ", tensor.type), shape_text(tensor.shape), tensor.n_bytes});
    out.n_params += static_cast<uint64_t>(tensor.shape.n_elements());
  }
  try {
    const auto model = Model::of_file(file);
    const ModelConfig& config = model->config();
    out.runs = true;
    out.fingerprint = model->fingerprint();
    out.verdict =
        cat(model->type_text(), ", activation ", activation_name(config.activation),
            config.activation_stated ? "" : " (not stated, the usual one)", ", ",
            model->weights().layers[0].ffn_down_t ? "neuron-major (ffn_down_t)" : "standard layout (ffn_down)",
            ", context ", config.n_ctx_train, ", tokenizer ", tokenizer_text(model->tokenizer().data()),
            file->is_powerinfer() ? ", a PowerInfer file" : "", model->predictor() ? " with a predictor" : "");
  } catch (const std::exception& error) {
    out.verdict = error.what();
  }
  return out;
}

}  // namespace hotset
