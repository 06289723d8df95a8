// Checks of gpu_probe's host logic that need no GPU; run by `gpu_probe --self-test`.
#pragma once

#include <set>

#include "gpu_probe_host.cuh"

namespace hotset::probe {

/// Counts and prints failed checks.
class SelfTest {
 public:
  void expect(bool ok, const char* what) {
    ++n_checks_;
    if (ok) return;
    ++n_failed_;
    std::printf("self-test: failed: %s\n", what);
  }

  template <class Call>
  void expect_error(Call&& call, const std::string& part_of_message, const char* what) {
    std::string message;
    try {
      call();
    } catch (const Error& error) {
      message = error.what();
    }
    expect(message.find(part_of_message) != std::string::npos, what);
  }

  /// Prints the total; returns the exit code.
  int finish() const {
    std::printf("self-test: %d checks, %d failed\n", n_checks_, n_failed_);
    return n_failed_ ? 1 : 0;
  }

 private:
  int n_checks_ = 0, n_failed_ = 0;
};

inline void test_statistics(SelfTest& test) {
  std::vector<double> samples;
  for (int i = 100; i >= 1; --i) samples.push_back(i);
  const Summary summary = summarize(samples);
  test.expect(summary.n == 100 && summary.min == 1 && summary.max == 100, "summary: count, min, max");
  test.expect(summary.median == 50 && summary.p99 == 99, "summary: median 50 and p99 99 of 1..100");
  const Summary one = summarize({7});
  test.expect(one.min == 7 && one.median == 7 && one.p99 == 7 && one.max == 7, "summary of one sample");
  test.expect(quantile({1, 2, 3}, 1.0) == 3 && quantile({1, 2, 3}, 0.001) == 1, "quantile at both ends");
  test.expect_error([] { summarize({}); }, "[quantile]", "summary of nothing is an error");
  int n_calls = 0;
  test.expect(repeat(0, 3, 10, [&] { return double(++n_calls); }).size() == 3, "repeat: no time, least number");
  test.expect(repeat(1e9, 3, 10, [&] { return double(++n_calls); }).size() == 10, "repeat: much time, largest number");
  std::vector<double> intervals;
  append_intervals({1, 3, 7}, intervals);
  test.expect(intervals == std::vector<double>({2, 4}), "intervals between stamps");
}

inline void test_options(SelfTest& test) {
  const std::vector<std::string> names = {"memop", "pcie"};
  const Options none = parse_options({}, names);
  test.expect(none.seconds == 3 && none.only.empty() && none.json_path.empty() && !none.list, "options: defaults");
  const std::vector<std::string> args = {"--seconds", "0.5", "--only", "pcie", "--json", "a b.json", "--only", "memop"};
  const Options all = parse_options(args, names);
  test.expect(all.seconds == 0.5 && all.json_path == "a b.json", "options: seconds and json");
  test.expect(all.only == std::vector<std::string>({"pcie", "memop"}), "options: --only twice");
  test.expect(parse_options({"--list"}, names).list && parse_options({"-h"}, names).help, "options: --list, -h");
  test.expect(parse_options({"--self-test"}, names).self_test, "options: --self-test");
  for (const char* bad : {"", "x", "1x", "nan", "inf", "-1", "0", "61"}) {
    test.expect_error([&] { parse_options({"--seconds", bad}, names); }, "--seconds", "options: bad --seconds");
  }
  test.expect_error([&] { parse_options({"--only", "gpu"}, names); }, "memop, pcie", "options: unknown part");
  test.expect_error([&] { parse_options({"--json"}, names); }, "expected a value", "options: value missing");
  test.expect_error([&] { parse_options({"--fast"}, names); }, "'--fast'", "options: unknown flag");
}

inline void test_output(SelfTest& test) {
  test.expect(json_quote("a\"b\\c\n\x01") == "\"a\\\"b\\\\c\\u000a\\u0001\"", "json: escapes");
  test.expect(json_cell(0.1) == "0.1" && json_cell(268435456.0) == "268435456", "json: numbers");
  test.expect(json_cell(std::nan("")) == "null" && json_cell(INFINITY) == "null", "json: not finite is null");
  test.expect(json_cell(true) == "true" && json_cell("x") == "\"x\"", "json: flag, and literal text is no flag");
  test.expect(format_number(4) == "4" && format_number(4312.34) == "4312.3", "number: whole and large");
  test.expect(format_number(9.876) == "9.88" && format_number(0.12345) == "0.1235", "number: small");

  Table table{"t", {"name", "x_us", "note"}, {}};
  table.add({"poll", 12.0, "ok"});
  table.add({"a", 1.5});
  test.expect(render(table) == "t\n  name  x_us  note\n  poll    12  ok\n  a     1.50\n", "table: aligned text");
  test.expect_error([&] { table.add({1.0, 2.0, 3.0, 4.0}); }, "[table]", "table: too many cells");

  Report report;
  report.machine.emplace_back("gpu", "G\"1");
  report.parts.push_back({"p", "ok", "", 0.5, {table}});
  const std::string want =
      "{\"gpu_probe\": 1,\n \"machine\": {\n   \"gpu\": \"G\\\"1\"},\n \"parts\": [\n"
      "  {\"name\": \"p\", \"status\": \"ok\", \"error\": \"\", \"seconds\": 0.5,\n   \"tables\": [\n"
      "    {\"title\": \"t\", \"rows\": [\n      {\"name\": \"poll\", \"x_us\": 12, \"note\": \"ok\"},\n"
      "      {\"name\": \"a\", \"x_us\": 1.5, \"note\": \"\"}]}]}]}\n";
  test.expect(to_json(report) == want, "json: whole report");
  test.expect_error([] { write_file("/nonexistent-folder/x", "y"); }, "[json]", "json: path that cannot be written");
}

inline void test_rows(SelfTest& test) {
  const std::uint32_t n_rows = 1000, n_pick = 100;
  const std::vector<std::uint32_t> rows = pick_rows(n_rows, n_pick, 1);
  test.expect(rows.size() == n_pick && rows.back() < n_rows, "rows: count and range");
  test.expect(std::is_sorted(rows.begin(), rows.end()), "rows: ascending");
  test.expect(std::set<std::uint32_t>(rows.begin(), rows.end()).size() == n_pick, "rows: distinct");
  test.expect(rows == pick_rows(n_rows, n_pick, 1) && rows != pick_rows(n_rows, n_pick, 2), "rows: seed decides");
  test.expect(pick_rows(5, 5, 3) == std::vector<std::uint32_t>({0, 1, 2, 3, 4}), "rows: all of them");
  test.expect(pick_rows(5, 0, 3).empty(), "rows: none");
  std::size_t n_first = 0;  // of two rows the first comes half the time: 500 +- 16; the bounds are 6 times that away
  for (std::uint64_t seed = 0; seed < 1000; ++seed) n_first += pick_rows(2, 1, seed)[0] == 0;
  test.expect(n_first >= 405 && n_first <= 595, "rows: every set is equally likely");
  test.expect_error([] { pick_rows(4, 5, 1); }, "[pick_rows]", "rows: more than there are");
  std::vector<std::uint32_t> mixed = rows;
  shuffle_rows(mixed, 1);
  test.expect(mixed != rows && std::is_permutation(mixed.begin(), mixed.end(), rows.begin()), "rows: shuffled");
  std::size_t n_low = 0;  // hypergeometric: mean 50, standard deviation 4.7; the bounds are 6 of them away
  for (const std::uint32_t row : rows) n_low += row < n_rows / 2;
  test.expect(n_low >= 20 && n_low <= 80, "rows: spread over the range");

  const std::uint64_t far = 3ull << 30;  // beyond 2^32 bytes and 2^31 words
  for (const std::uint64_t n : {0ull, 1ull, 2ull, 127ull, 4096ull}) {
    for (const std::uint64_t first : {std::uint64_t{0}, std::uint64_t{5}, far}) {
      std::uint32_t sum = 0;
      for (std::uint64_t j = first; j < first + n; ++j) sum += static_cast<std::uint32_t>(kFactor * j + kOffset);
      test.expect(pattern_sum(first, n) == sum, "checksum: closed form equals the sum");
    }
  }
  test.expect(rows_sum({2, 0}, 8) == pattern_sum(16, 8) + pattern_sum(0, 8), "checksum: rows add up");
  test.expect(rows_sum({1}, 128) != rows_sum({2}, 128), "checksum: rows differ");
}

/// Plays the device's half of the hand-offs on a thread: same words, same comparisons. Gives up after a minute, so that
/// a broken watchdog fails the test instead of hanging it.
inline void play_device(const Mailbox& box, std::uint32_t n) {
  const auto start = Clock::now();
  for (std::uint32_t i = 0; i < n; ++i) {
    store_word(box.to_host, i + 1);
    while (load_word(box.to_device) < i + 1 && seconds_since(start) < 60) std::this_thread::yield();
  }
  store_word(box.to_device, 0);
}

inline void test_handoff(SelfTest& test) {
  std::atomic<int> n_hangs{0};
  Watchdog watchdog([&](const std::string& what) { n_hangs += what == "test"; });
  alignas(128) std::uint32_t to_host = 0;
  alignas(128) std::uint32_t to_device = 0;
  const Mailbox box{&to_host, &to_device};

  watchdog.arm("test", 60, 120);
  std::vector<std::uint32_t> order;
  std::vector<double> stamps;
  for (int launch = 0; launch < 3; ++launch) {  // again over the same words: the stale value must not count
    std::thread device(play_device, box, 5);
    answer_handoffs(box, 5, watchdog, Clock::now(), stamps, [&](std::uint32_t i) { order.push_back(i); });
    device.join();
  }
  test.expect(order == std::vector<std::uint32_t>({0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4}), "hand-off: in order");
  test.expect(stamps.size() == 15 && !watchdog.fired() && n_hangs == 0, "hand-off: all noted, watchdog silent");
  watchdog.disarm();

  watchdog.watch(&to_device);
  watchdog.arm("test", 0, 60);  // nobody answers: only the watchdog can release these waits
  const auto start = Clock::now();
  play_device(box, 5);
  test.expect(watchdog.fired() && seconds_since(start) < 30, "watchdog: releases the device");
  store_word(&to_host, 5);  // left over from a launch; larger than what is waited for, but not it
  test.expect_error([&] { wait_for_word(&to_host, 1, watchdog); }, "[watchdog]", "watchdog: host wait is an error");
  watchdog.unwatch(&to_device);
  watchdog.arm("test", 0, 0);
  while (n_hangs == 0 && seconds_since(start) < 60) std::this_thread::yield();
  test.expect(n_hangs == 1, "watchdog: hard limit reports the hang");
}

/// Runs all checks; returns 0 if they pass, else 1.
inline int run_self_test() {
  SelfTest test;
  test_statistics(test);
  test_options(test);
  test_output(test);
  test_rows(test);
  test_handoff(test);
  return test.finish();
}

}  // namespace hotset::probe
