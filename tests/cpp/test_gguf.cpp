// The GGUF reader: whole files are read right, everything else is refused with one error and little memory.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/gguf.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;

// A key of every kind and two tensors.
GgufWriter sample_writer() {
  GgufWriter out;
  const auto number = [&](const char* key, GgufType type, auto value) {
    out.set(key, type, ByteWriter().put(value).bytes());
  };
  number("u8", GgufType::kU8, uint8_t{200});
  number("i8", GgufType::kI8, int8_t{-100});
  number("u16", GgufType::kU16, uint16_t{60000});
  number("i16", GgufType::kI16, int16_t{-30000});
  number("u32", GgufType::kU32, uint32_t{4000000000});
  number("i32", GgufType::kI32, int32_t{-2000000000});
  number("u64", GgufType::kU64, uint64_t{1} << 63);
  number("i64", GgufType::kI64, std::numeric_limits<int64_t>::min());
  number("f32", GgufType::kF32, 0.5f);
  number("f64", GgufType::kF64, 1e300);
  number("nan", GgufType::kF32, std::nanf(""));
  number("inf", GgufType::kF64, -HUGE_VAL);
  out.set_bool("yes", true);
  out.set_bool("no", false);
  out.set_text("text", "gr\xc3\xbc\xc3\x9f \x01\xff");
  out.set_text("empty", "");
  out.set_texts("texts", {"a", "", "ccc"});
  out.set_array<int8_t>("i8s", GgufType::kI8, {-1, 2, 3});
  out.set_array<uint64_t>("u64s", GgufType::kU64, {1, uint64_t{1} << 63});
  out.set_array<float>("f32s", GgufType::kF32, {1.5f, -2.5f});
  out.set_array<double>("f64s", GgufType::kF64, {0.25});
  out.set_array<uint8_t>("bools", GgufType::kBool, {1, 0});
  out.set_array<uint16_t>("none", GgufType::kU16, {});
  out.tensor("first", {3, 2}, 0, ByteWriter().put(1.f).put(2.f).put(3.f).put(4.f).put(5.f).put(6.f).bytes());
  out.tensor("second", {32}, 8, std::string(34, 'q'));
  return out;
}

// Header of a file with these counts.
ByteWriter header(uint64_t n_tensors, uint64_t n_keys, uint32_t version = 3) {
  ByteWriter out;
  out.raw("GGUF").put(version).put(n_tensors).put(n_keys);
  return out;
}

// `bytes` end in ModelFormatError, whose one line of message contains `part`.
void check_refused(const std::string& bytes, const std::string& part) {
  CAPTURE(part);
  try {
    parse_bytes(bytes);
    FAIL_CHECK("taken");
  } catch (const ModelFormatError& error) {
    const std::string message = error.what();
    CHECK_MESSAGE(message.find(part) != std::string::npos, message);
    CHECK(message.find('\n') == std::string::npos);
    CHECK(message.rfind("[gguf \"test.gguf\"] ", 0) == 0);
  } catch (const std::exception& error) {
    FAIL_CHECK("another error: " << std::string(error.what()));
  }
}

// One tensor entry, by hand, behind a whole header; room for data follows.
std::string one_tensor(uint32_t n_dims, const std::vector<uint64_t>& ne, uint32_t type, uint64_t offset,
                       size_t n_data = 256) {
  ByteWriter out = header(1, 0);
  out.text("t").put(n_dims);
  for (const uint64_t each : ne) out.put(each);
  out.put(type).put(offset);
  std::string file = out.bytes();
  file.resize((file.size() + 31) / 32 * 32 + n_data);
  return file;
}

TEST_CASE("gguf: files of versions 2 and 3 are read key by key and tensor by tensor") {
  for (const uint32_t version : {2u, 3u}) {
    GgufWriter writer = sample_writer();
    writer.version = version;
    const std::string bytes = writer.bytes();
    const ParsedBytes parsed = parse_bytes(bytes);
    const GgufFile& file = *parsed.file;
    CHECK(file.version() == version);
    CHECK(file.alignment() == 32);
    CHECK(file.size_bytes() == bytes.size());
    CHECK_FALSE(file.is_powerinfer());
    CHECK(file.metadata().size() == 23);
    CHECK(file.metadata()[0].first == "u8");
    CHECK(file.get_int("u8") == 200);
    CHECK(file.get_int("i8") == -100);
    CHECK(file.get_int("u16") == 60000);
    CHECK(file.get_int("i16") == -30000);
    CHECK(file.get_int("u32") == 4000000000);
    CHECK(file.get_int("i32") == -2000000000);
    CHECK(file.get_int("i64") == std::numeric_limits<int64_t>::min());
    CHECK(file.get_float("f32") == 0.5);
    CHECK(file.get_float("f64") == 1e300);
    CHECK(file.get_bool("yes") == true);
    CHECK(file.get_bool("no") == false);
    CHECK(file.get_string("text") == "gr\xc3\xbc\xc3\x9f \x01\xff");
    CHECK(file.get_string("empty") == "");
    CHECK(file.get_string_array("texts") == std::vector<std::string>{"a", "", "ccc"});
    CHECK(file.get_int_array("i8s") == std::vector<int64_t>{-1, 2, 3});
    CHECK(file.get_int_array("bools") == std::vector<int64_t>{1, 0});
    CHECK(file.get_int_array("none") == std::vector<int64_t>{});
    CHECK(file.get_float_array("f32s") == std::vector<float>{1.5f, -2.5f});
    CHECK(file.get_float_array("f64s") == std::vector<float>{0.25f});
    REQUIRE(file.tensors().size() == 2);
    const GgufTensor* first = file.find_tensor("first");
    REQUIRE(first != nullptr);
    CHECK(first->shape == shape_of(3, 2));
    CHECK(first->n_bytes == 24);
    CHECK(std::memcmp(first->data, writer.tensor("first").data.data(), 24) == 0);
    const GgufTensor* second = file.find_tensor("second");
    REQUIRE(second != nullptr);
    CHECK(second->n_bytes == 34);
    CHECK(second->offset % 32 == 0);
    CHECK(std::memcmp(second->data, writer.tensor("second").data.data(), 34) == 0);
    CHECK(file.find("absent") == nullptr);
    CHECK(file.find_tensor("absent") == nullptr);
  }
}

TEST_CASE("gguf: a file without keys and tensors is whole, and the magic PWRI is noticed") {
  std::string bytes = header(0, 0).bytes();
  CHECK(parse_bytes(bytes).file->tensors().empty());
  bytes.replace(0, 4, "PWRI");
  CHECK(parse_bytes(bytes).file->is_powerinfer());
}

TEST_CASE("gguf: typed look-ups refuse other types, what does not fit, and what is not finite") {
  const ParsedBytes parsed = parse_bytes(sample_writer().bytes());
  const GgufFile& file = *parsed.file;
  CHECK(file.get_int("absent") == std::nullopt);
  CHECK(file.get_float("absent") == std::nullopt);
  CHECK(file.get_bool("absent") == std::nullopt);
  CHECK(file.get_string("absent") == std::nullopt);
  CHECK(file.get_int_array("absent") == std::nullopt);
  CHECK(file.get_float_array("absent") == std::nullopt);
  CHECK(file.get_string_array("absent") == std::nullopt);
  for (const char* key : {"u64", "f32", "yes", "text", "i8s"}) CHECK_THROWS_AS(file.get_int(key), ModelFormatError);
  for (const char* key : {"nan", "inf", "u8", "text", "f32s"}) CHECK_THROWS_AS(file.get_float(key), ModelFormatError);
  for (const char* key : {"u8", "text", "bools"}) CHECK_THROWS_AS(file.get_bool(key), ModelFormatError);
  for (const char* key : {"u8", "yes", "texts"}) CHECK_THROWS_AS(file.get_string(key), ModelFormatError);
  for (const char* key : {"u8", "texts", "f32s", "u64s"}) CHECK_THROWS_AS(file.get_int_array(key), ModelFormatError);
  for (const char* key : {"f32", "texts", "i8s"}) CHECK_THROWS_AS(file.get_float_array(key), ModelFormatError);
  for (const char* key : {"text", "i8s", "f32s"}) CHECK_THROWS_AS(file.get_string_array(key), ModelFormatError);
}

TEST_CASE("gguf: every value has a text for messages") {
  const ParsedBytes parsed = parse_bytes(sample_writer().bytes());
  const auto text = [&](const char* key) { return gguf_value_text(*parsed.file->find(key)); };
  CHECK(text("u64") == "9223372036854775808");
  CHECK(text("i64") == "-9223372036854775808");
  CHECK(text("f32") == "0.5");
  CHECK(text("yes") == "true");
  CHECK(text("empty") == "\"\"");
  CHECK(text("text").find('\xff') == std::string::npos);
  CHECK(text("texts") == "[\"a\", \"\", \"ccc\"]");
  CHECK(text("u64s") == "[1, 9223372036854775808]");
  CHECK(text("none") == "[]");
  GgufWriter writer;
  writer.set_array<int32_t>("many", GgufType::kI32, std::vector<int32_t>(1000, 7));
  CHECK(gguf_value_text(*parse_bytes(writer.bytes()).file->find("many")) == "[7, 7, 7, 7, 7, 7, ...] (1000)");
}

TEST_CASE("gguf: broken headers") {
  check_refused("", "header");
  check_refused("GGUF", "header");
  check_refused(std::string(64, '\0'), "magic");
  check_refused("GGML" + header(0, 0).bytes().substr(4), "magic");
  for (const uint32_t version : {0u, 1u, 4u, 0xffffffffu}) check_refused(header(0, 0, version).bytes(), "version");
  check_refused(header(0, 0, 3u << 24).bytes(), "big-endian");
  check_refused(header(0, 0, 2u << 24).bytes(), "big-endian");
  for (const uint64_t n : {uint64_t{1}, uint64_t{1} << 40, uint64_t{1} << 63, UINT64_MAX}) {
    check_refused(header(n, 0).bytes(), "tensor count");
    check_refused(header(0, n).bytes(), "key count");
  }
}

TEST_CASE("gguf: broken keys and values") {
  const auto key = [](uint32_t type) { return header(0, 1).text("k").put(type); };
  const std::string room(64, '\0');
  check_refused(header(0, 1).put<uint64_t>(UINT64_MAX).raw(room).bytes(), "key");
  check_refused(header(0, 1).put<uint64_t>(1000).raw(room).bytes(), "text inside the file");
  check_refused(header(0, 1).text(std::string(65536, 'k')).put(4u).put(1u).bytes(), "at most 65535 bytes");
  for (const uint32_t type : {13u, 255u, 0xffffffffu}) check_refused(key(type).raw(room).bytes(), "value type");
  check_refused(key(7).put<uint8_t>(2).bytes(), "boolean");
  check_refused(key(8).put<uint64_t>(65).raw(room).bytes(), "text inside the file");
  check_refused(key(8).put<uint64_t>(UINT64_MAX - 8).raw(room).bytes(), "string value");
  for (const uint32_t element : {9u, 13u, 0xffffffffu})
    check_refused(key(9).put(element).put<uint64_t>(1).raw(room).bytes(), "array type");
  for (uint32_t element = 0; element <= 12; ++element)
    if (element != 9)
      for (const uint64_t n : {uint64_t{65}, uint64_t{1} << 61, uint64_t{1} << 62, UINT64_MAX})
        check_refused(key(9).put(element).put(n).raw(room).bytes(), "array length");
  check_refused(key(9).put(8u).put<uint64_t>(2).text("ok").put<uint64_t>(90).raw(room).bytes(), "array text");
  check_refused(header(0, 2).text("k").put(4u).put(1u).text("k").put(4u).put(1u).bytes(), "twice");
}

TEST_CASE("gguf: broken tensor entries") {
  check_refused(one_tensor(0, {}, 0, 0), "dimensions");
  check_refused(one_tensor(5, {1, 1, 1, 1, 1}, 0, 0), "dimensions");
  check_refused(one_tensor(0xffffffffu, {1}, 0, 0), "dimensions");
  check_refused(one_tensor(2, {4, 0}, 0, 0), "size");
  check_refused(one_tensor(1, {uint64_t{1} << 63}, 0, 0), "size");
  check_refused(one_tensor(1, {UINT64_MAX}, 0, 0), "size");
  check_refused(one_tensor(2, {uint64_t{1} << 32, uint64_t{1} << 32}, 0, 0), "size");
  check_refused(one_tensor(4, {uint64_t{1} << 16, uint64_t{1} << 16, uint64_t{1} << 16, 2}, 0, 0), "size");
  check_refused(one_tensor(1, {65}, 0, 0), "truncated");
  check_refused(one_tensor(1, {uint64_t{1} << 40}, 24, 0), "truncated");
  check_refused(one_tensor(1, {31}, 8, 0), "row");
  check_refused(one_tensor(1, {128}, 12, 0), "row");
  check_refused(one_tensor(1, {4}, 0, 4), "multiple of 32");
  check_refused(one_tensor(1, {4}, 0, 512), "offset");
  check_refused(one_tensor(1, {4}, 0, 256), "truncated");
  check_refused(one_tensor(1, {4}, 0, UINT64_MAX - 31), "offset");
  check_refused(header(1, 0).text(std::string(1025, 'n')).put(1u).put<uint64_t>(1).put(0u).put<uint64_t>(0).bytes(),
                "at most 1024 bytes");
  ByteWriter twice = header(2, 0);
  for (int i = 0; i < 2; ++i) twice.text("t").put(1u).put<uint64_t>(4).put(0u).put<uint64_t>(0);
  check_refused(twice.raw(std::string(128, '\0')).bytes(), "twice");
}

TEST_CASE("gguf: types that this build does not know are listed, not refused") {
  const ParsedBytes parsed = parse_bytes(one_tensor(1, {4}, 77, 32));
  CHECK(parsed.file->tensors()[0].type == 77);
  CHECK(parsed.file->tensors()[0].n_bytes == 0);
  check_refused(one_tensor(1, {4}, 77, 4096), "offset");
}

TEST_CASE("gguf: general.alignment is a power of two and is obeyed") {
  for (const uint32_t alignment : {8u, 16u, 64u, 4096u}) {
    GgufWriter writer = sample_writer();
    writer.alignment = alignment;
    writer.set_u32("general.alignment", alignment);
    const ParsedBytes parsed = parse_bytes(writer.bytes());
    CHECK(parsed.file->alignment() == alignment);
    CHECK(std::memcmp(parsed.file->find_tensor("second")->data, writer.tensor("second").data.data(), 34) == 0);
  }
  for (const uint32_t alignment : {0u, 1u, 2u, 4u, 24u, 48u, 1u << 21, 0xffffffffu}) {
    GgufWriter writer = sample_writer();
    writer.set_u32("general.alignment", alignment);
    check_refused(writer.bytes(), "general.alignment");
  }
  GgufWriter writer = sample_writer();
  writer.set_text("general.alignment", "32");
  check_refused(writer.bytes(), "general.alignment");
  writer.set("general.alignment", GgufType::kI32, ByteWriter().put(-32).bytes());
  check_refused(writer.bytes(), "general.alignment");
}

TEST_CASE("gguf: every shorter copy of a file is refused") {
  const std::string bytes = sample_writer().bytes();
  for (size_t n = 0; n < bytes.size(); ++n) {
    CAPTURE(n);
    CHECK_THROWS_AS(parse_bytes(bytes.substr(0, n)), ModelFormatError);
  }
  parse_bytes(bytes);
}

TEST_CASE("gguf: changed bytes give a file or a ModelFormatError, and little memory") {
  const uint64_t seed = 20240607;
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  const std::string good = sample_writer().bytes();
  int n_refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    for (uint64_t n = 1 + random() % 4; n > 0; --n) bytes[random() % bytes.size()] = static_cast<char>(random() >> 20);
    const AllocationMeter meter;
    try {
      parse_bytes(bytes);
    } catch (const ModelFormatError&) {
      ++n_refused;
    }
    REQUIRE(meter.peak_bytes() <= static_cast<int64_t>(17 * bytes.size() + 65536));
  }
  CHECK(n_refused > 2000);
}

// The most that parsing takes, besides the copy that parse_bytes makes, as a multiple of the file's size.
double memory_factor(const std::string& bytes) {
  const AllocationMeter meter;
  try {
    parse_bytes(bytes);
  } catch (const ModelFormatError&) {
  }
  const double besides = static_cast<double>(meter.peak_bytes()) - static_cast<double>(bytes.size()) - 65536;
  return besides / static_cast<double>(bytes.size());
}

TEST_CASE("gguf: parsing takes at most 16 times the file's size, whatever the file says") {
  constexpr uint64_t kMany = 33000;    // just after a vector that doubles has doubled
  ByteWriter keys = header(0, kMany);  // the smallest keys, all the same
  for (uint64_t i = 0; i < kMany; ++i) keys.put<uint64_t>(0).put(0u).put<uint8_t>(1);
  CHECK(memory_factor(keys.bytes()) <= 16);
  ByteWriter names = header(0, kMany);  // the smallest that differ
  for (uint64_t i = 0; i < kMany; ++i)
    names.text(ByteWriter().put(static_cast<uint16_t>(i)).bytes()).put(0u).put<uint8_t>(1);
  CHECK(memory_factor(names.bytes()) <= 16);
  ByteWriter tensors = header(kMany, 0);
  for (uint64_t i = 0; i < kMany; ++i)
    tensors.text(ByteWriter().put(static_cast<uint16_t>(i)).bytes()).put(1u).put<uint64_t>(1).put(24u).put<uint64_t>(0);
  tensors.raw(std::string(64, '\0'));
  CHECK(memory_factor(tensors.bytes()) <= 16);
  GgufWriter texts;
  texts.set_texts("texts", std::vector<std::string>(kMany));
  CHECK(memory_factor(texts.bytes()) <= 16);
  ByteWriter arrays = header(0, kMany);  // empty arrays of texts
  for (uint64_t i = 0; i < kMany; ++i)
    arrays.text(ByteWriter().put(static_cast<uint16_t>(i)).bytes()).put(9u).put(8u).put<uint64_t>(0);
  CHECK(memory_factor(arrays.bytes()) <= 16);
  for (const uint64_t n : {kMany, uint64_t{1} << 20, uint64_t{1} << 50})
    CHECK(memory_factor(header(0, 1).text("k").put(9u).put(8u).put(n).raw(std::string(1000, '\0')).bytes()) <= 16);
}

TEST_CASE("gguf: files that are none are refused by name") {
  const auto check_error = [](const std::string& path) {
    CAPTURE(path);
    CHECK_THROWS_AS(GgufFile::open(path), Error);
    CHECK_THROWS_AS(Model::load(path), Error);
    CHECK_THROWS_AS(Model::load_tokenizer(path), Error);
    CHECK_THROWS_AS(inspect(path), Error);
  };
  check_error(std::filesystem::temp_directory_path().string());
  check_error("/nonexistent/model.gguf");
  check_error("");
  check_error("/dev/null");
  check_error(TempFile("").path());
  check_error(TempFile("not a model, but long enough for a header").path());
}

TEST_CASE("gguf: shorter and changed copies of a model end in an Error") {
  const uint64_t seed = 77;
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  const std::string good = tiny_writer({.n_embd = 32, .n_ff = 32, .head_dim = 8}).bytes();
  for (int round = 0; round < 200; ++round) {
    const size_t n = random() % good.size();
    CAPTURE(n);
    CHECK_THROWS_AS(load_bytes(good.substr(0, n)), Error);
  }
  const size_t n_head = good.find("blk.1.ffn_norm.weight");
  REQUIRE(n_head != std::string::npos);
  int n_loaded = 0;
  for (int round = 0; round < 500; ++round) {
    std::string bytes = good;
    bytes[random() % n_head] = static_cast<char>(random() >> 20);
    try {
      load_bytes(bytes);
      ++n_loaded;
    } catch (const Error&) {
    }
  }
  CHECK(n_loaded > 0);
  CHECK(n_loaded < 500);
}

TEST_CASE("gguf: the collection of malformed files is refused within a few times their size") {
  if (shared_data().empty()) return;
  size_t n = 0;
  for (const auto& entry : std::filesystem::directory_iterator(shared_data() / "bad-gguf")) {
    const std::string path = entry.path().string();
    CAPTURE(path);
    const AllocationMeter meter;
    CHECK_THROWS_AS(Model::load(path), Error);
    CHECK(meter.peak_bytes() <= static_cast<int64_t>(16 * entry.file_size() + 65536));
    ++n;
  }
  CHECK(n > 100);
}

}  // namespace
