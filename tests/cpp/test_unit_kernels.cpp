// Kernels that units and their norms need: LayerNorm, activations of one operand, the list of active units.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "cpu/phases.h"
#include "tests/cpp/float_kernel_util.h"

namespace hotset::cpu::test {
namespace {

float soft_cap_of(float cap, float x) { return cap * tanh_vec(x / cap); }

TEST_CASE("layer_norm, also in place and without a bias") {
  Random random(21);
  INFO("seed " << random.seed());
  for (int64_t n : {1, 5, 16, 80, 2049}) {
    Guarded<float> x(n), weight(n), bias(n);
    random.fill(x.data(), n);
    random.fill(weight.data(), n);
    random.fill(bias.data(), n);
    const float eps = 1e-5f;
    float lanes[16] = {};
    for (int64_t i = 0; i < n; ++i) lanes[i % 16] += x[i];
    const float mean = reduce_lanes(lanes) / static_cast<float>(n);
    const auto centred = [&](int64_t i) { return x[i] - mean; };
    const float inverse = 1.0f / std::sqrt(canonical_dot(n, centred, centred) / static_cast<float>(n) + eps);
    std::vector<double> exact(static_cast<size_t>(n));
    reference::layer_norm(x.data(), weight.data(), bias.data(), eps, n, exact.data());
    for (const Kernels& k : float_tables()) {
      INFO(name(k) << " n " << n);
      Guarded<float> out(n), in_place(n), plain(n);
      k.layer_norm(x.data(), weight.data(), bias.data(), eps, n, out.data());
      k.layer_norm(x.data(), weight.data(), nullptr, eps, n, plain.data());
      std::copy_n(x.data(), n, in_place.data());
      k.layer_norm(in_place.data(), weight.data(), bias.data(), eps, n, in_place.data());
      for (int64_t i = 0; i < n; ++i) {
        REQUIRE(same(plain[i], centred(i) * inverse * weight[i]));
        REQUIRE(same(out[i], plain[i] + bias[i]));
        REQUIRE(same(in_place[i], out[i]));
        // As rms_norm, and the mean's error of n / 16 + 5 roundings of numbers up to 1 against every element.
        const double relative = (static_cast<double>(n) / 32 + 12) * kEps;
        const double off = (static_cast<double>(n) / 16 + 6) * kEps * std::fabs(static_cast<double>(inverse) * weight[i]);
        const double want = exact[static_cast<size_t>(i)], size = std::fabs(want) + std::fabs(static_cast<double>(bias[i]));
        REQUIRE(std::fabs(out[i] - want) <= relative * size + off);
      }
    }
  }
}

TEST_CASE("silu and relu of one operand, also in place") {
  Random random(22);
  INFO("seed " << random.seed());
  for (int64_t n : {0, 1, 15, 17, 300}) {
    Guarded<float> x(n);
    for (int64_t i = 0; i < n; ++i) x[i] = i % 2 ? any_float(random) : 100.0f * random.uniform();
    for (const Kernels& k : float_tables()) {
      INFO(name(k) << " n " << n);
      Guarded<float> h(n);
      int64_t wrong = 0;
      k.relu(x.data(), n, h.data());
      for (int64_t i = 0; i < n; ++i) wrong += !same(h[i], x[i] > 0.0f ? x[i] : 0.0f);
      std::copy_n(x.data(), n, h.data());
      k.silu(h.data(), n, h.data());
      for (int64_t i = 0; i < n; ++i) wrong += !same(h[i], silu_vec(x[i]));
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("gelu, its approximation and soft caps are close to the definition, and keep to it at the ends") {
  double worst_gelu = 0.0, worst_tanh = 0.0, worst_cap = 0.0;
  for (int i = 0; i <= 400'000; ++i) {
    const float x = -12.0f + 24.0f * static_cast<float>(i) / 4e5f;
    // Below 2^-20 of the value, or of what is subtracted from x; in the tails the exponent's rounding counts x^2 times.
    const double wanted = reference::gelu(x), size = std::fabs(wanted) * (1.0 + 0.5 * x * x);
    worst_gelu = std::max(worst_gelu, std::fabs(gelu_vec(x) - wanted) / std::max(size, 1e-30));
    const double near = reference::gelu_tanh(x), near_size = std::fabs(near) * (1.0 + x * x);
    worst_tanh = std::max(worst_tanh, std::fabs(gelu_tanh_vec(x) - near) / std::max(near_size, 1e-30));
    worst_cap = std::max(worst_cap, std::fabs(soft_cap_of(30.0f, 10.0f * x) - reference::soft_cap(10.0 * x, 30.0)));
  }
  MESSAGE("gelu " << worst_gelu << ", by tanh " << worst_tanh << ", soft cap of 30 " << worst_cap);
  CHECK(worst_gelu <= 0x1p-20);
  CHECK(worst_tanh <= 0x1p-20);
  CHECK(worst_cap <= 30 * 0x1p-21);
  CHECK(gelu_vec(INFINITY) == INFINITY);
  CHECK(gelu_vec(-INFINITY) == 0.0f);
  CHECK(gelu_vec(1e30f) == 1e30f);
  CHECK(gelu_vec(-1e30f) == 0.0f);
  CHECK(gelu_vec(0.0f) == 0.0f);
  CHECK(std::isnan(gelu_vec(NAN)));
  CHECK(gelu_tanh_vec(1e30f) == 1e30f);
  CHECK(gelu_tanh_vec(-1e30f) == 0.0f);
  CHECK(std::isnan(gelu_tanh_vec(NAN)));
}

TEST_CASE("gelu, fat_relu, mul, scale and soft_cap, also in place") {
  Random random(25);
  INFO("seed " << random.seed());
  for (int64_t n : {0, 1, 15, 17, 300}) {
    Guarded<float> x(n), y(n);
    random.fill(y.data(), n);
    for (int64_t i = 0; i < n; ++i) x[i] = i % 2 ? any_float(random) : 10.0f * random.uniform();
    for (const Kernels& k : float_tables()) {
      INFO(name(k) << " n " << n);
      int64_t wrong = 0;
      const auto check = [&](auto run, auto expected) {
        Guarded<float> h(n);
        run(x.data(), h.data());
        for (int64_t i = 0; i < n; ++i) wrong += !same(h[i], expected(i));
        std::copy_n(x.data(), n, h.data());
        run(h.data(), h.data());
        for (int64_t i = 0; i < n; ++i) wrong += !same(h[i], expected(i));
      };
      check([&](const float* from, float* to) { k.gelu(from, n, to); }, [&](int64_t i) { return gelu_vec(x[i]); });
      check([&](const float* from, float* to) { k.gelu_tanh(from, n, to); },
            [&](int64_t i) { return gelu_tanh_vec(x[i]); });
      check([&](const float* from, float* to) { k.fat_relu(from, 0.01f, n, to); },
            [&](int64_t i) { return x[i] > 0.0f ? x[i] + 0.01f : 0.0f; });
      check([&](const float* from, float* to) { k.mul(from, y.data(), n, to); },
            [&](int64_t i) { return x[i] * y[i]; });
      check([&](const float* from, float* to) { k.scale(from, 3.7f, n, to); }, [&](int64_t i) { return x[i] * 3.7f; });
      check([&](const float* from, float* to) { k.soft_cap(from, 2.5f, n, to); },
            [&](int64_t i) { return soft_cap_of(2.5f, x[i]); });
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("select_units lists what is not <= 0, NaN included, in order") {
  Random random(23);
  INFO("seed " << random.seed());
  for (int64_t n : {0, 1, 15, 16, 17, 300, 11008})
    for (const double share : {0.0, 0.02, 0.5, 1.0}) {
      Guarded<float> x(n);
      std::vector<int32_t> expected;
      for (int64_t i = 0; i < n; ++i) {
        const bool active = (random.uniform() + 1.0f) / 2.0f < static_cast<float>(share);
        x[i] = active ? (i % 7 == 0 ? std::nanf("") : 1e-38f) : (i % 5 == 0 ? -0.0f : i % 3 == 0 ? 0.0f : -1.0f);
        if (active) expected.push_back(static_cast<int32_t>(i));
      }
      for (const Kernels& k : float_tables()) {
        INFO(name(k) << " n " << n << " share " << share);
        Guarded<int32_t> list(n);
        const int64_t count = k.select_units(x.data(), n, list.data());
        CHECK(std::vector<int32_t>(list.data(), list.data() + count) == expected);
      }
    }
}

TEST_CASE("activate: every activation, with a gate and without, onto either operand") {
  Random random(24);
  INFO("seed " << random.seed());
  const auto relu = [](float x) { return x > 0.0f ? x : 0.0f; };
  for (int64_t n : {1, 255, 256, 257, 700}) {
    Guarded<float> gate(n), up(n);
    random.fill(gate.data(), n);
    random.fill(up.data(), n);
    constexpr float kThreshold = 0.25f;
    for (const Activation activation : {Activation::kSilu, Activation::kRelu, Activation::kRelu2, Activation::kDRelu,
                                        Activation::kFatRelu, Activation::kGelu, Activation::kGeluTanh})
      for (const bool gated : {true, false}) {
        if (activation == Activation::kDRelu && !gated) continue;
        for (const Kernels& k : float_tables())
          for (const bool onto_gate : {true, false}) {
            INFO(name(k) << " n " << n);
            Guarded<float> g(n), u(n);
            std::copy_n(gate.data(), n, g.data());
            std::copy_n(up.data(), n, u.data());
            float* const h = onto_gate && gated ? g.data() : u.data();
            const ActivationRule rule{activation, activation == Activation::kFatRelu ? kThreshold : 0};
            activate(k, rule, gated ? g.data() : nullptr, u.data(), n, h);
            int64_t wrong = 0;
            for (int64_t i = 0; i < n; ++i) {
              const float x = gated ? gate[i] : up[i];
              float a = activation == Activation::kSilu ? silu_vec(x) : relu(x);
              if (activation == Activation::kGelu) a = gelu_vec(x);
              if (activation == Activation::kGeluTanh) a = gelu_tanh_vec(x);
              if (activation == Activation::kFatRelu) a = x > 0.0f ? x + kThreshold : 0.0f;
              if (activation == Activation::kRelu2) a = gated ? relu(relu(x) * x) : relu(x) * x;  // zeros differ in sign
              const float u_value = activation == Activation::kDRelu ? relu(up[i]) : up[i];
              wrong += !same(h[i], gated ? a * u_value : a);
            }
            CHECK(wrong == 0);
          }
      }
  }
}

}  // namespace
}  // namespace hotset::cpu::test
