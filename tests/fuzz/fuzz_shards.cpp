// libFuzzer target for models in several files and files of which only a part is here: the first byte is the number of
// shards, the second how much of each is here, in 256ths; the rest is cut into so many shards.
// Whatever the bytes, there is one file of all shards, a number of bytes that are needed, or a hotset error.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/gguf.h"
#include "core/model.h"

namespace {

using namespace hotset;

void require(bool condition) {
  if (!condition) std::abort();
}

void check(const GgufFile& file) {
  for (const GgufTensor& tensor : file.tensors()) require(file.find_tensor(tensor.name) == &tensor);
  for (const auto& entry : file.metadata()) require(file.find(entry.first) == &entry.second);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  if (size < 2) return 0;
  const size_t n_shards = bytes[0] % 4 + 1, share = bytes[1] + 1, each = (size - 2) / n_shards;
  std::vector<std::unique_ptr<std::byte[]>> copies;  // of exactly this size, so that a step too far is seen
  std::vector<std::shared_ptr<const GgufFile>> whole, starts;
  for (size_t i = 0; i < n_shards; ++i) {
    copies.push_back(std::make_unique<std::byte[]>(each));
    if (each > 0) std::memcpy(copies[i].get(), bytes + 2 + i * each, each);
    const size_t n_here = each * share / 256;
    const auto here = std::make_unique<std::byte[]>(n_here);
    if (n_here > 0) std::memcpy(here.get(), copies[i].get(), n_here);
    try {
      whole.push_back(GgufFile::parse(copies[i].get(), each, "fuzz"));
    } catch (const Error&) {
    }
    try {
      const GgufStart start = GgufFile::parse_start({here.get(), n_here}, each, "fuzz");
      require(start.file != nullptr || (start.n_needed > n_here && start.n_needed <= each));
      if (start.file) starts.push_back(start.file);
    } catch (const Error&) {
    }
  }
  for (auto* shards : {&whole, &starts}) {
    if (shards->size() < n_shards) continue;
    try {
      const auto file = GgufFile::join(*shards);
      check(*file);
      Model::of_file(file);
    } catch (const Error& error) {
      require(std::strchr(error.what(), '\n') == nullptr);
    }
  }
  return 0;
}
