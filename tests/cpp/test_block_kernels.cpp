// Block kernels of every instruction set against a scalar statement of the canonical rules (cpu/kernels.h), bit for
// bit, and against sums in double. Two NaNs count as equal whatever their payload.
#include "tests/cpp/block_kernel_util.h"
#include "tests/cpp/sanitizers.h"

namespace {

using hotset::test::kFewCases;

TEST_CASE("block kernels: quantisation of activations follows the rules bit for bit") {
  std::mt19937 rng(kSeed);
  for (const Kernels& kernels : tables())
    for (int64_t n : kLengths)
      for (Fill fill : kFills) {
        INFO("seed ", kSeed, " isa ", kernels.isa, " n ", n, " fill ", static_cast<int>(fill));
        const std::vector<float> x = make_floats(n, fill, rng);
        const Quantized expected = quantize_plainly(x);
        const size_t blocks = static_cast<size_t>(n / 32);
        const GuardedBytes from(x.size() * 4), q(x.size()), scale(blocks * 4), sum(blocks * 4);
        std::memcpy(from.data(), x.data(), from.size());
        kernels.quantize_activation(as<float>(from), n, as<int8_t>(q), as<float>(scale), as<int32_t>(sum));
        CHECK(std::memcmp(q.data(), expected.q.data(), q.size()) == 0);
        CHECK(std::memcmp(sum.data(), expected.sum.data(), sum.size()) == 0);
        CHECK(first_difference({as<float>(scale), as<float>(scale) + blocks}, expected.scale) == -1);
      }
}

TEST_CASE("block kernels: ties round to even and the largest element becomes 127") {
  for (const Kernels& kernels : tables()) {
    INFO("isa ", kernels.isa);
    float x[32] = {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, -127.0f};
    int8_t q[32];
    float scale;
    int32_t sum;
    kernels.quantize_activation(x, 32, q, &scale, &sum);
    const int8_t expected[32] = {127, 0, 2, 2, 0, -2, -2, -127};
    CHECK(std::memcmp(q, expected, 32) == 0);
    CHECK(scale == 1.0f);
    CHECK(sum == 0);
  }
}

TEST_CASE("block kernels: a block with NaN or infinity gets a NaN scale and poisons its dots") {
  for (const Kernels& kernels : tables())
    for (float bad : {kNan, kInf, -kInf}) {
      INFO("isa ", kernels.isa, " bad ", bad);
      std::vector<float> x(64, 1.0f);
      x[40] = bad;
      std::vector<int8_t> q(64);
      float scale[2];
      int32_t sum[2];
      kernels.quantize_activation(x.data(), 64, q.data(), scale, sum);
      CHECK(scale[0] == 1.0f / 127.0f);
      CHECK(std::isnan(scale[1]));
      CHECK(sum[1] == 0);
      std::vector<std::byte> row(2 * 34);  // all-zero weights do not hide it
      float out = 0.0f;
      const ActivationRow act{x.data(), q.data(), scale, sum};
      kernels.dot_rows[kWeightQ8_0]({row.data(), row.size(), 64}, nullptr, 0, 1, act, &out);
      CHECK(std::isnan(out));
    }
}

TEST_CASE("block kernels: dot_rows follows the rules bit for bit") {
  std::mt19937 rng(kSeed + 1);
  for (WeightType type : kTypes)
    for (int64_t n : lengths(type))
      for (int64_t n_rows : {0, 1, 2, 7, 33})
        for (Fill fill : kFills) {
          const Problem problem(type, n, n_rows, 3, fill, n_rows % 2 ? 0 : 2, rng);
          const std::vector<float> expected = problem.expected();
          for (const Kernels& kernels : tables()) {
            INFO("seed ", kSeed, " isa ", kernels.isa, " type ", type, " n ", n, " n_rows ", n_rows, " fill ",
                 static_cast<int>(fill));
            CHECK(first_difference(problem.by_dot_rows(kernels), expected) == -1);
          }
        }
}

TEST_CASE("block kernels: dot_rows of a list equals the rows one by one") {
  std::mt19937 rng(kSeed + 2);
  for (WeightType type : kTypes) {
    const Problem problem(type, length_of(type, 544), 50, 1, Fill::kPlain, 6, rng);
    const std::vector<float> all = problem.expected();
    const std::vector<int32_t> list = {0, 1, 5, 6, 7, 20, 33, 48, 49};
    for (const Kernels& kernels : tables()) {
      INFO("isa ", kernels.isa, " type ", type);
      std::vector<float> out(list.size()), expected;
      for (int32_t row : list) expected.push_back(all[static_cast<size_t>(row)]);
      const int64_t n_list = static_cast<int64_t>(list.size());
      kernels.dot_rows[type](problem.rows(), list.data(), 0, n_list, problem.acts[0], out.data());
      CHECK(first_difference(out, expected) == -1);
      kernels.dot_rows[type](problem.rows(), nullptr, 20, 1, problem.acts[0], out.data());
      CHECK(same(out[0], all[20]));
    }
  }
}

TEST_CASE("block kernels: dot_rows of rows that are too long to keep sums for") {
  std::mt19937 rng(kSeed + 7);
  for (WeightType type : {kWeightQ2_K, kWeightQ3_K}) {
    const Problem problem(type, 32768 + kSuperBlock, 3, 1, Fill::kPlain, 2, rng);
    const std::vector<float> expected = problem.expected();
    for (const Kernels& kernels : tables()) {
      INFO("isa ", kernels.isa, " type ", type);
      CHECK(first_difference(problem.by_dot_rows(kernels), expected) == -1);
    }
  }
}

TEST_CASE("block kernels: gemm equals dot_rows for every number of activations") {
  std::mt19937 rng(kSeed + 3);
  for (WeightType type : kTypes)
    for (int64_t n : lengths(type))
      for (int64_t n_acts = 1; n_acts <= 20; n_acts += kFewCases ? 6 : n_acts < 9 || n == length_of(type, 544) ? 1 : 4)
        for (Fill fill : kFills) {
          const int64_t n_rows = static_cast<int64_t>(rng() % 70);
          const Problem problem(type, n, n_rows, n_acts, fill, n_acts % 2 ? 0 : 2, rng);
          const std::vector<float> expected = problem.expected();
          for (const Kernels& kernels : tables()) {
            INFO("seed ", kSeed, " isa ", kernels.isa, " type ", type, " n ", n, " n_rows ", n_rows, " n_acts ", n_acts,
                 " fill ", static_cast<int>(fill));
            CHECK(first_difference(problem.by_gemm(kernels), expected) == -1);
          }
        }
}

TEST_CASE("block kernels: gemm of 512 activations, split into any parts, equals the whole") {
  std::mt19937 rng(kSeed + 4);
  for (WeightType type : kTypes) {
    const Problem problem(type, length_of(type, 544), 67, 512, Fill::kPlain, 0, rng);
    const std::vector<float> expected = problem.expected();
    for (const Kernels& kernels : tables()) {
      INFO("isa ", kernels.isa, " type ", type);
      CHECK(first_difference(problem.by_gemm(kernels), expected) == -1);
      std::vector<float> parts(expected.size(), -1.0f);
      for (int64_t begin = 0; begin < 67; begin += 23)
        for (int64_t act = 0; act < 512; act += 100)
          problem.gemm_part(kernels, begin, std::min<int64_t>(67, begin + 23), act, std::min<int64_t>(512, act + 100),
                            parts);
      CHECK(first_difference(parts, expected) == -1);
    }
  }
}

// |result - exact| <= steps * 2^-24 * sum of magnitudes; steps: the product, n / 512 blocks of a lane with at most two
// fmas each, 4 tree levels, 1.
TEST_CASE("block kernels: dots are close to the sum in double of the dequantised operands") {
  std::mt19937 rng(kSeed + 5);
  for (WeightType type : kTypes)
    for (int64_t n : {int64_t{32}, int64_t{480}, int64_t{4096}}) {
      const Problem problem(type, length_of(type, n), 5, 2, Fill::kPlain, 0, rng);
      for (const Kernels& kernels : tables()) {
        const std::vector<float> got = problem.by_gemm(kernels);
        for (int64_t i = 0; i < 10; ++i) {
          const ActivationRow& a = problem.acts[static_cast<size_t>(i / 5)];
          const double exact = reference::dot(type, problem.row(i % 5), problem.n, a);
          double magnitude = 0.0;
          for (int64_t b = 0; b < problem.n / 32; ++b) {
            const PlainBlock block = read_block(type, problem.row(i % 5), b);
            int s = 0;
            for (int k = 0; k < 32; ++k) s += block.c[k / 16] * block.q[k] * a.q[32 * b + k];
            magnitude +=
                std::fabs(static_cast<double>(a.scale[b])) * (std::fabs(static_cast<double>(block.d) * s) +
                                                              std::fabs(static_cast<double>(block.minimum) * a.sum[b]));
          }
          INFO("seed ", kSeed, " isa ", kernels.isa, " type ", type, " n ", n, " i ", i);
          const double steps = 2.0 + static_cast<double>(problem.n) / 256.0 + 4.0;
          CHECK(std::fabs(static_cast<double>(got[static_cast<size_t>(i)]) - exact) <= steps * 0x1p-24 * magnitude);
        }
      }
    }
}

TEST_CASE("block kernels: the largest sums of every type are exact") {
  for (WeightType type : kTypes)
    for (const int weight_byte : {0x00, 0xff})
      for (const int scale_byte : {0x80, 0x7f})  // of types that have some
        for (const float x : {1.0f, -1.0f}) {
          constexpr int64_t n = 512;
          std::vector<std::byte> row(reference::row_bytes(type, n));
          for (size_t at = 0; at < row.size(); at += group_bytes(type)) {
            const auto scales = static_cast<std::byte>(scale_byte);
            std::fill_n(&row[at], group_bytes(type), static_cast<std::byte>(weight_byte));
            if (type == kWeightQ4_K || type == kWeightQ5_K) std::fill_n(&row[at + 4], 12, std::byte{0xff});
            if (type == kWeightQ6_K) std::fill_n(&row[at + 192], 16, scales);
            if (type == kWeightQ2_K) std::fill_n(&row[at], 16, scales);
            const std::byte ends{static_cast<uint8_t>(scale_byte == 0x80 ? 0 : 0xff)};  // -32 or 31
            if (type == kWeightQ3_K) std::fill_n(&row[at + 96], 12, ends);
            if (type == kWeightIQ4_XS) std::fill_n(&row[at + 2], 6, ends);
            if (type == kWeightMXFP4) row[at] = std::byte{128};
            const uint16_t one = 0x3c00;
            for (const size_t half : halves_of(type)) std::memcpy(&row[at + half], &one, 2);
          }
          const Quantized quantized = quantize_plainly(std::vector<float>(n, x));
          const ActivationRow act{nullptr, quantized.q.data(), quantized.scale.data(), quantized.sum.data()};
          const std::vector<ActivationRow> acts(9, act);
          for (const Kernels& kernels : tables()) {
            INFO("isa ", kernels.isa, " type ", type, " bytes ", weight_byte, " scales ", scale_byte, " x ", x);
            const float expected = dot_plainly(type, row.data(), act, n);
            float out[12];
            kernels.dot_rows[type]({row.data(), row.size(), n}, nullptr, 0, 1, act, out);
            const GuardedBytes scratch((kernels.gemm_scratch_bytes(n) + 63) / 64 * 64);
            kernels.gemm[type]({{row.data(), row.size(), n}, 0, 1, acts.data(), 2, out + 1, 1, scratch.data()});  // few
            kernels.gemm[type]({{row.data(), row.size(), n}, 0, 1, acts.data(), 9, out + 3, 1, scratch.data()});  // many
            for (const float each : out) CHECK(same(each, expected));
          }
        }
}

TEST_CASE("canonical fma1 without an FMA unit rounds once") {
  std::mt19937 rng(kSeed + 6);
  int64_t n_wrong = 0;
  for (int i = 0; i < 400000; ++i) {
    const auto any = [&] { return bits_float(static_cast<uint32_t>(rng())); };
    const float a = any(), b = any();
    float c = any();
    if (i % 2) c = -(a * b) * (1.0f + static_cast<float>(static_cast<int>(rng() % 64) - 32) * 0x1p-23f);  // cancels
    if (i % 8 == 0) c = bits_float(float_bits(a * b) - ((rng() % 60) << 23));                             // far apart
    if (!same(fma1(a, b, c), std::fma(a, b, c))) ++n_wrong;
    // A product within 2^-46 of half a unit in the last place: rounding twice would see a tie.
    const float nearly = 0x1p-12f * (1.0f - static_cast<float>(rng() % 4) * 0x1p-23f);
    const float half = 0x1p-12f * (1.0f + static_cast<float>(rng() % 4) * 0x1p-23f) * (rng() % 2 ? 1.0f : -1.0f);
    const float odd = 1.0f + static_cast<float>(rng() % 4096) * 0x1p-23f;
    if (!same(fma1(nearly, half, odd), std::fma(nearly, half, odd))) ++n_wrong;
  }
  INFO("seed ", kSeed);
  CHECK(n_wrong == 0);
}

}  // namespace
