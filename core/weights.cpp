#include "core/weights.h"

#include <cmath>
#include <cstring>
#include <set>

#include "core/error.h"
#include "core/gguf.h"
#include "core/model_config.h"

namespace hotset {
namespace {

// Takes tensors out of a file one by one and remembers which were taken.
class WeightReader {
 public:
  explicit WeightReader(const GgufFile& file) : file_(file) {}

  bool has(const std::string& name) const { return file_.find_tensor(name) != nullptr; }

  NamedTensor matrix(const std::string& name, int64_t n_in, int64_t n_out) {
    return take(name, shape_of(n_in, n_out), false);
  }
  NamedTensor vector(const std::string& name, int64_t n) { return take(name, shape_of(n), true); }
  // The bias that belongs to a weight of n outputs, where the file has one.
  NamedTensor bias(const std::string& name, int64_t n) { return has(name) ? vector(name, n) : NamedTensor{}; }

  // Every tensor of the file must have been taken.
  void finish() const {
    for (const GgufTensor& tensor : file_.tensors())
      if (!taken_.count(tensor.name))
        throw UnsupportedModelError(error_text("weights", "tensor " + quoted(tensor.name),
                                               "only tensors that this architecture uses", "one it does not know",
                                               "use a model without it"));
  }

 private:
  NamedTensor take(const std::string& name, const Shape& shape, bool f32_only) {
    const GgufTensor* tensor = file_.find_tensor(name);
    const std::string what = "tensor " + quoted(name);
    if (!tensor)
      throw ModelFormatError(error_text("weights", what, shape_text(shape), "nothing", "convert the model again"));
    if (!(tensor->shape == shape))
      throw ModelFormatError(error_text("weights", what, "shape " + shape_text(shape), shape_text(tensor->shape),
                                        "convert the model again"));
    const DType dtype = static_cast<DType>(tensor->type);
    const bool known = find_dtype(tensor->type) != nullptr;
    if (!known || !dtype_has_kernels(dtype) || (f32_only && dtype != DType::kF32))
      throw UnsupportedModelError(error_text(
          "weights", "type of " + what, f32_only ? "F32" : dtypes_with_kernels(),
          known ? dtype_name(dtype) : cat("type number ", tensor->type), "use a file of another quantisation"));
    taken_.insert(name);
    NamedTensor out;
    out.name = name;
    out.view = TensorView{tensor->data, dtype, shape.ne[0], shape.ne[1], row_bytes(dtype, shape.ne[0])};
    return out;
  }

  const GgufFile& file_;
  std::set<std::string> taken_;
};

// attn_qkv cut into its rows of queries, keys and values.
void split_qkv(WeightReader& reader, const ModelConfig& config, const std::string& prefix, LayerWeights& out) {
  const int64_t n_q = config.n_head * config.head_dim, n_kv = config.n_head_kv * config.head_dim;
  const NamedTensor all = reader.matrix(prefix + "attn_qkv.weight", config.n_embd, n_q + 2 * n_kv);
  const NamedTensor bias = reader.bias(prefix + "attn_qkv.bias", n_q + 2 * n_kv);
  int64_t first = 0;
  const auto take = [&](int64_t n, NamedTensor& weight, NamedTensor& weight_bias) {
    const std::string rows = cat("[", first, ":", first + n, "]");
    weight = {all.name + rows, all.view};
    weight.view.data = all.view.row(first), weight.view.n_rows = n;
    if (bias) weight_bias.name = bias.name + rows;
    if (bias) weight_bias.view = {bias.view.data + static_cast<size_t>(first) * sizeof(float), DType::kF32, n, 1,
                                  static_cast<size_t>(n) * sizeof(float)};
    first += n;
  };
  take(n_q, out.attn_q, out.attn_q_b), take(n_kv, out.attn_k, out.attn_k_b), take(n_kv, out.attn_v, out.attn_v_b);
}

// Norms before, or after. A parallel layer may have two of the same x: then attn_norm is the FFN's, attn_norm_2 that of attention.
void read_norms(WeightReader& reader, const ModelConfig& config, const std::string& prefix, LayerWeights& out) {
  const auto norm = [&](const char* name, NamedTensor& weight, NamedTensor& bias) {
    weight = reader.vector(cat(prefix, name, ".weight"), config.n_embd);
    if (config.arch->norm == NormKind::kLayer) bias = reader.bias(cat(prefix, name, ".bias"), config.n_embd);
  };
  if (config.norms_after) {
    norm("attn_output_norm", out.attn_out_norm, out.attn_out_norm_b);
    norm("layer_output_norm", out.layer_out_norm, out.layer_out_norm_b);
  } else if (config.arch->is_parallel && reader.has(prefix + "attn_norm_2.weight")) {
    norm("attn_norm_2", out.attn_norm, out.attn_norm_b);
    norm("attn_norm", out.ffn_norm, out.ffn_norm_b);
  } else {
    norm("attn_norm", out.attn_norm, out.attn_norm_b);
    if (!config.arch->is_parallel) norm("ffn_norm", out.ffn_norm, out.ffn_norm_b);
  }
  if (config.arch->has_head_norms) {
    out.attn_q_norm = reader.vector(prefix + "attn_q_norm.weight", config.head_dim);
    out.attn_k_norm = reader.vector(prefix + "attn_k_norm.weight", config.head_dim);
  }
  if (config.arch->has_post_norms) {
    out.attn_post_norm = reader.vector(prefix + "post_attention_norm.weight", config.n_embd);
    out.ffn_post_norm = reader.vector(prefix + "post_ffw_norm.weight", config.n_embd);
  }
}

// Takes the threshold of FATReLU off the biases of detect rows.
void shift_biases(const ModelConfig& config, Weights& weights) {
  for (LayerWeights& layer : weights.layers) {
    NamedTensor& bias = layer.ffn_gate ? layer.ffn_gate_b : layer.ffn_up_b;
    std::vector<float> values(static_cast<size_t>(config.n_ff));
    if (bias) std::memcpy(values.data(), bias.view.data, values.size() * sizeof(float));
    for (float& value : values) value -= config.activation_threshold;
    const std::string& matrix = (layer.ffn_gate ? layer.ffn_gate : layer.ffn_up).name;
    auto made = std::make_shared<const std::vector<float>>(std::move(values));
    const std::byte* const data = reinterpret_cast<const std::byte*>(made->data());
    bias.name = matrix.substr(0, matrix.size() - std::strlen("weight")) + "bias";
    bias.view = {data, DType::kF32, config.n_ff, 1, made->size() * sizeof(float)};
    weights.made_biases.push_back(std::move(made));
  }
}

LayerWeights read_layer(WeightReader& reader, const ModelConfig& config, int64_t layer) {
  const std::string prefix = cat("blk.", layer, ".");
  const int64_t n_q = config.n_head * config.head_dim;
  const int64_t n_kv = config.n_head_kv * config.head_dim;
  LayerWeights out;
  const auto matrix = [&](const char* name, int64_t n_in, int64_t n_out, NamedTensor& weight, NamedTensor& bias) {
    weight = reader.matrix(cat(prefix, name, ".weight"), n_in, n_out);
    bias = reader.bias(cat(prefix, name, ".bias"), n_out);
  };
  read_norms(reader, config, prefix, out);
  if (config.arch->has_fused_qkv) {
    split_qkv(reader, config, prefix, out);
  } else {
    matrix("attn_q", config.n_embd, n_q, out.attn_q, out.attn_q_b);
    matrix("attn_k", config.n_embd, n_kv, out.attn_k, out.attn_k_b);
    matrix("attn_v", config.n_embd, n_kv, out.attn_v, out.attn_v_b);
  }
  matrix("attn_output", n_q, config.n_embd, out.attn_output, out.attn_output_b);
  if (config.arch->gated) matrix("ffn_gate", config.n_embd, config.n_ff, out.ffn_gate, out.ffn_gate_b);
  matrix("ffn_up", config.n_embd, config.n_ff, out.ffn_up, out.ffn_up_b);
  if (reader.has(prefix + "ffn_down_t.weight"))
    out.ffn_down_t = reader.matrix(prefix + "ffn_down_t.weight", config.n_embd, config.n_ff);
  else
    out.ffn_down = reader.matrix(prefix + "ffn_down.weight", config.n_ff, config.n_embd);
  out.ffn_down_b = reader.bias(prefix + "ffn_down.bias", config.n_embd);
  return out;
}

// Rotary frequencies are divided by these.
void check_rope_freqs(const TensorView& view) {
  for (int64_t i = 0; i < view.n_cols; ++i) {
    const float divisor = reinterpret_cast<const float*>(view.data)[i];
    if (!(divisor > 0) || !std::isfinite(divisor))
      throw ModelFormatError(error_text("weights", cat("rope_freqs.weight[", i, "]"), "a positive number", cat(divisor),
                                        "convert the model again"));
  }
}

}  // namespace

Weights read_weights(const GgufFile& file, ModelConfig& config) {
  const GgufTensor* table = file.find_tensor("token_embd.weight");
  if (!table)
    throw ModelFormatError(error_text("weights", "tensor \"token_embd.weight\"", "an embedding table", "nothing",
                                      "use a file with weights, not a vocabulary alone"));
  config.n_vocab = table->shape.ne[1];
  WeightReader reader(file);
  Weights out;
  const bool projects = config.arch->may_norm_after && reader.has("token_embd_proj.weight");
  const int64_t n_embd_in = projects ? table->shape.ne[0] : config.n_embd;
  out.token_embd = reader.matrix("token_embd.weight", n_embd_in, config.n_vocab);
  if (projects) out.token_embd_proj = reader.matrix("token_embd_proj.weight", n_embd_in, config.n_embd);
  if (config.arch->positions == Positions::kLearned)
    out.position_embd = reader.matrix("position_embd.weight", config.n_embd, config.n_ctx_train);
  config.norms_after = config.arch->may_norm_after && reader.has("blk.0.attn_output_norm.weight");
  if (!config.norms_after) out.head.norm = reader.vector("output_norm.weight", config.n_embd);
  if (config.arch->norm == NormKind::kLayer && !config.norms_after)
    out.head.norm_b = reader.bias("output_norm.bias", config.n_embd);
  if (projects) out.head.proj = reader.matrix("output_proj.weight", config.n_embd, n_embd_in);
  out.tied = !reader.has("output.weight");
  out.head.output = out.tied ? out.token_embd : reader.matrix("output.weight", n_embd_in, config.n_vocab);
  if (config.n_rot > 0 && reader.has("rope_freqs.weight")) {
    out.rope_freqs = reader.vector("rope_freqs.weight", config.n_rot / 2);
    if (file.has_data()) check_rope_freqs(out.rope_freqs.view);
  }
  for (int64_t layer = 0; layer < config.n_layer; ++layer) out.layers.push_back(read_layer(reader, config, layer));
  reader.finish();
  if (config.activation == Activation::kFatRelu) shift_biases(config, out);
  out.all_f32 = true;
  for (const GgufTensor& tensor : file.tensors()) {
    out.n_params += static_cast<uint64_t>(tensor.shape.n_elements());
    out.size_bytes += tensor.n_bytes;
    out.all_f32 = out.all_f32 && tensor.type == static_cast<uint32_t>(DType::kF32);
  }
  return out;
}

}  // namespace hotset
