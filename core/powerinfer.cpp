#include "core/powerinfer.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "core/error.h"
#include "core/gguf.h"
#include "core/model_config.h"
#include "core/sidecar.h"

namespace hotset {
namespace {

constexpr char kThresholdKey[] = "powerinfer.sparse_threshold";
constexpr int64_t kMaxRank = 1 << 16;
// Rows of OPT's position table before that of position 0, which the checkpoints keep for padding.
constexpr int64_t kUnusedPositions = 2;

std::string where(const GgufFile& file) { return "powerinfer " + quoted(file.name(), 200); }

// PowerInfer computes these families, and each with one activation: max(x, 0), of the gate and of up where it has both.
struct Family {
  const char* name;
  const char* activation;
  const char* pre_tokenizer;  // of byte-level vocabularies, which files of that time do not name; "" = as the file says
};
constexpr Family kFamilies[] = {
    {"llama", "relu", ""}, {"bamboo", "drelu", ""}, {"falcon", "relu", "falcon"}, {"opt", "relu", "gpt-2"}};

const Family& family_of(const GgufFile& file) {
  const std::string name = file.get_string("general.architecture").value_or("");
  for (const Family& each : kFamilies)
    if (name == each.name) return each;
  if (name == "generic.gpu_index")
    throw UnsupportedModelError(error_text(where(file), "content", "a model", "PowerInfer's split of one (.gpuidx)",
                                           "name the model, beside which it may lie: hotset places units by itself"));
  throw UnsupportedModelError(error_text(where(file), "architecture", "llama, bamboo, falcon or opt", quoted(name),
                                         "use a model of one of these families"));
}

// "blk.N.fc1.weight" or "blk.N.fc2.weight".
bool is_predictor(std::string_view name) {
  return name.starts_with("blk.") && (name.ends_with(".fc1.weight") || name.ends_with(".fc2.weight"));
}

NamedTensor factor(const GgufFile& file, const std::string& name, int64_t n_in, int64_t n_out) {
  const GgufTensor* const tensor = file.find_tensor(name);
  const std::string what = "tensor " + quoted(name);
  const Shape shape = shape_of(n_in, n_out);
  if (!tensor || !(tensor->shape == shape))
    throw ModelFormatError(error_text(where(file), what, "shape " + shape_text(shape),
                                      tensor ? shape_text(tensor->shape) : "nothing", "convert the model again"));
  const DType dtype = static_cast<DType>(tensor->type);
  if (!find_dtype(tensor->type) || !dtype_has_kernels(dtype))
    throw UnsupportedModelError(error_text(where(file), "type of " + what, dtypes_with_kernels(),
                                           cat("type number ", tensor->type), "use a file of another quantisation"));
  return {name, TensorView{tensor->data, dtype, n_in, n_out, row_bytes(dtype, n_in)}};
}

}  // namespace

// Takes over keys and tensors, changed on the way.
class PlainFileMaker {
 public:
  explicit PlainFileMaker(std::shared_ptr<const GgufFile> from)
      : from_(*from), family_(family_of(*from)), out_(new GgufFile(*from)) {}

  std::shared_ptr<const GgufFile> make() {
    out_->powerinfer_ = false;
    take_keys();
    take_tensors();
    index();
    return out_;
  }

 private:
  std::string key(const char* name) const { return cat(family_.name, ".", name); }
  // In place of what a file may say under this key.
  void set(const std::string& key, const GgufValue& value) {
    std::erase_if(out_->metadata_, [&](const auto& entry) { return entry.first == key; });
    out_->metadata_.emplace_back(key, value);
  }
  void set_text(const std::string& key, const char* text) {
    set(key, {GgufType::kString, std::string_view(text)});
  }

  void take_keys() {
    std::erase_if(out_->metadata_, [](const auto& entry) { return entry.first == kThresholdKey; });
    if (!from_.find(key("hidden_activation"))) set_text(key("hidden_activation"), family_.activation);
    const bool names_pattern = !from_.get_string("tokenizer.ggml.pre").value_or("").empty();
    if (*family_.pre_tokenizer && !names_pattern && from_.get_string("tokenizer.ggml.model") == "gpt2")
      set_text("tokenizer.ggml.pre", family_.pre_tokenizer);
    if (!is_opt()) return;
    const std::string epsilon = key("attention.layer_norm_epsilon");  // one for all of OPT, so that files do not say it
    if (!from_.find(epsilon)) set(epsilon, {GgufType::kF32, 1e-5});
    const std::optional<int64_t> n_ctx = from_.get_int(key("context_length"));
    if (n_ctx && (*n_ctx <= kUnusedPositions || *n_ctx > UINT32_MAX))
      throw ModelFormatError(error_text(where(from_), "key " + quoted(key("context_length")),
                                        cat(kUnusedPositions + 1, " to ", UINT32_MAX), cat(*n_ctx),
                                        "convert the model again"));
    if (n_ctx) set(key("context_length"), {GgufType::kU32, static_cast<uint64_t>(*n_ctx - kUnusedPositions)});
  }

  void take_tensors() {
    std::erase_if(out_->tensors_, [](const GgufTensor& tensor) { return is_predictor(tensor.name); });
    for (GgufTensor& tensor : out_->tensors_) {
      constexpr std::string_view kTurnedBias = ".ffn_down_t.bias";  // a vector, which turning does not change
      if (tensor.name.ends_with(kTurnedBias))
        tensor.name.replace(tensor.name.size() - kTurnedBias.size(), kTurnedBias.size(), ".ffn_down.bias");
      if (is_opt() && tensor.name == "position_embd.weight") leave_positions_out(tensor);
    }
  }

  void leave_positions_out(GgufTensor& tensor) const {
    if (tensor.shape.ne[1] <= kUnusedPositions)
      throw ModelFormatError(error_text(where(from_), "rows of tensor \"position_embd.weight\"",
                                        cat("more than ", kUnusedPositions), cat(tensor.shape.ne[1]),
                                        "convert the model again"));
    tensor.shape.ne[1] -= kUnusedPositions;
    const DTypeInfo* const info = find_dtype(tensor.type);
    if (!info) return;  // refused with its type where it is read
    const uint64_t n_bytes = kUnusedPositions * row_bytes(static_cast<DType>(tensor.type), tensor.shape.ne[0]);
    tensor.n_bytes = static_cast<uint64_t>(tensor.shape.n_elements()) / info->block_size * info->block_bytes;
    tensor.data += n_bytes, tensor.offset += n_bytes;
  }

  void index() {
    out_->index_keys();
    out_->tensor_index_.clear();
    for (size_t i = 0; i < out_->tensors_.size(); ++i)
      if (!out_->tensor_index_.emplace(out_->tensors_[i].name, i).second)
        throw ModelFormatError(error_text(where(from_), "tensor " + quoted(out_->tensors_[i].name),
                                          "one of the two spellings of its name", "both", "convert the model again"));
  }

  bool is_opt() const { return std::string_view(family_.name) == "opt"; }

  const GgufFile& from_;  // whose maker the caller keeps
  const Family& family_;
  std::shared_ptr<GgufFile> out_;
};

std::shared_ptr<const GgufFile> plain_model_file(std::shared_ptr<const GgufFile> file) {
  return file->is_powerinfer() ? PlainFileMaker(file).make() : file;
}

std::unique_ptr<const SidecarPredictor> read_powerinfer_predictor(const GgufFile& file, const ModelConfig& config) {
  if (!file.is_powerinfer()) return nullptr;
  auto out = std::make_unique<SidecarPredictor>();
  out->kind = PredictorKind::kResidualMlp;
  int64_t n_taken = 0;
  for (int64_t layer = 0; layer < config.n_layer; ++layer) {
    SidecarPredictor::Layer& factors = out->layers.emplace_back();
    const std::string fc1 = cat("blk.", layer, ".fc1.weight"), fc2 = cat("blk.", layer, ".fc2.weight");
    const GgufTensor* const first = file.find_tensor(fc1);
    if (!first && !file.find_tensor(fc2)) continue;
    const int64_t rank = first ? first->shape.ne[1] : 1;
    if (rank > kMaxRank)
      throw ModelFormatError(error_text(where(file), "rank of tensor " + quoted(fc1), cat("1 to ", kMaxRank),
                                        cat(rank), "convert the model again"));
    factors.fc1 = factor(file, fc1, config.n_embd, rank);
    factors.fc2 = factor(file, fc2, rank, config.n_ff);
    n_taken += 2;
  }
  const auto& tensors = file.tensors();
  const auto is_factor = [](const GgufTensor& tensor) { return is_predictor(tensor.name); };
  const auto n_there = std::count_if(tensors.begin(), tensors.end(), is_factor);
  if (n_there != n_taken)
    throw ModelFormatError(error_text(where(file), "tensors fc1 and fc2",
                                      cat("those of layers 0 to ", config.n_layer - 1), "some of other layers",
                                      "convert the model again"));
  if (n_taken == 0) return nullptr;
  // A unit whose value reaches the threshold is one of PowerInfer's; ours have a margin above 0.
  const float threshold = static_cast<float>(file.get_float(kThresholdKey).value_or(0));
  out->thresholds.assign(out->layers.size(), -std::nextafter(threshold, -HUGE_VALF));
  return out;
}

std::string gpu_index_beside(const std::string& model_path) { return model_path + ".generated.gpuidx"; }

}  // namespace hotset
