// What a model file says about itself: numbers, activation, rope, and that every weight is there in the right shape.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>

#include "core/error.h"
#include "core/model_config.h"
#include "core/weights.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;
using Change = std::function<void(GgufWriter&)>;

const TinySpec kSpec{.n_embd = 32, .n_ff = 64, .n_head = 4, .n_head_kv = 2, .head_dim = 8};

ModelConfig config_of(const Change& change, const std::string& activation = "") {
  GgufWriter writer = tiny_writer(kSpec);
  change(writer);
  return read_model_config(*parse_bytes(writer.bytes()).file, activation);
}

void read_all(const Change& change) {
  GgufWriter writer = tiny_writer(kSpec);
  change(writer);
  const ParsedBytes parsed = parse_bytes(writer.bytes());
  ModelConfig config = read_model_config(*parsed.file, "");
  read_weights(*parsed.file, config);
}

// The change makes reading fail with an error of exactly this kind, whose message names `part`.
template <class E>
void check_fails(const std::string& part, const Change& change) {
  CAPTURE(part);
  try {
    read_all(change);
    FAIL_CHECK("taken");
  } catch (const E& error) {
    CHECK_MESSAGE(std::string(error.what()).find(part) != std::string::npos, error.what());
  } catch (const std::exception& error) {
    FAIL_CHECK("another error: " << std::string(error.what()));
  }
}

void check_malformed(const std::string& part, const Change& change) { check_fails<ModelFormatError>(part, change); }
void check_unsupported(const std::string& part, const Change& change) {
  check_fails<UnsupportedModelError>(part, change);
}

Change set(const std::string& key, uint32_t value) {
  return [=](GgufWriter& w) { w.set_u32("llama." + key, value); };
}
Change set_float(const std::string& key, float value) {
  return [=](GgufWriter& w) { w.set_f32("llama." + key, value); };
}

TEST_CASE("config: a file's numbers are read") {
  const ModelConfig config = config_of([](GgufWriter& w) {
    w.set_u32("llama.rope.dimension_count", 6);
    w.set_f32("llama.rope.freq_base", 500000);
  });
  CHECK(config.arch_name == "llama");
  CHECK(config.n_layer == 2);
  CHECK(config.n_embd == 32);
  CHECK(config.n_ff == 64);
  CHECK(config.n_head == 4);
  CHECK(config.n_head_kv == 2);
  CHECK(config.head_dim == 8);
  CHECK(config.n_rot == 6);
  CHECK(config.n_ctx_train == 1024);
  CHECK(config.norm_eps == 1e-5f);
  CHECK(config.rope_freq_base == 500000);
  CHECK(config.rope_scale == 1);
  CHECK(config.activation == Activation::kRelu);
  CHECK(config.activation_stated);
}

TEST_CASE("config: what a file leaves out has the usual value") {
  const ModelConfig config = config_of([](GgufWriter& w) {
    for (const char* key :
         {"attention.head_count_kv", "attention.key_length", "attention.value_length", "hidden_activation"})
      w.erase(std::string("llama.") + key);
  });
  CHECK(config.n_head_kv == 4);
  CHECK(config.head_dim == 8);
  CHECK(config.n_rot == 8);
  CHECK(config.rope_freq_base == 10000);
  CHECK(config.activation == Activation::kSilu);
  CHECK_FALSE(config.activation_stated);
}

TEST_CASE("config: numbers may have any integer type that holds them") {
  CHECK(config_of([](GgufWriter& w) {
          w.set("llama.block_count", GgufType::kI64, ByteWriter().put<int64_t>(2).bytes());
          w.set("llama.embedding_length", GgufType::kU16, ByteWriter().put<uint16_t>(32).bytes());
        }).n_embd == 32);
  check_malformed("block_count",
                  [](GgufWriter& w) { w.set("llama.block_count", GgufType::kI32, ByteWriter().put(-2).bytes()); });
  check_malformed("block_count", [](GgufWriter& w) { w.set_f32("llama.block_count", 2); });
  check_malformed("block_count", [](GgufWriter& w) {
    w.set("llama.block_count", GgufType::kU64, ByteWriter().put(UINT64_MAX).bytes());
  });
}

TEST_CASE("config: missing and impossible numbers are refused by name") {
  for (const char* key : {"block_count", "embedding_length", "feed_forward_length", "attention.head_count",
                          "context_length", "attention.layer_norm_rms_epsilon"}) {
    check_malformed(key, [&](GgufWriter& w) { w.erase(std::string("llama.") + key); });
    check_malformed(key, [&](GgufWriter& w) { w.set_text(std::string("llama.") + key, "7"); });
  }
  for (const char* key :
       {"block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
        "attention.key_length", "context_length", "rope.dimension_count"}) {
    check_malformed(key, set(key, 0));
    check_malformed(key, set(key, 0xffffffffu));
  }
  for (const float bad : {std::nanf(""), HUGE_VALF, -1.0f, 2.0f})
    check_malformed("layer_norm_rms_epsilon", set_float("attention.layer_norm_rms_epsilon", bad));
  for (const float bad : {std::nanf(""), 0.0f, -10000.0f})
    check_malformed("rope.freq_base", set_float("rope.freq_base", bad));
}

TEST_CASE("config: heads that do not divide are refused") {
  check_malformed("attention.head_count_kv", set("attention.head_count_kv", 3));
  check_malformed("attention.head_count_kv", set("attention.head_count_kv", 8));
  check_malformed("attention.head_count", [](GgufWriter& w) {
    for (const char* key : {"attention.key_length", "attention.value_length"}) w.erase(std::string("llama.") + key);
    w.set_u32("llama.attention.head_count", 6);
  });
  check_malformed("rope.dimension_count", set("rope.dimension_count", 10));
  check_malformed("rope.dimension_count", set("rope.dimension_count", 3));
  check_malformed("rope.dimension_count", [](GgufWriter& w) {  // an odd head
    for (const char* key : {"attention.key_length", "attention.value_length"})
      w.set_u32(std::string("llama.") + key, 7);
  });
  check_unsupported("attention.value_length", set("attention.value_length", 4));
}

TEST_CASE("config: values per layer may be given, all equal") {
  const auto heads = [](const std::vector<uint32_t>& values) {
    return [=](GgufWriter& w) { w.set_array("llama.attention.head_count_kv", GgufType::kU32, values); };
  };
  CHECK(config_of(heads({2, 2})).n_head_kv == 2);
  CHECK(config_of([](GgufWriter& w) {
          w.set_array<int32_t>("llama.feed_forward_length", GgufType::kI32, {64, 64});
        }).n_ff == 64);
  check_unsupported("head_count_kv", heads({2, 4}));
  check_malformed("head_count_kv", heads({2}));
  check_malformed("head_count_kv", heads({2, 2, 2}));
  check_malformed("head_count_kv", heads({}));
  check_malformed("head_count_kv", heads({0, 0}));
  check_malformed("head_count_kv", [](GgufWriter& w) { w.set_texts("llama.attention.head_count_kv", {"2", "2"}); });
  check_malformed("block_count",
                  [](GgufWriter& w) { w.set_array<uint32_t>("llama.block_count", GgufType::kU32, {2, 2}); });
}

TEST_CASE("config: rope scalings") {
  const ModelConfig linear = config_of([](GgufWriter& w) {
    w.set_text("llama.rope.scaling.type", "linear");
    w.set_f32("llama.rope.scaling.factor", 4);
  });
  CHECK(linear.rope_scale == 4);
  CHECK(config_of(set_float("rope.scaling.factor", 4)).rope_scale == 4);  // llama.cpp takes it as linear
  CHECK(config_of(set_float("rope.scaling.factor", 0)).rope_scale == 1);
  const ModelConfig old_spelling = config_of(set_float("rope.scale_linear", 2));
  CHECK(old_spelling.rope_scale == 2);
  CHECK(config_of(set_float("rope.scale_linear", 1)).rope_scale == 1);
  CHECK(config_of([](GgufWriter& w) { w.set_text("llama.rope.scaling.type", "none"); }).rope_scale == 1);
  const ModelConfig yarn = config_of([](GgufWriter& w) {
    w.set_text("llama.rope.scaling.type", "yarn");
    w.set_f32("llama.rope.scaling.factor", 4);
    w.set_u32("llama.rope.scaling.original_context_length", 256);
    w.set_f32("llama.rope.scaling.yarn_beta_fast", 16);
    w.set_f32("llama.rope.scaling.attn_factor", 2);
  });
  CHECK(yarn.rope_scale == 1);
  CHECK(yarn.yarn.factor == 4);
  CHECK(yarn.yarn.n_ctx_original == 256);
  CHECK(yarn.yarn.beta_fast == 16);
  CHECK(yarn.yarn.beta_slow == 1);
  CHECK(yarn.yarn.attention_factor == 2);
  const auto yarn_with = [](const std::string& key, float value) {
    return [=](GgufWriter& w) {
      w.set_text("llama.rope.scaling.type", "yarn");
      w.set_f32("llama.rope.scaling.factor", 4);
      w.set_f32("llama.rope.scaling." + key, value);
    };
  };
  check_malformed("rope.scaling.factor", yarn_with("factor", 0.5f));
  check_malformed("rope.scaling.factor", yarn_with("factor", std::nanf("")));
  check_malformed("yarn_beta_slow", yarn_with("yarn_beta_slow", 32));
  check_unsupported("yarn_ext_factor", yarn_with("yarn_ext_factor", 0.5f));
  check_unsupported("yarn_log_multiplier", yarn_with("yarn_log_multiplier", 0.1f));
  for (const char* type : {"longrope", "", "LINEAR"})
    check_unsupported("rope.scaling.type", [&](GgufWriter& w) { w.set_text("llama.rope.scaling.type", type); });
  check_malformed("rope.scaling.factor", [](GgufWriter& w) { w.set_text("llama.rope.scaling.type", "linear"); });
  for (const float bad : {0.0f, -1.0f, std::nanf("")})
    check_malformed("rope.scaling.factor", [&](GgufWriter& w) {
      w.set_text("llama.rope.scaling.type", "linear");
      w.set_f32("llama.rope.scaling.factor", bad);
    });
}

TEST_CASE("config: the activation is the file's, or the one chosen") {
  const auto says = [](const std::string& name) {
    return [=](GgufWriter& w) { w.set_text("llama.hidden_activation", name); };
  };
  CHECK(config_of(says("silu")).activation == Activation::kSilu);
  CHECK(config_of(says("silu"), "relu").activation == Activation::kRelu);
  CHECK(config_of(says("gelu"), "relu").activation == Activation::kRelu);
  CHECK(config_of([](GgufWriter& w) { w.erase("llama.hidden_activation"); }, "relu").activation_stated);
  CHECK(config_of(says("gelu")).activation == Activation::kGelu);
  check_unsupported("hidden_activation", says("gelu_fast"));
  check_unsupported("hidden_activation", says(""));
  check_malformed("hidden_activation", set("hidden_activation", 1));
  CHECK_THROWS_AS(config_of(says("silu"), "swish"), std::invalid_argument);
}

TEST_CASE("config: FATReLU needs a threshold, in the file or as chosen") {
  const auto fatrelu = [](float threshold) {
    return [=](GgufWriter& w) {
      w.set_text("llama.hidden_activation", "fatrelu");
      w.set_f32("llama.hidden_activation_threshold", threshold);
    };
  };
  CHECK(config_of(fatrelu(0.01f)).activation_threshold == 0.01f);
  CHECK(config_of(fatrelu(0.01f), "fatrelu").activation_threshold == 0.01f);
  CHECK(config_of(fatrelu(0.01f), "fatrelu:0.5").activation_threshold == 0.5f);
  CHECK(config_of(fatrelu(0.01f), "relu").activation_threshold == 0);
  for (const float bad : {-1.0f, std::nanf(""), INFINITY}) check_malformed("hidden_activation_threshold", fatrelu(bad));
  check_malformed("hidden_activation_threshold",
                  [](GgufWriter& w) { w.set_text("llama.hidden_activation", "fatrelu"); });
  for (const char* bad : {"fatrelu:", "fatrelu:x", "fatrelu:-1", "fatrelu:nan", "fatrelu:1 ", "relu:1"})
    CHECK_THROWS_AS(config_of(fatrelu(0.01f), bad), std::invalid_argument);
}

TEST_CASE("config: windows, of all layers, of every n-th not, or as a file lists them") {
  const auto of_family = [](const std::string& arch, auto change) {
    GgufWriter w = tiny_writer({.arch = arch, .n_layer = 7, .window = 9, .softcap = 30});
    change(w);
    const ParsedBytes file = parse_bytes(w.bytes());
    return read_model_config(*file.file, "");
  };
  using Windows = std::vector<int64_t>;
  const auto as_is = [](GgufWriter&) {};
  CHECK(of_family("llama", as_is).windows == Windows(7, 9));
  CHECK(of_family("gemma2", as_is).windows == Windows{9, 0, 9, 0, 9, 0, 9});
  CHECK(of_family("gemma3", as_is).windows == Windows{9, 9, 9, 9, 9, 0, 9});
  const std::string key = "gemma3.attention.sliding_window_pattern";
  CHECK(of_family("gemma3", [&](GgufWriter& w) { w.set_u32(key, 3); }).windows == Windows{9, 9, 0, 9, 9, 0, 9});
  const std::vector<uint8_t> listed{0, 1, 1, 0, 0, 0, 1};
  CHECK(of_family("gemma3", [&](GgufWriter& w) { w.set_array(key, GgufType::kBool, listed); }).windows ==
        Windows{0, 9, 9, 0, 0, 0, 9});
  const std::vector<uint8_t> short_list{0, 1};
  CHECK_THROWS_AS(of_family("gemma3", [&](GgufWriter& w) { w.set_array(key, GgufType::kBool, short_list); }),
                  ModelFormatError);
  CHECK(of_family("gemma3", [&](GgufWriter& w) { w.erase("gemma3.attention.sliding_window"); }).windows ==
        Windows(7, 0));
}

TEST_CASE("config: scales of scores, logits and embeddings") {
  const auto of = [](const TinySpec& spec) {
    const ParsedBytes file = parse_bytes(tiny_writer(spec).bytes());
    return read_model_config(*file.file, "");
  };
  const ModelConfig plain = of({});
  CHECK(plain.attention_scale == 0.25f);
  CHECK(plain.embedding_scale == 1);
  CHECK(plain.attention_softcap == 0);
  CHECK(plain.logit_softcap == 0);
  const ModelConfig gemma = of({.arch = "gemma2", .n_embd = 144, .softcap = 30});
  CHECK(gemma.attention_scale == 0.25f);
  CHECK(gemma.embedding_scale == 12);
  CHECK(gemma.attention_softcap == 30);
  CHECK(gemma.logit_softcap == 30);
  CHECK(gemma.rope_freq_base_local == 0);
  CHECK(of({.arch = "gemma3"}).rope_freq_base_local == 10000);
  // The largest gemma2 scales by n_embd / n_head.
  CHECK(of({.arch = "gemma2", .n_layer = 46, .n_embd = 144, .n_head = 4}).attention_scale == doctest::Approx(1.0 / 6));
  CHECK(config_of(set_float("attention.scale", 0.5f)).attention_scale == 0.5f);
}

TEST_CASE("config: unknown families and experts are unsupported, no family is malformed") {
  check_unsupported("\"mamba\"", [](GgufWriter& w) { w.set_text("general.architecture", "mamba"); });
  check_unsupported("architecture", [](GgufWriter& w) { w.set_text("general.architecture", "LLAMA\n"); });
  check_malformed("general.architecture", [](GgufWriter& w) { w.erase("general.architecture"); });
  check_malformed("general.architecture", [](GgufWriter& w) { w.set_u32("general.architecture", 1); });
  check_unsupported("expert_count", set("expert_count", 8));
  check_unsupported("at most 256 heads per KV head", [](GgufWriter& w) {
    w.set_u32("llama.attention.head_count", 512);
    w.set_u32("llama.attention.head_count_kv", 1);
  });
  read_all(set("expert_count", 0));
}

TEST_CASE("weights: all are found, counted and measured") {
  for (const bool tied : {false, true}) {
    TinySpec spec = kSpec;
    spec.tied = tied;
    spec.neuron_major = tied;
    const auto model = load_tiny(spec);
    const Weights& w = model->weights();
    const int64_t n_vocab = model->config().n_vocab;
    CHECK(n_vocab == model->tokenizer().n_vocab());
    CHECK(w.tied == tied);
    CHECK((w.head.output.view.data == w.token_embd.view.data) == tied);
    CHECK(w.all_f32);
    const int64_t per_layer = 2 * 32 + 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64;
    CHECK(w.n_params == static_cast<uint64_t>(2 * per_layer + 32 + (tied ? 1 : 2) * 32 * n_vocab));
    CHECK(w.size_bytes == 4 * w.n_params);
    CHECK(static_cast<bool>(w.layers[1].ffn_down_t) == tied);
    CHECK(static_cast<bool>(w.layers[1].ffn_down) == !tied);
    CHECK(w.layers[1].ffn_up.view.n_cols == 32);
    CHECK(w.layers[1].ffn_up.view.n_rows == 64);
  }
  CHECK_FALSE(load_tiny({.dtype = DType::kQ8_0})->weights().all_f32);
}

TEST_CASE("weights: every missing tensor is named, except the output head, which is then tied") {
  const GgufWriter whole = tiny_writer(kSpec);
  for (const auto& tensor : whole.tensors()) {
    const std::string name = tensor.name;
    if (name == "output.weight")
      read_all([&](GgufWriter& w) { w.erase_tensor(name); });
    else
      check_malformed(name == "blk.1.ffn_down_t.weight" || name == "blk.0.ffn_down_t.weight" ? "ffn_down" : name,
                      [&](GgufWriter& w) { w.erase_tensor(name); });
  }
}

TEST_CASE("weights: every wrong shape is refused") {
  const GgufWriter whole = tiny_writer(kSpec);
  for (const auto& tensor : whole.tensors()) {
    const std::string name = tensor.name;
    const auto with_shape = [&](const std::vector<uint64_t>& ne) {
      return [=](GgufWriter& w) {
        uint64_t n = 4;
        for (const uint64_t each : ne) n *= each;
        w.tensor(name).ne = ne;
        w.tensor(name).data.resize(n);
      };
    };
    std::vector<uint64_t> ne = tensor.ne;
    ne[0] += 1;
    check_malformed("shape", with_shape(ne));
    ne = tensor.ne;
    ne.push_back(2);  // one dimension more
    if (name != "token_embd.weight" || ne.size() > 2) check_malformed("shape", with_shape(ne));
    if (tensor.ne.size() == 2 && name != "token_embd.weight") {
      ne = tensor.ne;
      ne[1] -= 1;
      check_malformed("shape", with_shape(ne));
    }
    if (tensor.ne.size() == 2 && tensor.ne[0] != tensor.ne[1])
      check_malformed("shape", with_shape({tensor.ne[1], tensor.ne[0]}));
  }
}

TEST_CASE("weights: types without kernels, unknown types and norms that are not F32 are unsupported") {
  const auto with_type = [](const std::string& name, uint32_t type, size_t n_bytes) {
    return [=](GgufWriter& w) {
      w.tensor(name).type = type;
      w.tensor(name).data.resize(n_bytes);
    };
  };
  check_unsupported("Q8_1", with_type("blk.0.attn_q.weight", 9, 32 * 36));
  check_unsupported("type number 99", with_type("blk.0.attn_q.weight", 99, 4096));
  check_unsupported("I8", with_type("blk.1.ffn_up.weight", 24, 2048));
  check_unsupported("F16", with_type("output_norm.weight", 1, 64));
  read_all(with_type("blk.0.attn_q.weight", 1, 2048));  // types may be mixed
}

TEST_CASE("weights: tensors that would be ignored are refused, also of a layer too many") {
  const std::string data(128, '\0');
  check_unsupported("blk.0.attn_norm.bias", [&](GgufWriter& w) { w.tensor("blk.0.attn_norm.bias", {32}, 0, data); });
  check_unsupported("position_embd", [&](GgufWriter& w) { w.tensor("position_embd.weight", {32}, 0, data); });
  check_unsupported("blk.2.", [&](GgufWriter& w) { w.tensor("blk.2.attn_norm.weight", {32}, 0, data); });
  check_unsupported("ffn_down.weight", [&](GgufWriter& w) {
    w.tensor("blk.0.ffn_down.weight", {64, 32}, 0, std::string(64 * 32 * 4, '\0'));
  });
  check_malformed("blk.1.", [](GgufWriter& w) {
    const GgufWriter whole = tiny_writer(kSpec);
    for (const auto& tensor : whole.tensors())
      if (tensor.name.rfind("blk.1.", 0) == 0) w.erase_tensor(tensor.name);
  });
}

TEST_CASE("weights: divisors of rotary frequencies must be positive numbers") {
  TinySpec spec = kSpec;
  spec.rope_freqs = true;
  for (const float bad : {0.0f, -1.0f, std::nanf(""), HUGE_VALF}) {
    GgufWriter writer = tiny_writer(spec);
    writer.tensor("rope_freqs.weight").data = ByteWriter().put(1.f).put(bad).put(1.f).put(1.f).bytes();
    CHECK_THROWS_AS(Engine::create(load_bytes(writer.bytes()), {.n_threads = 1}), ModelFormatError);
  }
}

TEST_CASE("model: a vocabulary larger than the embedding table is malformed, a smaller one is taken") {
  GgufWriter writer = tiny_writer(kSpec);
  for (const char* name : {"token_embd.weight", "output.weight"}) {
    writer.tensor(name).ne[1] += 3;
    writer.tensor(name).data.resize(writer.tensor(name).data.size() + 3 * 32 * 4);
  }
  CHECK(load_bytes(writer.bytes())->config().n_vocab == load_tiny(kSpec)->config().n_vocab + 3);
  for (const char* name : {"token_embd.weight", "output.weight"}) {
    writer.tensor(name).ne[1] -= 4;
    writer.tensor(name).data.resize(writer.tensor(name).data.size() - 4 * 32 * 4);
  }
  CHECK_THROWS_AS(load_bytes(writer.bytes()), ModelFormatError);
}

TEST_CASE("model: an activation that is not stated is announced once") {
  GgufWriter writer = tiny_writer(kSpec);
  std::vector<std::string> lines;
  ModelOptions options;
  options.log = [&](LogLevel level, const std::string& line) {
    if (level == LogLevel::kWarning) lines.push_back(line);
  };
  load_bytes(writer.bytes(), options);
  CHECK(lines.empty());
  writer.erase("llama.hidden_activation");
  load_bytes(writer.bytes(), options);
  CHECK(lines.size() == 1);
  options.activation = "relu";
  load_bytes(writer.bytes(), options);
  CHECK(lines.size() == 1);
}

TEST_CASE("model: inspection says whether a file runs, and if not why") {
  GgufWriter writer = tiny_writer(kSpec);
  const Inspection good = inspect(TempFile(writer.bytes()).path());
  CHECK(good.runs);
  CHECK(good.n_params == load_tiny(kSpec)->n_params());
  CHECK(good.tensors.size() == writer.tensors().size());
  CHECK(good.verdict.find("tokenizer llama") != std::string::npos);

  writer.set_text("tokenizer.ggml.model", "gpt2");
  writer.set_text("tokenizer.ggml.pre", "qwen2");
  CHECK(inspect(TempFile(writer.bytes()).path()).verdict.find("pre-tokenizer qwen2") != std::string::npos);
  for (const char* name : {"qwen9", "default"}) {
    writer.set_text("tokenizer.ggml.pre", name);
    const Inspection unknown = inspect(TempFile(writer.bytes()).path());
    CHECK_FALSE(unknown.runs);
    CHECK(unknown.verdict.find("pre-tokenizer (tokenizer.ggml.pre)") != std::string::npos);
    CHECK(unknown.verdict.find(name) != std::string::npos);
  }

  writer.set_text("general.architecture", "mamba");
  const Inspection bad = inspect(TempFile(writer.bytes()).path());
  CHECK_FALSE(bad.runs);
  CHECK(bad.verdict.find("mamba") != std::string::npos);
}

}  // namespace
