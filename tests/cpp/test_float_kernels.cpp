// Float kernels: every instruction set gives the bits of the canonical rules, and is close to the reference in double.
#include <algorithm>
#include <limits>

#include "tests/cpp/float_kernel_util.h"

namespace hotset::cpu::test {
namespace {

TEST_CASE("fma1 rounds once") {
  Random random(1);
  INFO("seed " << random.seed());
  int64_t wrong = 0;
  for (int i = 0; i < 10'000'000; ++i) {
    const float a = any_float(random);
    const float b = any_float(random);
    float c = any_float(random);
    if (i % 3 == 0) c = -a * b;                                               // cancels to the product's rounding error
    if (i % 3 == 1) c = std::ldexp(a * b, 24 + static_cast<int>(i % 5) - 2);  // the product decides a tie
    if (!same(fma1(a, b, c), std::fma(a, b, c))) ++wrong;
  }
  CHECK(wrong == 0);
}

// margin = fma(step, margin, low) where sum is 1 and the other terms are +0.
TEST_CASE("every table's fma rounds once") {
  Random random(2);
  INFO("seed " << random.seed());
  constexpr int64_t kN = 4099;
  Guarded<float> w(kN), h(kN), acc(kN), none(kN), got(kN);
  for (int round = 0; round < 100; ++round) {
    for (int64_t i = 0; i < kN; ++i) {
      h[i] = any_float(random), w[i] = any_float(random);
      acc[i] = i % 3 == 0 ? any_float(random) : -h[i] * w[i] * (i % 3 == 1 ? 1.0f : 0x1p24f);
    }
    for (const Kernels& k : float_tables()) {
      INFO(name(k));
      std::copy_n(h.data(), kN, got.data());
      k.plane_margins({acc.data(), w.data(), none.data(), nullptr, 1.0f, 0.0f, kN, got.data()});
      int64_t wrong = 0;
      for (int64_t i = 0; i < kN; ++i) wrong += !same(got[i], std::fma(w[i], h[i], acc[i] + 0.0f));
      CHECK(wrong == 0);
    }
  }
}

// Checks out[i] against the canonical dots of the given rows, and these against the reference.
void check_dots(const Matrix& m, const std::vector<int64_t>& rows, const float* x, const float* out) {
  const ActivationRow a = {x, nullptr, nullptr, nullptr};
  for (size_t r = 0; r < rows.size(); ++r) {
    const float want = canonical_dot(m.n, [&](int64_t i) { return m.at(rows[r], i); }, [&](int64_t i) { return x[i]; });
    INFO("row " << rows[r] << " of n " << m.n << ", type " << m.type);
    REQUIRE(bits_of(out[r]) == bits_of(want));
    // Each of n / 16 steps of a lane and 4 of the tree rounds once; 2^-149 bounds what a subnormal step loses.
    const double magnitude = reference::dot_magnitude(m.type, m.row(rows[r]), m.n, a);
    const double bound = (m.n / 16.0 + 5) * (kEps * magnitude + 16 * 0x1p-149);
    REQUIRE(std::fabs(want - reference::dot(m.type, m.row(rows[r]), m.n, a)) <= bound);
  }
}

TEST_CASE("dot_rows") {
  Random random(3);
  INFO("seed " << random.seed());
  const std::vector<Kernels> tables = float_tables();
  for (WeightType type : kFloatTypes)
    for (Scale scale : {Scale::kOrdinary, Scale::kTiny})
      for (int64_t n : {1, 2, 15, 16, 17, 31, 32, 63, 80, 257, 1024}) {
        const Matrix m(random, type, 13, n, scale, n % 2 ? 2 : 0);
        Guarded<float> x(n);
        random.fill(x.data(), n, scale);
        for (const Kernels& k : tables) {
          INFO(name(k));
          for (int64_t n_rows : {0, 1, 2, 3, 4, 5, 7, 9, 11}) {
            std::vector<int64_t> range, picked;
            std::vector<int32_t> list;
            for (int64_t r = 0; r < n_rows; ++r) {
              range.push_back(13 - n_rows + r);
              list.push_back(static_cast<int32_t>(12 - n_rows + 1 + r - (r < n_rows / 2)));
              picked.push_back(list.back());
            }
            Guarded<float> out(n_rows);
            const ActivationRow a = {x.data(), nullptr, nullptr, nullptr};
            k.dot_rows[type](m.view(), nullptr, 13 - n_rows, n_rows, a, out.data());
            check_dots(m, range, x.data(), out.data());
            k.dot_rows[type](m.view(), list.data(), 99, n_rows, a, out.data());
            check_dots(m, picked, x.data(), out.data());
          }
        }
      }
}

TEST_CASE("gemm gives the bits of dot_rows") {
  Random random(4);
  INFO("seed " << random.seed());
  const std::vector<Kernels> tables = float_tables();
  constexpr int64_t kMaxActs = 101;  // more than a block of gemm takes, as are kRows
  constexpr int64_t kRows = 42;
  for (WeightType type : kFloatTypes)
    for (int64_t n : {1, 15, 16, 17, 80, 1503}) {
      const Matrix m(random, type, kRows, n, Scale::kOrdinary);
      Guarded<float> x(n * kMaxActs);
      random.fill(x.data(), x.size());
      std::vector<ActivationRow> acts;
      std::vector<std::vector<float>> want;  // per activation, from generic dot_rows, which has a test of its own
      for (int64_t a = 0; a < kMaxActs; ++a) {
        acts.push_back({x.data() + a * n, nullptr, nullptr, nullptr});
        want.emplace_back(kRows);
        tables[0].dot_rows[type](m.view(), nullptr, 0, kRows, acts.back(), want.back().data());
      }
      for (const Kernels& k : tables)
        for (int64_t n_acts : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 17, 19, 20, 64, 95, 97, 101})
          for (int64_t n_rows : {0, 1, 4, 5, 10, 41}) {
            if ((n > 1000 || n_rows > 10) && n_acts % 5 != 0 && n_acts != 97) continue;
            INFO(name(k) << " type " << type << " n " << n << " acts " << n_acts << " rows " << n_rows);
            const int64_t stride = n_rows + 3;
            std::vector<float> out(static_cast<size_t>(n_acts * stride), -7.0f);
            Guarded<std::byte> scratch(static_cast<int64_t>(k.float_gemm_scratch_bytes()));
            std::fill_n(scratch.data(), scratch.size(), std::byte{0xff});  // NaN
            k.gemm[type]({m.view(), kRows - n_rows, n_rows, acts.data(), n_acts, out.data(), stride,
                          scratch.data()});
            for (int64_t a = 0; a < n_acts; ++a) {
              const float* row = out.data() + a * stride;
              REQUIRE(first_difference(row, want[static_cast<size_t>(a)].data() + kRows - n_rows, n_rows) == -1);
              REQUIRE(std::all_of(row + n_rows, row + stride, [](float v) { return v == -7.0f; }));
            }
          }
    }
}

TEST_CASE("dequantize_row is exact, but for one rounding where scale and minimum meet") {
  Random random(7);
  INFO("seed " << random.seed());
  for (WeightType type : kAllTypes)
    for (int64_t n : {32, 64, 160, 1, 15, 33, 256, 768}) {
      if (n % row_multiple(type) != 0) continue;
      const Matrix m(random, type, 1, n, Scale::kTiny);
      for (const Kernels& k : float_tables()) {
        INFO(name(k) << " type " << type << " n " << n);
        Guarded<float> out(n);
        k.dequantize_row[type](m.row(0), n, out.data());
        for (int64_t i = 0; i < n; ++i) REQUIRE(bits_of(out[i]) == bits_of(m.at(0, i)));
      }
    }
}

TEST_CASE("halves: all 65536 read exactly, and floats round to the nearest one") {
  std::vector<uint16_t> halves(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  Random random(8);
  INFO("seed " << random.seed());
  std::vector<float> x;
  for (int i = 0; i < 200'000; ++i) x.push_back(any_float(random));
  for (int i = 0; i < 0x7bff; ++i) {  // ties and their neighbours
    const float low = static_cast<float>(reference::f16_value(static_cast<uint16_t>(i)));
    const float tie = (low + static_cast<float>(reference::f16_value(static_cast<uint16_t>(i + 1)))) / 2;
    x.insert(x.end(), {low, -low, tie, -tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 1e9f)});
  }
  x.insert(x.end(), {65519.996f, 65520.0f, 65504.0f, -65520.0f, INFINITY, NAN, 0x1p-25f, 0x1.000002p-25f});
  for (const Kernels& k : float_tables()) {
    INFO(name(k));
    std::vector<float> values(65536);
    k.dequantize_row[kWeightF16](reinterpret_cast<const std::byte*>(halves.data()), 65536, values.data());
    int64_t wrong = 0;
    for (size_t i = 0; i < halves.size(); ++i)
      wrong += !same(values[i], static_cast<float>(reference::f16_value(halves[i])));
    CHECK(wrong == 0);
    const int64_t n = static_cast<int64_t>(x.size());
    Guarded<uint16_t> out(n);
    k.f32_to_f16_row(x.data(), n, out.data());
    wrong = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float v = x[static_cast<size_t>(i)];
      wrong += std::isnan(v) ? !std::isnan(reference::f16_value(out[i])) : out[i] != reference::f16_nearest(v);
    }
    CHECK(wrong == 0);
  }
}

// Distance in units of the last place of `exact` rounded to float.
double ulps(float got, double exact) {
  int exponent;
  std::frexp(exact, &exponent);
  return std::fabs(got - exact) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

TEST_CASE("exp is within 1 ulp, silu and tanh are close") {
  double worst_exp = 0.0, worst_tanh = 0.0, worst_silu = 0.0;
  for (int i = 0; i <= 2'000'000; ++i) {
    const float x = -104.0f + 192.7f * static_cast<float>(i) / 2e6f;
    worst_exp = std::max(worst_exp, ulps(exp_vec(x), std::exp(static_cast<double>(x))));
    worst_tanh = std::max(worst_tanh, std::fabs(tanh_vec(x) - std::tanh(static_cast<double>(x))));
    if (x > -80.0f) worst_silu = std::max(worst_silu, ulps(silu_vec(x), reference::silu(x)));
  }
  MESSAGE("exp " << worst_exp << " ulp, tanh " << worst_tanh << ", silu " << worst_silu << " ulp");
  CHECK(worst_exp <= 1.0);
  CHECK(worst_tanh <= 0x1p-22);
  CHECK(worst_silu <= 3.0);
  CHECK(exp_vec(-INFINITY) == 0.0f);
  CHECK(exp_vec(-1000.0f) == 0.0f);
  CHECK(exp_vec(0.0f) == 1.0f);
  CHECK(exp_vec(88.8f) == INFINITY);
  CHECK(exp_vec(INFINITY) == INFINITY);
  CHECK(std::isnan(exp_vec(NAN)));
  CHECK(tanh_vec(INFINITY) == 1.0f);
  CHECK(tanh_vec(-INFINITY) == -1.0f);
  CHECK(silu_vec(std::numeric_limits<float>::max()) == std::numeric_limits<float>::max());
  CHECK(silu_vec(-std::numeric_limits<float>::max()) == 0.0f);
}

TEST_CASE("silu_mul, relu_mul and add, also in place") {
  Random random(9);
  INFO("seed " << random.seed());
  for (int64_t n : {0, 1, 3, 8, 15, 16, 17, 40, 20000}) {
    Guarded<float> gate(n), up(n);
    for (int64_t i = 0; i < n; ++i) {
      gate[i] = i % 2 ? any_float(random) : 100.0f * random.uniform();
      up[i] = any_float(random);
    }
    for (const Kernels& k : float_tables()) {
      INFO(name(k) << " n " << n);
      Guarded<float> h(n);
      int64_t wrong = 0;
      k.silu_mul(gate.data(), up.data(), n, h.data());
      for (int64_t i = 0; i < n; ++i) wrong += !same(h[i], silu_vec(gate[i]) * up[i]);
      CHECK(wrong == 0);
      k.relu_mul(gate.data(), up.data(), n, h.data());
      for (int64_t i = 0; i < n; ++i) wrong += !same(h[i], (gate[i] > 0.0f ? gate[i] : 0.0f) * up[i]);
      CHECK(wrong == 0);
      k.add(gate.data(), up.data(), n, h.data());
      for (int64_t i = 0; i < n; ++i) wrong += !same(h[i], gate[i] + up[i]);
      CHECK(wrong == 0);
      std::copy_n(gate.data(), n, h.data());
      k.silu_mul(h.data(), up.data(), n, h.data());
      for (int64_t i = 0; i < n; ++i) wrong += !same(h[i], silu_vec(gate[i]) * up[i]);
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("rms_norm, also in place") {
  Random random(10);
  INFO("seed " << random.seed());
  for (int64_t n : {1, 5, 16, 80, 2049}) {
    Guarded<float> x(n), weight(n);
    random.fill(x.data(), n);
    random.fill(weight.data(), n);
    const float eps = 1e-5f;
    const auto at = [&](int64_t i) { return x[i]; };
    const float inverse = 1.0f / std::sqrt(canonical_dot(n, at, at) / static_cast<float>(n) + eps);
    std::vector<double> exact(static_cast<size_t>(n));
    reference::rms_norm(x.data(), weight.data(), eps, n, exact.data());
    for (const Kernels& k : float_tables()) {
      INFO(name(k) << " n " << n);
      Guarded<float> out(n), in_place(n);
      k.rms_norm(x.data(), weight.data(), eps, n, out.data());
      std::copy_n(x.data(), n, in_place.data());
      k.rms_norm(in_place.data(), weight.data(), eps, n, in_place.data());
      for (int64_t i = 0; i < n; ++i) {
        REQUIRE(same(out[i], x[i] * inverse * weight[i]));
        REQUIRE(same(in_place[i], out[i]));
        // The sum's relative error (n / 16 + 5 steps, halved by the root), then 6 roundings.
        const double relative = (static_cast<double>(n) / 32 + 10) * kEps;
        const double want = exact[static_cast<size_t>(i)];
        REQUIRE(std::fabs(out[i] - want) <= relative * std::fabs(want));
      }
    }
  }
}

TEST_CASE("rope") {
  Random random(11);
  INFO("seed " << random.seed());
  for (int64_t n_rot : {2, 8, 10, 32, 64, 72, 128})
    for (bool interleaved : {false, true}) {
      const int64_t n = n_rot + 6;
      std::vector<float> x(static_cast<size_t>(n));
      Guarded<float> cos(n_rot / 2), sin(n_rot / 2);
      random.fill(x.data(), n);
      random.fill(cos.data(), n_rot / 2);
      random.fill(sin.data(), n_rot / 2);
      std::vector<double> exact(x.begin(), x.end());
      reference::rope(exact.data(), n_rot, interleaved, cos.data(), sin.data());
      for (const Kernels& k : float_tables()) {
        INFO(name(k) << " n_rot " << n_rot << " interleaved " << interleaved);
        std::vector<float> got = x;
        k.rope(got.data(), n_rot, interleaved, cos.data(), sin.data());
        for (int64_t i = 0; i < n_rot / 2; ++i) {
          const size_t i0 = static_cast<size_t>(interleaved ? 2 * i : i);
          const size_t i1 = static_cast<size_t>(interleaved ? 2 * i + 1 : i + n_rot / 2);
          const float x0c = x[i0] * cos[i], x1s = x[i1] * sin[i], x0s = x[i0] * sin[i], x1c = x[i1] * cos[i];
          REQUIRE(same(got[i0], x0c - x1s));
          REQUIRE(same(got[i1], x0s + x1c));
        }
        for (size_t i = 0; i < x.size(); ++i) REQUIRE(std::fabs(got[i] - exact[i]) <= 4.0 * kEps);
        for (size_t i = static_cast<size_t>(n_rot); i < x.size(); ++i) REQUIRE(same(got[i], x[i]));
      }
    }
}

}  // namespace
}  // namespace hotset::cpu::test
