// Rates of the CPU's kernels for weights: GB/s of dot_rows and row_sum on a matrix much bigger than the caches,
// next to plain reads of the same memory, and Gop/s (2 per multiply-add) of row_sum and gemm. Best of several runs,
// with 1 and 2 threads.
// Usage: bench_kernels [isa [type [row length [activations..]]]], e.g. bench_kernels avx512 F16 2048, or only of gemm
// with so many activations, bench_kernels avx512 Q4_0 2048 2 4 8
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/kernels_fill.h"
#include "cpu/read_rates.h"

namespace {

using namespace hotset::cpu;

constexpr size_t kMatrixBytes = size_t{1000} << 20;
constexpr int kRuns = 7;
constexpr int64_t kMaxActs = 512;

struct AlignedFree {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<std::byte, AlignedFree>;

Buffer make_buffer(size_t bytes) {
  return Buffer(static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
}

// Shortest of kRuns times, in seconds, of work(thread) on all threads at once.
double best_seconds(int n_threads, const std::function<void(int)>& work) {
  double best = 1e30;
  for (int run = 0; run < kRuns; ++run) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (int t = 1; t < n_threads; ++t) threads.emplace_back(work, t);
    work(0);
    for (std::thread& thread : threads) thread.join();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    if (time.count() < best) best = time.count();
  }
  return best;
}

struct Type {
  const char* name;
  WeightType type;
  size_t block_bytes;  // of row_multiple(type) elements
  size_t scales_at;    // the first of n_scales halves in a block
  int n_scales;
  uint16_t scale;  // f16; with the scales of sub-blocks as large as a model's
};

constexpr Type kTypes[] = {{"F32", kWeightF32, 4, 0, 0, 0},
                           {"F16", kWeightF16, 2, 0, 0, 0},
                           {"BF16", kWeightBF16, 2, 0, 0, 0},
                           {"Q8_0", kWeightQ8_0, 34, 0, 1, 0x2000},
                           {"Q4_0", kWeightQ4_0, 18, 0, 1, 0x2000},
                           {"Q4_K", kWeightQ4_K, 144, 0, 2, 0x0800},
                           {"Q5_K", kWeightQ5_K, 176, 0, 2, 0x0800},
                           {"Q6_K", kWeightQ6_K, 210, 208, 1, 0x0200},
                           {"Q2_K", kWeightQ2_K, 84, 80, 2, 0x1000},
                           {"Q3_K", kWeightQ3_K, 110, 108, 1, 0x0800},
                           {"IQ4_XS", kWeightIQ4_XS, 136, 0, 1, 0x0200},
                           {"Q4_1", kWeightQ4_1, 20, 0, 2, 0x2000},
                           {"Q5_0", kWeightQ5_0, 22, 0, 1, 0x2000},
                           {"Q5_1", kWeightQ5_1, 24, 0, 2, 0x2000},
                           {"IQ4_NL", kWeightIQ4_NL, 18, 0, 1, 0x1000},
                           {"MXFP4", kWeightMXFP4, 17, 0, 1, 0x3a78}};  // an exponent, and two weights

// Plausible weights: blocks of small scales and random integers, or floats of ordinary size.
void fill_rows(std::byte* data, const Type& type) {
  uint64_t state = 88172645463325252u;
  for (size_t at = 0; at + 8 <= kMatrixBytes; at += 8) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    const uint64_t floats = (state & 0x83ff83ff83ff83ff) | 0x2c002c002c002c00;  // as 16-bit floats, and as F32
    std::memcpy(data + at, is_block_type(type.type) ? &state : &floats, 8);
  }
  for (size_t at = 0; at + type.block_bytes <= kMatrixBytes; at += type.block_bytes)
    for (int i = 0; i < type.n_scales; ++i) std::memcpy(data + at + type.scales_at + 2 * i, &type.scale, 2);
}

// Activations with their storage.
struct Activations {
  Activations(const Kernels& kernels, int64_t count, int64_t n)
      : f32(count * n), q(count * n), scale(count * n / kBlock), sum(count * n / kBlock) {
    for (size_t i = 0; i < f32.size(); ++i) f32[i] = static_cast<float>((i * 2654435761u >> 8) % 1000) - 500.0f;
    for (int64_t a = 0; a < count; ++a) {
      const int64_t at = a * n, block = at / kBlock;
      kernels.quantize_activation(&f32[at], n, &q[at], &scale[block], &sum[block]);
      rows.push_back({&f32[at], &q[at], &scale[block], &sum[block]});
    }
  }
  std::vector<float> f32;
  std::vector<int8_t> q;
  std::vector<float> scale;
  std::vector<int32_t> sum;
  std::vector<ActivationRow> rows;
};

void bench_rows(const Kernels& kernels, WeightType type, const WeightRows& w, const ActivationRow& act) {
  const int64_t n_rows = static_cast<int64_t>(kMatrixBytes / w.stride);
  std::vector<float> out(static_cast<size_t>(n_rows));
  std::vector<int32_t> list;  // about every tenth row
  for (int64_t row = 0; row < n_rows; row += 1 + row * 7 % 19) list.push_back(static_cast<int32_t>(row));
  const int64_t n_list = static_cast<int64_t>(list.size());
  const auto keep = [&](int64_t at, uint64_t sum) { std::memcpy(&out[static_cast<size_t>(at)], &sum, sizeof(float)); };
  for (int threads = 1; threads <= 2; ++threads) {
    // GB/s of work(begin, end) over `total` rows shared by the threads.
    const auto rate = [&](int64_t total, const std::function<void(int64_t, int64_t)>& work) {
      const double seconds =
          best_seconds(threads, [&](int t) { work(total * t / threads, total * (t + 1) / threads); });
      return static_cast<double>(total) * static_cast<double>(w.stride) / seconds * 1e-9;
    };
    const double read = rate(n_rows, [&](int64_t begin, int64_t end) {
      const size_t at = static_cast<size_t>(begin) * w.stride;
      keep(begin, read_dense(w.data + at, static_cast<size_t>(end) * w.stride - at, {2, 4096}));
    });
    const double dense = rate(n_rows, [&](int64_t begin, int64_t end) {
      kernels.dot_rows[type](w, nullptr, begin, end - begin, act, &out[static_cast<size_t>(begin)]);
    });
    double gather = 0.0;
    for (int64_t ahead : {1, 2, 4, 8})
      gather = std::max(gather, rate(n_list, [&](int64_t begin, int64_t end) {
                          keep(begin, read_rows({w.data, w.stride, &list[static_cast<size_t>(begin)], end - begin, {2, ahead}}));
                        }));
    const double gathered = rate(n_list, [&](int64_t begin, int64_t end) {
      const size_t at = static_cast<size_t>(begin);
      kernels.dot_rows[type](w, &list[at], 0, end - begin, act, &out[at]);
    });
    std::vector<float> h(list.size(), 0.5f);
    const double summed = rate(n_list, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> sums(static_cast<size_t>(w.n));
      const size_t at = static_cast<size_t>(begin);
      kernels.row_sum[type]({w, &list[at], 0, end - begin, &h[at], 0, 1, 0, w.n, sums.data(), 0});
      keep(begin, static_cast<uint64_t>(sums[0]));
    });
    std::printf(
        "  %d threads, GB/s: dot_rows %5.1f of %5.1f read; listed rows: dot_rows %5.1f, row_sum %5.1f of %5.1f\n",
        threads, dense, read, gathered, summed, gather);
  }
}

// Sums of all rows for n_acts activations: tiles of a few columns when there are many, as the down pass takes them.
void bench_row_sum(const Kernels& kernels, WeightType type, const WeightRows& w, int64_t n_acts) {
  const int64_t n_rows = std::min<int64_t>(11008, static_cast<int64_t>(kMatrixBytes / w.stride));
  const int64_t n_cols = n_acts <= 8 ? w.n : 128;
  std::vector<float> h(static_cast<size_t>(n_acts * n_rows));
  for (size_t i = 0; i < h.size(); ++i) h[i] = static_cast<float>(i * 2654435761u >> 8 & 1023) * 0.001f + 0.001f;
  double rate[2];
  for (int threads = 1; threads <= 2; ++threads) {
    const double time = best_seconds(threads, [&](int t) {
      std::vector<int64_t> sums(static_cast<size_t>(n_acts * n_cols));
      const int64_t begin = n_acts <= 8 ? n_rows * t / threads : 0;
      const int64_t end = n_acts <= 8 ? n_rows * (t + 1) / threads : n_rows;
      for (int64_t tile = n_acts <= 8 ? 0 : t; tile < w.n / n_cols; tile += n_acts <= 8 ? 1 : threads)
        kernels.row_sum[type]({w, nullptr, begin, end - begin, h.data() + begin, n_rows, n_acts, tile * n_cols, n_cols,
                               sums.data(), n_cols});
    });
    rate[threads - 1] = 2e-9 * static_cast<double>(n_rows * n_acts * w.n) / time;
  }
  const double weights = rate[1] / (2.0 * static_cast<double>(n_acts * w.n)) * static_cast<double>(w.stride);
  std::printf("  row_sum %3ld acts  Gop/s  1 thread %7.1f   2 threads %7.1f   (weights %5.1f GB/s)\n",
              static_cast<long>(n_acts), rate[0], rate[1], weights);
}

void bench_gemm(const Kernels& kernels, WeightType type, const WeightRows& w, const Activations& acts, int64_t n_acts) {
  const bool slow = std::string(kernels.isa) == "generic";
  // Few activations stream the weights: the whole matrix, so that no cache holds it.
  const int64_t n_rows = slow ? 512 : n_acts <= 24 ? static_cast<int64_t>(kMatrixBytes / w.stride) : 2048;
  std::vector<float> out(static_cast<size_t>(n_acts * n_rows));
  const size_t scratch_bytes = std::max(kernels.gemm_scratch_bytes(w.n), kernels.float_gemm_scratch_bytes());
  double rate[2];
  for (int threads = 1; threads <= 2; ++threads) {
    Buffer scratch[2] = {make_buffer(scratch_bytes), make_buffer(scratch_bytes)};
    const double time = best_seconds(threads, [&](int t) {
      const int64_t begin = n_rows * t / threads, end = n_rows * (t + 1) / threads;
      kernels.gemm[type]({w, begin, end - begin, acts.rows.data(), n_acts, &out[static_cast<size_t>(begin)], n_rows,
                          scratch[t].get()});
    });
    rate[threads - 1] = 2e-9 * static_cast<double>(n_rows * n_acts * w.n) / time;
  }
  const double weights = rate[1] / (2.0 * static_cast<double>(n_acts * w.n)) * static_cast<double>(w.stride);
  std::printf("  gemm %3ld acts  Gop/s  1 thread %7.1f   2 threads %7.1f   (weights %5.1f GB/s)\n",
              static_cast<long>(n_acts), rate[0], rate[1], weights);
}

void bench_isa(const Kernels& kernels, const std::string& only, int64_t n, const std::vector<int64_t>& gemm_only) {
  const Buffer data = make_buffer(kMatrixBytes);
  const Activations acts(kernels, kMaxActs, n);
  for (const Type& type : kTypes) {
    if (!only.empty() && only != type.name) continue;
    fill_rows(data.get(), type);
    const WeightRows w{data.get(), static_cast<size_t>(n / row_multiple(type.type)) * type.block_bytes, n};
    std::printf("%s %s, rows of %ld\n", kernels.isa, type.name, static_cast<long>(n));
    if (gemm_only.empty()) {
      bench_rows(kernels, type.type, w, acts.rows[0]);
      for (int64_t n_acts : {1, 2, 4, 8, 64}) bench_row_sum(kernels, type.type, w, n_acts);
    }
    for (int64_t n_acts : gemm_only.empty() ? std::vector<int64_t>{2, 4, 8, 32, 512} : gemm_only)
      bench_gemm(kernels, type.type, w, acts, n_acts);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string isa = argc > 1 ? argv[1] : "", type = argc > 2 ? argv[2] : "";
  const int64_t n = argc > 3 ? std::max<int64_t>(kSuperBlock, std::atol(argv[3]) / kSuperBlock * kSuperBlock) : 4096;
  std::vector<int64_t> gemm_only;
  for (int i = 4; i < argc; ++i) gemm_only.push_back(std::clamp<int64_t>(std::atol(argv[i]), 1, kMaxActs));
  for (const char* each : {"amx", "avx512", "avx2", "generic"}) {
    if (!isa.empty() && isa != each) continue;
    try {
      bench_isa(kernels_for(each), type, n, gemm_only);
    } catch (const std::exception& error) {
      std::printf("%s\n", error.what());
    }
  }
}
