// Conversions between float and the 16-bit formats, against definitions and, for F16 to F32, for every value.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>

#include "core/half.h"
#include "cpu/reference.h"

namespace {

using namespace hotset;

TEST_CASE("half: every binary16 widens exactly and comes back") {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float wide = f16_to_f32(half);
    const double expected = cpu::reference::f16_value(half);
    if (std::isnan(expected)) {
      REQUIRE(std::isnan(wide));
      REQUIRE((f32_to_f16(wide) & 0x7e00) == 0x7e00);
    } else {
      REQUIRE(static_cast<double>(wide) == expected);
      REQUIRE(std::signbit(wide) == ((half & 0x8000) != 0));
      REQUIRE(f32_to_f16(wide) == half);
    }
  }
}

TEST_CASE("half: floats round to the nearest binary16, ties to even") {
  const uint64_t seed = 5;
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 500000; ++round) {
    // Half of them near the range of binary16, where rounding happens.
    const uint32_t bits = static_cast<uint32_t>(random());
    const float value = round % 2 ? bits_float(bits) : bits_float((bits & 0x8fffffffu) | 0x30000000u);
    if (std::isnan(value)) continue;
    REQUIRE(f32_to_f16(value) == cpu::reference::f16_nearest(static_cast<double>(value)));
  }
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {  // the middle between neighbours, and its neighbours
    const double low = cpu::reference::f16_value(static_cast<uint16_t>(bits));
    const double high = bits + 1 == 0x7c00 ? 65536.0 : cpu::reference::f16_value(static_cast<uint16_t>(bits + 1));
    const float middle = static_cast<float>((low + high) / 2);
    const uint16_t even = static_cast<uint16_t>(bits % 2 ? bits + 1 : bits);
    REQUIRE(f32_to_f16(middle) == even);
    REQUIRE(f32_to_f16(-middle) == (even | 0x8000));
    REQUIRE(f32_to_f16(std::nextafter(middle, 0.0f)) == bits);
    REQUIRE(f32_to_f16(std::nextafter(middle, HUGE_VALF)) == bits + 1);
  }
}

TEST_CASE("half: bfloat16 widens exactly, comes back, and rounds to even") {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float wide = bf16_to_f32(static_cast<uint16_t>(bits));
    if (std::isnan(wide)) {
      REQUIRE(std::isnan(bf16_to_f32(f32_to_bf16(wide))));
      continue;
    }
    REQUIRE(f32_to_bf16(wide) == bits);
    if ((bits & 0x7fff) >= 0x7f80) continue;
    REQUIRE(f32_to_bf16(bits_float((bits << 16) | 0x7fff)) == bits);
    REQUIRE(f32_to_bf16(bits_float((bits << 16) | 0x8000)) == (bits % 2 ? bits + 1 : bits));
    REQUIRE(f32_to_bf16(bits_float((bits << 16) | 0x8001)) == bits + 1);
  }
  CHECK(std::isnan(bf16_to_f32(f32_to_bf16(bits_float(0x7f800001)))));  // a NaN whose upper half looks like infinity
  CHECK(f32_to_bf16(std::numeric_limits<float>::max()) == 0x7f80);
}

}  // namespace
