#include "core/judgement.h"

#include <memory>
#include <utility>

#include "core/devices.h"
#include "core/gguf.h"
#include "core/topology.h"

namespace hotset {

Judgement judge(std::span<const FileStart> files, const ModelOptions& options) {
  Judgement out;
  std::vector<std::shared_ptr<const GgufFile>> shards;
  for (const FileStart& file : files) {
    GgufStart start = GgufFile::parse_start(file.bytes, file.file_bytes, file.name);
    out.n_needed.push_back(start.file ? 0 : start.n_needed);
    if (start.file) shards.push_back(std::move(start.file));
  }
  if (shards.empty() || shards.size() < files.size()) return out;
  const auto model = Model::of_file(GgufFile::join(shards), options);
  out.type_text = model->type_text();
  out.size_bytes = model->size_bytes();
  out.memory_bytes = physical_memory_bytes() + cuda_state().free_bytes;
  return out;
}

}  // namespace hotset
