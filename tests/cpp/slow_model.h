// The forward pass in double, written from the definition: the oracle of the engine.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tests/cpp/util.h"

namespace hotset::test {

// Token after token, every weight widened to double, no cache but the keys and values of earlier positions.
class SlowModel {
 public:
  explicit SlowModel(const Model& model);
  // Logits (n_vocab) after one more token.
  std::vector<double> step(int32_t token);

 private:
  using Vector = std::vector<double>;
  struct Matrix {
    int64_t n_in = 0, n_out = 0;
    Vector values;  // row by row, a row is an output
  };
  Matrix widen(const TensorView& view) const;
  bool has(const std::string& name) const { return matrices_.count(name) > 0; }
  const Matrix& matrix(const std::string& name) const { return matrices_.at(name); }
  // `name`.weight times x plus `name`.bias.
  Vector linear(const std::string& name, const Vector& x) const;
  Vector norm(const std::string& name, const Vector& x) const;
  // RMSNorm of each head.
  void norm_heads(const std::string& name, Vector& x) const;
  void rope(Vector& x, int64_t n_head, int64_t position, bool is_local) const;
  double frequency(int64_t pair, bool is_local) const;
  Vector attend(int64_t layer, const Vector& q) const;
  double activated(double x) const;
  Vector feed_forward(int64_t layer, const Vector& x) const;
  // x after a layer.
  void run_layer(int64_t layer, int64_t position, Vector& x);
  std::vector<Vector> queries_keys_values(const std::string& prefix, const Vector& in) const;

  ModelConfig config_;
  bool tied_;
  std::map<std::string, Matrix> matrices_;
  std::vector<std::vector<Vector>> keys_, values_;  // per layer and position
};

}  // namespace hotset::test
