// Bit planes: how rows are coded, and the kernels of every instruction set against the canonical rules, bit for bit,
// and against sums in double.
#include "core/bit_planes.h"
#include "tests/cpp/block_kernel_util.h"
#include "tests/cpp/util.h"

namespace {

using hotset::test::isas;

std::vector<float> normal_row(int64_t n, float mean, std::mt19937& rng) {
  std::normal_distribution<float> normal(mean, 0.02f);
  std::vector<float> out(static_cast<size_t>(n));
  for (float& value : out) value = normal(rng);
  return out;
}

double error_norm(const std::vector<float>& w, const std::byte* row, int n_bits, const PlaneFit& fit) {
  double sum = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    const double level =
        static_cast<double>(fit.low) + static_cast<double>(fit.step) * plane_code(row, n_bits, static_cast<int64_t>(i));
    sum += (static_cast<double>(w[i]) - level) * (static_cast<double>(w[i]) - level);
  }
  return std::sqrt(sum);
}

TEST_CASE("bit planes: normally distributed rows lose what evenly spaced levels must lose") {
  std::mt19937 rng(kSeed);
  // Mean squared error of the best even levels for a normal distribution of variance 1 (Max 1960, table II).
  const double least[] = {0, 0.3634, 0.1188, 0.03744};
  for (int n_bits = 1; n_bits <= kMaxPlaneBits; ++n_bits)
    for (const float mean : {0.0f, 0.013f}) {
      CAPTURE(n_bits);
      const std::vector<float> w = normal_row(16384, mean, rng);
      std::vector<std::byte> row(static_cast<size_t>(plane_row_bytes(n_bits, 16384)));
      const PlaneFit fit = encode_planes(w.data(), 16384, n_bits, row.data());
      const double error = error_norm(w, row.data(), n_bits, fit);
      CHECK(static_cast<double>(fit.error) == doctest::Approx(error).epsilon(1e-6));
      // The share lost differs by sampling: its deviation is some 1 / sqrt(n), here 0.8 %.
      CHECK(error * error / (16384 * 0.0004) == doctest::Approx(least[n_bits]).epsilon(0.04));
    }
}

TEST_CASE("bit planes: rows of few or equal values, odd lengths, values without a meaning") {
  std::mt19937 rng(kSeed);
  for (int n_bits = 1; n_bits <= kMaxPlaneBits; ++n_bits)
    for (const int64_t n : {1, 2, 31, 255, 256, 257, 700}) {
      CAPTURE(n_bits);
      CAPTURE(n);
      const GuardedBytes row(static_cast<size_t>(plane_row_bytes(n_bits, n)));
      const auto encode = [&](const std::vector<float>& w) { return encode_planes(w.data(), n, n_bits, row.data()); };
      for (const float value : {0.0f, -3.5f, 1e-40f, 1e38f}) {
        const std::vector<float> w(static_cast<size_t>(n), value);
        const PlaneFit fit = encode(w);
        CHECK(error_norm(w, row.data(), n_bits, fit) <= 1e-5 * std::fabs(static_cast<double>(value)) * std::sqrt(n));
      }
      std::vector<float> two(static_cast<size_t>(n));  // two values are two levels
      for (size_t i = 0; i < two.size(); ++i) two[i] = rng() % 2 ? 0.75f : -0.25f;
      CHECK(error_norm(two, row.data(), n_bits, encode(two)) <= 1e-6 * std::sqrt(n));
      const std::vector<float> w = normal_row(n, 0, rng);
      const PlaneFit fit = encode(w);
      CHECK(static_cast<double>(fit.error) == doctest::Approx(error_norm(w, row.data(), n_bits, fit)).epsilon(1e-5));
      for (int64_t i = n; i < (n + 255) / 256 * 256; ++i) CHECK(plane_code(row.data(), n_bits, i) == 0);
      for (const float bad : {kNan, kInf, -kInf}) {
        std::vector<float> broken = w;
        broken[static_cast<size_t>(n / 2)] = bad;
        const PlaneFit none = encode(broken);
        CHECK(std::isnan(none.low));
        for (int64_t i = 0; i < n; ++i) CHECK(plane_code(row.data(), n_bits, i) == 0);
      }
    }
}

// The canonical rule, said plainly.
float plane_dot_plainly(const std::byte* row, int n_bits, int64_t n_blocks, const ActivationRow& a) {
  float lane[16] = {};
  for (int64_t b = 0; b < n_blocks; ++b)
    for (int64_t i = 0; i < 8; ++i) {
      int32_t s = 0;
      for (int64_t j = 32 * b + 4 * i; j < 32 * b + 4 * i + 4; ++j) s += plane_code(row, n_bits, j) * a.q[j];
      float& to = lane[b % 2 * 8 + i];
      to = std::fma(a.scale[b], static_cast<float>(s), to);
    }
  return reduce_lanes(lane);
}

TEST_CASE("plane kernels: dots follow the rule bit for bit, whatever is computed together") {
  std::mt19937 rng(kSeed);
  for (int n_bits = 1; n_bits <= kMaxPlaneBits; ++n_bits)
    for (const int64_t n : {1, 32, 50, 64, 96, 160, 256, 288, 500, 2048 + 32})
      for (const int64_t n_acts : {1, 4, 5, 11})
        for (const Fill fill : {Fill::kPlain, Fill::kExtreme, Fill::kNonFinite}) {
          constexpr int64_t kRows = 13;
          const int64_t n_whole = (n + 31) / 32 * 32;
          const Problem problem(kWeightQ8_0, n_whole, 0, n_acts, fill, 0, rng);  // for its activations
          const size_t stride = static_cast<size_t>(plane_row_bytes(n_bits, n));
          const GuardedBytes rows(kRows * stride);
          for (size_t i = 0; i < rows.size(); ++i) rows.data()[i] = static_cast<std::byte>(rng());
          const WeightRows w{rows.data(), stride, n};
          for (const std::string& isa : isas()) {
            INFO("isa ", isa, " bits ", n_bits, " n ", n, " acts ", n_acts, " fill ", static_cast<int>(fill));
            std::vector<float> out(static_cast<size_t>(n_acts * kRows), -1.0f);
            const auto compute = [&](int64_t first, int64_t n_rows) {
              kernels_for(isa.c_str())
                  .plane_dots[n_bits - 1]({w, first, n_rows, problem.acts.data(), n_acts, out.data() + first, kRows});
            };
            compute(0, 4), compute(4, 0), compute(4, kRows - 4);
            for (int64_t a = 0; a < n_acts; ++a)
              for (int64_t r = 0; r < kRows; ++r) {
                const ActivationRow& act = problem.acts[static_cast<size_t>(a)];
                const std::byte* row = rows.data() + static_cast<size_t>(r) * stride;
                const float got = out[static_cast<size_t>(a * kRows + r)];
                CHECK(same(got, plane_dot_plainly(row, n_bits, n_whole / 32, act)));
                if (fill != Fill::kPlain) continue;
                double size = 0;
                for (int64_t i = 0; i < n_whole; ++i)
                  size += std::fabs(plane_code(row, n_bits, i) * reference::activation_at(kWeightQ8_0, act, i));
                // Each lane rounds once per 64 columns, then the tree four times.
                const double bound = (static_cast<double>(n_whole) / 64 + 5) * 0x1p-24 * size;
                CHECK(std::fabs(got - reference::plane_dot(row, n_bits, n_whole, act)) <= bound);
              }
          }
        }
}

TEST_CASE("plane kernels: margins follow the formula bit for bit") {
  std::mt19937 rng(kSeed);
  for (const int64_t n : {0, 1, 15, 16, 17, 333})
    for (const float slack : {0.0f, 1.7f, -2.0f, kInf, -kInf, kNan})
      for (const bool has_bias : {false, true}) {
        std::vector<std::vector<float>> in;
        for (int i = 0; i < 5; ++i) in.push_back(make_floats(n, Fill::kPlain, rng));
        std::vector<float> expected;
        for (size_t i = 0; i < static_cast<size_t>(n); ++i)
          expected.push_back(std::fma(in[1][i], in[4][i],
                                      std::fma(in[0][i], 0.3f, std::fma(in[2][i], slack, has_bias ? in[3][i] : 0.0f))));
        for (const std::string& isa : isas()) {
          std::vector<float> margins = in[4];
          kernels_for(isa.c_str())
              .plane_margins({in[0].data(), in[1].data(), in[2].data(), has_bias ? in[3].data() : nullptr, 0.3f, slack,
                              n, margins.data()});
          CHECK(first_difference(margins, expected) == -1);
        }
      }
}

}  // namespace
