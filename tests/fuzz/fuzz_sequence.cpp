// libFuzzer target for saved sequences: whatever the bytes, tokens of the vocabulary or a hotset error of one line.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "core/error.h"
#include "core/sequence_file.h"

namespace {

using namespace hotset;

void require(bool condition) {
  if (!condition) std::abort();
}

constexpr int64_t kContext = 100;

void check(const SequenceFile& file, const SequenceOrigin& origin) {
  const size_t n = file.tokens().size();
  require(n <= kContext);
  for (const int32_t token : file.tokens()) require(token >= 0 && token < origin.n_vocab);
  if (n == 0) return;
  volatile std::byte last = file.block((n - 1) / KvLayout::kBlockPositions)[origin.kv.block_bytes() - 1];
  (void)last;
}

}  // namespace

// The digest at the end is made right first, or else nothing would get past it.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const SequenceOrigin origin{std::string(32, 'a'), 1, KvLayout{1, 1, 32, DType::kF16}, 10};
  const auto copy = std::make_unique<std::byte[]>(size);  // exactly as long, so that a step too far is seen
  if (size > 0) std::memcpy(copy.get(), bytes, size);
  for (const bool is_signed : {false, true}) {
    if (is_signed && size >= sizeof(uint64_t)) {
      const uint64_t right = digest(kDigestStart, copy.get(), size - sizeof right);
      std::memcpy(copy.get() + size - sizeof right, &right, sizeof right);
    }
    try {
      check(SequenceFile::parse({copy.get(), size}, origin, kContext, "fuzz"), origin);
    } catch (const Error& error) {
      require(std::strchr(error.what(), '\n') == nullptr);
    }
  }
  return 0;
}
