#include "cpu/read_rates.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>
#include <type_traits>
#include <utility>

#include "core/error.h"
#include "core/thread_pool.h"
#include "core/topology.h"

namespace hotset::cpu {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSmallestPage = 4096;
constexpr size_t kSampleBytes = size_t{16} << 20;  // for each thread, about a millisecond; less in a small buffer
constexpr size_t kTasksPerThread = 16;             // of a sample

// Sixteen bytes: a vector register of every instruction set, without asking for one.
using Vec = uint64_t __attribute__((vector_size(16)));

inline Vec load(const std::byte* at) {
  Vec out;
  std::memcpy(&out, at, sizeof out);
  return out;
}

// Four sums that stay in registers, a line at a time. Named, because gcc 12 keeps an array in memory, and each line
// then waits for the store of the one before: 23 GB/s of a core instead of 36.
struct Sums {
  Vec a{}, b{}, c{}, d{};

  void add(const std::byte* line) {
    a += load(line);
    b += load(line + 16);
    c += load(line + 32);
    d += load(line + 48);
  }
  uint64_t total() const {
    const Vec sum = (a + b) + (c + d);
    return sum[0] + sum[1];
  }
};

// Adds n_bytes, in whole lines, from each of S places, a line of each in turn; the same lines of `coming`, if given,
// are prefetched. By value, so that the sums stay in registers.
template <int S>
inline Sums read_stretches(const std::byte* const* from, const std::byte* const* coming, size_t n_bytes, Sums sums) {
  if (coming == nullptr) {
    for (size_t at = 0; at + kLine <= n_bytes; at += kLine)
      for (int s = 0; s < S; ++s) sums.add(from[s] + at);
    return sums;
  }
  for (size_t at = 0; at + kLine <= n_bytes; at += kLine) {
    for (int s = 0; s < S; ++s) {
      __builtin_prefetch(coming[s] + at);
      sums.add(from[s] + at);
    }
  }
  return sums;
}

template <int S>
using Streams = std::integral_constant<int, S>;

// Calls f with the number of streams as a type, so that the loop over them is unrolled.
template <class F>
uint64_t with_streams(int32_t n, const F& f) {
  HS_CHECK(n == 1 || n == 2 || n == 4, "read_rates");
  return n == 1 ? f(Streams<1>()) : n == 2 ? f(Streams<2>()) : f(Streams<4>());
}

// Runs task(i) for i < n_tasks, shared by the workers that come.
template <class Task>
void run_tasks(ThreadPool& pool, size_t n_tasks, const Task& task) {
  std::atomic<size_t> next{0};
  pool.run([&](int32_t) {
    for (size_t i = next++; i < n_tasks; i = next++) task(i);
  });
}

// Waits, for a moment at most, until every worker is awake: the next run then begins on all of them at once.
void wake(ThreadPool& pool) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
  std::atomic<int32_t> n_awake{0};
  pool.run([&](int32_t) {
    ++n_awake;
    while (n_awake < pool.size() && std::chrono::steady_clock::now() < end) pause_cpu();
  });
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace

uint64_t read_dense(const std::byte* data, size_t n_bytes, ReadShape shape) {
  return with_streams(shape.streams, [&]<int S>(Streams<S>) {
    const size_t stretch = n_bytes / S / kLine * kLine;
    const std::byte *lines[S], *coming[S];
    for (size_t s = 0; s < S; ++s) {
      lines[s] = data + s * stretch;
      coming[s] = lines[s] + shape.ahead;
    }
    return read_stretches<S>(lines, shape.ahead > 0 ? coming : nullptr, stretch, Sums()).total();
  });
}

uint64_t read_rows(const RowReads& reads) {
  const int64_t ahead = reads.shape.ahead;
  const auto row_at = [&](int64_t place) {
    return reads.data + static_cast<size_t>(reads.rows[std::min(place, reads.n_rows - 1)]) * reads.row_bytes;
  };
  return with_streams(reads.shape.streams, [&]<int S>(Streams<S>) {
    const int64_t stretch = reads.n_rows / S;
    Sums sums;
    const std::byte *rows[S], *coming[S];
    for (int64_t i = 0; i < stretch; ++i) {
      for (int s = 0; s < S; ++s) {
        rows[s] = row_at(s * stretch + i);
        coming[s] = row_at(s * stretch + i + ahead);
      }
      sums = read_stretches<S>(rows, ahead > 0 ? coming : nullptr, reads.row_bytes, sums);
    }
    for (int64_t i = S * stretch; i < reads.n_rows; ++i) {  // what does not divide
      rows[0] = row_at(i);
      sums = read_stretches<1>(rows, nullptr, reads.row_bytes, sums);
    }
    return sums.total();
  });
}

std::vector<int32_t> random_rows(int64_t n_rows, double density, uint64_t seed) {
  std::vector<int32_t> rows;
  std::mt19937_64 random(seed);
  if (density >= 1) {
    for (int64_t row = 0; row < n_rows; ++row) rows.push_back(static_cast<int32_t>(row));
    return rows;
  }
  rows.reserve(static_cast<size_t>(1.1 * density * static_cast<double>(n_rows)) + 16);
  // The gap to the next chosen row is geometric: one draw per chosen row, not per row.
  const double scale = 1 / std::log1p(-density);
  const auto gap = [&] {
    const double uniform = (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53;
    return static_cast<int64_t>(std::min(std::log(uniform) * scale, 1e18));
  };
  for (int64_t row = gap(); row < n_rows; row += 1 + gap()) rows.push_back(static_cast<int32_t>(row));
  if (rows.empty()) rows.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(n_rows)));
  return rows;
}

ReadSeries::ReadSeries(int32_t n_threads, size_t row_bytes, double density, std::initializer_list<int64_t> distances)
    : n_threads_(n_threads), row_bytes_(row_bytes), density_(density) {
  for (const int32_t streams : {1, 2, 4})
    for (const int64_t ahead : distances) shapes_.push_back({streams, ahead});
  samples_.resize(shapes_.size());
}

ReadSeries ReadSeries::dense(int32_t n_threads) { return {n_threads, 0, 1, {0, 4096}}; }

ReadSeries ReadSeries::gathered(int32_t n_threads, size_t row_bytes, double density) {
  HS_CHECK(row_bytes >= kLine && row_bytes % kLine == 0 && density > 0 && density <= 1, "read_rates");
  return {n_threads, row_bytes, density, {1, 2, 4, 8}};
}

MeasuredRate ReadSeries::rate() const {
  MeasuredRate best;
  for (size_t s = 0; s < shapes_.size(); ++s)
    if (const double gbps = median(samples_[s]); gbps > best.gbps) best = {gbps, shapes_[s]};
  return best;
}

ReadMeter::ReadMeter(size_t n_bytes, bool huge_pages, int32_t n_threads)
    : n_bytes_((n_bytes + kHugePage - 1) / kHugePage * kHugePage) {
  HS_CHECK(n_bytes > 0 && n_threads > 0, "read_rates");
  void* mapped = ::mmap(nullptr, n_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED)
    throw OutOfMemoryError(
        error_text("read_rates", "memory to read from", cat(n_bytes_, " bytes"), "a refusal", "close other programs"));
  data_ = static_cast<std::byte*>(mapped);
  ::madvise(mapped, n_bytes_, huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  interleave_pages(data_, n_bytes_, read_topology().nodes());
  // Pages exist once they are written; one never written would be the shared page of zeros.
  ThreadPool pool(n_threads);
  run_tasks(pool, n_bytes_ / kHugePage, [&](size_t task) { std::memset(data_ + task * kHugePage, 1, kHugePage); });
}

ReadMeter::~ReadMeter() { ::munmap(data_, n_bytes_); }

// Chooses the part of the buffer, the one after the last sample's, and the rows in it.
void ReadMeter::prepare(const ReadSeries& series, Sample& sample) {
  const size_t row_bytes = series.row_bytes_ > 0 ? series.row_bytes_ : kSmallestPage;
  HS_CHECK(row_bytes <= n_bytes_, "read_rates");
  const double wanted = static_cast<double>(kSampleBytes) * series.n_threads_ / series.density_;
  const size_t n_rows =
      std::max<size_t>(static_cast<size_t>(std::min(wanted, static_cast<double>(n_bytes_))) / row_bytes, 1);
  sample.n_bytes = n_rows * row_bytes;
  if (next_ + sample.n_bytes > n_bytes_) next_ = 0;
  sample.begin = data_ + next_;
  next_ += (sample.n_bytes + kLine - 1) / kLine * kLine;
  if (series.row_bytes_ > 0) sample.rows = random_rows(static_cast<int64_t>(n_rows), series.density_, ++n_samples_);
}

void ReadMeter::visit(ReadSeries& series, double seconds) {
  using Clock = std::chrono::steady_clock;
  Sample sample;
  std::atomic<uint64_t> sink{0};
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  const size_t n_tasks = kTasksPerThread * static_cast<size_t>(series.n_threads_);
  const auto read = [&](size_t task, ReadShape shape) {
    const auto cut = [&](size_t n) { return std::pair(n * task / n_tasks, n * (task + 1) / n_tasks); };
    if (series.row_bytes_ == 0) {
      const auto [first, last] = cut(sample.n_bytes / kSmallestPage);
      return read_dense(sample.begin + first * kSmallestPage, (last - first) * kSmallestPage, shape);
    }
    const auto [first, last] = cut(sample.rows.size());
    return read_rows(
        {sample.begin, series.row_bytes_, sample.rows.data() + first, static_cast<int64_t>(last - first), shape});
  };
  ThreadPool pool(series.n_threads_);
  do {
    // Shapes take turns, so that a slow moment of the machine meets them alike.
    for (size_t s = 0; s < series.shapes_.size(); ++s) {
      prepare(series, sample);
      wake(pool);
      const auto start = Clock::now();
      run_tasks(pool, n_tasks, [&](size_t task) { sink += read(task, series.shapes_[s]); });
      const double time = std::chrono::duration<double>(Clock::now() - start).count();
      const size_t n_bytes = series.row_bytes_ == 0 ? sample.n_bytes : sample.rows.size() * series.row_bytes_;
      series.samples_[s].push_back(static_cast<double>(n_bytes) / time * 1e-9);
    }
  } while (Clock::now() < end);
}

}  // namespace hotset::cpu
