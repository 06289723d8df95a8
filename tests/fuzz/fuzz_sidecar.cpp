// libFuzzer target for sidecars: whatever the bytes, parts that fit the model or a hotset error of one line.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "core/error.h"
#include "core/gguf.h"
#include "core/model_config.h"
#include "core/sidecar.h"

namespace {

using namespace hotset;

void require(bool condition) {
  if (!condition) std::abort();
}

void touch(const NamedTensor& tensor) {
  if (!tensor) return;
  volatile std::byte last = tensor.view.data[tensor.view.size_bytes() - 1];
  (void)last;
}

void check(const Sidecar& sidecar, const ModelConfig& config) {
  for (int64_t layer = 0; layer < config.n_layer; ++layer) {
    touch(sidecar.frequencies(layer));
    const auto& units = sidecar.units_by_slot(layer);
    require(units.empty() || units.size() == static_cast<size_t>(config.n_ff));
    for (const int32_t unit : units) require(unit >= 0 && unit < config.n_ff);
  }
  if (const auto& predictor = sidecar.predictor()) {
    require(predictor->thresholds.size() == static_cast<size_t>(config.n_layer));
    for (const float threshold : predictor->thresholds) require(!std::isnan(threshold));
    for (const auto& layer : predictor->layers) touch(layer.fc1), touch(layer.fc2), touch(layer.bias);
    require(predictor->kind != PredictorKind::kBitPlanes || (predictor->n_bits >= 1 && predictor->n_bits <= 3));
  }
  if (const auto& placement = sidecar.placement())
    for (const int64_t n : placement->n_hot) require(n >= 0 && n <= config.n_ff);
}

}  // namespace

// The model is the one of tests/cpp/test_sidecar.cpp; a sidecar states the fingerprint "fuzz".
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  ModelConfig config;
  config.n_layer = 2, config.n_embd = 64, config.n_ff = 96;
  const auto copy = std::make_unique<std::byte[]>(size);  // exactly as long, so that a step too far is seen
  if (size > 0) std::memcpy(copy.get(), bytes, size);
  try {
    check(*Sidecar::read(GgufFile::parse(copy.get(), size, "fuzz"), config, "fuzz"), config);
  } catch (const Error& error) {
    require(std::strchr(error.what(), '\n') == nullptr);
  }
  return 0;
}
