// An observer that keeps everything it is shown.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/device.h"
#include "core/model_config.h"

namespace hotset::test {

// What was shown, by layer: rows one after the other in the order of the steps.
class UnitRecorder final : public UnitObserver {
 public:
  struct Layer {
    std::vector<float> in, detected, h;
    std::vector<float> margins;  // zeros where units are not predicted
    std::vector<int> n_shown;  // per unit of a row
  };
  explicit UnitRecorder(const ModelConfig& config)
      : layers(static_cast<size_t>(config.n_layer)), n_embd_(config.n_embd), n_ff_(config.n_ff) {}

  void begin_step(const std::vector<Row>& rows) override {
    first_row_ = n_rows;
    n_rows += rows.size();
    for (const Row& row : rows) positions.push_back(row.position);
    for (Layer& layer : layers) {
      layer.in.resize(n_rows * n_embd());
      for (std::vector<float>* each : {&layer.detected, &layer.h, &layer.margins}) each->resize(n_rows * n_ff());
      layer.n_shown.resize(n_rows * n_ff());
    }
  }
  // Threads write to places of their own, which the thread sanitizer checks.
  void observe(const ObservedUnits& units) override {
    Layer& layer = layers[static_cast<size_t>(units.layer)];
    for (int64_t row = 0; row < units.n_rows; ++row) {
      const size_t to = first_row_ + static_cast<size_t>(row);
      if (units.first_unit == 0)
        std::copy_n(units.in + row * units.in_stride, n_embd_, layer.in.data() + to * n_embd());
      for (int64_t unit = units.first_unit; unit < units.first_unit + units.n_units; ++unit) {
        const size_t at = to * n_ff() + static_cast<size_t>(unit);
        layer.detected[at] = units.detected[row * units.stride + unit];
        layer.h[at] = units.h[row * units.stride + unit];
        if (units.margins != nullptr) layer.margins[at] = units.margins[row * units.stride + unit];
        ++layer.n_shown[at];
      }
    }
  }
  size_t n_embd() const { return static_cast<size_t>(n_embd_); }
  size_t n_ff() const { return static_cast<size_t>(n_ff_); }

  size_t n_rows = 0;
  std::vector<int32_t> positions;
  std::vector<Layer> layers;

 private:
  int64_t n_embd_, n_ff_;
  size_t first_row_ = 0;
};

}  // namespace hotset::test
