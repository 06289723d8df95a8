// Host logic of gpu_probe that needs no GPU: rows to gather, their checksum, the watchdog, answering hand-offs.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gpu_probe_report.cuh"

namespace hotset::probe {

// ---- rows to gather, and their checksum ----

/// Small, fast generator of random numbers (splitmix64): the same list on every machine.
struct Random {
  std::uint64_t state;

  /// Uniform in [0, bound), bound < 2^32.
  std::uint32_t below(std::uint64_t bound) {
    std::uint64_t z = (state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return static_cast<std::uint32_t>((((z ^ (z >> 31)) >> 32) * bound) >> 32);
  }
};

/// Draws `n_pick` distinct rows of `n_rows`, ascending; every set is equally likely.
inline std::vector<std::uint32_t> pick_rows(std::uint32_t n_rows, std::uint32_t n_pick, std::uint64_t seed) {
  if (n_pick > n_rows) throw Error("[pick_rows] n_pick: expected at most n_rows, got more; lower the density");
  Random random{seed};
  std::vector<std::uint32_t> rows;
  rows.reserve(n_pick);
  for (std::uint32_t row = 0; rows.size() < n_pick; ++row) {
    if (random.below(n_rows - row) < n_pick - rows.size()) rows.push_back(row);
  }
  return rows;
}

/// Puts `rows` into random order.
inline void shuffle_rows(std::vector<std::uint32_t>& rows, std::uint64_t seed) {
  Random random{seed};
  for (std::size_t i = rows.size(); i > 1; --i) std::swap(rows[i - 1], rows[random.below(i)]);
}

// Word j of the test buffer holds kFactor * j + kOffset modulo 2^32: it looks random, and a row's sum is closed form.
constexpr std::uint32_t kFactor = 0x9E3779B1u, kOffset = 0x7F4A7C15u;

/// Sum modulo 2^32 of `n` words of the test buffer from word `first` on.
inline std::uint32_t pattern_sum(std::uint64_t first, std::uint64_t n) {
  const std::uint64_t pairs = n % 2 ? n * ((n - 1) / 2) : (n / 2) * (n - 1);  // 0 + 1 + .. + (n - 1), wrapping
  return static_cast<std::uint32_t>(kFactor * (n * first + pairs) + n * kOffset);
}

/// Sum modulo 2^32 of the words of all `rows`, each `row_words` long.
inline std::uint32_t rows_sum(const std::vector<std::uint32_t>& rows, std::uint64_t row_words) {
  std::uint32_t sum = 0;
  for (const std::uint32_t row : rows) sum += pattern_sum(row * row_words, row_words);
  return sum;
}

// ---- hand-off words and the watchdog ----

// A wait for `>= value` ends on this value whatever the step, because steps stay far below it.
constexpr std::uint32_t kAbort = 1u << 30;

inline std::uint32_t load_word(const std::uint32_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
inline void store_word(std::uint32_t* word, std::uint32_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

/// Ends what takes too long. While armed: after the soft limit `fired()` turns true and kAbort goes into every watched
/// word, again and again, which releases device waits; still armed at the hard limit, it calls `on_hang(what)`.
/// Thread-safe; watched words must outlive their watching.
class Watchdog {
 public:
  explicit Watchdog(std::function<void(const std::string&)> on_hang)
      : on_hang_(std::move(on_hang)), thread_([this] { guard(); }) {}
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  ~Watchdog() {
    change([this] { stop_ = true; });
    thread_.join();
  }

  void arm(std::string what, double soft_seconds, double hard_seconds) {
    change([&] {
      using Seconds = std::chrono::duration<double>;
      what_ = std::move(what);
      soft_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(soft_seconds));
      hard_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(hard_seconds));
      fired_ = false;
      armed_ = true;
    });
  }

  void disarm() {
    change([this] { armed_ = false; });
  }

  void watch(std::uint32_t* word) {
    change([&] { words_.push_back(word); });
  }

  void unwatch(std::uint32_t* word) {
    change([&] { words_.erase(std::remove(words_.begin(), words_.end(), word), words_.end()); });
  }

  /// True from the soft limit until the next arm().
  bool fired() const { return fired_.load(std::memory_order_relaxed); }

  /// Throws if the soft limit has passed.
  void check_time() const {
    if (fired()) throw Error("[watchdog] time: expected an end within the limit, got none; its waits were released");
  }

 private:
  template <class Change>
  void change(Change&& apply) {
    const std::lock_guard lock(mutex_);
    apply();
    changed_.notify_all();
  }

  void guard() {
    std::unique_lock lock(mutex_);
    while (!stop_) {
      if (!armed_) {
        changed_.wait(lock);
      } else if (Clock::now() < soft_) {
        changed_.wait_until(lock, soft_);
      } else if (Clock::now() < hard_) {
        fired_ = true;
        for (std::uint32_t* word : words_) store_word(word, kAbort);
        changed_.wait_for(lock, std::chrono::milliseconds(1));
      } else {
        armed_ = false;
        on_hang_(what_);
      }
    }
  }

  const std::function<void(const std::string&)> on_hang_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::uint32_t*> words_;
  std::string what_;
  Clock::time_point soft_, hard_;
  bool armed_ = false, stop_ = false;
  std::atomic<bool> fired_{false};
  std::thread thread_;  // last: it uses all of the above
};

/// Waits until `*word == value`; throws once the watchdog has fired.
inline void wait_for_word(const std::uint32_t* word, std::uint32_t value, const Watchdog& watchdog) {
  while (load_word(word) != value) watchdog.check_time();
}

/// Host addresses of the two words of a hand-off. Hand-off i of a launch carries v = base + i + 1 in both directions:
///
///   device: work, to_host = v --> host: sees v, works, to_device = v --> device: waits for to_device >= v, goes on
///
/// to_host has one writer, the device. to_device has two in turn: the host during a launch, and the launch's last node,
/// which sets it back to 0 after all waits (unless base grows from launch to launch). The host compares for equality:
/// the last value of the launch before is still there and must not count.
struct Mailbox {
  std::uint32_t* to_host;
  std::uint32_t* to_device;
  std::uint32_t base = 0;
};

/// Answers the `n` hand-offs of one launch: waits for each, notes the time in microseconds since `start` in `stamps`,
/// calls `work(i)`, then releases the device. Throws once the watchdog has fired.
template <class Work>
void answer_handoffs(const Mailbox& box, std::uint32_t n, const Watchdog& watchdog, Clock::time_point start,
                     std::vector<double>& stamps, Work&& work) {
  for (std::uint32_t i = 0; i < n; ++i) {
    wait_for_word(box.to_host, box.base + i + 1, watchdog);
    stamps.push_back(seconds_since(start) * 1e6);
    work(i);
    store_word(box.to_device, box.base + i + 1);
  }
}

/// Appends the distances between neighbours of `stamps` to `intervals`.
inline void append_intervals(const std::vector<double>& stamps, std::vector<double>& intervals) {
  for (std::size_t i = 1; i < stamps.size(); ++i) intervals.push_back(stamps[i] - stamps[i - 1]);
}

}  // namespace hotset::probe
