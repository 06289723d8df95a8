#include "core/quantize_model.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <vector>

#include "core/error.h"
#include "core/gguf_writer.h"
#include "core/half.h"
#include "core/powerinfer.h"
#include "core/quantize.h"
#include "core/quantize_mixture.h"
#include "core/thread_pool.h"
#include "core/topology.h"
#include "core/unit_order.h"

namespace hotset {
namespace {

constexpr const char* kWhere = "quantize";
constexpr int64_t kChunkElements = int64_t{1} << 20;  // 4 MB of floats: what a thread converts at a time
constexpr int64_t kCopyBytes = int64_t{4} << 20;
constexpr int64_t kBlockStep = 256;  // a multiple of every block size
constexpr int32_t kChunksPerThread = 2;
constexpr int64_t kMaxLayers = 1 << 20;       // a file may say anything
constexpr int64_t kTileRows = 16;             // rows transposed together: 64 bytes of each output row
constexpr uint32_t kQuantizationVersion = 2;  // of GGUF's block formats

// What becomes of a tensor of the input.
struct TensorJob {
  const GgufTensor* from;
  std::string name;
  DType type;
  Shape shape;
  bool transpose = false;
  bool copy = false;  // the bytes as they are; `type` is then the input's
  const int32_t* order = nullptr;  // which of the input's units comes next; nullptr: all in order
  // Elements of a unit in the input: a row of a matrix, one number of a vector.
  int64_t unit_size() const { return from->shape.n_dims == 1 ? 1 : from->shape.ne[0]; }
};

// A part of a tensor: elements of the input in order, or, transposed, columns of the input.
struct Chunk {
  const TensorJob* job;
  int64_t begin, end;
};

std::string quoted_tensor(const std::string& name) { return "tensor " + quoted(name); }

// Matrices that stay as they are: positions and token types are looked up, routers and norms are small.
bool is_quantized(const GgufTensor& tensor) {
  const std::string& name = tensor.name;
  return tensor.shape.n_dims >= 2 && name.ends_with(".weight") && !name.ends_with("_norm.weight") &&
         !name.ends_with("ffn_gate_inp.weight") && name != "position_embd.weight" && name != "token_types.weight";
}

void check_options(const QuantizeOptions& options) {
  const auto fail = [](const char* what, const std::string& expected, const std::string& got) {
    throw std::invalid_argument(error_text(kWhere, what, expected, got, "choose one of these"));
  };
  if (!find_mixture(options.type)) fail("type", known_mixtures(), quoted(options.type));
  if (options.layout != "neuron" && options.layout != "gguf") fail("layout", "neuron or gguf", quoted(options.layout));
  if (options.n_threads < 0 || options.n_threads > 1024) fail("threads", "0 to 1024", cat(options.n_threads));
}

void check_input(const GgufFile& file) {
  const std::string what = "file " + quoted(file.name(), 200);
  if (file.tensors().empty())
    throw ModelFormatError(error_text(kWhere, what, "tensors", "none", "use a file with weights"));
}

MixtureModel mixture_model(const GgufFile& file, bool pure) {
  MixtureModel model;
  model.architecture = file.get_string("general.architecture").value_or("");
  model.n_layer = std::clamp<int64_t>(file.get_int(model.architecture + ".block_count").value_or(0), 0, kMaxLayers);
  const auto heads = [&](const char* key) {  // 0 where there are none, or as many numbers as layers
    const GgufValue* value = file.find(model.architecture + key);
    if (!value || value->type == GgufType::kArray) return int64_t{0};
    return file.get_int(model.architecture + key).value_or(0);
  };
  const int64_t n_head_kv = heads(".attention.head_count_kv");
  if (n_head_kv > 0) model.n_gqa = heads(".attention.head_count") / n_head_kv;
  model.tied = file.find_tensor("output.weight") == nullptr;
  model.pure = pure;
  return model;
}

// Decides name, shape and type of every output tensor.
class JobPlanner {
 public:
  JobPlanner(const GgufFile& file, const QuantizeOptions& options)
      : file_(file),
        options_(options),
        mixture_(*find_mixture(options.type)),
        model_(mixture_model(file, options.pure)),
        orders_(file, options.unit_order) {}

  std::vector<TensorJob> plan() const {
    std::vector<TensorJob> jobs;
    for (const GgufTensor& tensor : file_.tensors()) jobs.push_back(job_of(tensor));
    return jobs;
  }

 private:
  TensorJob job_of(const GgufTensor& tensor) const {
    TensorJob job{&tensor, tensor.name, static_cast<DType>(tensor.type), tensor.shape};
    const bool known = find_dtype(tensor.type) != nullptr;
    if (!known) fail_type(tensor, cat("type number ", tensor.type));
    const bool is_vector = tensor.shape.n_dims == 1 && dtype_has_codec(job.type);
    if (is_quantized(tensor)) {
      set_layout(job);
      set_type(job);
    } else if (is_vector) {
      job.type = DType::kF32;
    }
    job.copy = !job.transpose && static_cast<uint32_t>(job.type) == tensor.type;
    job.order = orders_.of(tensor);
    if (!job.copy && !dtype_has_codec(static_cast<DType>(tensor.type)))
      fail_type(tensor, dtype_name(static_cast<DType>(tensor.type)));
    return job;
  }

  // Turns ffn_down into ffn_down_t or back.
  void set_layout(TensorJob& job) const {
    const bool to_neuron = options_.layout == "neuron";
    const std::string from = to_neuron ? ".ffn_down.weight" : ".ffn_down_t.weight";
    const std::string to = to_neuron ? ".ffn_down_t.weight" : ".ffn_down.weight";
    if (!job.name.ends_with(from) || job.shape.n_dims != 2) return;
    job.name = job.name.substr(0, job.name.size() - from.size()) + to;
    if (file_.find_tensor(job.name))
      throw ModelFormatError(error_text(kWhere, quoted_tensor(job.from->name), "one layout of the down projection",
                                        "both", "convert the model again"));
    std::swap(job.shape.ne[0], job.shape.ne[1]);
    job.transpose = true;
  }

  void set_type(TensorJob& job) const {
    const DType wanted = mixture_type(mixture_, model_, job.name);
    job.type = fitting_type(wanted, job.shape.ne[0]);
    if (job.type == wanted) return;
    log_to(
        options_.log, LogLevel::kInfo,
        error_text(kWhere, quoted_tensor(job.name),
                   cat("rows of a multiple of ", dtype_info(wanted).block_size, " elements for ", dtype_name(wanted)),
                   cat(job.shape.ne[0]), "stored as " + dtype_name(job.type)));
  }

  [[noreturn]] static void fail_type(const GgufTensor& tensor, const std::string& got) {
    throw UnsupportedModelError(error_text(kWhere, "type of " + quoted_tensor(tensor.name),
                                           dtypes_with_kernels(), got,
                                           "start from a file of another type"));
  }

  const GgufFile& file_;
  const QuantizeOptions& options_;
  const Mixture& mixture_;
  const MixtureModel model_;
  const UnitOrders orders_;
};

// Everything the input says about itself, but for what changes.
void set_metadata(GgufWriter& writer, const GgufFile& file, const Mixture& mixture, bool neuron_major) {
  for (const auto& [key, value] : file.metadata())
    if (key != "hotset.layout" && key != "general.alignment" && !key.starts_with("split.")) writer.set(key, value);
  if (file.find("general.alignment")) writer.set_u32("general.alignment", static_cast<uint32_t>(file.alignment()));
  if (mixture.base != DType::kF32 && mixture.base != DType::kF16 && mixture.base != DType::kBF16)
    writer.set_u32("general.quantization_version", kQuantizationVersion);
  writer.set_u32("general.file_type", mixture.file_type);
  if (neuron_major) writer.set_text("hotset.layout", "neuron");
}

// Bytes of a unit in the input.
size_t unit_bytes(const TensorJob& job) { return row_bytes(static_cast<DType>(job.from->type), job.unit_size()); }

// As many elements or bytes as about `step` that are whole units of `unit`.
int64_t whole_units(int64_t step, int64_t unit) { return std::max<int64_t>(step / unit, 1) * unit; }

void append_chunks(const TensorJob& job, std::vector<Chunk>& chunks) {
  const Shape& from = job.from->shape;
  int64_t end = from.n_elements(), step = kChunkElements;
  if (job.copy) {
    end = static_cast<int64_t>(job.from->n_bytes);
    step = kCopyBytes;
    if (job.order) step = whole_units(step, static_cast<int64_t>(unit_bytes(job)));
  } else if (job.order && !job.transpose) {
    step = whole_units(step, job.unit_size());
  } else if (job.transpose) {  // whole blocks of the input, about as many elements
    const int64_t block = std::max<int64_t>(kTileRows, dtype_info(static_cast<DType>(job.from->type)).block_size);
    end = from.ne[0];
    step = std::max<int64_t>(kChunkElements / from.ne[1] / block, 1) * block;
    step = std::min(step, kBlockStep);
  }
  for (int64_t begin = 0; begin < end; begin += step) chunks.push_back({&job, begin, std::min(begin + step, end)});
}

// Converts chunks; one per worker, whose buffers it keeps.
class ChunkConverter {
 public:
  // Fills `out` with the chunk's bytes in the output.
  void convert(const Chunk& chunk, std::vector<std::byte>& out) {
    const TensorJob& job = *chunk.job;
    const GgufTensor& from = *job.from;
    if (job.copy && job.order) return copy_units(chunk, out);
    if (job.copy) {
      out.assign(from.data + chunk.begin, from.data + chunk.end);
      return;
    }
    const int64_t n = (chunk.end - chunk.begin) * (job.transpose ? from.shape.ne[1] : 1);
    values_.resize(static_cast<size_t>(n));
    const auto type = static_cast<DType>(from.type);
    if (job.transpose)
      read_columns(chunk);
    else if (job.order)
      read_units(chunk);
    else
      dequantize_row(type, from.data + row_bytes(type, chunk.begin), n, values_.data());
    check_values(job);
    out.resize(row_bytes(job.type, n));
    quantize_row(job.type, values_.data(), n, out.data());
  }

 private:
  static void copy_units(const Chunk& chunk, std::vector<std::byte>& out) {
    const TensorJob& job = *chunk.job;
    const size_t n_bytes = unit_bytes(job);
    out.clear();
    for (int64_t at = chunk.begin; at < chunk.end; at += static_cast<int64_t>(n_bytes)) {
      const int32_t number = job.order[at / static_cast<int64_t>(n_bytes)];
      const std::byte* const unit = job.from->data + n_bytes * static_cast<size_t>(number);
      out.insert(out.end(), unit, unit + n_bytes);
    }
  }

  void read_units(const Chunk& chunk) {
    const TensorJob& job = *chunk.job;
    const int64_t n = job.unit_size();
    for (int64_t at = chunk.begin; at < chunk.end; at += n)
      dequantize_row(static_cast<DType>(job.from->type),
                     job.from->data + unit_bytes(job) * static_cast<size_t>(job.order[at / n]), n,
                     values_.data() + (at - chunk.begin));
  }

  // values_ becomes the columns of the chunk as rows, a few input rows at a time.
  void read_columns(const Chunk& chunk) {
    const GgufTensor& from = *chunk.job->from;
    const int32_t* const order = chunk.job->order;
    const auto type = static_cast<DType>(from.type);
    const int64_t n_columns = chunk.end - chunk.begin, n_rows = from.shape.ne[1];
    const size_t stride = row_bytes(type, from.shape.ne[0]);
    tile_.resize(static_cast<size_t>(kTileRows * n_columns));
    for (int64_t first = 0; first < n_rows; first += kTileRows) {
      const int64_t n_tile = std::min(kTileRows, n_rows - first);
      for (int64_t r = 0; r < n_tile; ++r) {
        const int64_t row = order ? order[first + r] : first + r;
        dequantize_row(type, from.data + static_cast<size_t>(row) * stride + row_bytes(type, chunk.begin), n_columns,
                       tile_.data() + r * n_columns);
      }
      for (int64_t c = 0; c < n_columns; ++c)
        for (int64_t r = 0; r < n_tile; ++r)
          values_[static_cast<size_t>(c * n_rows + first + r)] = tile_[static_cast<size_t>(r * n_columns + c)];
    }
  }

  // Magnitudes are ordered as their bits, infinity and NaN last.
  void check_values(const TensorJob& job) const {
    uint32_t most = 0;
    for (const float value : values_) most = std::max(most, float_bits(value) & 0x7fffffffu);
    const float limit = largest_value(job.type);
    if (most <= float_bits(limit)) return;
    throw ModelFormatError(error_text(kWhere, "values of " + quoted_tensor(job.from->name),
                                      cat("numbers within ", limit, " for ", dtype_name(job.type)),
                                      cat(bits_float(most)), "choose bf16 or f32, or convert the model again"));
  }

  std::vector<float> values_;
  std::vector<float> tile_;
};

// Converts chunks by waves: the team converts a few, then they are written in order. Chunks are as large for any number
// of threads, and blocks do not depend on each other, so that the bytes are the same.
class Conversion {
 public:
  Conversion(const GgufFile& file, GgufWriter& writer, const QuantizeOptions& options)
      : file_(file),
        writer_(writer),
        options_(options),
        pool_(options.n_threads > 0 ? options.n_threads : physical_cores()),
        converters_(static_cast<size_t>(pool_.size())),
        outs_(static_cast<size_t>(pool_.size() * kChunksPerThread)) {}

  void run(const std::vector<TensorJob>& jobs) {
    for (const TensorJob& job : jobs) n_elements_ += static_cast<uint64_t>(job.shape.n_elements());
    std::vector<Chunk> chunks;
    for (const TensorJob& job : jobs) {
      chunks.clear();
      append_chunks(job, chunks);
      for (size_t begin = 0; begin < chunks.size(); begin += outs_.size())
        convert_wave({chunks.data() + begin, std::min(outs_.size(), chunks.size() - begin)});
      file_.drop_pages(all_of(*job.from));  // else the input would count as ours to its last byte
    }
  }

 private:
  void convert_wave(std::span<const Chunk> chunks) {
    if (options_.stop && options_.stop())
      throw CancelledError(error_text(kWhere, "conversion", "to end", "a request to stop", "start it again"));
    std::atomic<size_t> next{0};
    const auto work = [&](int32_t worker) {
      for (size_t i = next++; i < chunks.size(); i = next++)
        converters_[static_cast<size_t>(worker)].convert(chunks[i], outs_[i]);
    };
    if (chunks.size() == 1)
      work(0);  // most tensors of a small model are one chunk
    else
      pool_.run(work);
    for (size_t i = 0; i < chunks.size(); ++i) {
      writer_.write(outs_[i]);
      n_done_ += elements_of(chunks[i]);
    }
    if (options_.progress) options_.progress(n_done_, n_elements_);
  }

  static uint64_t elements_of(const Chunk& chunk) {
    const GgufTensor& from = *chunk.job->from;
    const auto begin = static_cast<uint64_t>(chunk.begin), end = static_cast<uint64_t>(chunk.end);
    if (chunk.job->transpose) return (end - begin) * static_cast<uint64_t>(from.shape.ne[1]);
    if (!chunk.job->copy) return end - begin;
    const DTypeInfo& info = dtype_info(static_cast<DType>(from.type));  // chunks of a copy end within blocks
    return end * info.block_size / info.block_bytes - begin * info.block_size / info.block_bytes;
  }

  static TensorView all_of(const GgufTensor& tensor) {
    return TensorView{tensor.data, static_cast<DType>(tensor.type), tensor.shape.ne[0], 1, tensor.n_bytes};
  }

  const GgufFile& file_;
  GgufWriter& writer_;
  const QuantizeOptions& options_;
  ThreadPool pool_;
  std::vector<ChunkConverter> converters_;
  std::vector<std::vector<std::byte>> outs_;
  uint64_t n_done_ = 0, n_elements_ = 0;
};

void check_output(const std::vector<std::string>& inputs, const std::string& output) {
  std::error_code error;
  for (const std::string& input : inputs)
    if (std::filesystem::equivalent(input, output, error))
      throw std::invalid_argument(
          error_text(kWhere, "output", "another file than the input", quoted(output, 200), "choose another name"));
}

// Errors of an error that is rounded again: worth a line, no refusal.
void warn_if_quantized(const GgufFile& file, const QuantizeOptions& options) {
  for (const GgufTensor& tensor : file.tensors()) {
    const DTypeInfo* info = find_dtype(tensor.type);
    if (!info || info->block_size == 1 || dtype_info(find_mixture(options.type)->base).block_size == 1) continue;
    log_to(options.log, LogLevel::kWarning,
           error_text(kWhere, quoted_tensor(tensor.name), "F32, F16 or BF16", info->name,
                      "errors of both roundings add up; start from the unquantised model if you have it"));
    return;
  }
}

}  // namespace

QuantizeResult quantize_model(const std::string& input, const std::string& output, const QuantizeOptions& options) {
  check_options(options);
  const auto opened = GgufFile::open(input);
  const auto file = plain_model_file(opened);
  check_output(opened->shard_names(), output);
  if (file->tensors().size() < opened->tensors().size())
    log_to(options.log, LogLevel::kInfo,
           "[quantize] the predictor of the PowerInfer file is left out; `hotset convert` keeps it in a sidecar");
  check_input(*file);
  warn_if_quantized(*file, options);
  const std::vector<TensorJob> jobs = JobPlanner(*file, options).plan();
  const bool neuron_major = std::any_of(jobs.begin(), jobs.end(),
                                        [](const TensorJob& job) { return job.name.ends_with(".ffn_down_t.weight"); });
  GgufWriter writer(output);
  set_metadata(writer, *file, *find_mixture(options.type), neuron_major);
  if (!options.unit_order.empty()) set_unit_order(writer, *file, options.unit_order);
  QuantizeResult result;
  for (const TensorJob& job : jobs) {
    writer.add_tensor(job.name, job.type, job.shape);
    result.n_params += static_cast<uint64_t>(job.shape.n_elements());
    result.tensor_bytes += row_bytes(job.type, job.shape.n_elements());
  }
  writer.start();
  Conversion(*file, writer, options).run(jobs);
  writer.finish();
  result.input_bytes = file->size_bytes();
  result.output_bytes = writer.n_written();
  return result;
}

}  // namespace hotset
