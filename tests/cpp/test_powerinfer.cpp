// PowerInfer's files: the same results as of a plain file, the predictor in them, and what is wrong with others.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>

#include "core/devices.h"
#include "core/planner.h"
#include "core/powerinfer.h"
#include "core/powerinfer_convert.h"
#include "core/quantize.h"
#include "core/sidecar.h"
#include "core/weights.h"
#include "tests/cpp/hybrid_util.h"

namespace {

using namespace hotset;
using namespace hotset::test;

constexpr Family kArchs[] = {
    {"llama", Activation::kRelu}, {"bamboo", Activation::kDRelu}, {"falcon", Activation::kRelu},
    {"opt", Activation::kRelu}};
constexpr int64_t kRank = 32;

// A plain tiny model, and as PowerInfer writes it.
struct Pair {
  TinySpec spec;
  GgufWriter plain, powerinfer;
};

std::string with_magic(const GgufWriter& writer) { return writer.bytes().replace(0, 4, "PWRI"); }

// What PowerInfer's converter does otherwise: no activation, two unused positions first, the bias of the turned matrix
// under its name, and factors that are told apart from units by nothing but their names.
Pair pair_of(const Family& family, DType dtype, int64_t n_layer = 2) {
  TinySpec spec = spec_of(family, dtype);
  spec.n_layer = n_layer, spec.biases = spec.arch == "opt";
  Pair out{spec, tiny_writer(spec), tiny_writer(spec)};
  GgufWriter& file = out.powerinfer;
  file.erase(spec.arch + ".hidden_activation");
  if (spec.arch == "opt") {
    file.erase("opt.attention.layer_norm_epsilon");
    file.set_u32("opt.context_length", static_cast<uint32_t>(spec.n_ctx + 2));
    GgufWriter::Tensor& positions = file.tensor("position_embd.weight");
    positions.ne[1] += 2;
    positions.data.insert(0, std::string(2 * row_bytes(dtype, spec.n_embd), '\x3c'));
    for (int64_t layer = 0; layer < n_layer; ++layer)
      file.tensor(cat("blk.", layer, ".ffn_down.bias")).name = cat("blk.", layer, ".ffn_down_t.bias");
  }
  std::mt19937_64 random(77);
  for (int64_t layer = 0; layer < n_layer; ++layer) {
    const auto add = [&](const char* name, int64_t n_in, int64_t n_out) {
      const DType type = dtype_info(dtype).block_size == 256 ? DType::kQ5_0 : dtype;
      file.tensor(cat("blk.", layer, ".", name), {static_cast<uint64_t>(n_in), static_cast<uint64_t>(n_out)},
                  static_cast<uint32_t>(type), random_matrix(random, type, n_in, n_out));
    };
    add("fc1.weight", spec.n_embd, kRank);
    add("fc2.weight", kRank, spec.n_ff);
  }
  return out;
}

struct Outcome {
  Logits logits;
  UnitCounts counts;
};

Outcome run(const std::shared_ptr<const Model>& model, const std::string& mode, const std::string& sidecar = "none") {
  const auto engine = Engine::create(model, {.n_threads = 1, .mode = mode, .sidecar = sidecar});
  Session session = engine->open_session();
  const Ids ids = random_tokens(5, 12, 270);
  const Engine::Entry entry{&session, ids, true};
  engine->advance({&entry, 1});
  return {{session.all_logits().begin(), session.all_logits().end()}, engine->unit_counts()};
}

template <class E = ModelFormatError>
void refuse(const std::string& bytes, const char* what) {
  CHECK_THROWS_WITH_AS(load_bytes(bytes), doctest::Contains(what), E);
}

TEST_CASE("powerinfer: the bits of a plain file with the same weights") {
  for (const Family& family : kArchs)
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kQ4_0, DType::kQ4_K}) {
      if (skips_type(&family == kArchs, dtype)) continue;
      CAPTURE(family.arch);
      CAPTURE(dtype_name(dtype));
      const Pair files = pair_of(family, dtype);
      const auto plain = load_bytes(files.plain.bytes()), model = load_bytes(with_magic(files.powerinfer));
      CHECK(model->config().activation == family.activation);
      CHECK(model->config().n_ctx_train == plain->config().n_ctx_train);
      CHECK(model->fingerprint() == plain->fingerprint());
      CHECK(model->n_params() == plain->n_params());
      CHECK(model->size_bytes() == plain->size_bytes());
      REQUIRE(model->predictor());
      CHECK(!plain->predictor());
      for (const char* mode : {"auto", "exact", "dense"}) CHECK(run(model, mode).logits == run(plain, mode).logits);
      const auto engine = Engine::create(model, {.n_threads = 1});
      CHECK(engine->info().mode == "exact");
      CHECK(engine->info().weight_bytes_per_token ==
            Engine::create(plain, {.n_threads = 1})->info().weight_bytes_per_token);
    }
}

// The plan up to the margins of its one layer, so that its buffers have what they are made of.
TEST_CASE("powerinfer: margins are fc2 max(fc1 x, 0) of the residual before the norm, less the threshold") {
  for (const Family& family : kArchs) {
    CAPTURE(family.arch);
    Pair files = pair_of(family, DType::kF32, 1);
    files.powerinfer.set_f32("powerinfer.sparse_threshold", 0.125f);
    const auto model = load_bytes(with_magic(files.powerinfer));
    const Predictor predictor(model->weights(), predictor_of(model), {});
    PlanOptions options{.max_rows = 4, .max_output_rows = 4, .max_positions = 64};
    options.exact = true, options.predictor = &predictor;
    Plan plan = build_plan(model->config(), model->weights(), options);
    CHECK(dump(plan).find("hidden32 = MatMul(blk.0.fc1.weight F32; x)") != std::string::npos);
    const auto is_detect = [](const Step& step) { return std::holds_alternative<op::Detect>(step.op); };
    const auto first = std::find_if(plan.steps.begin(), plan.steps.end(), is_detect);
    REQUIRE(first != plan.steps.end());
    const op::Detect margins = std::get<op::Detect>(first->op);
    plan.steps.erase(first + 1, plan.steps.end());
    const auto device = make_cpu_device({1, ""});
    const auto program = device->compile(plan, 0);
    const auto kv = device->alloc(plan.kv.block_bytes());
    std::vector<std::byte*> blocks{kv->data()};
    StepParams params;
    params.rows = {{5, 0, 0}, {9, 1, 0}, {40, 2, 0}};
    params.sequences = {{&blocks}};
    device->launch(*program, params);
    device->synchronize();
    const auto buffer = [&](const char* name) -> const float* {
      for (size_t i = 0; i < plan.buffers.size(); ++i)
        if (plan.buffers[i].name == name) return program->buffer({static_cast<int32_t>(i)});
      return nullptr;
    };
    const auto stride = [](int64_t n) { return (n + 15) / 16 * 16; };
    const int64_t n_embd = files.spec.n_embd;
    const auto matrix = [&](const char* name) {
      const std::string& data = files.powerinfer.tensor(name).data;
      std::vector<float> out(data.size() / sizeof(float));
      std::memcpy(out.data(), data.data(), data.size());
      return out;
    };
    const std::vector<float> fc1 = matrix("blk.0.fc1.weight"), fc2 = matrix("blk.0.fc2.weight");
    for (int64_t row = 0; row < 3; ++row) {
      const float* const x = buffer("x") + row * stride(n_embd);
      double hidden[kRank];
      for (int64_t i = 0; i < kRank; ++i) {
        hidden[i] = 0;
        for (int64_t j = 0; j < n_embd; ++j)
          hidden[i] += static_cast<double>(fc1[static_cast<size_t>(i * n_embd + j)]) * x[j];
        hidden[i] = std::max(hidden[i], 0.0);
      }
      for (int64_t unit = 0; unit < files.spec.n_ff; ++unit) {
        double expected = -0.125;
        for (int64_t i = 0; i < kRank; ++i)
          expected += static_cast<double>(fc2[static_cast<size_t>(unit * kRank + i)]) * hidden[i];
        const float got = program->buffer(margins.out)[row * stride(files.spec.n_ff) + unit];
        CHECK(got == doctest::Approx(expected).epsilon(1e-4));
      }
    }
  }
}

// PowerInfer computes a unit whose value is not below the threshold.
TEST_CASE("powerinfer: a value that equals the threshold is enough, and a threshold may rule all or none out") {
  Pair files = pair_of(kArchs[0], DType::kF32);
  const auto counts_with = [&](float threshold) {
    files.powerinfer.set_f32("powerinfer.sparse_threshold", threshold);
    return run(load_bytes(with_magic(files.powerinfer)), "predict");
  };
  const Outcome exact = run(load_bytes(files.plain.bytes()), "exact");
  const Outcome all = counts_with(-1e30f), none = counts_with(1e30f), some = counts_with(0);
  CHECK(all.logits == exact.logits);
  CHECK(all.counts.candidates == all.counts.total);
  CHECK(all.counts.active == exact.counts.active);
  CHECK(none.counts.candidates == 0);
  CHECK(some.counts.candidates > 0);
  CHECK(some.counts.candidates < some.counts.total);
  CHECK(some.counts.active < some.counts.candidates);  // the detect rows have the last word
  CHECK(some.logits != exact.logits);
  for (int64_t layer = 0; layer < files.spec.n_layer; ++layer) {
    std::string& fc2 = files.powerinfer.tensor(cat("blk.", layer, ".fc2.weight")).data;
    fc2.assign(fc2.size(), '\0');
  }
  CHECK(counts_with(0).counts.candidates == all.counts.total);
  CHECK(counts_with(0x1p-149f).counts.candidates == 0);
  CHECK(counts_with(-0x1p-149f).counts.candidates == all.counts.total);
  files.powerinfer.erase("powerinfer.sparse_threshold");
  CHECK(run(load_bytes(with_magic(files.powerinfer)), "predict").counts.candidates == all.counts.total);
}

TEST_CASE("powerinfer: layers, or all of them, may lack the predictor") {
  Pair files = pair_of(kArchs[0], DType::kF32);
  files.powerinfer.set_f32("powerinfer.sparse_threshold", 1e30f);
  for (const char* name : {"fc1", "fc2"}) files.powerinfer.erase_tensor(cat("blk.0.", name, ".weight"));
  const UnitCounts counts = run(load_bytes(with_magic(files.powerinfer)), "predict").counts;
  CHECK(counts.candidates == counts.total / 2);
  for (const char* name : {"fc1", "fc2"}) files.powerinfer.erase_tensor(cat("blk.1.", name, ".weight"));
  const auto model = load_bytes(with_magic(files.powerinfer));
  CHECK(!model->predictor());
  CHECK(run(model, "exact").logits == run(load_bytes(files.plain.bytes()), "exact").logits);
  CHECK_THROWS_WITH_AS(run(model, "predict"), doctest::Contains("expected a predictor"), Error);
}

TEST_CASE("powerinfer: its predictor gives the bits of the host alone wherever units and predictor lie") {
  std::mt19937_64 random(31);
  for (const Family& family : kArchs) {
    CAPTURE(family.arch);
    const Pair files = pair_of(family, DType::kQ8_0, 3);
    const auto model = load_bytes(with_magic(files.powerinfer));
    const Ids ids = random_tokens(random(), 12, 270);
    for (int i = 0; i < 3; ++i) {
      EngineOptions options = hybrid_options(random, files.spec, "exact"), host = {.n_threads = 1, .mode = "predict"};
      options.mode = "predict", options.sidecar = host.sidecar = "none";
      const auto split = Engine::create(model, options), alone = Engine::create(model, host);
      CHECK(all_logits(split, ids) == all_logits(alone, ids));
      CHECK(split->unit_counts().candidates == alone->unit_counts().candidates);
      CHECK(split->unit_counts().candidates < split->unit_counts().total);
    }
  }
}

TEST_CASE("powerinfer: converted it gives the same, and its sidecar the same candidates") {
  for (const Family& family : kArchs) {
    CAPTURE(family.arch);
    const Pair files = pair_of(family, DType::kQ8_0);
    const TempFile in(with_magic(files.powerinfer)), out("");
    const PowerInferConversion done = convert_powerinfer(in.path(), out.path());
    const TempFile sidecar("");  // takes the name over, to be removed
    std::filesystem::rename(done.sidecar, sidecar.path());
    const auto before = Model::load(in.path()), after = Model::load(out.path());
    CHECK(done.n_bytes == std::filesystem::file_size(out.path()));
    CHECK(done.n_params == before->n_params());
    CHECK(done.n_tensors == files.plain.tensors().size());
    CHECK(after->config().activation_stated);
    CHECK(after->fingerprint() == before->fingerprint());
    CHECK(run(after, "exact").logits == run(before, "exact").logits);
    const Outcome expected = run(before, "predict"), got = run(after, "predict", sidecar.path());
    CHECK(got.logits == expected.logits);
    CHECK(got.counts.candidates == expected.counts.candidates);
    CHECK(got.counts.candidates < got.counts.total);
    // A sidecar with a predictor comes before the file's own.
    CHECK(run(before, "predict", sidecar.path()).logits == expected.logits);
  }
}

TEST_CASE("powerinfer: a conversion that cannot be, or is stopped, leaves nothing") {
  const Pair files = pair_of(kArchs[0], DType::kF32);
  const TempFile in(with_magic(files.powerinfer)), plain(files.plain.bytes()), out("as it was");
  CHECK_THROWS_AS(convert_powerinfer(plain.path(), out.path()), std::invalid_argument);
  CHECK_THROWS_AS(convert_powerinfer(in.path(), in.path()), std::invalid_argument);
  int n_asked = 0;
  const TempFile whole("");
  std::filesystem::remove(convert_powerinfer(in.path(), whole.path(), [&] { return ++n_asked < 0; }).sidecar);
  for (const int at : {1, 2, n_asked / 2, n_asked - 1, n_asked}) {
    int n = 0;
    CHECK_THROWS_AS(convert_powerinfer(in.path(), out.path(), [&] { return ++n == at; }), CancelledError);
  }
  CHECK(std::filesystem::file_size(out.path()) == 9);
  CHECK(!std::filesystem::exists(Sidecar::path_beside(out.path())));
}

TEST_CASE("powerinfer: quantised as a plain file is") {
  for (const Family& family : kArchs) {
    CAPTURE(family.arch);
    const Pair files = pair_of(family, DType::kF16);
    const TempFile in(with_magic(files.powerinfer)), plain(files.plain.bytes()), out(""), expected("");
    QuantizeOptions options{.type = "q8_0", .n_threads = 1};
    std::string log;
    options.log = [&](LogLevel, const std::string& line) { log += line; };
    const QuantizeResult got = quantize_model(in.path(), out.path(), options);
    CHECK(log.find("predictor") != std::string::npos);
    CHECK(got.tensor_bytes == quantize_model(plain.path(), expected.path(), options).tensor_bytes);
    CHECK(run(Model::load(out.path()), "exact").logits == run(Model::load(expected.path()), "exact").logits);
  }
}

TEST_CASE("powerinfer: what is wrong with a file is said") {
  const auto changed = [](const Family& family, auto change) {
    Pair files = pair_of(family, DType::kF32);
    change(files.powerinfer);
    return with_magic(files.powerinfer);
  };
  const auto llama = [&](auto change) { return changed(kArchs[0], change); };
  const auto opt = [&](auto change) { return changed(kArchs[3], change); };
  refuse(llama([](GgufWriter& f) { f.erase_tensor("blk.1.fc2.weight"); }), "blk.1.fc2.weight");
  refuse(llama([](GgufWriter& f) { f.erase_tensor("blk.0.fc1.weight"); }), "blk.0.fc1.weight");
  refuse(llama([](GgufWriter& f) { f.tensor("blk.0.fc1.weight").ne = {kRank, 50}; }), "blk.0.fc1.weight");
  refuse(llama([](GgufWriter& f) { f.tensor("blk.1.fc2.weight").ne[1] -= 1; }), "blk.1.fc2.weight");
  refuse(llama([](GgufWriter& f) { f.tensor("blk.1.fc2.weight").name = "blk.01.fc2.weight"; }), "blk.1.fc2.weight");
  refuse(llama([](GgufWriter& f) {
           for (const char* name : {"fc1", "fc2"}) f.tensor(cat("blk.1.", name, ".weight")).name.replace(4, 1, "2");
         }),
         "some of other layers");
  refuse<UnsupportedModelError>(llama([](GgufWriter& f) { f.tensor("blk.0.fc2.weight").type = 26; }), "type of tensor");
  refuse<UnsupportedModelError>(llama([](GgufWriter& f) { f.tensor("blk.0.fc2.weight").type = 99; }), "type number 99");
  refuse(llama([](GgufWriter& f) { f.set_f32("powerinfer.sparse_threshold", std::nanf("")); }), "sparse_threshold");
  refuse(llama([](GgufWriter& f) { f.set_text("powerinfer.sparse_threshold", "0"); }), "sparse_threshold");
  refuse(llama([](GgufWriter& f) { f.tensor("blk.0.ffn_down_t.weight").ne[1] -= 1; }), "blk.0.ffn_down_t.weight");
  refuse<UnsupportedModelError>(llama([](GgufWriter& f) { f.set_text("general.architecture", "qwen2"); }),
                                "expected llama, bamboo, falcon or opt");
  refuse<UnsupportedModelError>(llama([](GgufWriter& f) { f.erase("general.architecture"); }), "expected llama");
  refuse<UnsupportedModelError>(llama([](GgufWriter& f) { f.set_text("general.architecture", "generic.gpu_index"); }),
                                ".gpuidx");
  refuse(opt([](GgufWriter& f) { f.tensor("position_embd.weight").ne[1] = 2; }), "position_embd.weight");
  refuse(opt([](GgufWriter& f) { f.tensor("position_embd.weight").ne[1] -= 1; }), "position_embd.weight");
  refuse<UnsupportedModelError>(opt([](GgufWriter& f) { f.tensor("position_embd.weight").type = 99; }),
                                "position_embd.weight");
  refuse(opt([](GgufWriter& f) { f.set_u32("opt.context_length", 2); }), "opt.context_length");
  refuse(opt([](GgufWriter& f) {
           GgufWriter::Tensor both = f.tensor("blk.0.ffn_down_t.bias");
           f.tensor("blk.0.ffn_down.bias", both.ne, both.type, both.data);
         }),
         "one of the two spellings");
  const std::string whole = llama([](GgufWriter&) {});
  for (size_t n = 1; n < whole.size(); n += 1 + n / 16) refuse(whole.substr(0, n), "gguf");
}

TEST_CASE("powerinfer: byte-level vocabularies that name no splitter get their family's") {
  const char* const expected[] = {"", "", "falcon", "gpt-2"};
  for (size_t i = 0; i < std::size(kArchs); ++i) {
    Pair files = pair_of(kArchs[i], DType::kF32, 1);
    const auto splitter = [&] {
      const ParsedBytes parsed = parse_bytes(with_magic(files.powerinfer));
      return plain_model_file(parsed.file)->get_string("tokenizer.ggml.pre").value_or("");
    };
    CHECK(splitter() == "");
    files.powerinfer.set_text("tokenizer.ggml.model", "gpt2");
    CHECK(splitter() == expected[i]);
    files.powerinfer.set_text("tokenizer.ggml.pre", "");
    CHECK(splitter() == expected[i]);
    files.powerinfer.set_text("tokenizer.ggml.pre", "mpt");
    CHECK(splitter() == "mpt");
  }
}

TEST_CASE("powerinfer: a split file beside the model, whole or not, is a note") {
  const Pair files = pair_of(kArchs[0], DType::kF32);
  const TempFile in(with_magic(files.powerinfer));
  std::string log;
  const ModelOptions options{.activation = "", .log = [&](LogLevel, const std::string& line) { log += line + "\n"; }};
  Model::load(in.path(), options);
  CHECK(log.find("gpuidx") == std::string::npos);
  CHECK(log.find("activation relu") != std::string::npos);
  std::ofstream(gpu_index_beside(in.path())) << "PWRI and nothing that makes sense";
  Model::load(in.path(), options);
  std::filesystem::remove(gpu_index_beside(in.path()));
  CHECK(log.find("generated.gpuidx\" is not read") != std::string::npos);
  CHECK(Model::load(in.path(), {.activation = "silu", .log = {}})->config().activation == Activation::kSilu);
  CHECK(inspect(in.path()).verdict.find("a PowerInfer file with a predictor") != std::string::npos);
  CHECK(Model::load_tokenizer(in.path())->n_vocab() > 0);
}

}  // namespace
