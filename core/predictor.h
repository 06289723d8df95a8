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

class Model;
class ThreadPool;

// The unit of each slot, by layer; nothing or empty = slots are units.
using UnitsBySlot = std::shared_ptr<const std::vector<std::vector<int32_t>>>;

// What predicts the units of a model; parsed from "bit_planes:2", or found in a sidecar or in the model's file.
struct PredictorSpec {
  PredictorKind kind = PredictorKind::kBitPlanes;
  int n_bits = 0;
  std::vector<float> thresholds;                    // (n_layer)
  std::vector<SidecarPredictor::Layer> factors{};   // (n_layer) all but bit planes
  UnitsBySlot rows{};                               // the unit of each row of the factors
  std::shared_ptr<const void> owner{};              // of the factors' memory
};

// "bit_planes:BITS" or "bit_planes:BITS:Z". Without Z a value stands in that suits noise (see kDefaultZ in
// predictor.cpp) and was calibrated on no text. Throws std::invalid_argument.
PredictorSpec parse_predictor(const std::string& text, int64_t n_layer);

// The predictor of a sidecar. Throws Error when it has none.
PredictorSpec predictor_of(std::shared_ptr<const Sidecar> sidecar);

// The predictor in a model's file, which must have one (Model::predictor).
PredictorSpec predictor_of(std::shared_ptr<const Model> model);

// Owns what predictors read that no file holds: bit planes, coded from the detect matrices at load, and factors whose
// rows stand in an order of their own, put in the one that is asked for.
class Predictor {
 public:
  // A layer has planes, or factors, or neither: then it runs exactly.
  struct Layer {
    int n_bits = 0;
    float z = 0;                           // the threshold, which is part of the margins
    NamedTensor planes, low, step, error;  // operands of op::Predict
    NamedTensor fc1, fc2, bias;            // margins = fc2 act(fc1 x) + bias, the threshold added to the bias
    bool has_relu = false;                 // act(x) = max(x, 0), else x
    bool reads_residual = false;           // x is that before the FFN's norm, else after it

    explicit operator bool() const { return planes || fc1; }
    int64_t n_units() const { return planes ? planes.view.n_rows : fc2 ? fc2.view.n_rows : 0; }
    uint64_t shared_bytes() const;  // of what all units need: the first factor
    uint64_t unit_bytes() const;    // of what a unit has of its own; 0 without a predictor
  };
  struct Options {
    int32_t n_threads = 1;
    bool is_outline = false;  // sizes and views only: nothing is made, or to be read
    UnitsBySlot order{};      // rows stand in order of slots
    LogSink log{};
  };

  // `weights` are the model's and outlive this. Throws OutOfMemoryError.
  Predictor(const Weights& weights, const PredictorSpec& spec, const Options& options);

  const std::vector<Layer>& layers() const { return layers_; }
  // (n_ff) Layer::error of each unit, whatever the order of the rows; empty for a layer without planes.
  std::vector<float> errors_by_unit(size_t layer) const;
  // Gives the memory of a layer's first rows back, which another device has now: they are not to be read any more.
  void drop_rows(size_t layer, int64_t n_rows);

  uint64_t n_bytes() const { return n_bytes_; }                    // in memory
  uint64_t bytes_per_token() const { return token_bytes_; }        // read by each decode token
  const std::string& description() const { return description_; }  // "bit_planes:2"

 private:
  // The unit of each slot of a layer; null where slots are units.
  const int32_t* units_of(size_t layer) const;
  void make_planes(const NamedTensor& detect, size_t index, ThreadPool& pool);
  void order_factors(const SidecarPredictor::Layer& stored, const UnitsBySlot& rows, size_t index);
  std::byte* take(size_t layer, size_t n_bytes);

  const bool is_outline_;
  const UnitsBySlot order_;
  std::vector<Layer> layers_;
  const std::shared_ptr<const void> owner_;  // of factors that were not copied
  std::vector<Arena> arenas_;                // (n_layer)
  uint64_t n_bytes_ = 0;
  uint64_t token_bytes_ = 0;
  std::string description_;
};

}  // namespace hotset
