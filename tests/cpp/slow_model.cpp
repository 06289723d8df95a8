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

// Pairs are turned by position / base^(2i / n_rot): neighbours as GGUF stores llama's heads, or halves of the rotated part.
void SlowModel::rope(Vector& x, int64_t n_head, int64_t position) const {
  if (config_.arch->positions != Positions::kRope) return;
  const bool neighbours = config_.arch->rope == RopeLayout::kInterleaved;
  for (int64_t head = 0; head < n_head; ++head)
    for (int64_t i = 0; i < config_.n_rot / 2; ++i) {
      double angle = static_cast<double>(position) / static_cast<double>(config_.rope_scale) /
                     std::pow(static_cast<double>(config_.rope_freq_base),
                              2.0 * static_cast<double>(i) / static_cast<double>(config_.n_rot));
      if (has("rope_freqs.weight")) angle /= matrix("rope_freqs.weight").values[static_cast<size_t>(i)];
      const int64_t first = head * config_.head_dim;
      double& a = x[static_cast<size_t>(first + (neighbours ? 2 * i : i))];
      double& b = x[static_cast<size_t>(first + (neighbours ? 2 * i + 1 : i + config_.n_rot / 2))];
      const double turned = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = turned;
    }
}

SlowModel::Vector SlowModel::attend(int64_t layer, const Vector& q) const {
  const auto& keys = keys_[static_cast<size_t>(layer)];
  const auto& values = values_[static_cast<size_t>(layer)];
  const size_t dim = static_cast<size_t>(config_.head_dim);
  Vector out(q.size(), 0.0);
  for (size_t head = 0; head < static_cast<size_t>(config_.n_head); ++head) {
    const size_t from = head / static_cast<size_t>(config_.n_head / config_.n_head_kv) * dim;
    Vector scores;
    for (const Vector& key : keys) {
      double dot = 0;
      for (size_t d = 0; d < dim; ++d) dot += q[head * dim + d] * key[from + d];
      scores.push_back(dot / std::sqrt(static_cast<double>(dim)));
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (double& score : scores) total += score = std::exp(score - largest);
    for (size_t t = 0; t < values.size(); ++t)
      for (size_t d = 0; d < dim; ++d) out[head * dim + d] += scores[t] / total * values[t][from + d];
  }
  return out;
}

double SlowModel::activated(double x) const {
  switch (config_.activation) {
    case Activation::kSilu: return x / (1 + std::exp(-x));
    case Activation::kRelu2: return x > 0 ? x * x : 0;
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

std::vector<double> SlowModel::step(int32_t token) {
  const auto row_of = [&](const std::string& name, int64_t row) {
    const Matrix& table = matrix(name);
    const auto begin = table.values.begin() + row * table.n_in;
    return Vector(begin, begin + table.n_in);
  };
  Vector x = row_of("token_embd.weight", token);
  const auto add = [&](const Vector& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  };
  const int64_t position = static_cast<int64_t>(keys_[0].size());
  if (config_.arch->positions == Positions::kLearned) add(row_of("position_embd.weight", position));
  for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const Vector in = norm(prefix + "attn_norm", x);
    Vector q = linear(prefix + "attn_q", in);
    Vector k = linear(prefix + "attn_k", in);
    rope(q, config_.n_head, position);
    rope(k, config_.n_head_kv, position);
    keys_[static_cast<size_t>(layer)].push_back(k);
    values_[static_cast<size_t>(layer)].push_back(linear(prefix + "attn_v", in));
    add(linear(prefix + "attn_output", attend(layer, q)));
    add(feed_forward(layer, norm(prefix + "ffn_norm", x)));
  }
  return linear(tied_ ? "token_embd" : "output", norm("output_norm", x));
}

}  // namespace hotset::test
