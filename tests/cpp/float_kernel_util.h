// What the tests of the float kernels share: the canonical arithmetic as plain scalar code, tables of every instruction
// set this CPU has, guarded memory, and random weights.
#pragma once

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/canonical.h"
#include "cpu/kernels_fill.h"
#include "cpu/reference.h"
#include "tests/cpp/weight_halves.h"

namespace hotset::cpu {
namespace {

// Operations that float_math.h asks for, on one float.
inline float splat(float value) { return value; }
inline float add(float a, float b) { return a + b; }
inline float sub(float a, float b) { return a - b; }
inline float mul(float a, float b) { return a * b; }
inline float div(float a, float b) { return a / b; }
inline float max(float a, float b) { return a > b ? a : b; }
inline float min(float a, float b) { return a < b ? a : b; }
inline float fused(float a, float b, float c) { return fma1(a, b, c); }
inline float scale_pow2(float x, float n) { return std::isnan(n) ? n : std::ldexp(x, static_cast<int>(n)); }

}  // namespace
}  // namespace hotset::cpu

#include "cpu/float_math.h"

namespace hotset::cpu::test {
namespace {

constexpr float kEps = 0x1p-24f;  // half an ulp of 1

constexpr WeightType kAllTypes[] = {kWeightF32,  kWeightF16,    kWeightBF16, kWeightQ8_0, kWeightQ4_0,  kWeightQ4_K,
                                    kWeightQ5_K, kWeightQ6_K,   kWeightQ2_K, kWeightQ3_K, kWeightIQ4_XS, kWeightQ4_1,
                                    kWeightQ5_0, kWeightQ5_1,   kWeightIQ4_NL, kWeightMXFP4};
constexpr WeightType kFloatTypes[] = {kWeightF32, kWeightF16, kWeightBF16};

// Float kernels and sums of units of every instruction set of this CPU.
inline std::vector<Kernels> float_tables() {
  const std::string best = best_isa();
  std::vector<Kernels> tables(1);
  fill_unpacked_generic(tables[0]), fill_float_generic(tables[0]), fill_sum_generic(tables[0]);
  tables[0].isa = "generic";
#if defined(__x86_64__)
  if (best != "generic") {
    tables.emplace_back();
    fill_unpacked_generic(tables.back()), fill_float_avx2(tables.back()), fill_sum_avx2(tables.back());
    tables.back().isa = "avx2";
  }
  if (best == "avx512") {
    tables.emplace_back();
    fill_unpacked_generic(tables.back()), fill_float_avx512(tables.back()), fill_sum_avx512(tables.back());
    tables.back().isa = "avx512";
  }
#endif
  return tables;
}

inline std::string name(const Kernels& table) { return table.isa; }

// n elements that end where readable and writable memory ends: a step too far is a segmentation fault.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t n) : n_(n) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = static_cast<size_t>(n) * sizeof(T);
    usable_ = (bytes + page - 1) / page * page;
    mapped_ = usable_ + page;
    base_ = static_cast<std::byte*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REQUIRE(base_ != MAP_FAILED);
    REQUIRE(mprotect(base_ + usable_, page, PROT_NONE) == 0);
    data_ = reinterpret_cast<T*>(base_ + usable_ - bytes);
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  int64_t size() const { return n_; }

 private:
  int64_t n_;
  size_t usable_;
  size_t mapped_;
  std::byte* base_;
  T* data_;
};

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Equal bit for bit; any NaN equals any NaN.
inline bool same(float a, float b) { return bits_of(a) == bits_of(b) || (std::isnan(a) && std::isnan(b)); }

// Index of the first difference, or -1.
inline int64_t first_difference(const float* a, const float* b, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    if (!same(a[i], b[i])) return i;
  return -1;
}

// How large random numbers are: ordinary, or so small that products and sums are subnormal or vanish.
enum class Scale { kOrdinary, kTiny };

class Random {
 public:
  explicit Random(uint32_t seed) : seed_(seed), engine_(seed) {}
  uint32_t seed() const { return seed_; }
  uint32_t bits() { return static_cast<uint32_t>(engine_()); }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits()) % n; }
  float uniform() { return static_cast<float>(static_cast<int32_t>(bits())) * 0x1p-31f; }
  float value(Scale scale) {
    return scale == Scale::kOrdinary ? uniform() : std::ldexp(uniform(), -70 - static_cast<int>(below(8)));
  }

  void fill(float* to, int64_t n, Scale scale = Scale::kOrdinary) {
    for (int64_t i = 0; i < n; ++i) to[i] = value(scale);
  }

  // n elements of a row. Half weights and block scales include subnormal ones.
  void fill_row(WeightType type, std::byte* row, int64_t n, Scale scale) {
    const size_t bytes = reference::row_bytes(type, n);
    for (size_t i = 0; i < bytes; ++i) row[i] = static_cast<std::byte>(bits());
    const auto put_half = [&](size_t at) {
      const double x = below(4) == 0 ? uniform() * 0x1p-15 : uniform();
      const uint16_t half = reference::f16_nearest(x);
      std::memcpy(row + at, &half, sizeof half);
    };
    for (int64_t i = 0; type == kWeightF32 && i < n; ++i) {
      const float x = value(scale);
      std::memcpy(row + i * 4, &x, sizeof x);
    }
    for (int64_t i = 0; type == kWeightBF16 && i < n; ++i) {
      const uint16_t half = static_cast<uint16_t>(bits_of(value(scale)) >> 16);
      std::memcpy(row + i * 2, &half, sizeof half);
    }
    for (int64_t i = 0; type == kWeightF16 && i < n; ++i) put_half(static_cast<size_t>(i) * 2);
    const size_t block = is_block_type(type) ? reference::row_bytes(type, row_multiple(type)) : bytes;
    for (size_t at = 0; is_block_type(type) && at < bytes; at += block) {
      for (const size_t half : halves_of(type)) put_half(at + half);
      if (type == kWeightMXFP4) row[at] = static_cast<std::byte>(100 + below(28));
    }
  }

 private:
  uint32_t seed_;
  std::mt19937 engine_;
};

// A random matrix that ends where memory ends; rows are `gap` bytes apart.
struct Matrix {
  WeightType type;
  int64_t n_rows;
  int64_t n;
  size_t stride;
  Guarded<std::byte> bytes;

  Matrix(Random& random, WeightType type_in, int64_t n_rows_in, int64_t n_in, Scale scale, size_t gap = 0)
      : type(type_in),
        n_rows(n_rows_in),
        n(n_in),
        stride(reference::row_bytes(type_in, n_in) + gap),
        bytes(static_cast<int64_t>(stride) * n_rows_in - static_cast<int64_t>(gap)) {
    for (int64_t r = 0; r < n_rows; ++r) random.fill_row(type, bytes.data() + row_at(r), n, scale);
  }

  size_t row_at(int64_t r) const { return static_cast<size_t>(r) * stride; }
  const std::byte* row(int64_t r) const { return bytes.data() + row_at(r); }
  WeightRows view() const { return {bytes.data(), stride, n}; }
  float at(int64_t r, int64_t i) const { return static_cast<float>(reference::weight_at(type, row(r), i)); }
};

// The canonical dot of n products w(i) * x(i), straight from the rules in cpu/kernels.h.
template <class W, class X>
float canonical_dot(int64_t n, W w, X x) {
  float l[16] = {};
  for (int64_t i = 0; i < n; ++i) l[i % 16] = fma1(w(i), x(i), l[i % 16]);
  for (int j = 0; j < 8; ++j) l[j] += l[j + 8];
  for (int j = 0; j < 4; ++j) l[j] += l[j + 4];
  for (int j = 0; j < 2; ++j) l[j] += l[j + 2];
  return l[0] + l[1];
}

// Floats of every kind: random bits, and the values where rounding and overflow are decided.
inline float any_float(Random& random) {
  static const float kHard[] = {
      0.0f,     -0.0f,     1.0f, -1.0f,         0x1p-149f,     -0x1p-149f, 0x1p-126f, 0x1.fffffep-127f, 0x1.fffffep127f,
      INFINITY, -INFINITY, NAN,  0x1.000002p0f, 0x1.fffffep0f, 0x1p-75f,   -0x1p-74f, 0x1p63f,          -0x1.8p-75f};
  if (random.below(4) == 0) return kHard[random.below(static_cast<int64_t>(std::size(kHard)))];
  if (random.below(2) == 0) return float_of(random.bits());
  return std::ldexp(random.uniform(), static_cast<int>(random.below(60)) - 30);
}

}  // namespace
}  // namespace hotset::cpu::test
