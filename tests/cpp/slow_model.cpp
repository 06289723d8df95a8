#include "tests/cpp/slow_model.h"

#include <algorithm>
#include <cmath>

#include "core/weights.h"
#include "cpu/cpu_program.h"
#include "cpu/reference.h"

namespace hotset::test {

SlowModel::SlowModel(const Model& model) : config_(model.config()), tied_(model.weights().tied) {
  for (const GgufTensor& tensor : model.file().tensors())
    matrices_[tensor.name] = widen({tensor.data, static_cast<DType>(tensor.type), tensor.shape.ne[0],
                                    tensor.shape.ne[1], row_bytes(static_cast<DType>(tensor.type), tensor.shape.ne[0])});
  keys_.resize(model.weights().layers.size());
  values_.resize(model.weights().layers.size());
}

SlowModel::Matrix SlowModel::widen(const TensorView& view) const {
  const auto type = static_cast<cpu::WeightType>(cpu::weight_type(view.dtype));
  Matrix out{view.n_cols, view.n_rows, {}};
  for (int64_t row = 0; row < view.n_rows; ++row)
    for (int64_t i = 0; i < view.n_cols; ++i) out.values.push_back(cpu::reference::weight_at(type, view.row(row), i));
  return out;
}

SlowModel::Vector SlowModel::linear(const std::string& name, const Vector& x) const {
  const Matrix& m = matrix(name + ".weight");
  Vector out(static_cast<size_t>(m.n_out), 0.0);
  if (has(name + ".bias")) out = matrix(name + ".bias").values;
  for (size_t row = 0; row < out.size(); ++row)
    for (size_t i = 0; i < x.size(); ++i) out[row] += m.values[row * x.size() + i] * x[i];
  return out;
}

SlowModel::Vector SlowModel::norm(const std::string& name, const Vector& x) const {
  const double n = static_cast<double>(x.size());
  double mean = 0, squares = 0;
  if (config_.arch->norm == NormKind::kLayer)
    for (const double each : x) mean += each / n;
  for (const double each : x) squares += (each - mean) * (each - mean);
  const double root = std::sqrt(squares / n + static_cast<double>(config_.norm_eps));
  Vector out(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    out[i] = (x[i] - mean) / root * matrix(name + ".weight").values[i];
    if (has(name + ".bias")) out[i] += matrix(name + ".bias").values[i];
  }
  return out;
}

void SlowModel::norm_heads(const std::string& name, Vector& x) const {
  const auto dim = config_.head_dim;
  for (auto head = x.begin(); head != x.end(); head += dim) {
    const Vector normed = norm(name, Vector(head, head + dim));
    std::copy(normed.begin(), normed.end(), head);
  }
}

// Radians per position: base^(-2i / n_rot), scaled. YaRN: a pair that turns `fast` times over the original context
// stays, one that turns `slow` times or less is `factor` times slower; the borders are whole pairs.
double SlowModel::frequency(int64_t pair, bool is_local) const {
  const double base = static_cast<double>(is_local ? config_.rope_freq_base_local : config_.rope_freq_base);
  const double n_rot = static_cast<double>(config_.n_rot);
  const double plain = std::pow(base, -2.0 * static_cast<double>(pair) / n_rot);
  if (is_local) return plain;
  double out = plain / static_cast<double>(config_.rope_scale);
  if (has("rope_freqs.weight")) out /= matrix("rope_freqs.weight").values[static_cast<size_t>(pair)];
  const Yarn& yarn = config_.yarn;
  if (yarn.factor == 1) return out;
  const auto border = [&](float turns) {
    const double context = static_cast<double>(yarn.n_ctx_original);
    return n_rot * std::log(context / (static_cast<double>(turns) * 2 * std::acos(-1.0))) / (2 * std::log(base));
  };
  const double first = std::max(std::floor(border(yarn.beta_fast)), 0.0);
  const double last = std::min(std::ceil(border(yarn.beta_slow)), n_rot - 1);
  const double i = static_cast<double>(pair), at = last > first ? (i - first) / (last - first) : i > first;
  const double slowed = std::clamp(at, 0.0, 1.0);
  return plain * (1 - slowed) + plain / static_cast<double>(yarn.factor) * slowed;
}

// Pairs are neighbours as GGUF stores llama's heads, or halves of the rotated part.
void SlowModel::rope(Vector& x, int64_t n_head, int64_t position, bool is_local) const {
  if (config_.arch->positions != Positions::kRope) return;
  const bool neighbours = config_.arch->rope == RopeLayout::kInterleaved;
  const double factor = static_cast<double>(config_.yarn.factor);
  const double size = factor == 1 ? 1 : (1 + 0.1 * std::log(factor)) * static_cast<double>(config_.yarn.attention_factor);
  for (int64_t head = 0; head < n_head; ++head)
    for (int64_t i = 0; i < config_.n_rot / 2; ++i) {
      const double angle = static_cast<double>(position) * frequency(i, is_local);
      const int64_t first = head * config_.head_dim;
      double& a = x[static_cast<size_t>(first + (neighbours ? 2 * i : i))];
      double& b = x[static_cast<size_t>(first + (neighbours ? 2 * i + 1 : i + config_.n_rot / 2))];
      const double turned = size * (a * std::cos(angle) - b * std::sin(angle));
      b = size * (a * std::sin(angle) + b * std::cos(angle));
      a = turned;
    }
}

SlowModel::Vector SlowModel::attend(int64_t layer, const Vector& q) const {
  const auto& keys = keys_[static_cast<size_t>(layer)];
  const auto& values = values_[static_cast<size_t>(layer)];
  const size_t dim = static_cast<size_t>(config_.head_dim);
  const size_t window = static_cast<size_t>(config_.windows[static_cast<size_t>(layer)]);
  const size_t begin = window > 0 && keys.size() > window ? keys.size() - window : 0;
  Vector out(q.size(), 0.0);
  for (size_t head = 0; head < static_cast<size_t>(config_.n_head); ++head) {
    const size_t from = head / static_cast<size_t>(config_.n_head / config_.n_head_kv) * dim;
    Vector scores;
    for (size_t t = begin; t < keys.size(); ++t) {
      double dot = 0;
      for (size_t d = 0; d < dim; ++d) dot += q[head * dim + d] * keys[t][from + d];
      dot *= static_cast<double>(config_.attention_scale);
      const double cap = static_cast<double>(config_.attention_softcap);
      scores.push_back(cap > 0 ? cap * std::tanh(dot / cap) : dot);
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (double& score : scores) total += score = std::exp(score - largest);
    for (size_t t = begin; t < values.size(); ++t)
      for (size_t d = 0; d < dim; ++d) out[head * dim + d] += scores[t - begin] / total * values[t][from + d];
  }
  return out;
}

double SlowModel::activated(double x) const {
  switch (config_.activation) {
    case Activation::kSilu: return x / (1 + std::exp(-x));
    case Activation::kRelu2: return x > 0 ? x * x : 0;
    case Activation::kFatRelu: return x > static_cast<double>(config_.activation_threshold) ? x : 0;
    case Activation::kGelu: return cpu::reference::gelu(x);
    case Activation::kGeluTanh: return cpu::reference::gelu_tanh(x);
    default: return std::max(x, 0.0);
  }
}

SlowModel::Vector SlowModel::feed_forward(int64_t layer, const Vector& x) const {
  const std::string prefix = "blk." + std::to_string(layer) + ".";
  Vector h = linear(prefix + "ffn_up", x);
  if (config_.arch->gated) {
    const Vector gate = linear(prefix + "ffn_gate", x);
    for (size_t i = 0; i < h.size(); ++i) {
      if (config_.activation == Activation::kDRelu) h[i] = std::max(h[i], 0.0);
      h[i] *= activated(gate[i]);
    }
  } else {
    for (double& each : h) each = activated(each);
  }
  if (!has(prefix + "ffn_down_t.weight")) return linear(prefix + "ffn_down", h);
  const Matrix& down_t = matrix(prefix + "ffn_down_t.weight");
  Vector out(x.size(), 0.0);
  if (has(prefix + "ffn_down.bias")) out = matrix(prefix + "ffn_down.bias").values;
  for (size_t unit = 0; unit < h.size(); ++unit)
    for (size_t i = 0; i < x.size(); ++i) out[i] += h[unit] * down_t.values[unit * x.size() + i];
  return out;
}

std::vector<SlowModel::Vector> SlowModel::queries_keys_values(const std::string& prefix, const Vector& in) const {
  if (!has(prefix + "attn_qkv.weight"))
    return {linear(prefix + "attn_q", in), linear(prefix + "attn_k", in), linear(prefix + "attn_v", in)};
  const Vector all = linear(prefix + "attn_qkv", in);
  const auto n_q = config_.n_head * config_.head_dim, n_kv = config_.n_head_kv * config_.head_dim;
  const auto k = all.begin() + n_q, v = k + n_kv;
  return {Vector(all.begin(), k), Vector(k, v), Vector(v, all.end())};
}

void SlowModel::run_layer(int64_t layer, int64_t position, Vector& x) {
  const std::string prefix = "blk." + std::to_string(layer) + ".";
  const auto add = [&](const Vector& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  };
  const auto normed = [&](const std::string& name, const Vector& y) {
    return has(prefix + name + ".weight") ? norm(prefix + name, y) : y;
  };
  const bool has_two = has(prefix + "attn_norm_2.weight");
  const Vector before = x, in = normed(has_two ? "attn_norm_2" : "attn_norm", x);
  std::vector<Vector> qkv = queries_keys_values(prefix, in);
  if (has(prefix + "attn_q_norm.weight")) norm_heads(prefix + "attn_q_norm", qkv[0]);
  if (has(prefix + "attn_k_norm.weight")) norm_heads(prefix + "attn_k_norm", qkv[1]);
  const bool is_local = config_.rope_freq_base_local > 0 && config_.windows[static_cast<size_t>(layer)] > 0;
  rope(qkv[0], config_.n_head, position, is_local);
  rope(qkv[1], config_.n_head_kv, position, is_local);
  keys_[static_cast<size_t>(layer)].push_back(qkv[1]);
  values_[static_cast<size_t>(layer)].push_back(qkv[2]);
  add(normed("post_attention_norm", linear(prefix + "attn_output", attend(layer, qkv[0]))));
  x = normed("attn_output_norm", x);
  const Vector ffn_in = config_.arch->is_parallel ? norm(prefix + "attn_norm", before) : normed("ffn_norm", x);
  add(normed("post_ffw_norm", feed_forward(layer, ffn_in)));
  x = normed("layer_output_norm", x);
}

std::vector<double> SlowModel::step(int32_t token) {
  const auto row_of = [&](const std::string& name, int64_t row) {
    const Matrix& table = matrix(name);
    const auto begin = table.values.begin() + row * table.n_in;
    return Vector(begin, begin + table.n_in);
  };
  Vector x = row_of("token_embd.weight", token);
  if (config_.arch->scales_embedding)
    for (double& each : x) each *= std::sqrt(static_cast<double>(x.size()));
  if (has("token_embd_proj.weight")) x = linear("token_embd_proj", x);
  const int64_t position = static_cast<int64_t>(keys_[0].size());
  if (config_.arch->positions == Positions::kLearned) {
    const Vector learned = row_of("position_embd.weight", position);
    for (size_t i = 0; i < x.size(); ++i) x[i] += learned[i];
  }
  for (int64_t layer = 0; layer < config_.n_layer; ++layer) run_layer(layer, position, x);
  if (has("output_norm.weight")) x = norm("output_norm", x);
  if (has("output_proj.weight")) x = linear("output_proj", x);
  Vector out = linear(tied_ ? "token_embd" : "output", x);
  if (config_.logit_softcap > 0)
    for (double& each : out) each = cpu::reference::soft_cap(each, static_cast<double>(config_.logit_softcap));
  return out;
}

}  // namespace hotset::test
