// Rows of weights from float to the stored types and back: what every stored type means, scalar and exact.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace hotset {

// Whether quantize_row and dequantize_row know a type: those that kernels know.
bool dtype_has_codec(DType type);

// `type`, or what stands in for it when rows of `n` elements are no whole blocks of it: Q8_0, else F16.
DType fitting_type(DType type, int64_t n);

// The largest |x| whose block scales fit the type's 16-bit floats.
float largest_value(DType type);

// Stores `n` floats, n a multiple of the block size, in row_bytes(type, n) bytes; no alignment is asked of `out`. The
// result depends on the values only. F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 and MXFP4 are those of the GGUF reference
// (the Python package `gguf`), bit for bit; the other types search scales of the least squared error. A block that
// holds infinity or NaN decodes to NaN (MXFP4: -infinity); values above largest_value give a block of no use. Throws
// Error for a type without a codec.
void quantize_row(DType type, const float* x, int64_t n, std::byte* out);

// Decodes `n` elements; `row` need not be aligned. Bit for bit what the Python package `gguf` gives. Throws as above.
void dequantize_row(DType type, const std::byte* row, int64_t n, float* out);

}  // namespace hotset
