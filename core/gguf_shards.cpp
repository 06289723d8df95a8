// Opens models that are cut into several GGUF files. Layout: docs/FORMATS.md, "Shards".
#include "core/gguf_shards.h"

#include <algorithm>
#include <cstdio>

#include "core/error.h"
#include "core/gguf.h"

namespace hotset {
namespace {

constexpr int64_t kMaxShards = 99999;  // five digits
const char* const kDownload = "download all shards of one model";

std::string where(const GgufFile& file) { return "gguf " + quoted(file.name(), 200); }

// A count that shards state; `fallback` where they do not.
int64_t stated(const GgufFile& file, const std::string& key, int64_t fallback) {
  return file.get_int(key).value_or(fallback);
}

void check_same(const GgufFile& first, const GgufFile& shard, const std::string& what, const std::string& expected,
                const std::string& got) {
  if (expected == got) return;
  throw ModelFormatError(
      error_text(where(shard), what, expected + ", as in " + quoted(first.name(), 200), got, kDownload));
}

// What a later shard says must be what the first one says.
void check_belongs(const GgufFile& first, const GgufFile& shard, int64_t i) {
  check_same(first, shard, "magic", first.is_powerinfer() ? "PWRI" : "GGUF", shard.is_powerinfer() ? "PWRI" : "GGUF");
  for (const char* key : {"split.count", "split.tensors.count"})
    check_same(first, shard, key, cat(stated(first, key, 0)), cat(stated(shard, key, 0)));
  const int64_t no = stated(shard, "split.no", -1);
  if (no != i) throw ModelFormatError(error_text(where(shard), "split.no", cat(i), cat(no), kDownload));
  for (const auto& [key, value] : shard.metadata()) {
    const GgufValue* const other = first.find(key);
    if (!other || key == "split.no" || key == "general.alignment") continue;
    if (other->type == value.type && gguf_value_text(*other) == gguf_value_text(value)) continue;
    throw ModelFormatError(error_text(where(shard), "key " + quoted(key), "what " + quoted(first.name(), 200) + " says",
                                      gguf_value_text(value), kDownload));
  }
}

// Name of the first shard as the path has it; throws when it is not the path of the first of n.
ShardName first_name(const GgufFile& file, int64_t n_shards) {
  if (n_shards > kMaxShards)
    throw ModelFormatError(error_text(where(file), "split.count", cat("at most ", kMaxShards), cat(n_shards),
                                      "download or convert the file again"));
  const auto name = parse_shard_name(file.name());
  const int64_t no = stated(file, "split.no", 0);
  if (no != 0)
    throw ModelFormatError(error_text(where(file), "shard", cat("the first of ", n_shards), cat("number ", no + 1),
                                      name ? "name " + quoted(name->of(1), 200) : "name the first one"));
  if (!name || name->number != 1 || name->n_shards != n_shards) {
    char pattern[40];
    std::snprintf(pattern, sizeof pattern, "NAME-00001-of-%05lld.gguf", static_cast<long long>(n_shards));
    throw ModelFormatError(error_text(where(file), cat("name of the first of ", n_shards, " shards"), pattern,
                                      "another one", "give all shards the names they were published with"));
  }
  return *name;
}

}  // namespace

std::string ShardName::of(int64_t other) const {
  char numbers[64];
  std::snprintf(numbers, sizeof numbers, "-%05lld-of-%05lld.gguf", static_cast<long long>(other),
                static_cast<long long>(n_shards));
  return stem + numbers;
}

std::optional<ShardName> parse_shard_name(const std::string& path) {
  constexpr size_t kTail = sizeof("-00001-of-00003.gguf") - 1;
  if (path.size() < kTail) return std::nullopt;
  const std::string tail = path.substr(path.size() - kTail);
  const auto number_at = [&](size_t at) {  // -1 where there are no five digits
    int64_t out = 0;
    for (size_t i = at; i < at + 5; ++i) {
      if (tail[i] < '0' || tail[i] > '9') return int64_t{-1};
      out = out * 10 + (tail[i] - '0');
    }
    return out;
  };
  ShardName out{path.substr(0, path.size() - kTail), number_at(1), number_at(10)};
  if (out.number < 1 || out.number > out.n_shards || out.of(out.number) != path) return std::nullopt;
  return out;
}

std::shared_ptr<const GgufFile> GgufFile::join(const std::vector<std::shared_ptr<const GgufFile>>& shards) {
  const GgufFile& first = *shards.at(0);
  const int64_t n_shards = std::max<int64_t>(stated(first, "split.count", 1), 1);
  if (n_shards != static_cast<int64_t>(shards.size()))
    throw ModelFormatError(
        error_text(where(first), "split.count", cat(shards.size(), ", as its name says"), cat(n_shards), kDownload));
  if (n_shards == 1) return shards[0];
  auto out = std::shared_ptr<GgufFile>(new GgufFile());
  out->shards_ = shards;
  out->name_ = first.name_;
  out->version_ = first.version_;
  out->alignment_ = first.alignment_;
  out->powerinfer_ = first.powerinfer_;
  out->metadata_ = first.metadata_;
  out->index_keys();
  for (size_t i = 0; i < shards.size(); ++i) {
    const GgufFile& shard = *shards[i];
    check_belongs(first, shard, static_cast<int64_t>(i));
    out->shard_names_.push_back(shard.name_);
    out->size_ += shard.size_;
    out->has_data_ = out->has_data_ && shard.has_data_;
    out->tensors_.insert(out->tensors_.end(), shard.tensors_.begin(), shard.tensors_.end());
  }
  out->index_tensors();
  const int64_t n_tensors = stated(first, "split.tensors.count", static_cast<int64_t>(out->tensors_.size()));
  if (n_tensors != static_cast<int64_t>(out->tensors_.size()))
    throw ModelFormatError(error_text(where(first), cat("tensors of all ", shards.size(), " shards"), cat(n_tensors),
                                      cat(out->tensors_.size()), kDownload));
  return out;
}

std::shared_ptr<const GgufFile> GgufFile::open(const std::string& path) {
  std::vector<std::shared_ptr<const GgufFile>> shards = {map_one(path)};
  const int64_t n_shards = stated(*shards[0], "split.count", 1);
  if (n_shards <= 1) return shards[0];
  const ShardName name = first_name(*shards[0], n_shards);
  for (int64_t number = 2; number <= n_shards; ++number) {
    try {
      shards.push_back(map_one(name.of(number)));
    } catch (const ModelFormatError&) {
      throw;
    } catch (const Error&) {
      throw Error(error_text("gguf " + quoted(path, 200), cat("shard ", number, " of ", n_shards),
                             quoted(name.of(number), 200), "none that can be read", kDownload));
    }
  }
  return join(shards);
}

}  // namespace hotset
