// A loaded model: the mapped file, its configuration, its weights, its vocabulary. Shared, immutable, thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/log.h"
#include "core/model_config.h"
#include "core/tensor.h"
#include "core/tokenizer.h"

namespace hotset {

class GgufFile;
struct SidecarPredictor;
struct Weights;

struct ModelOptions {
  std::string activation;  // "" = as the file says; "silu", "relu", "relu2" or "drelu" overrides it
  LogSink log;
};

class Model {
 public:
  // Maps the file (nothing is copied), checks configuration, tensor shapes and vocabulary.
  // Throws Error (no such file, a directory), ModelFormatError, UnsupportedModelError.
  static std::shared_ptr<const Model> load(const std::string& path, const ModelOptions& options = {});

  // The same for a file that is open already.
  static std::shared_ptr<const Model> of_file(std::shared_ptr<const GgufFile> file, const ModelOptions& options = {});

  // Loads only the vocabulary of a file; works for vocabulary-only files too.
  static std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& path);

  ~Model();
  const ModelConfig& config() const { return config_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  std::shared_ptr<const Tokenizer> shared_tokenizer() const { return tokenizer_; }
  const Weights& weights() const { return *weights_; }
  // As plain GGUF says it (core/powerinfer.h).
  const GgufFile& file() const { return *file_; }
  // What predicts its units, where the file has that: only PowerInfer's have. nullptr without.
  const SidecarPredictor* predictor() const { return predictor_.get(); }
  const std::string& path() const { return path_; }

  std::string name() const;           // `general.name`, else the file's name
  std::string type_text() const;      // e.g. "llama 7M Q8_0", as the benchmark table prints it
  uint64_t n_params() const;          // elements of all weights
  uint64_t size_bytes() const;        // bytes of all weights
  // A tensor of the file, all dimensions but the first as rows; nothing when there is none or its type has no codec.
  std::optional<TensorView> tensor(const std::string& name) const;
  // Names and texts of the file's chat templates; that of no name is "default".
  std::vector<std::pair<std::string, std::string>> chat_templates() const;
  // 32 hexadecimal digits, the same for every type and layout of one model; see core/fingerprint.h. Reads all vectors.
  std::string fingerprint() const;

  // Takes weights out of this process's memory where they are mapped from a file; they are read again when touched.
  void drop_pages() const;

 private:
  Model() = default;
  std::string path_;
  std::shared_ptr<const GgufFile> file_;
  ModelConfig config_;
  std::unique_ptr<const Weights> weights_;
  std::unique_ptr<const SidecarPredictor> predictor_;
  std::shared_ptr<const Tokenizer> tokenizer_;
};

// What `hotset inspect` shows; never throws for a file that parses as GGUF.
struct Inspection {
  struct Entry {
    std::string key, type, value;
  };
  struct TensorRow {
    std::string name, type, shape;
    uint64_t n_bytes;
  };
  std::string path;
  uint64_t file_bytes = 0;
  uint32_t version = 0;
  std::vector<Entry> metadata;
  std::vector<TensorRow> tensors;
  uint64_t n_params = 0;
  bool runs = false;
  std::string verdict;  // how it will run, or the error that says why not
  std::string fingerprint;  // Model::fingerprint; "" when it does not run
};

// Throws Error or ModelFormatError only when the file cannot be read as GGUF at all.
Inspection inspect(const std::string& path);

}  // namespace hotset
