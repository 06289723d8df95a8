#include "core/powerinfer_convert.h"

#include <filesystem>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <vector>

#include "core/error.h"
#include "core/gguf_writer.h"
#include "core/model.h"
#include "core/sidecar.h"
#include "core/weights.h"

namespace hotset {
namespace {

constexpr char kWhere[] = "convert";
constexpr size_t kPieceBytes = size_t{4} << 20;

std::shared_ptr<const GgufFile> open_input(const std::string& input, const std::string& output) {
  auto file = GgufFile::open(input);
  if (!file->is_powerinfer())
    throw std::invalid_argument(error_text(kWhere, "file " + quoted(input, 200), "a PowerInfer file (magic PWRI)",
                                           "a GGUF file", "use it as it is, or `hotset quantize`"));
  std::error_code ignored;
  if (std::filesystem::equivalent(input, output, ignored))
    throw std::invalid_argument(
        error_text(kWhere, "output", "another file than the input", quoted(output, 200), "choose another name"));
  return file;
}

class PieceWriter {
 public:
  PieceWriter(GgufWriter& writer, const std::function<bool()>& stop) : writer_(writer), stop_(stop) {}

  void write(const std::byte* data, size_t n_bytes) const {
    for (size_t at = 0; at < n_bytes; at += kPieceBytes) {
      if (stop_ && stop_())
        throw CancelledError(error_text(kWhere, "conversion", "to end", "a request to stop", "start it again"));
      writer_.write({data + at, std::min(kPieceBytes, n_bytes - at)});
    }
  }

 private:
  GgufWriter& writer_;
  const std::function<bool()>& stop_;
};

void write_model(GgufWriter& writer, const Model& model, const std::function<bool()>& stop) {
  const GgufFile& file = model.file();
  for (const auto& [key, value] : file.metadata())
    if (key != "general.alignment") writer.set(key, value);
  if (file.find("general.alignment")) writer.set_u32("general.alignment", static_cast<uint32_t>(file.alignment()));
  if (model.weights().layers[0].ffn_down_t) writer.set_text("hotset.layout", "neuron");
  for (const GgufTensor& tensor : file.tensors())
    writer.add_tensor(tensor.name, static_cast<DType>(tensor.type), tensor.shape);
  writer.start();
  for (const GgufTensor& tensor : file.tensors()) {
    PieceWriter(writer, stop).write(tensor.data, tensor.n_bytes);
    file.drop_pages({tensor.data, static_cast<DType>(tensor.type), tensor.shape.ne[0], 1, tensor.n_bytes});
  }
}

// Slots are units: nothing is known of which are hot.
void write_sidecar(GgufWriter& writer, const Model& model, const std::function<bool()>& stop) {
  const SidecarPredictor& predictor = *model.predictor();
  const int64_t n_ff = model.config().n_ff;
  writer.set_text("general.architecture", "hotset-sidecar");
  writer.set_u32("hotset.version", Sidecar::kVersion);
  writer.set_text("hotset.model_fingerprint", model.fingerprint());
  writer.set_text("hotset.unit_kind", "ffn");
  writer.set_u32("hotset.n_layer", static_cast<uint32_t>(predictor.layers.size()));
  writer.set_text("hotset.predictor.kind", predictor_kind_name(predictor.kind));
  writer.set_array("hotset.predictor.thresholds", std::span(predictor.thresholds));
  for (size_t i = 0; i < predictor.layers.size(); ++i) {
    const std::string prefix = cat("blk.", i, ".");
    writer.add_tensor(prefix + "unit_of_slot", DType::kI32, shape_of(n_ff));
    const auto& [fc1, fc2, bias] = predictor.layers[i];
    if (!fc1) continue;
    writer.add_tensor(prefix + "predictor.fc1.weight", fc1.view.dtype, shape_of(fc1.view.n_cols, fc1.view.n_rows));
    writer.add_tensor(prefix + "predictor.fc2.weight", fc2.view.dtype, shape_of(fc2.view.n_cols, fc2.view.n_rows));
  }
  writer.start();
  std::vector<int32_t> units(static_cast<size_t>(n_ff));
  std::iota(units.begin(), units.end(), 0);
  const PieceWriter pieces(writer, stop);
  for (const SidecarPredictor::Layer& layer : predictor.layers) {
    pieces.write(reinterpret_cast<const std::byte*>(units.data()), units.size() * sizeof units[0]);
    if (!layer.fc1) continue;
    pieces.write(layer.fc1.view.data, layer.fc1.view.size_bytes());
    pieces.write(layer.fc2.view.data, layer.fc2.view.size_bytes());
  }
}

}  // namespace

PowerInferConversion convert_powerinfer(const std::string& input, const std::string& output,
                                        const std::function<bool()>& stop) {
  const auto model = Model::of_file(open_input(input, output));
  GgufWriter writer(output);
  write_model(writer, *model, stop);
  PowerInferConversion out;
  out.n_tensors = model->file().tensors().size();
  out.n_params = model->n_params();
  std::optional<GgufWriter> sidecar;
  if (model->predictor()) {
    out.sidecar = Sidecar::path_beside(output);
    write_sidecar(sidecar.emplace(out.sidecar), *model, stop);
    sidecar->finish();
  }
  writer.finish();
  out.n_bytes = writer.n_written();
  return out;
}

}  // namespace hotset
