#include "core/quantize.h"
#include "core/synth_tensors.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "core/error.h"
#include "core/synth_random.h"
#include "core/synth_vocabulary.h"

namespace hotset {
namespace {

constexpr char kWhere[] = "synth";
constexpr double kUsualShare = 0.8;   // where no skew is asked for
constexpr double kHeadDeviation = 2;  // of logits, about

[[noreturn]] void refuse(const std::string& what, const std::string& expected, const std::string& got,
                         const std::string& remedy = "correct the value") {
  throw std::invalid_argument(error_text(kWhere, what, expected, got, remedy));
}

void check_size(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) refuse(name, cat("an integer from ", low, " to ", high), cat(value));
}

// Fills in what is 0 and checks the rest.
SynthShape checked_shape(const SynthModel& model) {
  SynthShape shape = model.spec.shape;
  check_size("n_layer", shape.n_layer, 1, 1024);
  check_size("n_embd", shape.n_embd, 2, 1 << 20);
  check_size("n_ff", shape.n_ff, 1, 1 << 24);
  check_size("n_head", shape.n_head, 1, 1 << 14);
  if (shape.n_head_kv == 0) shape.n_head_kv = shape.n_head;
  check_size("n_head_kv", shape.n_head_kv, 1, shape.n_head);
  if (shape.n_head % shape.n_head_kv != 0)
    refuse("n_head_kv", cat("a divisor of ", shape.n_head, " heads"), cat(shape.n_head_kv));
  if (shape.head_dim == 0 && shape.n_embd % shape.n_head != 0)
    refuse("n_head", cat("a divisor of n_embd ", shape.n_embd), cat(shape.n_head), "change it or add head_dim");
  if (shape.head_dim == 0) shape.head_dim = shape.n_embd / shape.n_head;
  check_size("head_dim", shape.head_dim, 2, 1 << 12);
  if (shape.n_rot == 0) shape.n_rot = shape.head_dim;
  check_size("n_rot", shape.n_rot, 2, shape.head_dim);
  check_size("n_vocab", shape.n_vocab, kLeastSynthVocabulary, kMostSynthVocabulary);
  check_size("n_ctx", shape.n_ctx, 1, 1 << 20);
  if (shape.n_rot % 2 != 0) refuse("rotated elements of a head", "an even number", cat(shape.n_rot));
  const int64_t block = dtype_info(model.mixture->base).block_size;
  for (const auto& [name, size] : {std::pair{"n_embd", shape.n_embd}, std::pair{"n_ff", shape.n_ff}}) {
    const int64_t step = block > 1 ? 32 : std::string(name) == "n_embd" ? 2 : 1;
    if (size % step != 0) refuse(name, cat("a multiple of ", step, " for type ", model.mixture->name), cat(size));
  }
  return shape;
}

// The skew in effect and the law that gives it.
void solve_skew(SynthModel& model) {
  SynthSpec& spec = model.spec;
  if (!(spec.sparsity >= 0.01 && spec.sparsity <= 0.999))
    refuse("sparsity", "a number from 0.01 to 0.999", cat(spec.sparsity));
  if (!(spec.skew_top >= 0.01 && spec.skew_top <= 0.99))
    refuse("skew, share of units", "a number from 0.01 to 0.99", cat(spec.skew_top));
  const double density = 1 - spec.sparsity;
  const ShareLimits limits = share_limits(density, spec.skew_top);
  // Both ends are out of reach: units that are all alike, and units that fire always or never.
  const double low = limits.low + 0.01, high = limits.high - 0.01;
  if (spec.skew_share == 0) spec.skew_share = std::clamp(kUsualShare, low, std::max(low, high));
  if (!(spec.skew_share >= low && spec.skew_share <= high))
    refuse("skew",
           cat(low, " to ", high, " of all firings for ", spec.skew_top, " of the units at sparsity ", spec.sparsity),
           cat(spec.skew_share), "change --skew or --sparsity");
  model.law = solve_firing(density, spec.skew_top, spec.skew_share);
}

// Lists the tensors of a model whose other members are set.
class TensorLister {
 public:
  explicit TensorLister(SynthModel& model) : model_(model), shape_(model.spec.shape) {
    mixture_model_ = {model.spec.arch, shape_.n_layer, shape_.n_head / shape_.n_head_kv, shape_.tied, model.spec.pure};
  }

  void list() {
    const bool learned = model_.arch->positions == Positions::kLearned;
    const double n_embd = static_cast<double>(shape_.n_embd);
    matrix("token_embd", shape_.n_embd, shape_.n_vocab, Fill::kEmbedding, std::sqrt(learned ? 1 - kPositionNoise : 1));
    if (learned) {
      matrix("position_embd", shape_.n_embd, shape_.n_ctx, Fill::kOrthogonal, std::sqrt(kPositionNoise));
      if (model_.mixture->base != DType::kF32) model_.tensors.back().dtype = DType::kF16;  // as `quantize` leaves it
    }
    const std::vector<LayerNoise> noises = layer_noise(shape_.n_layer);
    for (int64_t layer = 0; layer < shape_.n_layer; ++layer) {
      attention(layer, noises[static_cast<size_t>(layer)]);
      feed_forward(layer, noises[static_cast<size_t>(layer)]);
    }
    const double head = kHeadDeviation / std::sqrt(n_embd);
    norm("output_norm", shape_.tied ? head : 1);
    if (!shape_.tied) matrix("output", shape_.n_embd, shape_.n_vocab, Fill::kOrthogonal, head);
    for (const SynthTensor& tensor : model_.tensors)
      model_.n_bytes += row_bytes(tensor.dtype, tensor.shape.n_elements());
  }

 private:
  SynthTensor& matrix(const std::string& name, int64_t n_in, int64_t n_out, Fill fill, double scale) {
    const std::string full = name + ".weight";
    const DType dtype = fitting_type(mixture_type(*model_.mixture, mixture_model_, full), n_in);
    model_.tensors.push_back({full, shape_of(n_in, n_out), dtype, fill, static_cast<float>(scale)});
    model_.tensors.back().key = random_key(model_.spec.seed, name);
    return model_.tensors.back();
  }
  void norm(const std::string& name, double scale) {
    const Shape shape = shape_of(shape_.n_embd);
    model_.tensors.push_back({name + ".weight", shape, DType::kF32, Fill::kConstant, static_cast<float>(scale)});
    if (model_.arch->norm == NormKind::kLayer)
      model_.tensors.push_back({name + ".bias", shape, DType::kF32, Fill::kConstant, 0});
  }

  void attention(int64_t layer, const LayerNoise& noise) {
    const std::string prefix = cat("blk.", layer, ".");
    const int64_t n_q = shape_.n_head * shape_.head_dim, n_kv = shape_.n_head_kv * shape_.head_dim;
    const double n_embd = static_cast<double>(shape_.n_embd);
    // Queries and keys have mean square kLogitDeviation, so that q . k / sqrt(head_dim) has that deviation.
    const double sharp = std::sqrt(kLogitDeviation / (noise.attention_power * n_embd));
    const double out = attention_variance(layer, shape_.n_layer) /
                       (static_cast<double>(n_q) * noise.attention_power * kAttentionFocus);
    norm(prefix + "attn_norm", 1);
    matrix(prefix + "attn_q", shape_.n_embd, n_q, Fill::kOrthogonal, sharp);
    matrix(prefix + "attn_k", shape_.n_embd, n_kv, Fill::kOrthogonal, sharp);
    matrix(prefix + "attn_v", shape_.n_embd, n_kv, Fill::kOrthogonal, 1 / std::sqrt(n_embd));
    matrix(prefix + "attn_output", n_q, shape_.n_embd, Fill::kRandom, std::sqrt(out));
  }

  void feed_forward(int64_t layer, const LayerNoise& noise) {
    const std::string prefix = cat("blk.", layer, ".");
    const bool gated = model_.arch->gated;
    const double scale = 1 / std::sqrt(static_cast<double>(shape_.n_embd));
    norm(prefix + "ffn_norm", 1);
    SynthTensor& detect =
        matrix(prefix + (gated ? "ffn_gate" : "ffn_up"), shape_.n_embd, shape_.n_ff, Fill::kDetect, scale);
    detect.layer = layer;
    detect.deviation = static_cast<float>(noise.ffn_deviation);
    if (gated) matrix(prefix + "ffn_up", shape_.n_embd, shape_.n_ff, Fill::kOrthogonal, scale);
    const double power = unit_power(model_.law, model_.activation, gated, noise.ffn_power);
    const double down = std::sqrt(ffn_variance(shape_.n_layer) / (static_cast<double>(shape_.n_ff) * power));
    if (model_.spec.neuron_major) {
      matrix(prefix + "ffn_down_t", shape_.n_embd, shape_.n_ff, Fill::kRandom, down);
      model_.tensors.back().key = random_key(model_.spec.seed, prefix + "ffn_down");
    } else {
      matrix(prefix + "ffn_down", shape_.n_ff, shape_.n_embd, Fill::kTransposed, down);
    }
  }

  SynthModel& model_;
  const SynthShape& shape_;
  MixtureModel mixture_model_;
};

}  // namespace

std::string SynthModel::name() const {
  const auto percent = [](double share) { return std::lround(1000 * share) / 10.0; };
  return cat(spec.shape.name.empty() ? "free shape" : spec.shape.name, " ", spec.arch, " ", mixture->name, ", ",
             percent(spec.sparsity), " % sparse, ", percent(spec.skew_top), " % of units fire ",
             percent(spec.skew_share), " %");
}

SynthModel resolve_synth(const SynthSpec& spec) {
  SynthModel model;
  model.spec = spec;
  model.arch = find_architecture(spec.arch);
  if (!model.arch || !is_plain(*model.arch))
    refuse("architecture", known_architectures(is_plain), quoted(spec.arch));
  model.mixture = find_mixture(spec.type);
  if (!model.mixture) refuse("type", known_mixtures(), quoted(spec.type));
  const std::optional<Activation> activation =
      spec.activation.empty() ? model.arch->usual_activation : parse_activation(spec.activation);
  if (!activation) refuse("activation", known_activations(), quoted(spec.activation));
  model.activation = *activation;
  if (model.activation == Activation::kFatRelu)
    refuse("activation", "one without a threshold", quoted(spec.activation));
  if (model.activation == Activation::kDRelu && !model.arch->gated)
    refuse("activation", cat("one for units without a gate, as ", spec.arch, " has them"), quoted(spec.activation));
  model.spec.shape = checked_shape(model);
  solve_skew(model);
  TensorLister(model).list();
  return model;
}

}  // namespace hotset
