// PowerInfer's model files: GGUF with the magic `PWRI`, conventions of its own, and a predictor in every layer.
// Format: docs/FORMATS.md, "PowerInfer files".
#pragma once

#include <memory>
#include <string>

namespace hotset {

class GgufFile;
struct ModelConfig;
struct SidecarPredictor;

// The keys and tensors of a model file as a GGUF file says them: a file with the magic `GGUF` is given back as it is;
// one of PowerInfer's states its activation, has positions from 0 on, and has no predictors any more. Views the same
// memory. Throws UnsupportedModelError (an architecture that PowerInfer has not, a .gpuidx file), ModelFormatError.
std::shared_ptr<const GgufFile> plain_model_file(std::shared_ptr<const GgufFile> file);

// The predictor in a file of PowerInfer's, whose rows are units; null without one. A layer may lack fc1 and fc2.
// `config` is that of the plain file. Throws ModelFormatError (one of the two factors, a wrong shape, a threshold that
// is no number) and UnsupportedModelError (a type without kernels).
std::unique_ptr<const SidecarPredictor> read_powerinfer_predictor(const GgufFile& file, const ModelConfig& config);

// Where PowerInfer leaves what it put on the GPU: "m.gguf.generated.gpuidx" for "m.gguf".
std::string gpu_index_beside(const std::string& model_path);

}  // namespace hotset
