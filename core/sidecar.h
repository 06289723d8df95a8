// Reader of `*.hotset.gguf` files: what the offline phase found out about a model. Layout: docs/FORMATS.md.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/weights.h"

namespace hotset {

class GgufFile;
struct ModelConfig;

// How units are predicted: bit planes of the detect matrix, made at load; a low-rank factor of it, fc2 (fc1 x); a
// trained network, fc2 max(fc1 x, 0); or such a network whose x is the residual before the FFN's norm, as PowerInfer's.
enum class PredictorKind { kBitPlanes, kLowRank, kMlp, kResidualMlp };
const char* predictor_kind_name(PredictorKind kind);  // "bit_planes", "low_rank", "mlp", "residual_mlp"

// How good a predictor was when it was calibrated; what was not measured is absent.
struct PredictorQuality {
  std::optional<double> recall;          // share of the active units that were candidates
  std::optional<double> over_selection;  // candidates for each active unit
  std::optional<double> missed_mass;     // share of the contributions that was lost
  std::optional<double> kld;             // mean KL divergence from exact mode
};

struct SidecarPredictor {
  // Rows of fc2 and elements of bias are in slot order. A layer without fc1 has no predictor and runs exactly.
  struct Layer {
    NamedTensor fc1;   // (n_embd, r)
    NamedTensor fc2;   // (r, n_ff)
    NamedTensor bias;  // (n_ff) F32, optional
  };
  PredictorKind kind = PredictorKind::kBitPlanes;
  int n_bits = 0;                 // kBitPlanes: 1 to kMaxPlaneBits
  std::vector<float> thresholds;  // (n_layer) added to margins; with bit planes in deviations of their error. No NaN
  std::vector<Layer> layers;      // (n_layer) all but bit planes
  PredictorQuality quality;
};

// The placement that was computed for one budget and machine.
struct SidecarPlacement {
  uint64_t vram_budget = 0;
  int64_t n_ctx = 0;
  std::string machine;
  std::vector<int64_t> n_hot;                  // (n_layer) units on the device: so many first slots
  std::vector<std::string> detect, attention;  // (n_layer) "device", "host" or "split"
  std::vector<std::string> kv;                 // (n_layer) "device" or "host"; empty = with attention
  std::string head;                            // "device" or "host"
  double predicted_tg_ts = 0, gap = 0;
};

// A parsed sidecar; views point into its mapping. Immutable, may be shared by threads.
class Sidecar {
 public:
  static constexpr uint32_t kVersion = 1;  // of the format

  // Reads the sidecar of a model with this configuration and fingerprint. Throws Error (cannot be opened),
  // ModelFormatError (not a sidecar, damaged, of another model). Unknown keys and tensors are ignored.
  static std::shared_ptr<const Sidecar> load(const std::string& path, const ModelConfig& config,
                                             const std::string& fingerprint);
  // The same from a parsed file, whose memory the caller keeps alive.
  static std::shared_ptr<const Sidecar> read(std::shared_ptr<const GgufFile> file, const ModelConfig& config,
                                             const std::string& fingerprint);

  // Where a model's sidecar is looked for: `model.hotset.gguf` for `model.gguf`.
  static std::string path_beside(const std::string& model_path);
  // The file that `asked` means: a path, "none", or "auto", the one beside the model if there is one; "" for none.
  static std::string find(const std::string& asked, const std::string& model_path);

  const std::string& name() const;  // of the file
  // Units of a layer, the one that fires most often first; empty where the file does not say.
  const std::vector<int32_t>& units_by_slot(int64_t layer) const { return units_[static_cast<size_t>(layer)]; }
  // The same of all layers.
  const std::vector<std::vector<int32_t>>& units_by_slot() const { return units_; }
  // (n_ff) F32: how often the unit of each slot fires, descending; no data where the file does not say.
  const NamedTensor& frequencies(int64_t layer) const { return frequencies_[static_cast<size_t>(layer)]; }
  const std::optional<SidecarPredictor>& predictor() const { return predictor_; }
  const std::optional<SidecarPlacement>& placement() const { return placement_; }

 private:
  friend class SidecarReader;
  Sidecar() = default;
  std::shared_ptr<const GgufFile> file_;
  std::vector<std::vector<int32_t>> units_;
  std::vector<NamedTensor> frequencies_;
  std::optional<SidecarPredictor> predictor_;
  std::optional<SidecarPlacement> placement_;
};

}  // namespace hotset
