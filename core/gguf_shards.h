// Names of the parts of a model that is cut into several files: NAME-00001-of-00003.gguf and so on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace hotset {

struct ShardName {
  std::string stem;      // all before "-00001-of-"
  int64_t number = 0;    // from 1
  int64_t n_shards = 0;  // at least 1

  // The name of another shard of the same model.
  std::string of(int64_t other) const;
};

// nullopt when the path does not end so, or with a number beyond the count.
std::optional<ShardName> parse_shard_name(const std::string& path);

}  // namespace hotset
