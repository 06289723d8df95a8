// The CPU kernels once more, as plain loops in double: slow, obvious, and written without a look at the fast ones.
// They say what a kernel computes, not in which order; results differ from a kernel's by its rounding errors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"

namespace hotset::cpu::reference {

// Value of an IEEE half, exact.
double f16_value(uint16_t half);

// The half nearest to x, ties to even; infinity from 65520 on; NaN becomes some quiet NaN.
uint16_t f16_nearest(double x);

// Bytes of a row of n elements, a multiple of row_multiple(type).
size_t row_bytes(WeightType type, int64_t n);

// Element i of a row, exact.
double weight_at(WeightType type, const std::byte* row, int64_t i);

// Element i of an activation as a weight of this type sees it: f32 for float weights, q * scale for block weights.
double activation_at(WeightType type, const ActivationRow& a, int64_t i);

// dot of one row (n) and one activation.
double dot(WeightType type, const std::byte* row, int64_t n, const ActivationRow& a);

// Sum of |weight * activation|: error bounds of a dot are proportional to it.
double dot_magnitude(WeightType type, const std::byte* row, int64_t n, const ActivationRow& a);

// Dot of the codes of a row of bit planes and an activation (q * scale).
double plane_dot(const std::byte* row, int n_bits, int64_t n, const ActivationRow& a);

// Kernels::row_sum onto `sums` (n_acts, n_cols), which must be equal; args.sums is not touched.
void row_sum(WeightType type, const RowSumArgs& args, int64_t* sums);

// Kernels::quantize_activation for finite x.
void quantize_activation(const float* x, int64_t n, int8_t* q, double* scale, int32_t* sum);

// Kernels::rms_norm.
void rms_norm(const float* x, const float* weight, float eps, int64_t n, double* out);

// Kernels::layer_norm; bias may be null.
void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, double* out);

// Kernels::rope, in place on doubles.
void rope(double* x, int64_t n_rot, bool interleaved, const float* cos, const float* sin);

// x / (1 + e^-x), max(x, 0), x * Phi(x), its approximation by tanh, and cap * tanh(x / cap).
double silu(double x);
double relu(double x);
double gelu(double x);
double gelu_tanh(double x);
double soft_cap(double x, double cap);

// Kernels::attend_chunk: m and l (n_q), o (n_q, head_dim). args.m, args.l, args.o and args.scratch are not touched.
void attend(const AttendArgs& args, double* m, double* l, double* o);

}  // namespace hotset::cpu::reference
