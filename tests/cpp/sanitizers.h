// What tests leave out under sanitizers, which make everything five to twenty times slower. Release builds run all of it.
#pragma once

namespace hotset::test {

// The thread sanitizer looks at how threads meet, which no type and no instruction set changes.
#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadsOnly = true;
#else
constexpr bool kThreadsOnly = false;
#endif

// Types that are enough for that: one of floats and one of blocks.
template <class Type>
constexpr bool skips_for_threads(Type dtype) {
  return kThreadsOnly && dtype != Type::kF32 && dtype != Type::kQ4_0;
}

// Under any sanitizer: bits are compared in Release builds; memory and threads need each way through the code, not each
// combination of them.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kFewCases = true;
#else
constexpr bool kFewCases = false;
#endif

}  // namespace hotset::test
