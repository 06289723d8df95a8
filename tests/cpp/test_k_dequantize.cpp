// Block types decode to the very bits that the Python package `gguf` gives (gguf.quants.dequantize). The hashes come
// from tests/python/test_k_dequantize.py, which computes them with that package and compares them with those below.
#include <doctest/doctest.h>

#include <vector>

#include "tests/cpp/float_kernel_util.h"

namespace hotset::cpu::test {
namespace {

constexpr size_t kGroups = 64;  // blocks or super-blocks

struct Golden {
  WeightType type;
  uint64_t hash;
};

// Bytes of a linear congruential generator; the f16 numbers among them are made finite.
std::vector<std::byte> some_blocks(const Golden& golden) {
  const size_t each = reference::row_bytes(golden.type, row_multiple(golden.type));
  std::vector<std::byte> out(kGroups * each);
  uint32_t state = 1;
  for (std::byte& to : out) to = static_cast<std::byte>((state = state * 1664525u + 1013904223u) >> 24);
  for (size_t at = 0; at < out.size(); at += each)
    for (const size_t half : halves_of(golden.type)) out[at + half + 1] &= std::byte{0xbf};
  return out;
}

// FNV-1a of the little-endian bytes.
uint64_t hash_of(const Guarded<float>& values) {
  uint64_t hash = 0xcbf29ce484222325;
  for (int64_t i = 0; i < values.size(); ++i)
    for (uint32_t shift = 0; shift < 32; shift += 8)
      hash = (hash ^ (bits_of(values[i]) >> shift & 0xff)) * 0x100000001b3;
  return hash;
}

TEST_CASE("dequantize_row of block types gives the bits of the gguf package") {
  const Golden goldens[] = {
      {kWeightQ4_K, 0x1c980c4e70dfd836},
      {kWeightQ5_K, 0x15fdee48573d6c90},
      {kWeightQ6_K, 0x87675cb35a3be50e},
      {kWeightQ2_K, 0x6b9b9c43e3e1bf47},
      {kWeightQ3_K, 0x5aa28e72761e523f},
      {kWeightIQ4_XS, 0x906107bd1c0cfd0f},
      {kWeightQ4_1, 0x8e2225ec8f8532a4},
      {kWeightQ5_0, 0x8391ac8e47b4f6ea},
      {kWeightQ5_1, 0x78d10149198699a2},
      {kWeightIQ4_NL, 0xcf31e6ad2bc037fa},
      {kWeightMXFP4, 0xa83e94d7f64249dc},
  };
  for (const Golden& golden : goldens)
    for (const Kernels& k : float_tables()) {
      INFO(name(k) << " type " << golden.type);
      const std::vector<std::byte> blocks = some_blocks(golden);
      Guarded<float> out(static_cast<int64_t>(kGroups) * row_multiple(golden.type));
      k.dequantize_row[golden.type](blocks.data(), out.size(), out.data());
      CHECK(hash_of(out) == golden.hash);
    }
}

}  // namespace
}  // namespace hotset::cpu::test
