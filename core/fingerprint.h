// What tells one model from another, whatever its weights are quantised to.
#pragma once

#include <string>

namespace hotset {

class GgufFile;
struct ModelConfig;

// 32 hexadecimal digits. They depend on the sizes, family and activation of the configuration, on the names and
// contents of all F32 vectors (norms and biases, which no quantisation changes) and on the keys `hotset.unit_order` and
// `hotset.synth`. So the files of one model have one fingerprint in every type and layout; training changes it, and so
// does another order of units. Statistics, predictors and placements name the model they belong to by it; it is no
// defence against forgery. Reads the vectors: a few MB for the largest models.
std::string fingerprint(const GgufFile& file, const ModelConfig& config);

}  // namespace hotset
