#include "core/sidecar.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "core/bit_planes.h"
#include "core/error.h"
#include "core/gguf.h"
#include "core/model_config.h"

namespace hotset {
namespace {

constexpr int64_t kMaxRank = 1 << 16;
constexpr const char* kKindNames[] = {"bit_planes", "low_rank", "mlp", "residual_mlp"};  // as PredictorKind

}  // namespace

// Takes the parts out of a file, each checked against the model's sizes.
class SidecarReader {
 public:
  SidecarReader(std::shared_ptr<const GgufFile> file, const ModelConfig& config)
      : file_(*file), config_(config), out_(new Sidecar()) {
    out_->file_ = std::move(file);
  }

  std::shared_ptr<const Sidecar> read(const std::string& fingerprint) {
    check_header(fingerprint);
    for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
      out_->frequencies_.push_back(vector(cat("blk.", layer, ".unit_freq"), DType::kF32));
      out_->units_.push_back(slots(layer));
    }
    if (has("hotset.predictor.kind")) read_predictor(out_->predictor_.emplace());
    if (has("hotset.placement.n_hot")) read_placement(out_->placement_.emplace());
    return out_;
  }

 private:
  bool has(const std::string& key) const { return file_.find(key) != nullptr; }

  [[noreturn]] void fail(const std::string& what, const std::string& expected, const std::string& got,
                         const std::string& remedy = "make the sidecar again") const {
    throw ModelFormatError(error_text("sidecar " + quoted(file_.name(), 200), what, expected, got, remedy));
  }

  // The value of a key, which must be there.
  template <class T>
  T required(const std::string& key, std::optional<T> value, const char* expected) const {
    if (!value) fail("key " + quoted(key), expected, "nothing");
    return *std::move(value);
  }
  std::string text(const std::string& key) const { return required(key, file_.get_string(key), "a text"); }
  int64_t number(const std::string& key, int64_t low, int64_t high) const {
    const int64_t value = required(key, file_.get_int(key), "an integer");
    if (value < low || value > high) fail("key " + quoted(key), cat(low, " to ", high), cat(value));
    return value;
  }
  template <class T>
  std::vector<T> per_layer(const std::string& key, std::optional<std::vector<T>> values) const {
    std::vector<T> out = required(key, std::move(values), "an array");
    if (out.size() != static_cast<size_t>(config_.n_layer))
      fail("key " + quoted(key), cat("a value for each of ", config_.n_layer, " layers"), cat(out.size()));
    return out;
  }
  void one_of(const std::string& key, const std::string& value, const std::vector<std::string>& known) const {
    if (std::find(known.begin(), known.end(), value) != known.end()) return;
    std::string expected;
    for (const std::string& each : known) expected += (expected.empty() ? "" : ", ") + each;
    fail("key " + quoted(key), expected, quoted(value));
  }

  void check_header(const std::string& fingerprint) const {
    const std::string kind = text("general.architecture");
    if (kind != "hotset-sidecar")
      fail("key \"general.architecture\"", "\"hotset-sidecar\"", quoted(kind), "name the sidecar, not a model");
    const int64_t version = required("hotset.version", file_.get_int("hotset.version"), "an integer");
    if (version != Sidecar::kVersion)
      fail("key \"hotset.version\"", cat(Sidecar::kVersion), cat(version), "make the sidecar with this version of hotset");
    const std::string stated = text("hotset.model_fingerprint");
    if (stated != fingerprint)
      fail("fingerprint of its model", quoted(fingerprint), quoted(stated),
           "it belongs to another model: name the right one, or move it away from beside this model");
    one_of("hotset.unit_kind", text("hotset.unit_kind"), {"ffn"});
    number("hotset.n_layer", config_.n_layer, config_.n_layer);
  }

  // A tensor where the file has it; `shape` is what it must have.
  NamedTensor tensor(const std::string& name, const Shape& shape) const {
    const GgufTensor* found = file_.find_tensor(name);
    if (!found) return {};
    if (!(found->shape == shape))
      fail("tensor " + quoted(name), "shape " + shape_text(shape), shape_text(found->shape));
    if (!find_dtype(found->type)) fail("type of tensor " + quoted(name), "a known one", cat("number ", found->type));
    const DType dtype = static_cast<DType>(found->type);
    return {name, TensorView{found->data, dtype, shape.ne[0], shape.ne[1], row_bytes(dtype, shape.ne[0])}};
  }
  NamedTensor vector(const std::string& name, DType dtype) const {
    NamedTensor out = tensor(name, shape_of(config_.n_ff));
    if (out && out.view.dtype != dtype)
      fail("type of tensor " + quoted(name), dtype_name(dtype), dtype_name(out.view.dtype));
    return out;
  }
  NamedTensor matrix(const std::string& name, int64_t n_in, int64_t n_out) const {
    NamedTensor out = tensor(name, shape_of(n_in, n_out));
    if (!out) fail("tensor " + quoted(name), shape_text(shape_of(n_in, n_out)), "nothing");
    if (!dtype_has_kernels(out.view.dtype))
      fail("type of tensor " + quoted(name), dtypes_with_kernels(), dtype_name(out.view.dtype));
    return out;
  }

  // unit_of_slot: every unit once.
  std::vector<int32_t> slots(int64_t layer) const {
    const NamedTensor stored = vector(cat("blk.", layer, ".unit_of_slot"), DType::kI32);
    if (!stored) return {};
    std::vector<int32_t> out(static_cast<size_t>(config_.n_ff));
    std::memcpy(out.data(), stored.view.data, out.size() * sizeof(int32_t));
    std::vector<bool> seen(out.size(), false);
    for (const int32_t unit : out) {
      if (unit < 0 || unit >= config_.n_ff || seen[static_cast<size_t>(unit)])
        fail("tensor " + quoted(stored.name), cat("each of the units 0 to ", config_.n_ff - 1, " once"),
             cat(unit, unit < 0 || unit >= config_.n_ff ? "" : " twice"));
      seen[static_cast<size_t>(unit)] = true;
    }
    return out;
  }

  void read_predictor(SidecarPredictor& out) const {
    const std::string kind = text("hotset.predictor.kind");
    one_of("hotset.predictor.kind", kind, {std::begin(kKindNames), std::end(kKindNames)});
    out.kind = static_cast<PredictorKind>(std::find(std::begin(kKindNames), std::end(kKindNames), kind) - kKindNames);
    const std::string key = "hotset.predictor.thresholds";
    out.thresholds = per_layer(key, file_.get_float_array(key));
    for (const float threshold : out.thresholds)
      if (std::isnan(threshold)) fail("key " + quoted(key), "numbers", "NaN");
    const auto figure = [&](const char* name) { return file_.get_float(cat("hotset.predictor.", name)); };
    out.quality = {figure("recall"), figure("over_selection"), figure("missed_mass"), figure("kld")};
    if (out.kind == PredictorKind::kBitPlanes)
      out.n_bits = static_cast<int>(number("hotset.predictor.bits", 1, kMaxPlaneBits));
    else
      for (int64_t layer = 0; layer < config_.n_layer; ++layer) out.layers.push_back(read_factors(layer));
  }

  SidecarPredictor::Layer read_factors(int64_t layer) const {
    const std::string prefix = cat("blk.", layer, ".predictor.");
    const GgufTensor* fc1 = file_.find_tensor(prefix + "fc1.weight");
    if (!fc1) return {};
    const int64_t rank = fc1->shape.ne[1];
    if (rank < 1 || rank > kMaxRank) fail("rank of tensor " + quoted(fc1->name), cat("1 to ", kMaxRank), cat(rank));
    if (out_->units_[static_cast<size_t>(layer)].empty())
      fail(cat("tensor \"blk.", layer, ".unit_of_slot\""), "the order of the predictor's rows", "nothing");
    return {matrix(prefix + "fc1.weight", config_.n_embd, rank), matrix(prefix + "fc2.weight", rank, config_.n_ff),
            vector(prefix + "bias", DType::kF32)};
  }

  void read_placement(SidecarPlacement& out) const {
    const auto key = [](const char* name) { return cat("hotset.placement.", name); };
    out.vram_budget = static_cast<uint64_t>(number(key("vram_budget"), 0, INT64_MAX));
    out.n_ctx = number(key("n_ctx"), 1, int64_t{1} << 30);
    out.machine = text(key("machine"));
    out.n_hot = per_layer(key("n_hot"), file_.get_int_array(key("n_hot")));
    for (const int64_t n : out.n_hot)
      if (n < 0 || n > config_.n_ff) fail("key " + quoted(key("n_hot")), cat("0 to ", config_.n_ff), cat(n));
    out.detect = per_layer(key("detect"), file_.get_string_array(key("detect")));
    out.attention = per_layer(key("attention"), file_.get_string_array(key("attention")));
    if (file_.find(key("kv"))) out.kv = per_layer(key("kv"), file_.get_string_array(key("kv")));
    for (const std::string& where : out.kv) one_of(key("kv"), where, {"device", "host"});
    for (const std::string& where : out.detect) one_of(key("detect"), where, {"device", "host", "split"});
    for (const std::string& where : out.attention) one_of(key("attention"), where, {"device", "host"});
    out.head = text(key("head"));
    one_of(key("head"), out.head, {"device", "host"});
    out.predicted_tg_ts = file_.get_float(key("predicted_tg_ts")).value_or(0);
    out.gap = file_.get_float(key("gap")).value_or(0);
  }

  const GgufFile& file_;
  const ModelConfig& config_;
  std::shared_ptr<Sidecar> out_;
};

const char* predictor_kind_name(PredictorKind kind) {
  return kKindNames[static_cast<size_t>(kind)];
}

std::shared_ptr<const Sidecar> Sidecar::read(std::shared_ptr<const GgufFile> file, const ModelConfig& config,
                                             const std::string& fingerprint) {
  return SidecarReader(std::move(file), config).read(fingerprint);
}

std::shared_ptr<const Sidecar> Sidecar::load(const std::string& path, const ModelConfig& config,
                                             const std::string& fingerprint) {
  return read(GgufFile::open(path), config, fingerprint);
}

std::string Sidecar::path_beside(const std::string& model_path) {
  constexpr char kEnd[] = ".gguf";
  const bool has_end = model_path.size() > 5 && model_path.compare(model_path.size() - 5, 5, kEnd) == 0;
  return (has_end ? model_path.substr(0, model_path.size() - 5) : model_path) + ".hotset.gguf";
}

std::string Sidecar::find(const std::string& asked, const std::string& model_path) {
  if (asked != "auto") return asked == "none" ? "" : asked;
  const std::string beside = path_beside(model_path);
  std::error_code ignored;
  return std::filesystem::is_regular_file(beside, ignored) ? beside : "";
}

const std::string& Sidecar::name() const { return file_->name(); }

}  // namespace hotset
