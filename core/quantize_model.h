// Whole files from one set of types, and one layout, to another: what `hotset quantize` does.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/log.h"

namespace hotset {

struct QuantizeOptions {
  std::string type;               // a name of core/quantize_mixture.h in any case: q8_0, q4_k_m, ..
  std::string layout = "neuron";  // "neuron": ffn_down_t, a unit is one row; "gguf": ffn_down
  bool pure = false;              // one type throughout, instead of llama.cpp's mixture
  // For each layer the numbers of its units in the order in which they are written, hottest first say. Empty = as they
  // are. The input has its down projections as rows of units (ffn_down_t). Kept in the file as `hotset.unit_order`.
  std::vector<std::vector<int32_t>> unit_order{};
  int32_t n_threads = 0;          // 0 = one per physical core
  LogSink log{};                  // which tensors got another type than the mixture's, and why
  std::function<void(uint64_t, uint64_t)> progress{};  // (elements done, elements); on the calling thread
  std::function<bool()> stop{};                        // true ends with CancelledError; asked as often
};

// The order of units in a sidecar of `model`: its tensors `blk.N.unit_of_slot`. Throws Error (files that cannot be
// read, a sidecar of another model), ModelFormatError (a sidecar without an order, or with something else in its
// place).
std::vector<std::vector<int32_t>> read_unit_order(const std::string& sidecar, const std::string& model);

struct QuantizeResult {
  uint64_t input_bytes = 0;  // of the files
  uint64_t output_bytes = 0;
  uint64_t tensor_bytes = 0;  // of the output's tensors
  uint64_t n_params = 0;
  double bits_per_weight() const { return 8.0 * static_cast<double>(tensor_bytes) / static_cast<double>(n_params); }
};

// Writes the model in `input` to `output` with other weight types, any architecture: matrices (`*.weight`) get the
// mixture's type, vectors become F32, everything else is copied, metadata too. The output is complete or not there; an
// existing one is replaced at the end. The result does not depend on the number of threads. Memory: about 12 MB per
// thread (more only where a column of a matrix has over a million elements) and the mapped pages of one tensor.
// Throws std::invalid_argument (options), Error (files), ModelFormatError (the input's bytes, values that are not
// finite or do not fit the type), UnsupportedModelError (split files, types that cannot be decoded),
// CancelledError.
QuantizeResult quantize_model(const std::string& input, const std::string& output, const QuantizeOptions& options);

}  // namespace hotset
