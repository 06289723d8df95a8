#include "core/dtype.h"

#include "core/error.h"

namespace hotset {
namespace {

struct Row {
  DType type;
  DTypeInfo info;
};

constexpr Row kTable[] = {
    {DType::kF32, {"F32", 1, 4}},           {DType::kF16, {"F16", 1, 2}},       {DType::kBF16, {"BF16", 1, 2}},
    {DType::kQ4_0, {"Q4_0", 32, 18}},       {DType::kQ4_1, {"Q4_1", 32, 20}},   {DType::kQ5_0, {"Q5_0", 32, 22}},
    {DType::kQ5_1, {"Q5_1", 32, 24}},       {DType::kQ8_0, {"Q8_0", 32, 34}},   {DType::kQ8_1, {"Q8_1", 32, 36}},
    {DType::kQ2_K, {"Q2_K", 256, 84}},      {DType::kQ3_K, {"Q3_K", 256, 110}}, {DType::kQ4_K, {"Q4_K", 256, 144}},
    {DType::kQ5_K, {"Q5_K", 256, 176}},     {DType::kQ6_K, {"Q6_K", 256, 210}}, {DType::kIQ4_NL, {"IQ4_NL", 32, 18}},
    {DType::kIQ4_XS, {"IQ4_XS", 256, 136}}, {DType::kMXFP4, {"MXFP4", 32, 17}}, {DType::kI8, {"I8", 1, 1}},
    {DType::kI16, {"I16", 1, 2}},           {DType::kI32, {"I32", 1, 4}},       {DType::kI64, {"I64", 1, 8}},
    {DType::kF64, {"F64", 1, 8}},
};

}  // namespace

const DTypeInfo* find_dtype(uint32_t gguf_type) {
  for (const Row& row : kTable)
    if (static_cast<uint32_t>(row.type) == gguf_type) return &row.info;
  return nullptr;
}

const DTypeInfo& dtype_info(DType type) {
  const DTypeInfo* info = find_dtype(static_cast<uint32_t>(type));
  HS_CHECK(info != nullptr, "dtype");
  return *info;
}

bool dtype_has_kernels(DType type) {
  switch (type) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_K:
    case DType::kQ5_K:
    case DType::kQ6_K:
    case DType::kQ4_1:
    case DType::kQ5_0:
    case DType::kQ5_1:
    case DType::kQ2_K:
    case DType::kQ3_K:
    case DType::kIQ4_NL:
    case DType::kIQ4_XS:
    case DType::kMXFP4: return true;
    default: return false;
  }
}

std::string dtypes_with_kernels() {
  std::string out, last;
  for (const Row& row : kTable) {
    if (!dtype_has_kernels(row.type)) continue;
    if (!last.empty()) out += (out.empty() ? "" : ", ") + last;
    last = row.info.name;
  }
  return out + " or " + last;
}

}  // namespace hotset
