// exp, tanh, silu and gelu over Vec, the same operations per element for every instruction set. Needs a float_vec_*.h
// first (or, in tests, anything that offers splat, add, sub, mul, div, min, max, fused and scale_pow2).
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

// x * Phi(x) = max(x, 0) - |x| * Phi(-|x|). Phi(-a) = e^(-a^2 / 2) * t * P(t) with t = 1 / (1 + 0.35 a), P of degree 8
// (minimax for a <= 20, relative error 4.4e-8). Relative error below 2^-20 where the result is no denormal; beyond 20
// the product is 0 anyway. -0 becomes +0.
template <class V>
inline V gelu_vec(V x) {
  const V zero = splat(0.0f);
  const V a = min(splat(20.0f), max(sub(zero, x), x));
  const V t = div(splat(1.0f), fused(a, splat(0.35f), splat(1.0f)));
  V p = splat(-0x1.d37426p-6f);
  p = fused(p, t, splat(0x1.215362p-3f));
  p = fused(p, t, splat(-0x1.00c15ap-2f));
  p = fused(p, t, splat(0x1.3bbb82p-3f));
  p = fused(p, t, splat(-0x1.499bap-6f));
  p = fused(p, t, splat(0x1.abbc26p-4f));
  p = fused(p, t, splat(0x1.ebc5d6p-4f));
  p = fused(p, t, splat(0x1.1e625cp-3f));
  p = fused(p, t, splat(0x1.1df272p-3f));
  const V tail = mul(mul(p, t), exp_vec(mul(mul(a, a), splat(-0.5f))));
  return sub(max(x, zero), mul(a, tail));
}

// x / (1 + e^(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / 2 * (1 + tanh(u)); -0 where it overflows.
template <class V>
inline V gelu_tanh_vec(V x) {
  const V twice_u = mul(x, fused(mul(x, x), splat(0x1.2444f2p-4f), splat(0x1.988454p+0f)));
  return div(x, add(splat(1.0f), exp_vec(sub(splat(0.0f), twice_u))));
}

}  // namespace
}  // namespace hotset::cpu
