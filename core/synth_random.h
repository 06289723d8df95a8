// Random numbers by address: a weight depends on seed, tensor, row and column alone, so that any thread can make any
// part.
#pragma once

#include <cstdint>
#include <string>

namespace hotset {

// Columns of a row that share one stream: parts of rows begin at multiples of this.
constexpr int64_t kRandomBlock = 64;

// A bijection that scatters (the output function of SplitMix64; Steele, Lea, Flood 2014).
inline uint64_t scattered(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// SplitMix64.
class RandomStream {
 public:
  explicit RandomStream(uint64_t key) : state_(scattered(key)) {}
  uint64_t next() { return scattered(state_ += 0x9e3779b97f4a7c15u); }
  // In [0, n), n < 2^32.
  uint64_t below(uint64_t n) { return (next() >> 32) * n >> 32; }

 private:
  uint64_t state_;
};

// Key of a tensor: FNV-1a of its name, scattered with the seed.
inline uint64_t random_key(uint64_t seed, const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return scattered(seed) ^ hash;
}

// out[i] = element begin + i of a row, i < n: mean 0, standard deviation `scale`. Sums of four bytes: near enough to
// a normal distribution (kurtosis 2.7, none beyond 3.5 deviations), and two for each 64-bit number. `begin` is a
// multiple of kRandomBlock.
inline void random_row(uint64_t key, int64_t row, int64_t begin, int64_t n, float scale, float* out) {
  constexpr float kDeviation = 147.80054f;  // of the sum of four uniform bytes: sqrt(4 * (256^2 - 1) / 12)
  constexpr uint64_t kBytes = 0x00ff00ff00ff00ffu;
  const float factor = scale / kDeviation;
  for (int64_t at = 0; at < n; at += kRandomBlock) {
    const uint64_t block = static_cast<uint64_t>((begin + at) / kRandomBlock);
    RandomStream stream(key + (static_cast<uint64_t>(row) << 24) + block);
    const int64_t n_here = n - at < kRandomBlock ? n - at : kRandomBlock;
    for (int64_t i = 0; i < n_here; i += 2) {
      const uint64_t bits = stream.next();
      const uint64_t pairs = (bits & kBytes) + ((bits >> 8) & kBytes);
      const uint64_t sums = pairs + (pairs >> 16);
      out[at + i] = static_cast<float>(static_cast<int32_t>(sums & 0xffff) - 510) * factor;
      if (i + 1 < n_here)
        out[at + i + 1] = static_cast<float>(static_cast<int32_t>(sums >> 32 & 0xffff) - 510) * factor;
    }
  }
}

}  // namespace hotset
