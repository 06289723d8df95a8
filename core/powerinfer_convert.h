// From a PowerInfer file to a GGUF file and a sidecar: what `hotset convert` does with one.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace hotset {

struct PowerInferConversion {
  uint64_t n_tensors = 0, n_params = 0, n_bytes = 0;  // of the model that was written
  std::string sidecar;                                // where the predictor is; "" for a file without one
};

// Writes the model in `input` to `output`, tensors in the types that they have, and its predictor to the sidecar beside
// that. Both are complete or not there; existing ones are replaced. Memory: the mapped pages of a tensor.
// `stop` ends it with CancelledError where it gives true. Throws std::invalid_argument (no PowerInfer file, the output
// is the input) and what Model::load and GgufWriter throw.
PowerInferConversion convert_powerinfer(const std::string& input, const std::string& output,
                                        const std::function<bool()>& stop = {});

}  // namespace hotset
