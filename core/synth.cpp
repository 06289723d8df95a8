#include "core/synth.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/error.h"
#include "core/gguf_writer.h"
#include "core/mmap_file.h"
#include "core/quantize.h"
#include "core/synth_random.h"
#include "core/synth_tensors.h"
#include "core/synth_vocabulary.h"
#include "core/thread_pool.h"
#include "core/topology.h"

namespace hotset {
namespace {

constexpr int64_t kPartElements = int64_t{1} << 18;    // what a worker makes at a time, about
constexpr int64_t kPartsPerThread = 4;                 // made together, then written in order
constexpr int64_t kTileUnits = 16;                     // transposed together: 64 bytes of each row
constexpr uint32_t kQuantizationVersion = 2;           // of GGUF's block formats
constexpr uint64_t kSpareBytes = uint64_t{256} << 20;  // left free beside a model in memory

// The part of a row along the direction (+1, -1, ..): its mean with those signs.
double part_along(std::span<const float> row) {
  double sum = 0;
  for (size_t i = 0; i + 1 < row.size(); i += 2) sum += static_cast<double>(row[i] - row[i + 1]);
  return sum / static_cast<double>(row.size());
}

void add_along(std::span<float> row, double amount) {
  const float step = static_cast<float>(amount);
  for (size_t i = 0; i + 1 < row.size(); i += 2) row[i] += step, row[i + 1] -= step;
}

double norm_of(std::span<const float> row) {
  double sum = 0;
  for (const float value : row) sum += static_cast<double>(value) * static_cast<double>(value);
  return std::sqrt(sum);
}

// z of every unit of a layer: the quantiles of the law in random order.
std::vector<float> shuffled_units(const SynthModel& model, const std::vector<float>& ordered, int64_t layer) {
  std::vector<float> out = ordered;
  RandomStream stream(random_key(model.spec.seed, cat("blk.", layer, ".units")));
  for (size_t i = out.size(); i > 1; --i) std::swap(out[i - 1], out[stream.below(i)]);
  return out;
}

std::vector<float> ordered_units(const SynthModel& model) {
  std::vector<float> out(static_cast<size_t>(model.spec.shape.n_ff));
  for (size_t i = 0; i < out.size(); ++i) {
    const double quantile = (static_cast<double>(i) + 0.5) / static_cast<double>(out.size());
    out[i] = static_cast<float>(model.law.mean + model.law.spread * normal_quantile(quantile));
  }
  return out;
}

// Rows [first, first + n_rows) of a tensor.
struct Part {
  int64_t first, n_rows;
};

// Makes the rows of tensors; one per worker, whose buffers it keeps.
class RowMaker {
 public:
  // `units`: z of the units of a kDetect tensor's layer. `out` becomes the rows as they are stored.
  void make(const SynthTensor& tensor, const std::vector<float>& units, const Part& part, std::vector<std::byte>& out) {
    const int64_t n = tensor.shape.ne[0];
    values_.resize(static_cast<size_t>(part.n_rows * n));
    if (tensor.fill == Fill::kTransposed)
      transpose(tensor, part);
    else
      for (int64_t i = 0; i < part.n_rows; ++i)
        fill(tensor, units, part.first + i,
             std::span(values_).subspan(static_cast<size_t>(i * n), static_cast<size_t>(n)));
    out.resize(row_bytes(tensor.dtype, part.n_rows * n));
    quantize_row(tensor.dtype, values_.data(), part.n_rows * n, out.data());
  }

 private:
  static void fill(const SynthTensor& tensor, const std::vector<float>& units, int64_t index, std::span<float> row) {
    if (tensor.fill == Fill::kConstant) return std::fill(row.begin(), row.end(), tensor.scale);
    random_row(tensor.key, index, 0, static_cast<int64_t>(row.size()), tensor.scale, row.data());
    if (tensor.fill == Fill::kRandom) return;
    const double along = part_along(row);
    if (tensor.fill == Fill::kEmbedding) return add_along(row, kDirection - along);
    add_along(row, -along);
    if (tensor.fill != Fill::kDetect) return;
    const double z = static_cast<double>(units[static_cast<size_t>(index)]);
    add_along(
        row, z * norm_of(row) * static_cast<double>(tensor.deviation) / (kDirection * static_cast<double>(row.size())));
  }

  // The part's rows are columns of the matrix that the random numbers make; part.first is a multiple of kRandomBlock.
  void transpose(const SynthTensor& tensor, const Part& part) {
    const int64_t n_units = tensor.shape.ne[0], n = part.n_rows;
    tile_.resize(static_cast<size_t>(kTileUnits * n));
    for (int64_t first = 0; first < n_units; first += kTileUnits) {
      const int64_t n_tile = std::min(kTileUnits, n_units - first);
      for (int64_t u = 0; u < n_tile; ++u)
        random_row(tensor.key, first + u, part.first, n, tensor.scale, tile_.data() + u * n);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t u = 0; u < n_tile; ++u)
          values_[static_cast<size_t>(i * n_units + first + u)] = tile_[static_cast<size_t>(u * n + i)];
    }
  }

  std::vector<float> values_;
  std::vector<float> tile_;
};

std::vector<Part> parts_of(const SynthTensor& tensor) {
  const int64_t n_rows = tensor.shape.ne[1];
  int64_t step = std::max<int64_t>(1, kPartElements / tensor.shape.ne[0]);
  if (tensor.fill == Fill::kTransposed) step = std::max(step / kRandomBlock, int64_t{1}) * kRandomBlock;
  std::vector<Part> out;
  for (int64_t first = 0; first < n_rows; first += step) out.push_back({first, std::min(step, n_rows - first)});
  return out;
}

void set_sizes(GgufWriter& writer, const SynthModel& model) {
  const SynthShape& shape = model.spec.shape;
  const auto number = [&](const std::string& key, int64_t value) {
    writer.set_u32(model.spec.arch + "." + key, static_cast<uint32_t>(value));
  };
  number("block_count", shape.n_layer);
  number("context_length", shape.n_ctx);
  number("embedding_length", shape.n_embd);
  number("feed_forward_length", shape.n_ff);
  number("attention.head_count", shape.n_head);
  number("attention.head_count_kv", shape.n_head_kv);
  number("attention.key_length", shape.head_dim);
  number("attention.value_length", shape.head_dim);
  number("vocab_size", shape.n_vocab);
  if (model.arch->positions == Positions::kRope) {
    number("rope.dimension_count", shape.n_rot);
    writer.set_f32(model.spec.arch + ".rope.freq_base", 10000);
  }
  const bool is_rms = model.arch->norm == NormKind::kRms;
  writer.set_f32(model.spec.arch + (is_rms ? ".attention.layer_norm_rms_epsilon" : ".attention.layer_norm_epsilon"),
                 1e-5f);
  writer.set_text(model.spec.arch + ".hidden_activation", activation_name(model.activation));
}

void set_vocabulary(GgufWriter& writer, int64_t n_vocab) {
  const TokenizerData data = synth_vocabulary(n_vocab);
  std::vector<int32_t> types;
  for (const TokenType type : data.types) types.push_back(static_cast<int32_t>(type));
  writer.set_text("tokenizer.ggml.model", data.model);
  writer.set_text("tokenizer.ggml.pre", "default");
  writer.set_texts("tokenizer.ggml.tokens", data.tokens);
  writer.set_array("tokenizer.ggml.scores", std::span<const float>(data.scores));
  writer.set_array("tokenizer.ggml.token_type", std::span<const int32_t>(types));
  writer.set_u32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(data.bos_id));
  writer.set_u32("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(data.eos_id));
  writer.set_u32("tokenizer.ggml.unknown_token_id", static_cast<uint32_t>(data.unk_id));
}

// What the weights depend on before they are quantised and laid out: tells made-up models apart, whose norms are alike.
std::string recipe(const SynthModel& model) {
  const SynthSpec& spec = model.spec;
  const SynthShape& shape = spec.shape;
  char numbers[96];
  std::snprintf(numbers, sizeof numbers, "%.17g %.17g %.17g", spec.sparsity, spec.skew_top, spec.skew_share);
  std::string out = cat(spec.arch, " ", activation_name(model.activation), " ", spec.seed, " ", numbers);
  for (const int64_t size : {shape.n_layer, shape.n_embd, shape.n_ff, shape.n_head, shape.n_head_kv, shape.head_dim,
                             shape.n_rot, shape.n_vocab, shape.n_ctx})
    out += cat(" ", size);
  return out + (shape.tied ? " tied" : "");
}

void declare(GgufWriter& writer, const SynthModel& model) {
  writer.set_text("general.architecture", model.spec.arch);
  writer.set_text("general.name", model.name());
  writer.set_u32("general.file_type", model.mixture->file_type);
  if (dtype_info(model.mixture->base).block_size > 1)
    writer.set_u32("general.quantization_version", kQuantizationVersion);
  if (model.spec.neuron_major) writer.set_text("hotset.layout", "neuron");
  writer.set_text("hotset.synth", recipe(model));
  set_sizes(writer, model);
  set_vocabulary(writer, model.spec.shape.n_vocab);
  for (const SynthTensor& tensor : model.tensors) writer.add_tensor(tensor.name, tensor.dtype, tensor.shape);
}

// Makes all tensors in order: the team makes some parts, then they are written.
class Production {
 public:
  Production(const SynthModel& model, GgufWriter& writer, const SynthOptions& options)
      : model_(model),
        writer_(writer),
        options_(options),
        pool_(options.n_threads > 0 ? options.n_threads : physical_cores()),
        makers_(static_cast<size_t>(pool_.size())),
        outs_(static_cast<size_t>(pool_.size() * kPartsPerThread)),
        ordered_(ordered_units(model)) {}

  void run() {
    for (const SynthTensor& tensor : model_.tensors) {
      if (tensor.fill == Fill::kDetect) units_ = shuffled_units(model_, ordered_, tensor.layer);
      const std::vector<Part> parts = parts_of(tensor);
      for (size_t begin = 0; begin < parts.size(); begin += outs_.size())
        make(tensor, std::span(parts).subspan(begin, std::min(outs_.size(), parts.size() - begin)));
    }
  }

 private:
  void make(const SynthTensor& tensor, std::span<const Part> parts) {
    if (options_.stop && options_.stop())
      throw CancelledError(error_text("synth", "writing", "to end", "a request to stop", "start it again"));
    std::atomic<size_t> next{0};
    const auto work = [&](int32_t worker) {
      for (size_t i = next++; i < parts.size(); i = next++)
        makers_[static_cast<size_t>(worker)].make(tensor, units_, parts[i], outs_[i]);
    };
    if (parts.size() == 1)
      work(0);  // all there is to small tensors
    else
      pool_.run(work);
    for (size_t i = 0; i < parts.size(); ++i) {
      writer_.write(outs_[i]);
      n_done_ += outs_[i].size();
    }
    if (options_.progress) options_.progress(n_done_, model_.n_bytes);
  }

  const SynthModel& model_;
  GgufWriter& writer_;
  const SynthOptions& options_;
  ThreadPool pool_;
  std::vector<RowMaker> makers_;
  std::vector<std::vector<std::byte>> outs_;
  std::vector<float> ordered_, units_;  // z of the units of a layer
  uint64_t n_done_ = 0;
};

void write_model(const SynthModel& model, const std::string& path, const SynthOptions& options) {
  if (options.n_threads < 0 || options.n_threads > 1024)
    throw std::invalid_argument(
        error_text("synth", "threads", "0 to 1024", cat(options.n_threads), "choose another number"));
  GgufWriter writer(path);
  declare(writer, model);
  writer.start();
  Production(model, writer, options).run();
  writer.finish();
}

}  // namespace

SynthPlan plan_synth(const SynthSpec& spec) {
  const SynthModel model = resolve_synth(spec);
  return {model.name(), model.n_bytes, model.spec.skew_share};
}

void write_synth(const SynthSpec& spec, const std::string& path, const SynthOptions& options) {
  write_model(resolve_synth(spec), path, options);
}

std::shared_ptr<const Model> load_synth(const SynthSpec& spec, const SynthOptions& options, const ModelOptions& model) {
  const SynthModel resolved = resolve_synth(spec);
  const uint64_t n_free = available_memory_bytes();
  if (n_free > 0 && resolved.n_bytes + kSpareBytes > n_free)
    throw OutOfMemoryError(error_text("synth", "memory for a model of " + cat(resolved.n_bytes) + " bytes",
                                      cat(resolved.n_bytes + kSpareBytes), cat(n_free, " that are free"),
                                      "choose a smaller shape or type, or write a file with `hotset synth`"));
  const MemoryFile file("hotset-synth");
  write_model(resolved, file.path(), options);
  return Model::load(file.path(), model);  // whose mapping keeps the memory
}

std::shared_ptr<const Model> outline_synth(const SynthSpec& spec, const ModelOptions& model) {
  const MemoryFile file("hotset-outline");
  GgufWriter writer(file.path());
  declare(writer, resolve_synth(spec));
  writer.start();
  writer.leave_data_out();
  writer.finish();
  return Model::load(file.path(), model);
}

std::vector<double> synth_frequencies(const SynthSpec& spec) {
  const SynthModel model = resolve_synth(spec);
  std::vector<double> out;
  for (const float z : ordered_units(model)) out.push_back(normal_cdf(static_cast<double>(z)));
  std::sort(out.begin(), out.end(), std::greater<>());
  return out;
}

}  // namespace hotset
