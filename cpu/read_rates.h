// Plain reads of memory, dense and by listed rows: what the rates of weight kernels are held against, and what
// placement counts with. No arithmetic beyond the sum that keeps the loads alive.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace hotset::cpu {

// How one thread goes through memory. It reads `streams` (1, 2 or 4) places in turn, a 64-byte line of each: two
// were a little faster than one (a core of a Zen 5 VM, dense: 41 and 39 GB/s). Each line read prefetches the one that
// is `ahead` further on: bytes for dense reads, rows of the list for gathered ones; 0 = no prefetch.
struct ReadShape {
  int32_t streams = 1;
  int64_t ahead = 0;
};

// Sum of the 64-bit words of n_bytes from `data` on, cut into as many stretches as there are streams, in whole 64-byte
// lines (the rest of a stretch is left out).
uint64_t read_dense(const std::byte* data, size_t n_bytes, ReadShape shape);

// Row i of the list starts at data + rows[i] * row_bytes. The prefetch takes the same lines of the coming row, as the
// weight kernels do it.
struct RowReads {
  const std::byte* data;
  size_t row_bytes;
  const int32_t* rows;  // (n_rows)
  int64_t n_rows;
  ReadShape shape;
};

// The same sum over all listed rows; the list is cut into as many stretches as there are streams.
uint64_t read_rows(const RowReads& reads);

// `n_rows` row numbers drawn with probability `density` each, ascending; never empty. Deterministic by seed.
std::vector<int32_t> random_rows(int64_t n_rows, double density, uint64_t seed);

// A rate, and the way of reading that reached it.
struct MeasuredRate {
  double gbps = 0;
  ReadShape shape;
};

// What is to be measured, and the samples so far. Samples should be taken in several visits spread over the whole
// measurement: the bandwidth of a shared machine changes from second to second (44 and 76 GB/s seen within one run).
class ReadSeries {
 public:
  static ReadSeries dense(int32_t n_threads);
  // Rows of row_bytes, a multiple of 64, of which a share `density` (above 0, up to 1) is read in ascending order.
  static ReadSeries gathered(int32_t n_threads, size_t row_bytes, double density);

  // The shape with the highest median.
  MeasuredRate rate() const;

 private:
  friend class ReadMeter;
  ReadSeries(int32_t n_threads, size_t row_bytes, double density, std::initializer_list<int64_t> distances);

  int32_t n_threads_;
  size_t row_bytes_;  // 0 = dense
  double density_;
  std::vector<ReadShape> shapes_;
  std::vector<std::vector<double>> samples_;  // of each shape, GB/s
};

// Takes samples from a buffer of its own, which should be much larger than the caches. Not thread-safe.
class ReadMeter {
 public:
  // Maps n_bytes (rounded up to 2 MiB), asks for huge pages or for none, spreads them over NUMA nodes, and writes all
  // with n_threads threads. Throws OutOfMemoryError.
  ReadMeter(size_t n_bytes, bool huge_pages, int32_t n_threads);
  ~ReadMeter();
  ReadMeter(const ReadMeter&) = delete;
  ReadMeter& operator=(const ReadMeter&) = delete;

  // Adds samples of every shape for about `seconds`, at least one each. Samples read new lists, and parts of the buffer
  // in turn.
  void visit(ReadSeries& series, double seconds);

 private:
  // What the threads of a sample read.
  struct Sample {
    const std::byte* begin = nullptr;
    size_t n_bytes = 0;  // of the part from `begin` on
    std::vector<int32_t> rows;
  };
  void prepare(const ReadSeries& series, Sample& sample);

  std::byte* data_ = nullptr;
  size_t n_bytes_ = 0;
  size_t next_ = 0;  // start of the next sample's part
  uint64_t n_samples_ = 0;
};

}  // namespace hotset::cpu
