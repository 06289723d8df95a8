// Tensor element types: the GGUF numbers, names and block sizes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace hotset {

// Values are the type numbers of the GGUF file format.
enum class DType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ8_1 = 9,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kI8 = 24,
  kI16 = 25,
  kI32 = 26,
  kI64 = 27,
  kF64 = 28,
  kIQ4_XS = 23,
  kBF16 = 30,
  kMXFP4 = 39,
};

// What the format says about a type: `block_size` elements are stored in `block_bytes` bytes.
struct DTypeInfo {
  const char* name;
  uint32_t block_size;
  uint32_t block_bytes;
};

// Looks a type up; nullptr when the number is not in the table (the caller says so in its error).
const DTypeInfo* find_dtype(uint32_t gguf_type);

// As find_dtype for a type known to exist.
const DTypeInfo& dtype_info(DType type);

// Upper-case name as llama.cpp prints it ("Q8_0").
inline std::string dtype_name(DType type) { return dtype_info(type).name; }

// Whether this build has kernels that multiply with weights of this type.
bool dtype_has_kernels(DType type);

// Their names, as messages list them: "F32, F16, .. or MXFP4".
std::string dtypes_with_kernels();

// Bytes of a row of `n` elements; n must be a multiple of the type's block size.
inline size_t row_bytes(DType type, int64_t n) {
  const DTypeInfo& info = dtype_info(type);
  return static_cast<size_t>(n) / info.block_size * info.block_bytes;
}

}  // namespace hotset
