// Whether a model will run, told from the first bytes of its files: before they are fetched.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/model.h"

namespace hotset {

// A file of which only the beginning is here.
struct FileStart {
  std::string name;  // for messages
  std::span<const std::byte> bytes;
  uint64_t file_bytes = 0;
};

struct Judgement {
  std::vector<uint64_t> n_needed;  // first bytes that each file must at least give; 0 where those given suffice
  // Once all of n_needed are 0:
  std::string type_text;
  uint64_t size_bytes = 0;    // of all weights
  uint64_t memory_bytes = 0;  // of this machine and its card
};

// Loads a model of one file, or of all its shards in their order, but for the data of its tensors.
// Throws what Model::load would; takes memory for the bytes given alone.
Judgement judge(std::span<const FileStart> files, const ModelOptions& options = {});

}  // namespace hotset
