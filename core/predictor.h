// Predictors made ready to run: which units of a layer may be active, asked before the detect matrix verifies them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/log.h"
#include "core/sidecar.h"

namespace hotset {

class ThreadPool;

// What predicts the units of a model; parsed from "bit_planes:2", or found in a sidecar.
struct PredictorSpec {
  PredictorKind kind = PredictorKind::kBitPlanes;
  int n_bits = 0;
  std::vector<float> thresholds;             // (n_layer)
  std::shared_ptr<const Sidecar> sidecar{};  // low rank and mlp: where the factors are
};

// "bit_planes:BITS" or "bit_planes:BITS:Z". Without Z a value stands in that suits noise (see kDefaultZ in
// predictor.cpp) and was calibrated on no text. Throws std::invalid_argument.
PredictorSpec parse_predictor(const std::string& text, int64_t n_layer);

// The predictor of a sidecar. Throws Error when it has none.
PredictorSpec predictor_of(std::shared_ptr<const Sidecar> sidecar);

// Owns what predictors read that no file holds: bit planes, coded from the detect matrices at load, and factors whose
// rows stand in order of slots, put in order of units.
class Predictor {
 public:
  // A layer has planes, or factors, or neither: then it runs exactly.
  struct Layer {
    int n_bits = 0;
    float z = 0;                           // the threshold, which is part of the margins
    NamedTensor planes, low, step, error;  // operands of op::Predict
    NamedTensor fc1, fc2, bias;            // margins = fc2 act(fc1 x) + bias, the threshold added to the bias
    bool has_relu = false;                 // act(x) = max(x, 0), else x
  };

  // Does the work on n_threads threads. `weights` are the model's and, as the sidecar, outlive this. Throws
  // OutOfMemoryError.
  Predictor(const Weights& weights, const PredictorSpec& spec, int32_t n_threads, const LogSink& log);

  const std::vector<Layer>& layers() const { return layers_; }
  uint64_t n_bytes() const { return n_bytes_; }                    // in memory
  uint64_t bytes_per_token() const { return token_bytes_; }        // read by each decode token
  const std::string& description() const { return description_; }  // "bit_planes:2"

 private:
  void make_planes(const NamedTensor& detect, Layer& layer, ThreadPool& pool);
  void order_factors(const SidecarPredictor::Layer& stored, const std::vector<int32_t>& units, Layer& layer);
  std::byte* take(size_t n_bytes);

  std::vector<Layer> layers_;
  std::shared_ptr<const Sidecar> sidecar_;
  std::vector<Arena> arenas_;
  uint64_t n_bytes_ = 0;
  uint64_t token_bytes_ = 0;
  std::string description_;
};

}  // namespace hotset
