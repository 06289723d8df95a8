// exp, tanh and silu over Vec, the same operations per element for every instruction set. Needs a float_vec_*.h first
// (or, in tests, anything that offers splat, add, sub, mul, div, min, max, fused and scale_pow2).
#pragma once

namespace hotset::cpu {
namespace {

// e^x within 1 ulp: x = n ln 2 + r with |r| <= ln(2) / 2, a polynomial of degree 6 in r (minimax, relative error
// 3.1e-9; its first two coefficients are 1), then the power of two, rounded once. exp(-inf) = 0; above 88.73 it is
// infinity; NaN passes through (min and max return their second operand then).
template <class V>
inline V exp_vec(V x) {
  x = min(splat(89.0f), max(splat(-105.0f), x));
  const V round = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V n = sub(fused(x, splat(0x1.715476p+0f), round), round);
  V r = fused(n, splat(-0x1.62e4p-1f), x);  // exact: this part of ln 2 has 15 bits
  r = fused(n, splat(-0x1.7f7d1cp-20f), r);
  V p = splat(0x1.6a2434p-10f);
  p = fused(p, r, splat(0x1.1239e2p-7f));
  p = fused(p, r, splat(0x1.5558f2p-5f));
  p = fused(p, r, splat(0x1.555492p-3f));
  p = fused(p, r, splat(0x1.fffffcp-2f));
  p = fused(p, r, splat(1.0f));
  p = fused(p, r, splat(1.0f));
  return scale_pow2(p, n);
}

// tanh(x) = 1 - 2 / (1 + e^(2x)); absolute error below 2^-22, which is all that a soft cap needs.
template <class V>
inline V tanh_vec(V x) {
  const V e = exp_vec(add(x, x));
  return sub(splat(1.0f), div(splat(2.0f), add(splat(1.0f), e)));
}

// x / (1 + e^-x); -0 where e^-x overflows.
template <class V>
inline V silu_vec(V x) {
  return div(x, add(splat(1.0f), exp_vec(sub(splat(0.0f), x))));
}

}  // namespace
}  // namespace hotset::cpu
