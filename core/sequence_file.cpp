#include "core/sequence_file.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/atomic_file.h"
#include "core/error.h"

namespace hotset {
namespace {

constexpr char kMagic[4] = {'H', 'S', 'E', 'Q'};
constexpr uint32_t kVersion = 1;

struct Header {
  char magic[4];
  uint32_t version;
  char fingerprint[32];
  uint64_t computation;
  uint32_t kv_type;  // as in GGUF
  uint32_t block_positions;
  uint64_t n_layer, n_head_kv, head_dim, n_vocab, n_tokens;
  uint64_t reserved[3];  // 0
};
static_assert(sizeof(Header) == 120);
constexpr size_t kTokensAt = sizeof(Header);

// Bytes of n tokens, padded so that blocks are aligned within the digest's words.
uint64_t token_bytes(uint64_t n) { return (n * sizeof(int32_t) + 7) / 8 * 8; }

uint64_t n_blocks_of(uint64_t n_tokens) {
  constexpr uint64_t kEach = static_cast<uint64_t>(KvLayout::kBlockPositions);
  return (n_tokens + kEach - 1) / kEach;
}

Header header_of(const SequenceOrigin& origin, uint64_t n_tokens) {
  Header out{};
  std::copy_n(kMagic, sizeof kMagic, out.magic);
  out.version = kVersion;
  HS_CHECK(origin.fingerprint.size() == sizeof out.fingerprint, "sequence_file");
  origin.fingerprint.copy(out.fingerprint, sizeof out.fingerprint);
  out.computation = origin.computation;
  out.kv_type = static_cast<uint32_t>(origin.kv.dtype);
  out.block_positions = static_cast<uint32_t>(KvLayout::kBlockPositions);
  out.n_layer = static_cast<uint64_t>(origin.kv.n_layer);
  out.n_head_kv = static_cast<uint64_t>(origin.kv.n_head_kv);
  out.head_dim = static_cast<uint64_t>(origin.kv.head_dim);
  out.n_vocab = static_cast<uint64_t>(origin.n_vocab);
  out.n_tokens = n_tokens;
  return out;
}

std::string type_text(uint32_t type) {
  const DTypeInfo* info = find_dtype(type);
  return info ? info->name : cat("type ", type);
}

// Reads one file against what it has to belong to.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const SequenceOrigin& origin, const std::string& name)
      : bytes_(bytes), origin_(origin), name_(name) {}

  // The number of tokens of a file that belongs to the origin and is as long as it says.
  uint64_t check(int64_t n_ctx) const {
    if (bytes_.size() < sizeof(Header) || std::memcmp(bytes_.data(), kMagic, sizeof kMagic) != 0)
      fail("beginning", "\"HSEQ\" and a header of 120 bytes", cat(bytes_.size(), " other bytes"),
           "name a file that hotset saved a sequence to");
    Header header;
    std::memcpy(&header, bytes_.data(), sizeof header);
    check_origin(header);
    if (header.n_tokens > static_cast<uint64_t>(n_ctx))
      throw ContextLengthError(error_text(where(), "tokens", cat("at most ", n_ctx, ", the context"),
                                          cat(header.n_tokens), "raise the context (-c, n_ctx)"));
    // Bounded first, so that the sum does not overflow whatever n_ctx is.
    if (header.n_tokens > bytes_.size() / sizeof(int32_t))
      fail("tokens", cat("at most the ", bytes_.size(), " bytes of the file"), cat(header.n_tokens),
           "it is cut off or damaged: save it again");
    const uint64_t n_bytes = sizeof(Header) + token_bytes(header.n_tokens) +
                             n_blocks_of(header.n_tokens) * origin_.kv.block_bytes() + sizeof(uint64_t);
    if (bytes_.size() != n_bytes)
      fail("size", cat(n_bytes, " bytes"), cat(bytes_.size()), "it is cut off or damaged: save it again");
    uint64_t stored;
    std::memcpy(&stored, bytes_.data() + n_bytes - sizeof stored, sizeof stored);
    if (stored != digest(kDigestStart, bytes_.data(), n_bytes - sizeof stored))
      fail("contents", "those of its digest", "others", "it is damaged: save it again");
    return header.n_tokens;
  }

  std::vector<int32_t> tokens(uint64_t n) const {
    std::vector<int32_t> out(n);
    if (n > 0) std::memcpy(out.data(), bytes_.data() + kTokensAt, n * sizeof(int32_t));
    for (const int32_t token : out)
      if (token < 0 || token >= origin_.n_vocab)
        fail("token", cat("0 to ", origin_.n_vocab - 1), cat(token), "it is damaged: save it again");
    return out;
  }

 private:
  std::string where() const { return "sequence " + quoted(name_, 200); }
  [[noreturn]] void fail(const std::string& what, const std::string& expected, const std::string& got,
                         const std::string& remedy) const {
    throw ModelFormatError(error_text(where(), what, expected, got, remedy));
  }

  void check_origin(const Header& header) const {
    const Header expected = header_of(origin_, header.n_tokens);
    if (header.version != expected.version)
      fail("version", cat(expected.version), cat(header.version), "save it with this version of hotset");
    const std::string fingerprint(header.fingerprint, sizeof header.fingerprint);
    if (fingerprint != origin_.fingerprint)
      fail("fingerprint of its model", quoted(origin_.fingerprint), quoted(fingerprint),
           "it belongs to another model: name another file");
    if (header.kv_type != expected.kv_type)
      fail("KV type", type_text(expected.kv_type), type_text(header.kv_type),
           "load the model with the KV type of the file (--kv-type, kv_type)");
    if (header.computation != expected.computation)
      fail("weights of its model", "these", "the same in another type, layout or mode",
           "load the model as when it was saved, or name another file");
    if (std::memcmp(&header, &expected, sizeof header) != 0)
      fail("shape", "that of the model", "another", "it is damaged: save it again");
  }

  std::span<const std::byte> bytes_;
  const SequenceOrigin& origin_;
  const std::string& name_;
};

// Zeros the rows of a block from position `n` on: they may hold what other sequences left.
void clear_rows(const KvLayout& kv, int64_t n, std::byte* block) {
  const size_t held = static_cast<size_t>(n) * row_bytes(kv.dtype, kv.head_dim);
  for (size_t page = 0; page < kv.block_bytes(); page += kv.page_bytes())
    std::fill(block + page + held, block + page + kv.page_bytes(), std::byte{0});
}

}  // namespace

uint64_t digest(uint64_t state, const void* data, size_t n_bytes) {
  // FNV-1a over words instead of bytes, with a rotation so that high bits reach low ones.
  constexpr uint64_t kPrime = 0x100000001b3u;
  const auto* bytes = static_cast<const std::byte*>(data);
  const auto add = [&](size_t at, size_t n) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + at, n);
    state = std::rotl((state ^ word) * kPrime, 29);
  };
  const size_t n_whole = n_bytes / 8 * 8;
  for (size_t at = 0; at < n_whole; at += 8) add(at, 8);
  if (n_whole < n_bytes) add(n_whole, n_bytes - n_whole);
  return state;
}

SequenceFile SequenceFile::parse(std::span<const std::byte> bytes, const SequenceOrigin& origin, int64_t n_ctx,
                                 const std::string& name) {
  const Reader reader(bytes, origin, name);
  const uint64_t n = reader.check(n_ctx);
  SequenceFile out;
  out.tokens_ = reader.tokens(n);
  out.blocks_ = bytes.data() + kTokensAt + token_bytes(n);
  out.block_bytes_ = origin.kv.block_bytes();
  return out;
}

SequenceFile SequenceFile::load(const std::string& path, const SequenceOrigin& origin, int64_t n_ctx) {
  const auto file = MmapFile::open(path);
  SequenceFile out = parse({file->data(), file->size()}, origin, n_ctx, path);
  out.file_ = file;
  return out;
}

void write_sequence(const std::string& path, const SequenceOrigin& origin, std::span<const int32_t> tokens,
                    const std::function<void(size_t, std::byte*)>& read_block) {
  AtomicFile file(path);
  uint64_t state = kDigestStart;
  const auto put = [&](const void* data, size_t n_bytes) {
    file.write(data, n_bytes);
    state = digest(state, data, n_bytes);
  };
  const Header header = header_of(origin, tokens.size());
  put(&header, sizeof header);
  std::vector<int32_t> padded(tokens.begin(), tokens.end());
  padded.resize(token_bytes(tokens.size()) / sizeof(int32_t), 0);
  put(padded.data(), padded.size() * sizeof(int32_t));
  std::vector<std::byte> block(origin.kv.block_bytes());
  const size_t n_blocks = n_blocks_of(tokens.size());
  for (size_t i = 0; i < n_blocks; ++i) {
    read_block(i, block.data());
    const int64_t held = static_cast<int64_t>(tokens.size()) - static_cast<int64_t>(i) * KvLayout::kBlockPositions;
    if (held < KvLayout::kBlockPositions) clear_rows(origin.kv, held, block.data());
    put(block.data(), block.size());
  }
  const uint64_t end = state;
  file.write(&end, sizeof end);
  file.finish();
}

}  // namespace hotset
