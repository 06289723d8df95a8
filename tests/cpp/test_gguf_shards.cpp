// Models in several files: read as one, refused when they do not belong together; and files of which only the first
// bytes are here.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "core/engine.h"
#include "core/error.h"
#include "core/gguf_shards.h"
#include "core/judgement.h"
#include "core/quantize_model.h"
#include "core/weights.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;

// The tiny model cut into `n` files, tensor by tensor in turn; the metadata is in the first.
std::vector<test::GgufWriter> cut(const test::GgufWriter& whole, uint16_t n) {
  std::vector<test::GgufWriter> shards(n);
  shards[0] = whole;
  for (const auto& tensor : whole.tensors()) shards[0].erase_tensor(tensor.name);
  for (size_t i = 0; i < whole.tensors().size(); ++i) {
    const auto& tensor = whole.tensors()[i];
    shards[i * n / whole.tensors().size()].tensor(tensor.name, tensor.ne, tensor.type, tensor.data);
  }
  for (uint16_t i = 0; i < n; ++i) {
    shards[i].set("split.no", GgufType::kU16, ByteWriter().put(i).bytes());
    shards[i].set("split.count", GgufType::kU16, ByteWriter().put(n).bytes());
    shards[i].set("split.tensors.count", GgufType::kI32,
                  ByteWriter().put(static_cast<int32_t>(whole.tensors().size())).bytes());
  }
  return shards;
}

// A folder that is there while the object lives.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "hotset-shards-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  std::string write(const std::string& name, const std::string& bytes) const {
    std::ofstream(file(name), std::ios::binary) << bytes;
    return file(name);
  }
  // Writes shards as `m-00001-of-0000N.gguf` and so on; the path of the first.
  std::string write(const std::vector<test::GgufWriter>& shards) const {
    const ShardName name{"m", 1, static_cast<int64_t>(shards.size())};
    for (size_t i = 0; i < shards.size(); ++i) write(name.of(static_cast<int64_t>(i) + 1), shards[i].bytes());
    return file(name.of(1));
  }

 private:
  std::filesystem::path path_;
};

std::vector<float> logits(const std::shared_ptr<const Model>& model) {
  const auto engine = Engine::create(model, {});
  Session session = engine->open_session();
  const std::vector<int32_t> tokens = random_tokens(5, 9, static_cast<int32_t>(model->config().n_vocab));
  const Engine::Entry entry{&session, tokens, true};
  engine->advance({&entry, 1});
  const auto rows = session.all_logits();
  return {rows.begin(), rows.end()};
}

// The message of the error that `f` ends in, of exactly this type.
template <class E>
std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const E& error) {
    CHECK(typeid(error) == typeid(E));
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
  FAIL_CHECK("taken");
  return "";
}

// `change` makes shards that cannot be opened; the message has `part`.
template <class E = ModelFormatError>
void check_refused(const std::string& part, const std::function<void(std::vector<test::GgufWriter>&)>& change) {
  CAPTURE(part);
  const Folder folder;
  auto shards = cut(tiny_writer({}), 3);
  change(shards);
  const std::string first = folder.write(shards);
  const std::string message = message_of<E>([&] { Model::load(first); });
  CHECK_MESSAGE(message.find(part) != std::string::npos, message);
}

TEST_CASE("gguf_shards: a model in several files is the model in one, bit for bit") {
  const test::GgufWriter whole = tiny_writer({});
  const auto expected = load_bytes(whole.bytes());
  for (const uint16_t n : {uint16_t{1}, uint16_t{2}, uint16_t{5}}) {
    CAPTURE(n);
    const Folder folder;
    const std::string first = folder.write(cut(whole, n));
    const auto model = Model::load(first);
    CHECK(logits(model) == logits(expected));
    CHECK(model->fingerprint() == expected->fingerprint());
    CHECK(model->n_params() == expected->n_params());
    CHECK(model->file().shard_names().size() == n);
    CHECK(model->file().name() == first);
    CHECK(Model::load_tokenizer(first)->n_vocab() == expected->tokenizer().n_vocab());
    const Inspection inspection = inspect(first);
    CHECK(inspection.runs);
    CHECK(inspection.tensors.size() == whole.tensors().size());
  }
}

TEST_CASE("gguf_shards: quantize writes one file of all shards, over none of them") {
  const Folder folder;
  const std::string first = folder.write(cut(tiny_writer({}), 3));
  const std::string whole = folder.write("whole.gguf", tiny_writer({}).bytes());
  QuantizeOptions options;
  options.type = "q8_0";
  quantize_model(first, folder.file("a.gguf"), options);
  quantize_model(whole, folder.file("b.gguf"), options);
  CHECK(logits(Model::load(folder.file("a.gguf"))) == logits(Model::load(folder.file("b.gguf"))));
  CHECK(!Model::load(folder.file("a.gguf"))->file().find("split.count"));
  CHECK_THROWS_AS(quantize_model(first, folder.file("m-00002-of-00003.gguf"), options), std::invalid_argument);
}

TEST_CASE("gguf_shards: shards that are missing, cut or misnamed are told by name") {
  const Folder folder;
  const std::string first = folder.write(cut(tiny_writer({}), 3));
  const std::string second = folder.file("m-00002-of-00003.gguf"), third = folder.file("m-00003-of-00003.gguf");
  std::string message = message_of<ModelFormatError>([&] { Model::load(second); });
  CHECK_MESSAGE(message.find("name \"" + first + "\"") != std::string::npos, message);
  message = message_of<ModelFormatError>([&] { inspect(second); });
  CHECK_MESSAGE(message.find("the first of 3, got number 2") != std::string::npos, message);

  std::filesystem::copy(first, folder.file("renamed.gguf"));
  message = message_of<ModelFormatError>([&] { Model::load(folder.file("renamed.gguf")); });
  CHECK_MESSAGE(message.find("NAME-00001-of-00003.gguf") != std::string::npos, message);

  std::filesystem::resize_file(third, std::filesystem::file_size(third) - 1);
  message = message_of<ModelFormatError>([&] { Model::load(first); });
  CHECK_MESSAGE(message.find(third) != std::string::npos, message);
  std::filesystem::remove(second);
  message = message_of<Error>([&] { Model::load(first); });
  CHECK_MESSAGE(message.find("shard 2 of 3: expected \"" + second + "\"") != std::string::npos, message);
}

TEST_CASE("gguf_shards: shards of two models are refused") {
  using Shards = std::vector<test::GgufWriter>;
  check_refused("it twice", [](Shards& s) { s[2].tensor("output_norm.weight", {64}, 0, std::string(256, '\0')); });
  check_refused("each name once", [](Shards& s) {
    const auto twin = s[0].tensors()[0];
    s[1].erase_tensor(s[1].tensors()[0].name);
    s[1].tensor(twin.name, twin.ne, twin.type, twin.data);
  });
  check_refused("tensors of all 3 shards", [](Shards& s) { s[1].erase_tensor(s[1].tensors()[0].name); });
  check_refused("split.no: expected 1, got 2", [](Shards& s) { std::swap(s[1], s[2]); });
  check_refused("split.count: expected 3, as in", [](Shards& s) { s[1].set_u32("split.count", 4); });
  check_refused("split.tensors.count", [](Shards& s) { s[2].set_u32("split.tensors.count", 7); });
  check_refused("split.no: expected 1, got -1", [](Shards& s) { s[1].erase("split.no"); });
  check_refused("key \"general.architecture\"", [](Shards& s) { s[1].set_text("general.architecture", "qwen2"); });
  check_refused("NAME-00001-of-00004.gguf", [](Shards& s) { s[0].set_u32("split.count", 4); });
  check_refused("at most 99999, got 4000000000", [](Shards& s) { s[0].set_u32("split.count", 4000000000u); });
}

TEST_CASE("gguf_shards: names") {
  const auto name = parse_shard_name("/a/b-00002-of-00010.gguf");
  REQUIRE(name);
  CHECK(name->stem == "/a/b");
  CHECK(name->number == 2);
  CHECK(name->n_shards == 10);
  CHECK(name->of(10) == "/a/b-00010-of-00010.gguf");
  for (const char* other : {"", "b.gguf", "b-0002-of-0010.gguf", "b-00011-of-00010.gguf", "b-00000-of-00010.gguf",
                            "b-00002-of-00010.GGUF", "b-0000x-of-00010.gguf", "b_00002-of-00010.gguf"})
    CHECK_MESSAGE(!parse_shard_name(other), other);
}

// The start of `bytes` that parsing it takes, found as one who fetches it would.
std::string enough_of(const std::string& bytes) {
  uint64_t n = 0;
  while (true) {
    const GgufStart start = GgufFile::parse_start(std::as_bytes(std::span(bytes).first(n)), bytes.size(), "far.gguf");
    if (start.file) return bytes.substr(0, n);
    REQUIRE(start.n_needed > n);
    REQUIRE(start.n_needed <= bytes.size());
    n = start.n_needed;
  }
}

TEST_CASE("gguf_shards: the first bytes of a file are judged as the whole file") {
  TinySpec spec;
  spec.rope_freqs = true;  // zeros there would be an error of the data
  const std::string bytes = tiny_writer(spec).bytes();
  const std::string start = enough_of(bytes);
  CHECK(start.size() < bytes.size() / 4);
  const GgufStart parsed = GgufFile::parse_start(std::as_bytes(std::span(start)), bytes.size(), "far.gguf");
  CHECK(!parsed.file->has_data());
  const auto model = Model::of_file(parsed.file);
  const auto whole = load_bytes(bytes);
  CHECK(model->type_text() == whole->type_text());
  CHECK(model->size_bytes() == whole->size_bytes());

  for (const auto& change : std::vector<std::function<void(test::GgufWriter&)>>{
           [](auto& writer) { writer.set_text("general.architecture", "mamba"); },
           [](auto& writer) { writer.tensor("blk.0.attn_q.weight").type = 16; },
           [](auto& writer) { writer.set_text("tokenizer.ggml.model", "bert"); },
           [](auto& writer) { writer.set_text("llama.rope.scaling.type", "longrope"); },
           [](auto& writer) { writer.erase_tensor("blk.1.ffn_up.weight"); }}) {
    test::GgufWriter writer = tiny_writer({});
    change(writer);
    const std::string changed = writer.bytes();
    std::string loading, judging;
    try {
      load_bytes(changed);
    } catch (const Error& error) {
      loading = error.what();
    }
    try {
      const std::string part = enough_of(changed);
      Model::of_file(GgufFile::parse_start(std::as_bytes(std::span(part)), changed.size(), "far.gguf").file);
    } catch (const Error& error) {
      judging = error.what();
    }
    CHECK(judging == loading);
    CHECK(!judging.empty());
  }
}

TEST_CASE("gguf_shards: a model in shards is judged by the first bytes of each") {
  auto shards = cut(tiny_writer({}), 3);
  const auto judged = [&](size_t n_first) {
    std::vector<std::string> bytes;
    std::vector<FileStart> starts;
    for (const auto& shard : shards) bytes.push_back(shard.bytes());
    for (const std::string& each : bytes)
      starts.push_back({"far", std::as_bytes(std::span(each).first(std::min(n_first, each.size()))), each.size()});
    return judge(starts);
  };
  const Judgement early = judged(30);
  CHECK(early.type_text.empty());
  for (const uint64_t n : early.n_needed) CHECK(n > 30);
  const Judgement whole = judged(SIZE_MAX);
  CHECK(whole.n_needed == std::vector<uint64_t>(3, 0));
  CHECK(whole.size_bytes == load_tiny({})->size_bytes());
  CHECK(whole.memory_bytes > 0);
  shards[2].set_u32("split.count", 4);
  CHECK_THROWS_AS(judged(SIZE_MAX), ModelFormatError);
  shards.pop_back();
  CHECK_THROWS_AS(judged(SIZE_MAX), ModelFormatError);
}

TEST_CASE("gguf_shards: the first bytes of a file that claims to be huge take little memory") {
  ByteWriter keys;
  keys.raw("GGUF").put(3u).put(uint64_t{1} << 38).put(uint64_t{1} << 38);
  ByteWriter strings;
  strings.raw("GGUF").put(3u).put<uint64_t>(0).put<uint64_t>(1).text("k").put(9u).put(8u).put(uint64_t{1} << 38);
  for (const std::string& start : {keys.bytes(), strings.bytes()}) {
    const AllocationMeter meter;
    const uint64_t file_bytes = uint64_t{1} << 44;
    const GgufStart parsed = GgufFile::parse_start(std::as_bytes(std::span(start)), file_bytes, "far.gguf");
    CHECK(!parsed.file);
    CHECK(parsed.n_needed > start.size());
    CHECK(parsed.n_needed < start.size() + 64);
    CHECK(meter.peak_bytes() < 1 << 16);
  }
  CHECK_THROWS_AS(GgufFile::parse_start({}, UINT64_MAX / 2, "far.gguf"), OutOfMemoryError);
  CHECK_THROWS_AS(GgufFile::parse_start({}, 0, "far.gguf"), ModelFormatError);
  CHECK_THROWS_AS(GgufFile::parse_start({}, 23, "far.gguf"), ModelFormatError);
}

}  // namespace
