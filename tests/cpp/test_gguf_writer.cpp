// The GGUF writer: what it writes is read back the same, and a failure leaves the target as it was.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "core/error.h"
#include "core/gguf_writer.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using hotset::test::AllocationMeter;
using hotset::test::TempFile;
namespace fs = std::filesystem;

// A folder that is there while the object lives.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (fs::temp_directory_path() / "hotset-writer-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TempFolder() { fs::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  size_t n_files() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(path_), fs::directory_iterator()));
  }

 private:
  fs::path path_;
};

std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

// A file with one Q8_0 tensor of 34 * 3 bytes and one of three floats.
void declare_two(hotset::GgufWriter& writer) {
  writer.set_text("general.architecture", "test");
  writer.add_tensor("a", DType::kQ8_0, shape_of(32, 3));
  writer.add_tensor("b", DType::kF32, shape_of(3));
}

void write_two(hotset::GgufWriter& writer) {
  declare_two(writer);
  writer.start();
  writer.write(bytes_of(std::string(100, 'x')));
  writer.write(bytes_of("yz"));
  writer.write(bytes_of(std::string(12, '\0')));
  writer.finish();
}

TEST_CASE("gguf_writer: every kind of value is read back") {
  const TempFolder folder;
  hotset::GgufWriter writer(folder.file("out.gguf"));
  writer.set_number<uint8_t>("u8", 200);
  writer.set_number<int8_t>("i8", -100);
  writer.set_number<uint16_t>("u16", 60000);
  writer.set_number<int16_t>("i16", -30000);
  writer.set_u32("u32", 4000000000u);
  writer.set_number<int32_t>("i32", -2000000000);
  writer.set_number<uint64_t>("u64", uint64_t{1} << 63);
  writer.set_number<int64_t>("i64", INT64_MIN);
  writer.set_f32("f32", 0.5f);
  writer.set_number<double>("f64", 1e300);
  writer.set_bool("yes", true);
  writer.set_text("text", std::string("a\0\xff", 3));
  writer.set_texts("texts", {"a", "", "ccc"});
  const std::vector<float> floats{1.5f, -2.5f};
  writer.set_array<float>("floats", floats);
  writer.set_array<int16_t>("none", {});
  writer.set_text("text", "replaced");
  writer.start();
  writer.finish();
  const auto file = GgufFile::open(folder.file("out.gguf"));
  CHECK(file->version() == 3);
  CHECK(file->metadata().size() == 15);
  CHECK(file->get_int("u8") == 200);
  CHECK(file->get_int("i8") == -100);
  CHECK(file->get_int("u16") == 60000);
  CHECK(file->get_int("i16") == -30000);
  CHECK(file->get_int("u32") == 4000000000);
  CHECK(file->get_int("i32") == -2000000000);
  CHECK(std::get<uint64_t>(file->find("u64")->value) == uint64_t{1} << 63);
  CHECK(file->get_int("i64") == INT64_MIN);
  CHECK(file->get_float("f32") == 0.5);
  CHECK(file->get_float("f64") == 1e300);
  CHECK(file->get_bool("yes") == true);
  CHECK(file->get_string("text") == "replaced");
  CHECK(file->get_string_array("texts") == std::vector<std::string>{"a", "", "ccc"});
  CHECK(file->get_float_array("floats") == floats);
  CHECK(file->get_int_array("none")->empty());
}

TEST_CASE("gguf_writer: metadata of a parsed file is copied byte by byte") {
  const TempFolder folder;
  const hotset::test::GgufWriter tiny = hotset::test::tiny_writer({});
  const hotset::test::ParsedBytes from = hotset::test::parse_bytes(tiny.bytes());
  for (const std::string name : {"1", "2"}) {
    hotset::GgufWriter writer(folder.file(name));
    const auto source = name == "1" ? from.file : GgufFile::open(folder.file("1"));
    for (const auto& [key, value] : source->metadata()) writer.set(key, value);
    writer.start();
    writer.finish();
  }
  CHECK(contents(folder.file("1")) == contents(folder.file("2")));
  const std::string original = tiny.bytes();
  const size_t n = original.find("token_embd.weight") - 8 - 24;
  CHECK(contents(folder.file("1")).substr(24, n) == original.substr(24, n));
}

TEST_CASE("gguf_writer: tensors are placed as declared, aligned and padded") {
  for (const uint32_t alignment : {0u, 8u, 64u, 4096u}) {
    CAPTURE(alignment);
    const TempFolder folder;
    hotset::GgufWriter writer(folder.file("out.gguf"));
    if (alignment) writer.set_u32("general.alignment", alignment);
    write_two(writer);
    const uint64_t step = alignment ? alignment : 32;
    const auto file = GgufFile::open(folder.file("out.gguf"));
    REQUIRE(file->tensors().size() == 2);
    CHECK(file->tensors()[0].shape.ne[1] == 3);
    CHECK(file->tensors()[1].shape.n_dims == 1);
    CHECK(file->tensors()[1].offset == (file->tensors()[0].offset + 102 + step - 1) / step * step);
    CHECK(file->size_bytes() % step == 0);
    CHECK(file->size_bytes() == writer.n_written());
    CHECK(std::string(reinterpret_cast<const char*>(file->tensors()[0].data), 102) == std::string(100, 'x') + "yz");
    CHECK(folder.n_files() == 1);
  }
}

TEST_CASE("gguf_writer: the target changes only at the end") {
  const TempFolder folder;
  const std::string path = folder.file("out.gguf");
  std::ofstream(path) << "old";
  {
    hotset::GgufWriter writer(path);
    declare_two(writer);
    writer.start();
    writer.write(bytes_of(std::string(50, 'x')));
    CHECK(folder.n_files() == 2);
    CHECK_THROWS_AS(writer.finish(), Error);  // bytes are missing
  }
  CHECK(folder.n_files() == 1);
  CHECK(contents(path) == "old");
  hotset::GgufWriter writer(path);
  write_two(writer);
  CHECK(contents(path).substr(0, 4) == "GGUF");
}

TEST_CASE("gguf_writer: a link stays a link, permissions follow the umask") {
  const TempFolder folder;
  std::ofstream(folder.file("real")) << "old";
  fs::create_symlink("real", folder.file("link"));
  const mode_t mask = ::umask(027);
  hotset::GgufWriter writer(folder.file("link"));
  write_two(writer);
  ::umask(mask);
  CHECK(fs::is_symlink(folder.file("link")));
  CHECK(contents(folder.file("real")).substr(0, 4) == "GGUF");
  CHECK((fs::status(folder.file("real")).permissions() & fs::perms::mask) == fs::perms(0640));
}

TEST_CASE("gguf_writer: more bytes than declared, and misuse, are refused") {
  const TempFolder folder;
  hotset::GgufWriter writer(folder.file("out.gguf"));
  CHECK_THROWS_AS(writer.write(bytes_of("x")), Error);
  CHECK_THROWS_AS(writer.add_tensor("c", DType::kQ4_K, shape_of(32, 8)), std::invalid_argument);
  declare_two(writer);
  writer.start();
  CHECK_THROWS_AS(writer.write(bytes_of(std::string(103, 'x'))), Error);
  CHECK_THROWS_AS(writer.set_u32("late", 1), Error);
  CHECK_THROWS_AS(writer.add_tensor("late", DType::kF32, shape_of(1)), Error);
  CHECK_THROWS_AS(writer.start(), Error);
  hotset::GgufWriter twice(folder.file("twice.gguf"));
  declare_two(twice);
  twice.add_tensor("a", DType::kF32, shape_of(1));
  CHECK_THROWS_AS(twice.start(), std::invalid_argument);
}

// One line that names the path and the system's reason.
void check_fails(const std::string& path, const std::string& reason) {
  CAPTURE(path);
  try {
    hotset::GgufWriter writer(path);
    write_two(writer);
    FAIL_CHECK("taken");
  } catch (const Error& error) {
    const std::string message = error.what();
    CHECK_MESSAGE(message.find(reason) != std::string::npos, message);
    CHECK(message.find(path) != std::string::npos);
  }
}

TEST_CASE("gguf_writer: what the system refuses is an error") {
  const TempFolder folder;
  check_fails("/dev/full", "No space left");
  check_fails(folder.file(""), "Is a directory");
  check_fails(folder.file("no/such/folder.gguf"), "No such file");
  check_fails("", "No such file");
  CHECK(fs::is_character_file("/dev/full"));
  hotset::GgufWriter writer("/dev/null");
  write_two(writer);
  CHECK(fs::is_character_file("/dev/null"));
}

TEST_CASE("gguf_writer: memory does not grow with the data") {
  const TempFolder folder;
  const AllocationMeter meter;
  hotset::GgufWriter writer("/dev/null");
  writer.add_tensor("big", DType::kF32, shape_of(1 << 20, 256));
  writer.start();
  const std::string piece(1 << 16, 'x');
  for (int i = 0; i < 1 << 14; ++i) writer.write(bytes_of(piece));
  writer.finish();
  CHECK(writer.data_bytes() == uint64_t{1} << 30);
  CHECK(meter.peak_bytes() < 1 << 18);
}

}  // namespace
