// The plain reads: they touch every byte they claim, in every shape, and random lists have the asked density.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "core/error.h"
#include "cpu/read_rates.h"

namespace {

using namespace hotset;
using namespace hotset::cpu;

std::vector<uint64_t> random_words(size_t n) {
  std::mt19937_64 random(3);
  std::vector<uint64_t> words(n);
  for (uint64_t& word : words) word = random();
  return words;
}

TEST_CASE("read rates: dense and listed reads sum every word once, in every shape") {
  constexpr size_t kRowWords = 24, kRows = 41;
  const std::vector<uint64_t> words = random_words(kRowWords * kRows);
  const auto* data = reinterpret_cast<const std::byte*>(words.data());
  const auto row_sum = [&](size_t row) {
    const auto begin = words.begin() + static_cast<std::ptrdiff_t>(row * kRowWords);
    return std::accumulate(begin, begin + kRowWords, uint64_t{0});
  };
  uint64_t all = 0;
  for (size_t row = 0; row < kRows; ++row) all += row_sum(row);
  for (const int32_t streams : {1, 2, 4}) {
    for (const int64_t ahead : {0, 1, 3, 100}) {
      CAPTURE(streams);
      CAPTURE(ahead);
      constexpr size_t kWholeRows = kRows / 4 * 4;  // so that every stretch is whole lines
      uint64_t expected = 0;
      for (size_t row = 0; row < kWholeRows; ++row) expected += row_sum(row);
      CHECK(read_dense(data, kWholeRows * kRowWords * 8, {streams, ahead * 64}) == expected);
      std::vector<int32_t> rows(kRows);
      std::iota(rows.begin(), rows.end(), 0);
      CHECK(read_rows({data, kRowWords * 8, rows.data(), kRows, {streams, ahead}}) == all);
      for (const int64_t n : {0, 1, 2, 3, 5}) {
        const std::vector<int32_t> some{7, 8, 20, 39, 40};
        uint64_t sum = 0;
        for (int64_t i = 0; i < n; ++i) sum += row_sum(static_cast<size_t>(some[static_cast<size_t>(i)]));
        CHECK(read_rows({data, kRowWords * 8, some.data(), n, {streams, ahead}}) == sum);
      }
    }
  }
  CHECK(read_dense(data, 63, {1, 0}) == 0);
  CHECK_THROWS_AS(read_dense(data, 64, {3, 0}), Error);
}

TEST_CASE("read rates: random rows ascend, and their number is binomial") {
  for (const double density : {0.001, 0.02, 0.1, 0.5, 0.9}) {
    constexpr int64_t kRows = 200000;
    const std::vector<int32_t> rows = random_rows(kRows, density, 42);
    CHECK(rows == random_rows(kRows, density, 42));
    CHECK(rows != random_rows(kRows, density, 43));
    for (size_t i = 1; i < rows.size(); ++i) REQUIRE(rows[i - 1] < rows[i]);
    CHECK(rows.front() >= 0);
    CHECK(rows.back() < kRows);
    const double deviation = std::sqrt(static_cast<double>(kRows) * density * (1 - density));
    CHECK(std::abs(static_cast<double>(rows.size()) - density * static_cast<double>(kRows)) < 6 * deviation);
  }
  CHECK(random_rows(100, 1, 1).size() == 100);
  CHECK(random_rows(1, 1e-6, 1) == std::vector<int32_t>{0});  // never empty
}

TEST_CASE("read rates: a meter gives a rate for every kind of reading") {
  ReadMeter meter(size_t{3} << 20, false, 2);
  for (const int32_t n_threads : {1, 2, 3}) {
    for (ReadSeries series : {ReadSeries::dense(n_threads), ReadSeries::gathered(n_threads, 576, 0.02),
                              ReadSeries::gathered(n_threads, size_t{4} << 20, 1)}) {
      CHECK(series.rate().gbps == 0);
      meter.visit(series, 0);
      CHECK(series.rate().gbps > 0);
    }
  }
  ReadSeries too_long = ReadSeries::gathered(2, size_t{5} << 20, 0.5);
  CHECK_THROWS_AS(meter.visit(too_long, 0), Error);
  CHECK_THROWS_AS(ReadSeries::gathered(1, 100, 0.5), Error);
  CHECK_THROWS_AS(ReadSeries::gathered(1, 128, 0), Error);
  CHECK_THROWS_AS(ReadMeter(SIZE_MAX / 2, false, 1), OutOfMemoryError);
}

}  // namespace
