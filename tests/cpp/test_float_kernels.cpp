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

TEST_CASE("every table's fma rounds once") {
  Random random(2);
  INFO("seed " << random.seed());
  constexpr int64_t kN = 4099;
  Guarded<float> w(kN), acc(kN), got(kN);
  for (int round = 0; round < 100; ++round) {
    const float h = any_float(random);
    for (int64_t i = 0; i < kN; ++i) {
      w[i] = any_float(random);
      acc[i] = i % 3 == 0 ? any_float(random) : -h * w[i] * (i % 3 == 1 ? 1.0f : 0x1p24f);
    }
    for (const Kernels& k : float_tables()) {
      INFO(name(k));
      std::copy_n(acc.data(), kN, got.data());
      const WeightRows rows = {reinterpret_cast<const std::byte*>(w.data()), kN * sizeof(float), kN};
      k.row_sum[kWeightF32]({rows, nullptr, 0, 1, &h, 0, 1, 0, kN, got.data(), 0});
      int64_t wrong = 0;
      for (int64_t i = 0; i < kN; ++i) wrong += !same(got[i], std::fma(h, w[i], acc[i]));
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

struct RowSumCase {
  WeightType type;
  int64_t n_units;
  int64_t n_acts;
  int64_t first_col;
  int64_t n_cols;
  bool use_list;
};

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Scales are at most 1.
double largest_weight(WeightType type) {
  switch (type) {
    case kWeightQ8_0: return 128;
    case kWeightQ4_0: return 8;
    case kWeightQ4_K: return 63 * 15 + 63;
    case kWeightQ5_K: return 63 * 31 + 63;
    case kWeightQ6_K: return 128 * 32;
    default: return 1;
  }
}

void check_row_sum(const std::vector<Kernels>& tables, Random& random, const RowSumCase& c, Scale scale) {
  const int64_t n = round_up(c.first_col + c.n_cols, row_multiple(c.type));
  const Matrix m(random, c.type, 2 * c.n_units + 1, n, scale, is_block_type(c.type) ? 0 : 2);
  std::vector<int32_t> list;
  for (int64_t i = 0; i < c.n_units; ++i) list.push_back(static_cast<int32_t>(2 * i + random.below(2)));
  if (c.n_units > 0) list.back() = static_cast<int32_t>(2 * c.n_units);
  const int64_t first_unit = c.n_units + 1;
  Guarded<float> h(c.n_acts * (c.n_units + 5) - 5);
  random.fill(h.data(), h.size(), scale);
  for (int64_t i = 0; i < h.size(); i += 7) h[i] = 0.0f;
  std::vector<float> start(static_cast<size_t>(c.n_acts * c.n_cols));
  random.fill(start.data(), static_cast<int64_t>(start.size()), scale);
  std::vector<float> want = start;
  for (int64_t a = 0; a < c.n_acts; ++a)
    for (int64_t i = 0; i < c.n_units; ++i)
      for (int64_t col = 0; col < c.n_cols; ++col) {
        float& to = want[static_cast<size_t>(a * c.n_cols + col)];
        const int64_t unit = c.use_list ? list[static_cast<size_t>(i)] : first_unit + i;
        to = fma1(h[a * (c.n_units + 5) + i], m.at(unit, c.first_col + col), to);
      }
  for (const Kernels& k : tables) {
    INFO(name(k) << " type " << c.type << " units " << c.n_units << " acts " << c.n_acts << " cols " << c.n_cols);
    Guarded<float> acc(c.n_acts * (c.n_cols + 3) - 3);
    for (int64_t i = 0; i < acc.size(); ++i) acc[i] = -7.0f;
    for (int64_t a = 0; a < c.n_acts; ++a)
      std::copy_n(start.data() + a * c.n_cols, c.n_cols, acc.data() + a * (c.n_cols + 3));
    const RowSumArgs args = {m.view(),    c.use_list ? list.data() : nullptr,
                             first_unit,  c.n_units,
                             h.data(),    c.n_units + 5,
                             c.n_acts,    c.first_col,
                             c.n_cols,    acc.data(),
                             c.n_cols + 3};
    k.row_sum[c.type](args);
    for (int64_t a = 0; a < c.n_acts; ++a) {
      REQUIRE(first_difference(acc.data() + a * (c.n_cols + 3), want.data() + a * c.n_cols, c.n_cols) == -1);
      for (int64_t i = c.n_cols; i < c.n_cols + 3 && a + 1 < c.n_acts; ++i)
        REQUIRE(acc[a * (c.n_cols + 3) + i] == -7.0f);
    }
    std::vector<double> exact(start.begin(), start.end());
    reference::row_sum(c.type, args, exact.data());
    const double most = largest_weight(c.type) * c.n_units + 2;  // of a sum: |h|, |start| <= 1
    for (size_t i = 0; i < exact.size(); ++i)  // each unit rounds once, and its weight may have been rounded
      REQUIRE(std::fabs(exact[i] - want[i]) <= static_cast<double>(c.n_units) * kEps * 2 * most);
  }
}

TEST_CASE("row_sum") {
  Random random(5);
  INFO("seed " << random.seed());
  const std::vector<Kernels> tables = float_tables();
  for (WeightType type : kAllTypes) {
    const bool blocks = is_block_type(type);
    for (int64_t n_acts = 1; n_acts <= 20; ++n_acts)
      for (int64_t n_units : {0, 1, 7, 8, 9, 17, 63, 64, 65, 130}) {
        if (n_acts > 3 && n_units > 9 && (n_acts + n_units) % 4 != 0) continue;
        const int64_t n_cols = blocks ? 32 * (1 + random.below(20)) : 1 + random.below(150);
        const int64_t first_col = blocks ? 32 * random.below(9) : random.below(40);
        const Scale scale = random.below(3) == 0 ? Scale::kTiny : Scale::kOrdinary;
        check_row_sum(tables, random, {type, n_units, n_acts, first_col, n_cols, random.below(2) == 0}, scale);
      }
  }
}

TEST_CASE("a row sum may be cut into calls at will") {
  Random random(6);
  INFO("seed " << random.seed());
  constexpr int64_t kColumns = 768;
  for (WeightType type : {kWeightQ8_0, kWeightQ4_K, kWeightQ5_K, kWeightQ6_K}) {
    const Matrix m(random, type, 100, kColumns, Scale::kOrdinary);
    std::vector<float> h(100);
    random.fill(h.data(), 100);
    for (const Kernels& k : float_tables()) {
      INFO(name(k) << " type " << type);
      std::vector<float> whole(kColumns), parts(kColumns);
      k.row_sum[type]({m.view(), nullptr, 0, 100, h.data(), 0, 1, 0, kColumns, whole.data(), 0});
      const int64_t columns[] = {0, 32, 96, 256, 320, 672, kColumns}, units[] = {0, 1, 30, 100};
      for (int c = 0; c < 6; ++c)
        for (int u = 0; u < 3; ++u)
          k.row_sum[type]({m.view(), nullptr, units[u], units[u + 1] - units[u], h.data() + units[u], 0, 1, columns[c],
                           columns[c + 1] - columns[c], parts.data() + columns[c], 0});
      CHECK(first_difference(whole.data(), parts.data(), kColumns) == -1);
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
