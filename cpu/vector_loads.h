// Loads without alignment, for AVX2 and AVX-512 kernels. Private to cpu/.
#pragma once

#include <immintrin.h>

namespace hotset::cpu {
namespace {

inline __m256i load256(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
inline __m128i load128(const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); }

}  // namespace
}  // namespace hotset::cpu
