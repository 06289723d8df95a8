// machine.json: the JSON reader, what is refused, and the rates in between.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/json.h"
#include "core/machine_rates.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using hotset::test::TempFile;

TEST_CASE("json: every kind of value") {
  const JsonValue value = parse_json("t", " {\"a\" : [1, -2.5e1, 0, true,\tfalse,\nnull], \"b\":{}, \"\":\"\"} \r\n");
  using Kind = JsonValue::Kind;
  REQUIRE(value.is(Kind::kObject));
  REQUIRE(value.find("a")->is(Kind::kArray));
  const auto& a = value.find("a")->items;
  REQUIRE(a.size() == 6);
  CHECK(a[0].is(Kind::kNumber));
  CHECK(a[0].number == 1);
  CHECK(a[1].number == -25);
  CHECK(a[2].number == 0);
  CHECK(a[3].is(Kind::kBool));
  CHECK(a[3].truth);
  CHECK(a[4].is(Kind::kBool));
  CHECK(!a[4].truth);
  CHECK(a[5].is(Kind::kNull));
  CHECK(value.find("b")->is(Kind::kObject));
  CHECK(value.find("b")->items.empty());
  CHECK(value.find("")->is(Kind::kText));
  CHECK(value.find("")->text.empty());
  CHECK(value.find("c") == nullptr);
  CHECK(a[0].find("a") == nullptr);
  CHECK(parse_json("t", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\u20ac\\ud83e\\udd99\\u0000\"").text ==
        std::string("\"\\/\b\f\n\r\t\xc3\xa9\xe2\x82\xac\xf0\x9f\xa6\x99\0", 18));
  CHECK(parse_json("t", "\"\xc3\xa9\"").text == "\xc3\xa9");
  CHECK(parse_json("t", "1.7976931348623157e308").number == 1.7976931348623157e308);
}

TEST_CASE("json: what is not JSON is refused in one line") {
  for (const std::string text : {"",
                                 " ",
                                 "{",
                                 "[",
                                 "[1,]",
                                 "[1 2]",
                                 "{\"a\"}",
                                 "{\"a\":}",
                                 "{\"a\":1,}",
                                 "{a:1}",
                                 "{\"a\":1,\"a\":2}",
                                 "01",
                                 "-",
                                 "+1",
                                 "1.",
                                 ".5",
                                 "1e",
                                 "1e+",
                                 "1e999",
                                 "NaN",
                                 "Infinity",
                                 "nul",
                                 "truex",
                                 "\"",
                                 "\"\\x\"",
                                 "\"\\u12\"",
                                 "\"\\u-123\"",
                                 "\"\\ud800\"",
                                 "\"\\udc00\"",
                                 "\"\\ud800\\u0041\"",
                                 "\"\x01\"",
                                 "\"\xff\"",
                                 "\"\xc3\"",
                                 "1 2",
                                 "[]]",
                                 "'a'",
                                 "// c\n1",
                                 "\xef\xbb\xbf"
                                 "1"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(parse_json("t", text), Error);
  }
  CHECK_THROWS_AS(parse_json("t", std::string("1\0", 2)), Error);
  CHECK_THROWS_AS(parse_json("t", std::string(kMaxJsonBytes, ' ') + "1"), Error);
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') + std::string(static_cast<size_t>(depth), ']');
  };
  CHECK_NOTHROW(parse_json("t", nested(kMaxJsonDepth)));
  CHECK_THROWS_AS(parse_json("t", nested(kMaxJsonDepth + 1)), Error);
  CHECK_THROWS_AS(parse_json("t", std::string(kMaxJsonBytes, '[')), Error);
}

constexpr const char* kDocument = R"({"format": "hotset-machine", "version": 1, "new": [{}],
  "hardware": {"cpu": "X", "n_cores": 4, "memory_bytes": 1000, "cache_bytes": 10}, "buffer_bytes": 100,
  "read": [
    {"pages": "normal", "n_threads": 2, "dense_gbps": 20, "dense_streams": 1, "gathered": [
      {"row_bytes": 1000, "density": 0.1, "gbps": 8, "streams": 2, "ahead_rows": 4},
      {"row_bytes": 1000, "density": 0.01, "gbps": 4, "streams": 2, "ahead_rows": 4},
      {"row_bytes": 4000, "density": 0.1, "gbps": 16, "streams": 2, "ahead_rows": 4},
      {"row_bytes": 4000, "density": 0.01, "gbps": 12, "streams": 2, "ahead_rows": 4}]},
    {"pages": "huge", "n_threads": 2, "dense_gbps": 18, "dense_streams": 1, "gathered": []},
    {"pages": "normal", "n_threads": 4, "dense_gbps": 30, "dense_streams": 2, "gathered": []},
    {"pages": "huge", "n_threads": 4, "dense_gbps": 31, "dense_streams": 2, "gathered": []}],
  "gpu": null, "pcie": null, "handoff_us": null, "gpu_reason": "none"})";

// The document with one text replaced, which must be there.
std::string changed(const std::string& from, const std::string& to) {
  std::string text = kDocument;
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

TEST_CASE("machine rates: nearest thread count, better pages, interpolation in logarithms") {
  const MachineRates rates = parse_machine_rates("t", kDocument);
  CHECK(rates.cpu == "X");
  CHECK(rates.n_cores == 4);
  CHECK(rates.gpu_reason == "none");
  CHECK(rates.dense_gbps(1) == 20);  // fewer than measured
  CHECK(rates.dense_gbps(2) == 20);
  CHECK(rates.dense_gbps(3) == 20);
  CHECK(rates.dense_gbps(4) == 31);
  CHECK(rates.dense_gbps(100) == 31);
  const auto at = [&](double row_bytes, double density) { return rates.gathered_gbps(2, row_bytes, density); };
  CHECK(at(1000, 0.1) == 8);
  CHECK(at(2000, 0.1) == doctest::Approx(12));              // 2000 is half way from 1000 to 4000 in logarithms
  CHECK(at(1000, std::sqrt(0.001)) == doctest::Approx(6));  // half way from 0.01 to 0.1
  CHECK(at(2000, std::sqrt(0.001)) == doctest::Approx(10));
  CHECK(at(1, 1e-9) == 4);
  CHECK(at(1e9, 0.01) == 12);
  CHECK(at(1000, std::sqrt(0.1)) == doctest::Approx(14));  // half way from 0.1 to 1, where the dense rate counts
  CHECK(at(1000, 1) == doctest::Approx(20));
  CHECK(rates.gathered_gbps(4, 1000, 0.1) == 0);  // none measured there
}

TEST_CASE("machine rates: what is missing, of another kind or out of range is refused") {
  const std::pair<const char*, const char*> changes[] = {{"hotset-machine", "other"},
                                                         {"\"version\": 1", "\"version\": 2"},
                                                         {"\"version\": 1", "\"version\": \"1\""},
                                                         {"\"cpu\": \"X\"", "\"cpu\": 3"},
                                                         {"\"n_cores\": 4", "\"n_cores\": 0"},
                                                         {"\"n_cores\": 4", "\"n_cores\": 1.5"},
                                                         {"\"memory_bytes\": 1000", "\"memory_bytes\": -1"},
                                                         {"\"buffer_bytes\": 100", "\"buffer_bytes\": 1e300"},
                                                         {"\"pages\": \"normal\"", "\"pages\": \"big\""},
                                                         {"\"pages\": \"huge\"", "\"pages\": \"normal\""},
                                                         {"\"dense_gbps\": 20", "\"dense_gbps\": 0"},
                                                         {"\"dense_gbps\": 20", "\"dense_gbps\": null"},
                                                         {"\"density\": 0.1", "\"density\": 0"},
                                                         {"\"density\": 0.1", "\"density\": 1.5"},
                                                         {"\"density\": 0.01", "\"density\": 0.1"},
                                                         {"\"gbps\": 8", "\"gbps\": -8"},
                                                         {"\"gathered\": []", "\"gathered\": 1"},
                                                         {"\"row_bytes\": 1000", "\"rows\": 1000"},
                                                         {"\"gpu_reason\": \"none\"", "\"gpu_reason\": []"},
                                                         {"\"hardware\": {", "\"hardware\": null, \"h\": {"}};
  for (const auto& change : changes) {
    CAPTURE(change.second);
    CHECK_THROWS_AS(parse_machine_rates("t", changed(change.first, change.second)), Error);
  }
  CHECK_THROWS_AS(parse_machine_rates("t", "[]"), Error);
  CHECK_NOTHROW(parse_machine_rates("t", changed("\"cpu\": \"X\"", "\"cpu\": null")));
}

// The document with rates of a GPU.
std::string with_gpu() {
  return changed("\"gpu\": null, \"pcie\": null, \"handoff_us\": null",
                 R"("gpu": {"name": "G", "memory_bytes": 24, "dense_gbps": 900, "gathered": [
                     {"row_bytes": 1000, "density": 0.1, "gbps": 300}, {"row_bytes": 4000, "density": 0.1, "gbps": 500}]},
                   "pcie": {"h2d_gbps": 25, "d2h_gbps": 26}, "handoff_us": 9.5)");
}

TEST_CASE("machine rates: a GPU, its bus and the hand-off") {
  const MachineRates none = parse_machine_rates("t", kDocument);
  CHECK((!none.gpu && !none.pcie && !none.handoff_us));
  CHECK(none.densities(2) == std::vector<double>{0.01, 0.1});
  CHECK(none.densities(4).empty());
  const MachineRates rates = parse_machine_rates("t", with_gpu());
  REQUIRE((rates.gpu && rates.pcie && rates.handoff_us));
  CHECK(rates.gpu->name == "G");
  CHECK(rates.gpu->memory_bytes == 24);
  CHECK(rates.gpu->dense_gbps == 900);
  CHECK(rates.gpu->gathered_gbps(2000, 0.1) == doctest::Approx(400));
  CHECK(rates.gpu->gathered_gbps(1000, std::sqrt(0.1)) == doctest::Approx(600));
  CHECK(rates.pcie->h2d_gbps == 25);
  CHECK(rates.pcie->d2h_gbps == 26);
  CHECK(*rates.handoff_us == 9.5);
  CHECK(GpuRates{"", 1, 900, {}}.gathered_gbps(1000, 0.1) == 900);
  for (const auto& [from, to] : {std::pair{"\"memory_bytes\": 24", "\"memory_bytes\": 0"},
                                 {"\"name\": \"G\"", "\"name\": 5"},
                                 {"\"dense_gbps\": 900", "\"dense_gbps\": -900"},
                                 {"\"gbps\": 300", "\"gbps\": null"},
                                 {"\"row_bytes\": 4000, \"density\": 0.1, \"gbps\": 5", "\"row_bytes\": 1000, \"density\": 0.1, \"gbps\": 5"},
                                 {"\"h2d_gbps\": 25", "\"h2d\": 25"},
                                 {"\"d2h_gbps\": 26", "\"d2h_gbps\": 0"},
                                 {"\"handoff_us\": 9.5", "\"handoff_us\": \"9\""},
                                 {"\"handoff_us\": 9.5", "\"handoff_us\": -1"},
                                 {"\"pcie\": {", "\"pcie\": [{}], \"p\": {"},
                                 {"\"gpu\": {", "\"gpu\": 3, \"g\": {"}}) {
    CAPTURE(to);
    std::string text = with_gpu();
    const size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    CHECK_THROWS_AS(parse_machine_rates("t", text.replace(at, std::strlen(from), to)), Error);
  }
}

TEST_CASE("machine rates: files that are missing, empty or too long") {
  CHECK_THROWS_AS(load_machine_rates("/nonexistent/machine.json"), Error);
  CHECK_THROWS_AS(load_machine_rates("/"), Error);
  CHECK_THROWS_AS(load_machine_rates(TempFile("").path()), Error);
  CHECK_THROWS_AS(load_machine_rates(TempFile(kDocument + std::string(kMaxJsonBytes, ' ')).path()), Error);
  CHECK(load_machine_rates(TempFile(kDocument).path()).read.size() == 4);
}

}  // namespace
