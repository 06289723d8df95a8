// What the tests of the block kernels share: the canonical rules as plain scalar code, tables of every instruction set
// this CPU has and of AMX over emulated tiles, guarded memory, and problems: matrices with activations.
#pragma once

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "cpu/canonical.h"
#include "cpu/kernels_fill.h"
#include "cpu/reference.h"
#include "cpu/unpacked_format.h"
#include "tests/cpp/emulated_tiles.h"
#include "tests/cpp/util.h"
#include "tests/cpp/weight_halves.h"

namespace {

using namespace hotset;
using namespace hotset::cpu;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
const uint32_t kSeed = 20240607;

inline const std::vector<Kernels>& tables() {
  static const std::vector<Kernels> all = [] {
    std::vector<Kernels> list(1);
    list[0].isa = "generic";
    fill_block_generic(list[0]);
    fill_block_k_generic(list[0]);
    fill_unpacked_generic(list[0]);
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      list.emplace_back().isa = "avx2";
      fill_block_avx2(list.back());
      fill_block_k_avx2(list.back());
      fill_unpacked_avx2(list.back());
    }
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      list.emplace_back().isa = "avx512";
      fill_block_avx512(list.back());
      fill_block_k_avx512(list.back());
      fill_unpacked_avx512(list.back());
      list.push_back(list.back());
      list.back().isa = "amx (emulated)";
      fill_block_emulated_amx(list.back());
    }
    if (test::isas().back() == "amx") list.push_back(kernels_for("amx"));
#endif
    return list;
  }();
  return all;
}

bool same(float a, float b) { return float_bits(a) == float_bits(b) || (std::isnan(a) && std::isnan(b)); }

// Index of the first pair that differs, or -1.
int64_t first_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i)
    if (!same(a[i], b[i])) return static_cast<int64_t>(i);
  return -1;
}

// Memory that ends where an unreadable page begins, so that reading past the end is a crash.
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t n_bytes) : size_(n_bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    n_mapped_ = (n_bytes + page - 1) / page * page + page;
    void* at = mmap(nullptr, n_mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(at != MAP_FAILED);
    base_ = static_cast<std::byte*>(at);
    REQUIRE(mprotect(base_ + n_mapped_ - page, page, PROT_NONE) == 0);
    data_ = base_ + n_mapped_ - page - n_bytes;
  }
  ~GuardedBytes() { munmap(base_, n_mapped_); }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  size_t size_;
  size_t n_mapped_;
  std::byte* base_;
  std::byte* data_;
};

template <class T>
T* as(const GuardedBytes& bytes) {
  return reinterpret_cast<T*>(bytes.data());
}

enum class Fill { kPlain, kExtreme, kZero, kNonFinite };

constexpr Fill kFills[] = {Fill::kPlain, Fill::kExtreme, Fill::kZero, Fill::kNonFinite};

// ---- the canonical rules, said plainly ------------------------------------------------------------------------------

struct Quantized {
  std::vector<int8_t> q;
  std::vector<float> scale;
  std::vector<int32_t> sum;
};

Quantized quantize_plainly(const std::vector<float>& x) {
  Quantized out;
  for (size_t block = 0; block < x.size() / 32; ++block) {
    float max = 0.0f;
    bool finite = true;
    for (size_t i = 0; i < 32; ++i) {
      finite = finite && std::isfinite(x[32 * block + i]);
      max = std::fmax(max, std::fabs(x[32 * block + i]));
    }
    const float inverse = 127.0f / max;
    const bool zero = !finite || !std::isfinite(inverse);
    int32_t sum = 0;
    for (size_t i = 0; i < 32; ++i) {
      out.q.push_back(zero ? 0 : static_cast<int8_t>(std::nearbyint(x[32 * block + i] * inverse)));
      sum += out.q.back();
    }
    out.sum.push_back(sum);
    out.scale.push_back(!finite ? kNan : zero ? 0.0f : max / 127.0f);
  }
  return out;
}

// What the rules say about the block of 32 elements of a row: its integers, and what scales them.
struct PlainBlock {
  int q[32];
  float d;        // the scale; Q4_K, Q5_K: d * scale
  float minimum;  // of types that have one; Q4_K, Q5_K: dmin * minimum
  int c[2];       // scales of the halves, else 1
  int k[2];       // minima of the halves, else 1
};

float half_at(const std::byte* at) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return f16_to_f32(bits);
}

// Scale and minimum `i` of the 12 packed bytes of Q4_K and Q5_K.
std::pair<int, int> packed_scale(const std::byte* packed, int i) {
  const auto byte = [&](int at) { return static_cast<int>(packed[at]); };
  if (i < 4) return {byte(i) & 63, byte(i + 4) & 63};
  return {(byte(i + 4) & 15) | (byte(i - 4) & 0xc0) >> 2, byte(i + 4) >> 4 | (byte(i) & 0xc0) >> 2};
}

PlainBlock read_k_block(WeightType type, const std::byte* super, int b) {
  const auto byte = [&](int at) { return static_cast<int>(super[at]); };
  PlainBlock out{{}, half_at(super + (type == kWeightQ6_K ? 208 : 0)), 0.0f, {1, 1}, {1, 1}};
  if (type == kWeightQ6_K) {
    for (int i = 0; i < 2; ++i) out.c[i] = static_cast<int8_t>(byte(192 + 2 * b + i));
    for (int i = 0; i < 32; ++i)
      out.q[i] = (byte(b / 4 * 64 + b % 2 * 32 + i) >> (b % 4 < 2 ? 0 : 4) & 15) +
                 16 * (byte(128 + b / 4 * 32 + i) >> (b % 4 * 2) & 3) - 32;
    return out;
  }
  const auto [scale, minimum] = packed_scale(super + 4, b);
  out.d *= static_cast<float>(scale);
  out.minimum = half_at(super + 2) * static_cast<float>(minimum);
  for (int i = 0; i < 32; ++i) {
    const int both = byte((type == kWeightQ4_K ? 16 : 48) + b / 2 * 32 + i);
    out.q[i] = (b % 2 ? both >> 4 : both & 15) + (type == kWeightQ5_K ? (byte(16 + i) >> b & 1) * 16 : 0);
  }
  return out;
}

// Bytes of row_multiple(type) elements.
size_t group_bytes(WeightType type) { return reference::row_bytes(type, row_multiple(type)); }

// The types of core/unpacked_block.h, whose decoding is compared with the gguf package elsewhere.
PlainBlock read_unpacked(WeightType wanted, const std::byte* row, int64_t b) {
  PlainBlock out{};
  for_unpacked_formats([&]<WeightType type, class Format>() {
    if (type != wanted) return;
    UnpackedBlock block;
    unpack_block(Format{}, row, b, block);
    out = {{}, block.d, block.m, {block.c[0], block.c[1]}, {block.k[0], block.k[1]}};
    std::copy_n(block.q, 32, out.q);
  });
  return out;
}

PlainBlock read_block(WeightType type, const std::byte* row, int64_t b) {
  if (type > kWeightQ6_K) return read_unpacked(type, row, b);
  const int64_t per_group = row_multiple(type) / 32;
  const std::byte* group = row + static_cast<size_t>(b / per_group) * group_bytes(type);
  if (per_group > 1) return read_k_block(type, group, static_cast<int>(b % per_group));
  PlainBlock out{{}, half_at(group), 0.0f, {1, 1}, {1, 1}};
  for (int i = 0; i < 32; ++i) {
    const int pair = static_cast<int>(group[2 + i % 16]);
    out.q[i] = type == kWeightQ8_0 ? static_cast<int8_t>(group[2 + i]) : (i < 16 ? pair & 15 : pair >> 4) - 8;
  }
  return out;
}

float dot_plainly(WeightType type, const std::byte* row, const ActivationRow& a, int64_t n) {
  float lane[16] = {};
  for (int64_t b = 0; b < n / 32; ++b) {
    const PlainBlock block = read_block(type, row, b);
    int32_t s = 0, s_m = 0;
    for (int i = 0; i < 32; ++i) s += block.c[i / 16] * block.q[i] * a.q[32 * b + i];
    for (int i = 0; i < 32; ++i) s_m += block.k[i / 16] * a.q[32 * b + i];
    float& to = lane[b % 16];
    to = std::fma(block.d * a.scale[b], static_cast<float>(s), to);
    if (has_minimum(type)) to = std::fma(-block.minimum, a.scale[b] * static_cast<float>(s_m), to);
  }
  for (int half = 8; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
  return lane[0];
}

// ---- inputs ---------------------------------------------------------------------------------------------------------

std::vector<float> make_floats(int64_t n, Fill fill, std::mt19937& rng) {
  std::vector<float> x(static_cast<size_t>(n));
  std::normal_distribution<float> normal;
  for (float& v : x) v = fill == Fill::kZero ? 0.0f : normal(rng);
  const auto any = [&] { return rng() % x.size(); };
  if (fill == Fill::kExtreme)
    for (size_t block = 0; block < x.size() / 32; ++block) {
      const float sizes[] = {1e-45f, 1e-40f, 3.7e-37f, 3.8e-37f, 1e-20f, 1.0f, 1e30f, 1e38f};
      const float size = sizes[rng() % 8];
      for (size_t i = 0; i < 32; ++i) x[32 * block + i] = rng() % 2 ? -size : size * static_cast<float>(rng() % 4);
    }
  if (fill == Fill::kNonFinite) x[any()] = kNan, x[any()] = kInf, x[any()] = -kInf;
  return x;
}

uint16_t make_scale(Fill fill, std::mt19937& rng) {
  const uint16_t extreme[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x7bff, 0xfbff};
  if (fill == Fill::kExtreme) return extreme[rng() % 8];
  if (fill == Fill::kZero) return rng() % 2 ? 0x0000 : 0x8000;
  if (fill == Fill::kNonFinite && rng() % 64 == 0) return static_cast<uint16_t>(0x7c00 | (rng() % 2 ? 0x8200 : 0));
  return static_cast<uint16_t>(0x1000 + rng() % 0x1800 + (rng() % 2) * 0x8000);
}

// n elements of a row; a multiple of row_multiple(type).
void fill_weights(WeightType type, std::byte* data, int64_t n, Fill fill, std::mt19937& rng) {
  for (int64_t group = 0; group < n / row_multiple(type); ++group, data += group_bytes(type)) {
    for (size_t i = 0; i < group_bytes(type); ++i) {
      const unsigned extreme[] = {0x80, 0x7f, 0x00, 0xff, 0x81};
      data[i] = static_cast<std::byte>(fill == Fill::kExtreme ? extreme[rng() % 5] : rng());
    }
    const auto put_scale = [&](size_t at) {
      const uint16_t scale = make_scale(fill, rng);
      std::memcpy(data + at, &scale, 2);
    };
    for (const size_t at : halves_of(type)) put_scale(at);
    if (type == kWeightMXFP4 && fill == Fill::kPlain) data[0] = static_cast<std::byte>(110 + rng() % 16);
  }
}

// A matrix and activations whose arrays all end at unreadable memory; rows are `pad` bytes apart.
struct Problem {
  Problem(WeightType weight_type, int64_t length, int64_t row_count, int64_t act_count, Fill fill, size_t pad,
          std::mt19937& rng)
      : type(weight_type),
        n(length),
        n_rows(row_count),
        n_acts(act_count),
        row_bytes(reference::row_bytes(type, n)),
        stride(row_bytes + pad),
        bytes(n_rows ? static_cast<size_t>(n_rows - 1) * stride + row_bytes : 0) {
    for (int64_t r = 0; r < n_rows; ++r)
      fill_weights(type, bytes.data() + static_cast<size_t>(r) * stride, n, fill, rng);
    for (int64_t a = 0; a < n_acts; ++a) {
      // Sums of extreme weights overflow where activations are extreme too: the second half stays plain.
      const Quantized quantized = quantize_plainly(make_floats(n, a < (n_acts + 1) / 2 ? fill : Fill::kPlain, rng));
      const size_t blocks = static_cast<size_t>(n / 32);
      memory.push_back(std::make_unique<GuardedBytes>(static_cast<size_t>(n)));
      std::memcpy(memory.back()->data(), quantized.q.data(), static_cast<size_t>(n));
      const int8_t* q = as<int8_t>(*memory.back());
      memory.push_back(std::make_unique<GuardedBytes>(blocks * 4));
      std::memcpy(memory.back()->data(), quantized.scale.data(), blocks * 4);
      const float* scale = as<float>(*memory.back());
      memory.push_back(std::make_unique<GuardedBytes>(blocks * 4));
      std::memcpy(memory.back()->data(), quantized.sum.data(), blocks * 4);
      acts.push_back({nullptr, q, scale, as<int32_t>(*memory.back())});
    }
  }

  const std::byte* row(int64_t r) const { return bytes.data() + static_cast<size_t>(r) * stride; }
  WeightRows rows() const { return {bytes.data(), stride, n}; }

  // (n_acts, n_rows)
  std::vector<float> expected() const {
    std::vector<float> out;
    for (int64_t a = 0; a < n_acts; ++a)
      for (int64_t r = 0; r < n_rows; ++r) out.push_back(dot_plainly(type, row(r), acts[static_cast<size_t>(a)], n));
    return out;
  }

  std::vector<float> by_dot_rows(const Kernels& kernels) const {
    std::vector<float> out(static_cast<size_t>(n_acts * n_rows), -1.0f);
    for (int64_t a = 0; a < n_acts; ++a)
      kernels.dot_rows[type](rows(), nullptr, 0, n_rows, acts[static_cast<size_t>(a)], out.data() + a * n_rows);
    return out;
  }

  // Rows [begin, end) and activations [first_act, last_act) into their places of `out` (n_acts, n_rows).
  void gemm_part(const Kernels& kernels, int64_t begin, int64_t end, int64_t first_act, int64_t last_act,
                 std::vector<float>& out) const {
    const size_t n_bytes = (kernels.gemm_scratch_bytes(n) + 63) / 64 * 64;
    const GuardedBytes scratch(n_bytes);  // ends at a page, so it is 64-byte aligned
    kernels.gemm[type]({rows(), begin, end - begin, acts.data() + first_act, last_act - first_act,
                        out.data() + first_act * n_rows + begin, n_rows, scratch.data()});
  }

  std::vector<float> by_gemm(const Kernels& kernels) const {
    std::vector<float> out(static_cast<size_t>(n_acts * n_rows), -1.0f);
    gemm_part(kernels, 0, n_rows, 0, n_acts, out);
    return out;
  }

  WeightType type;
  int64_t n, n_rows, n_acts;
  size_t row_bytes, stride;
  GuardedBytes bytes;
  std::vector<std::unique_ptr<GuardedBytes>> memory;
  std::vector<ActivationRow> acts;
};

constexpr WeightType kTypes[] = {kWeightQ8_0,   kWeightQ4_0,   kWeightQ4_K, kWeightQ5_K, kWeightQ6_K,
                                 kWeightQ2_K,   kWeightQ3_K,   kWeightQ4_1, kWeightQ5_0, kWeightQ5_1,
                                 kWeightIQ4_NL, kWeightIQ4_XS, kWeightMXFP4};
constexpr int64_t kLengths[] = {32, 64, 224, 256, 288, 480, 512, 544, 992, 2048 + 32};

// The least possible length of a row that is no less than n.
inline int64_t length_of(WeightType type, int64_t n) {
  const int64_t step = row_multiple(type);
  return (n + step - 1) / step * step;
}

// Lengths of rows to try: for K types odd and even numbers of super-blocks.
inline std::vector<int64_t> lengths(WeightType type) {
  if (row_multiple(type) == kSuperBlock) return {256, 512, 768, 2048 + 256};
  return {std::begin(kLengths), std::end(kLengths)};
}

}  // namespace
