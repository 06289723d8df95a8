#include "core/streamed_units.h"

#include <algorithm>

#include "core/error.h"

namespace hotset {
namespace {

// Chunks begin at units that are multiples of it where they can, as the device's tiles do.
constexpr int64_t kUnitStep = 32;

constexpr size_t align(size_t n) { return (n + StreamRing::kAlignment - 1) / StreamRing::kAlignment * StreamRing::kAlignment; }

// Units [first, first + n) of a matrix of rows or a vector of values, of the layer's slots from `slot` on.
NamedTensor units_of(const NamedTensor& tensor, int64_t first, int64_t n, int64_t slot, bool is_vector) {
  NamedTensor out = tensor;
  out.name += cat("[", slot, ":", slot + n, "]");
  if (is_vector) {
    out.view.data += static_cast<size_t>(first) * sizeof(float);
    out.view.n_cols = n, out.view.row_stride = static_cast<size_t>(n) * sizeof(float);
  } else {
    out.view.data = tensor.view.row(first), out.view.n_rows = n;
  }
  return out;
}

// One of a unit's tensors: where its rows are, and the first of the layer's slots that they are of.
struct Source {
  NamedTensor UnitRows::*to;
  const NamedTensor* tensor;
  int64_t first_slot;
  bool is_vector, is_on_device;

  size_t bytes(int64_t n) const {
    return static_cast<size_t>(n) * (is_vector ? sizeof(float) : tensor->view.row_stride);
  }
};

std::vector<Source> sources_of(const PlacedLayer& layer) {
  std::vector<Source> out;
  const auto add = [&](NamedTensor UnitRows::*to, NamedTensor LayerWeights::*which, bool is_vector) {
    const NamedTensor &cold = layer.host.*which, &there = layer.device.*which;
    if (cold)
      out.push_back({to, &cold, layer.place.n_hot, is_vector, false});
    else if (there)
      out.push_back({to, &there, 0, is_vector, true});
  };
  add(&UnitRows::gate, &LayerWeights::ffn_gate, false);
  add(&UnitRows::gate_bias, &LayerWeights::ffn_gate_b, true);
  add(&UnitRows::up, &LayerWeights::ffn_up, false);
  add(&UnitRows::up_bias, &LayerWeights::ffn_up_b, true);
  add(&UnitRows::down_t, &LayerWeights::ffn_down_t, false);
  return out;
}

size_t place_bytes(const std::vector<Source>& sources, int64_t n) {
  size_t out = 0;
  for (const Source& source : sources) out += source.is_on_device ? 0 : align(source.bytes(n));
  return out;
}

// The most units whose rows fit.
int64_t units_per_place(const std::vector<Source>& sources, size_t n_bytes, int64_t most) {
  int64_t low = 0;
  for (int64_t high = most; low < high;) {
    const int64_t middle = (low + high + 1) / 2;
    if (place_bytes(sources, middle) <= n_bytes)
      low = middle;
    else
      high = middle - 1;
  }
  return low < most && low > kUnitStep ? low / kUnitStep * kUnitStep : low;
}

}  // namespace

size_t least_place_bytes(const PlacedLayer& layer) { return place_bytes(sources_of(layer), 1); }
size_t most_place_bytes(const PlacedLayer& layer) {
  return place_bytes(sources_of(layer), layer.n_units - layer.place.n_hot);
}

std::vector<StreamedChunk> stream_units(const PlacedLayer& layer, const StreamRing& ring, int64_t first_place) {
  const std::vector<Source> sources = sources_of(layer);
  const int64_t n_cold = layer.n_units - layer.place.n_hot;
  const int64_t each = units_per_place(sources, ring.place_bytes, n_cold);
  HS_CHECK(n_cold == 0 || each > 0, "streamed units");
  std::vector<StreamedChunk> out;
  for (int64_t first = 0; first < n_cold; first += each) {
    StreamedChunk& chunk = out.emplace_back();
    chunk.rows.n = std::min(each, n_cold - first);
    const int64_t place = (first_place + static_cast<int64_t>(out.size()) - 1) % StreamRing::kPlaces;
    std::byte* at = ring.data + static_cast<size_t>(place) * ring.place_bytes;
    for (const Source& source : sources) {
      const int64_t slot = layer.place.n_hot + first;
      const NamedTensor from = units_of(*source.tensor, slot - source.first_slot, chunk.rows.n, slot, source.is_vector);
      if (source.is_on_device) {
        chunk.rows.*source.to = from;
        continue;
      }
      NamedTensor to = from;
      to.view.data = at;
      at += align(source.bytes(chunk.rows.n));
      chunk.rows.*source.to = to;
      chunk.moves.push_back({from, to});
    }
  }
  return out;
}

}  // namespace hotset
