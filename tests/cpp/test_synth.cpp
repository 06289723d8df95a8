// Made-up models: the mathematics of firing, the files, and what their units really do in forward passes.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>
#include <set>
#include <sstream>

#include "core/devices.h"
#include "core/gguf.h"
#include "core/planner.h"
#include "core/quantize.h"
#include "core/synth.h"
#include "core/synth_firing.h"
#include "core/synth_random.h"
#include "core/synth_tensors.h"
#include "core/synth_vocabulary.h"
#include "core/weights.h"
#include "tests/cpp/families.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;
using Ids = std::vector<int32_t>;

constexpr size_t kRows = 512;  // tokens of a sequence
constexpr size_t kSequences = 3;

SynthSpec tiny_spec(const std::string& arch, const std::string& type = "f32") {
  SynthSpec spec;
  spec.arch = arch;
  spec.type = type;
  for (const SynthShape& shape : synth_shapes())
    if (shape.name == "tiny") spec.shape = shape;
  if (find_architecture(arch)->gated) spec.activation = "relu";
  return spec;
}

std::shared_ptr<const Model> load(const SynthSpec& spec) { return load_synth(spec, {.n_threads = 2}, {}); }

std::string file_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream out;
  out << file.rdbuf();
  return out.str();
}

std::string synth_bytes(const SynthSpec& spec, int32_t n_threads) {
  const TempFile file("");
  write_synth(spec, file.path(), {.n_threads = n_threads});
  return file_bytes(file.path());
}

std::vector<std::string> families() {
  std::vector<std::string> out;
  std::istringstream names(known_architectures(is_plain));
  for (std::string name; names >> name;) out.push_back(name.substr(0, name.find(',')));
  return out;
}

// English: shared test text where this machine has it, else this repository's own.
Ids real_tokens(const Tokenizer& tokenizer) {
  const auto shared = shared_data() / "text" / "wiki.test.raw";
  const bool has_shared = !shared_data().empty() && std::filesystem::exists(shared);
  const std::string text = file_bytes(has_shared ? shared.string() : HOTSET_SOURCE_DIR "/docs/ARCHITECTURE.md");
  Ids ids = tokenizer.encode(std::string_view(text).substr(0, 16000));
  ids.resize(std::min(ids.size(), kRows * kSequences));
  return ids;
}

// How often each unit of a layer is in the list that a real exact step makes, over sequences of kRows tokens.
struct Firing {
  std::vector<double> counts;  // per unit
  double n_rows = 0;

  double density() const {
    return std::accumulate(counts.begin(), counts.end(), 0.0) / (n_rows * static_cast<double>(counts.size()));
  }
  double top_share(double top) const {
    std::vector<double> sorted = counts;
    std::sort(sorted.rbegin(), sorted.rend());
    const auto n_top = static_cast<std::ptrdiff_t>(std::lround(top * static_cast<double>(sorted.size())));
    return std::accumulate(sorted.begin(), sorted.begin() + n_top, 0.0) /
           std::accumulate(sorted.begin(), sorted.end(), 0.0);
  }
};

// The plan up to the selection of a layer, so that its list is what the buffer holds at the end.
Plan plan_to_layer(const Model& model, int64_t layer) {
  PlanOptions options;
  options.max_rows = kRows;
  options.max_output_rows = 1;
  options.max_positions = kRows;
  options.exact = true;
  Plan plan = build_plan(model.config(), model.weights(), options);
  int64_t n_selected = 0;
  for (size_t i = 0; i < plan.steps.size(); ++i)
    if (std::holds_alternative<op::SelectUnits>(plan.steps[i].op) && n_selected++ == layer) plan.steps.resize(i + 1);
  return plan;
}

Firing measure(const Model& model, const Ids& ids, int64_t layer) {
  const Plan plan = plan_to_layer(model, layer);
  const BufferId units = std::get<op::SelectUnits>(plan.steps.back().op).out;
  const auto device = make_cpu_device({2, ""});
  const auto program = device->compile(plan, 0);
  const size_t n_blocks = kRows / KvLayout::kBlockPositions;
  const auto kv = device->alloc(plan.kv.block_bytes() * n_blocks);
  std::vector<std::byte*> blocks;
  for (size_t i = 0; i < n_blocks; ++i) blocks.push_back(kv->data() + i * plan.kv.block_bytes());
  const int64_t n_ff = model.config().n_ff, stride = (n_ff + 16) / 16 * 16;
  Firing out{std::vector<double>(static_cast<size_t>(n_ff)), static_cast<double>(ids.size())};
  for (size_t begin = 0; begin < ids.size(); begin += kRows) {
    StepParams params;
    for (size_t i = begin; i < std::min(begin + kRows, ids.size()); ++i)
      params.rows.push_back({ids[i], static_cast<int32_t>(i - begin), 0});
    params.sequences = {{&blocks}};
    params.output_rows = {0};
    device->launch(*program, params);
    device->synchronize();
    for (size_t row = 0; row < params.rows.size(); ++row) {
      const int32_t* list =
          reinterpret_cast<const int32_t*>(program->buffer(units) + static_cast<int64_t>(row) * stride);
      for (int32_t i = 1; i <= list[0]; ++i) ++out.counts[static_cast<size_t>(list[i])];
    }
  }
  return out;
}

// Random and real tokens, first and last layer: sparsity within 2 points, skew within 3.
void check_firing(const SynthSpec& spec) {
  const auto model = load(spec);
  const double share = plan_synth(spec).skew_share;
  const Ids random = random_tokens(3, kRows * kSequences, static_cast<int32_t>(spec.shape.n_vocab));
  const Ids real = real_tokens(model->tokenizer());
  for (const Ids& ids : {random, real})
    for (const int64_t layer : {int64_t{0}, spec.shape.n_layer - 1}) {
      CAPTURE(ids == real);
      CAPTURE(layer);
      const Firing firing = measure(*model, ids, layer);
      const double density = firing.density(), top_share = firing.top_share(spec.skew_top);
      CAPTURE(spec.arch);
      CAPTURE(spec.type);
      CAPTURE(density);
      CAPTURE(top_share);
      CHECK(std::fabs(1 - density - spec.sparsity) <= 0.02);
      CHECK(std::fabs(top_share - share) <= 0.03);
    }
}

bool has_kernels(const SynthSpec& spec) {
  const std::vector<SynthTensor> tensors = resolve_synth(spec).tensors;
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const SynthTensor& each) { return dtype_has_kernels(each.dtype); });
}

TEST_CASE("synth: every family and type fires as asked") {
  for (const std::string& arch : families())
    for (const char* type : {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k"}) {
      if (kFewCases && std::string(type) != "q4_0") continue;  // what fires is what fires in other builds
      SynthSpec spec = tiny_spec(arch, type);
      if (!has_kernels(spec)) spec.pure = true;  // a mixture with a type that this build does not run
      if (!has_kernels(spec)) continue;
      check_firing(spec);
    }
}

TEST_CASE("synth: other activations, sparsities, skews, seeds and depths fire as asked") {
  for (const char* activation : {"relu2", "drelu"}) {
    SynthSpec spec = tiny_spec("llama", "q4_0");
    spec.activation = activation, spec.pure = true;
    check_firing(spec);
  }
  for (const double sparsity : {0.3, 0.5, 0.7, 0.95, 0.98}) {
    if (kFewCases && sparsity != 0.3 && sparsity != 0.98) continue;
    CAPTURE(sparsity);
    SynthSpec spec = tiny_spec("arcee", "q8_0");
    spec.sparsity = sparsity, spec.skew_share = 0, spec.seed = 5;
    check_firing(spec);
  }
  for (const auto& [top, share] : {std::pair{0.26, 0.5}, std::pair{0.1, 0.6}, std::pair{0.26, 0.93}}) {
    if (kFewCases && top == 0.26) continue;
    CAPTURE(top);
    CAPTURE(share);
    SynthSpec spec = tiny_spec("nemotron", "f16");
    spec.skew_top = top, spec.skew_share = share;
    spec.shape.n_layer = 12;
    check_firing(spec);
  }
}

TEST_CASE("synth: the engine counts what was asked for, and its logits are sane") {
  for (const std::string& arch : families()) {
    CAPTURE(arch);
    const auto model = load(tiny_spec(arch, "f16"));
    const auto engine = Engine::create(model, {.n_threads = 2, .mode = "exact"});
    Session session = engine->open_session();
    const Ids ids = random_tokens(4, 400, 2048);
    for (size_t i = 0; i < ids.size(); i += 4) session.prefill(std::span(ids).subspan(i, 4));  // few rows run sparse
    const UnitCounts counts = engine->unit_counts();
    CHECK(std::fabs(static_cast<double>(counts.active) / static_cast<double>(counts.total) - 0.1) <= 0.02);
    double sum = 0;
    for (const float logit : session.logits()) sum += static_cast<double>(logit) * static_cast<double>(logit);
    const double deviation = std::sqrt(sum / static_cast<double>(session.logits().size()));
    CHECK(deviation > 0.3);
    CHECK(deviation < 30);
  }
}

// --- files ----------------------------------------------------------------------------------------------------------

TEST_CASE("synth: the same bytes for any number of threads, other ones for another seed") {
  SynthSpec spec = tiny_spec("llama", "q4_0");
  spec.neuron_major = false;
  const std::string bytes = synth_bytes(spec, 1);
  CHECK(synth_bytes(spec, 3) == bytes);
  spec.seed = 2;
  CHECK(synth_bytes(spec, 1) != bytes);
}

TEST_CASE("synth: both layouts of a seed hold the same weights") {
  SynthSpec spec = tiny_spec("arcee");
  spec.shape.n_embd = 200, spec.shape.n_ff = 333, spec.shape.n_head = 4, spec.shape.n_head_kv = 2;  // no multiples
  const auto neuron = load(spec);
  spec.neuron_major = false;
  const auto gguf = load(spec);
  CHECK(neuron->file().tensors().size() == gguf->file().tensors().size());
  for (const GgufTensor& tensor : neuron->file().tensors()) {
    CAPTURE(tensor.name);
    const bool is_down = tensor.name.find("ffn_down_t") != std::string::npos;
    std::string name = tensor.name;
    if (is_down) name.erase(name.find("_t."), 2);
    const GgufTensor* other = gguf->file().find_tensor(name);
    REQUIRE(other != nullptr);
    REQUIRE(other->n_bytes == tensor.n_bytes);
    const auto* a = reinterpret_cast<const float*>(tensor.data);
    const auto* b = reinterpret_cast<const float*>(other->data);
    const int64_t n_in = tensor.shape.ne[0], n_out = tensor.shape.ne[1];
    bool equal = true;
    for (int64_t i = 0; i < n_out; ++i)
      for (int64_t j = 0; j < n_in; ++j)
        equal = equal && a[i * n_in + j] == (is_down ? b[j * n_out + i] : b[i * n_in + j]);
    CHECK(equal);
  }
}

TEST_CASE("synth: making a model takes little memory") {
  SynthSpec spec = tiny_spec("llama", "q8_0");
  spec.shape.n_layer = 40;
  const TempFile file("");
  const AllocationMeter meter;  // of this thread, which makes and writes half of it
  write_synth(spec, file.path(), {.n_threads = 2});
  CHECK(plan_synth(spec).n_bytes > uint64_t{32} << 20);
  CHECK(meter.peak_bytes() < int64_t{16} << 20);
}

TEST_CASE("synth: a stop request ends it and leaves no file") {
  const TempFile file("before");
  int n_asked = 0;
  const SynthOptions options{.n_threads = 2, .stop = [&] { return ++n_asked > 5; }, .progress = {}};
  CHECK_THROWS_AS(write_synth(tiny_spec("opt"), file.path(), options), CancelledError);
  CHECK(file_bytes(file.path()) == "before");
}

TEST_CASE("synth: impossible specifications are refused") {
  const auto refused = [](const auto& change) {
    SynthSpec spec = tiny_spec("llama", "q4_0");
    change(spec);
    CHECK_THROWS_AS(plan_synth(spec), std::invalid_argument);
  };
  CHECK_NOTHROW(plan_synth(tiny_spec("llama", "q4_0")));
  refused([](SynthSpec& spec) { spec.arch = "lama"; });
  refused([](SynthSpec& spec) { spec.type = "q3"; });
  refused([](SynthSpec& spec) { spec.activation = "gelu_fast"; });
  refused([](SynthSpec& spec) { spec.activation = "fatrelu"; });
  for (const char* arch : {"qwen3", "gemma2", "falcon"}) refused([=](SynthSpec& spec) { spec.arch = arch; });
  refused([](SynthSpec& spec) { spec.arch = "arcee", spec.activation = "drelu"; });
  refused([](SynthSpec& spec) { spec.sparsity = 0; });
  refused([](SynthSpec& spec) { spec.sparsity = 1; });
  refused([](SynthSpec& spec) { spec.sparsity = std::nan(""); });
  refused([](SynthSpec& spec) { spec.sparsity = 0.5, spec.skew_share = 0.8; });  // at most 0.26 / 0.5
  refused([](SynthSpec& spec) { spec.skew_share = 0.2; });                       // less than their share of units
  refused([](SynthSpec& spec) { spec.skew_share = std::nan(""); });
  refused([](SynthSpec& spec) { spec.shape.n_embd = 0; });
  refused([](SynthSpec& spec) { spec.shape.n_embd = 264; });
  refused([](SynthSpec& spec) { spec.shape.n_ff = 100; });
  refused([](SynthSpec& spec) { spec.shape.n_layer = int64_t{1} << 40; });
  refused([](SynthSpec& spec) { spec.shape.n_head_kv = 3; });
  refused([](SynthSpec& spec) { spec.shape.n_head = 7; });
  refused([](SynthSpec& spec) { spec.shape.n_vocab = 100; });
  refused([](SynthSpec& spec) { spec.shape.head_dim = 3; });
}

TEST_CASE("synth: every named shape can be planned, of about the size its name says") {
  for (const SynthShape& shape : synth_shapes()) {
    CAPTURE(shape.name);
    SynthSpec spec;
    spec.arch = shape.arch;
    spec.shape = shape;
    spec.type = "f32";
    const double n_params = static_cast<double>(plan_synth(spec).n_bytes) / 4;
    const double stated = std::atof(shape.name.c_str() + shape.name.find_last_of('-') + 1) * 1e9;
    if (stated == 0) continue;
    CHECK(n_params > 0.8 * stated);
    CHECK(n_params < 1.25 * stated);
  }
}

TEST_CASE("synth: more memory than there is is refused before it is taken") {
  SynthSpec spec;
  spec.arch = "opt";
  for (const SynthShape& shape : synth_shapes())
    if (shape.name == "opt-175b") spec.shape = shape;
  spec.shape.n_layer = 1024;
  CHECK_THROWS_AS(load_synth(spec, {}, {}), OutOfMemoryError);
}

// --- parts ----------------------------------------------------------------------------------------------------------

TEST_CASE("synth: the normal distribution and its inverse") {
  CHECK(normal_cdf(0) == 0.5);
  CHECK(normal_cdf(1.959963984540054) == doctest::Approx(0.975).epsilon(1e-12));
  for (const double p : {1e-9, 0.01, 0.3, 0.5, 0.9, 1 - 1e-9})
    CHECK(normal_cdf(normal_quantile(p)) == doctest::Approx(p).epsilon(1e-9));
}

TEST_CASE("synth: the firing law has the density and share it was solved for") {
  for (const double density : {0.02, 0.1, 0.3, 0.7})
    for (const double top : {0.1, 0.26}) {
      const ShareLimits limits = share_limits(density, top);
      for (const double part : {0.1, 0.5, 0.9}) {
        const double share = limits.low + part * (limits.high - limits.low);
        const FiringLaw law = solve_firing(density, top, share);
        CHECK(law.top_share(top) == doctest::Approx(share).epsilon(1e-6));
        double mean = 0;
        constexpr int kUnits = 3000;
        for (int i = 0; i < kUnits; ++i) mean += law.frequency((i + 0.5) / kUnits) / kUnits;
        CHECK(std::fabs(mean - density) <= 1.0 / kUnits);  // a unit at the border
      }
    }
}

TEST_CASE("synth: random rows have the moments asked for, and parts of a row are those of the whole") {
  constexpr int64_t kN = 64 * 300;
  std::vector<float> row(kN), part(70);
  random_row(7, 3, 0, kN, 2.0f, row.data());
  double sum = 0, squares = 0, neighbours = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    sum += static_cast<double>(row[i]);
    squares += static_cast<double>(row[i]) * static_cast<double>(row[i]);
    if (i > 0) neighbours += static_cast<double>(row[i]) * static_cast<double>(row[i - 1]);
  }
  // Five standard errors: 2 / sqrt(n), 4 sqrt((2.7 - 1) / n), 4 / sqrt(n).
  const double root = std::sqrt(static_cast<double>(kN));
  CHECK(std::fabs(sum / kN) <= 5 * 2 / root);
  CHECK(std::fabs(squares / kN - 4) <= 5 * 4 * std::sqrt(1.7) / root);
  CHECK(std::fabs(neighbours / kN) <= 5 * 4 / root);
  random_row(7, 3, 128, 70, 2.0f, part.data());
  CHECK(std::equal(part.begin(), part.end(), row.begin() + 128));
  random_row(7, 4, 128, 70, 2.0f, part.data());
  CHECK(!std::equal(part.begin(), part.end(), row.begin() + 128));
}

TEST_CASE("synth: vocabularies are whole, without duplicates, and give text back") {
  for (const int64_t n : {kLeastSynthVocabulary, int64_t{2048}, int64_t{32000}, kMostSynthVocabulary}) {
    CAPTURE(n);
    const TokenizerData data = synth_vocabulary(n);
    CHECK(static_cast<int64_t>(data.tokens.size()) == n);
    CHECK(std::set<std::string>(data.tokens.begin(), data.tokens.end()).size() == data.tokens.size());
    const auto tokenizer = Tokenizer::create(data);
    const std::string text = "The old fisherman, 12 boats \xe2\x82\xac \xf0\x9f\x98\x80\n";
    const Ids ids = tokenizer->encode(text);
    CHECK(ids.size() < text.size());
    CHECK(tokenizer->decode(ids) == text);
  }
}

TEST_CASE("synth: outlines have the tensors of the model that is written, and zeros in them") {
  for (const std::string& arch : families())
    for (const char* type : {"f16", "q4_k_m", "q8_0"})
      for (const bool neuron_major : {true, false}) {
        CAPTURE(arch);
        CAPTURE(type);
        SynthSpec spec = tiny_spec(arch, type);
        spec.neuron_major = neuron_major;
        const auto outline = outline_synth(spec), written = load(spec);
        const auto &a = outline->file().tensors(), &b = written->file().tensors();
        REQUIRE(a.size() == b.size());
        for (size_t i = 0; i < a.size(); ++i) {
          CHECK(a[i].name == b[i].name);
          CHECK(a[i].shape == b[i].shape);
          CHECK(a[i].type == b[i].type);
          CHECK(a[i].n_bytes == b[i].n_bytes);
          const auto is_zero = [](std::byte value) { return value == std::byte{0}; };
          CHECK(std::all_of(a[i].data, a[i].data + a[i].n_bytes, is_zero));
        }
        CHECK(outline->size_bytes() == plan_synth(spec).n_bytes);
      }
}

TEST_CASE("synth: frequencies have the density and the skew that were asked for") {
  SynthSpec spec = tiny_spec("llama");
  spec.sparsity = 0.9, spec.skew_top = 0.25, spec.skew_share = 0.8;
  const std::vector<double> f = synth_frequencies(spec);
  REQUIRE(f.size() == 768);
  CHECK(std::is_sorted(f.rbegin(), f.rend()));
  const double all = std::accumulate(f.begin(), f.end(), 0.0);
  CHECK(all / 768 == doctest::Approx(0.1).epsilon(0.01));
  CHECK(std::accumulate(f.begin(), f.begin() + 192, 0.0) / all == doctest::Approx(0.8).epsilon(0.01));
}

}  // namespace
