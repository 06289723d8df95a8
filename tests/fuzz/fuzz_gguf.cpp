// libFuzzer target for model files: the reader, its typed look-ups, configuration, weights and vocabulary.
// Whatever the bytes, each stage gives a result or a hotset error.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "core/error.h"
#include "core/gguf.h"
#include "core/model_config.h"
#include "core/powerinfer.h"
#include "core/sidecar.h"
#include "core/tokenizer_gguf.h"
#include "core/weights.h"

namespace {

using namespace hotset;

void require(bool condition) {
  if (!condition) std::abort();
}

// Runs one stage; errors of the library are a right answer.
template <class F>
void stage(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    require(std::strchr(error.what(), '\n') == nullptr);
  }
}

void look_up_everything(const GgufFile& file) {
  for (const auto& entry : file.metadata()) {
    const std::string& key = entry.first;
    require(file.find(key) == &entry.second);
    require(gguf_value_text(entry.second).size() < 4096);
    gguf_type_name(entry.second.type);
    stage([&] { file.get_int(key); });
    stage([&] { file.get_float(key); });
    stage([&] { file.get_bool(key); });
    stage([&] { file.get_string(key); });
    stage([&] { file.get_int_array(key); });
    stage([&] { file.get_float_array(key); });
    stage([&] { file.get_string_array(key); });
  }
}

// Every tensor of a known type lies inside the file, to its last byte.
void check_tensors(const GgufFile& file, const std::byte* data, size_t size) {
  for (const GgufTensor& tensor : file.tensors()) {
    require(file.find_tensor(tensor.name) == &tensor);
    require(tensor.data >= data && tensor.offset <= size && tensor.n_bytes <= size - tensor.offset);
    require(tensor.data == data + tensor.offset);
  }
}

// To the last byte of a tensor's data.
void read_end(const NamedTensor& tensor) {
  if (!tensor) return;
  volatile std::byte last = tensor.view.data[tensor.view.size_bytes() - 1];
  (void)last;
}

// `opened` is the file as it is, `file` as a plain GGUF file says it.
void read_model(const GgufFile& file, const GgufFile& opened) {
  ModelConfig config = read_model_config(file, "");
  require(config.n_head % config.n_head_kv == 0 && config.n_rot <= config.head_dim);
  const Weights weights = read_weights(file, config);
  require(weights.layers.size() == static_cast<size_t>(config.n_layer));
  for (const LayerWeights& layer : weights.layers)
    for (const NamedTensor* tensor : {&layer.attn_norm_b, &layer.attn_q_b, &layer.ffn_gate, &layer.ffn_up_b,
                                      &layer.ffn_down, &layer.ffn_down_t, &layer.ffn_down_b, &weights.position_embd})
      read_end(*tensor);
  const auto predictor = read_powerinfer_predictor(opened, config);
  if (!predictor) return;
  for (const SidecarPredictor::Layer& layer : predictor->layers) read_end(layer.fc1), read_end(layer.fc2);
}

void read_vocabulary(const GgufFile& file) {
  const auto tokenizer = Tokenizer::create(tokenizer_data_from_gguf(file));
  for (const int32_t id : tokenizer->encode("Once upon a time <s>\n\xff\xe2\x96"))
    require(id >= 0 && id < tokenizer->n_vocab());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  // A copy of exactly this size, so that a step too far is seen.
  const auto copy = std::make_unique<std::byte[]>(size);
  if (size > 0) std::memcpy(copy.get(), bytes, size);
  std::shared_ptr<const GgufFile> file;
  stage([&] { file = GgufFile::parse(copy.get(), size, "fuzz"); });
  if (!file) return 0;
  look_up_everything(*file);
  check_tensors(*file, copy.get(), size);
  std::shared_ptr<const GgufFile> plain;
  stage([&] { plain = plain_model_file(file); });
  if (!plain) return 0;
  look_up_everything(*plain);
  check_tensors(*plain, copy.get(), size);
  stage([&] { read_model(*plain, *file); });
  stage([&] { read_vocabulary(*plain); });
  return 0;
}
