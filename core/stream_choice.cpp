#include "core/stream_choice.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/streamed_units.h"

namespace hotset {
namespace {

// Steps below it are decode steps of several sequences, which a batch's lists keep sparse.
constexpr int64_t kFewestRows = 32;
// Multiplications and additions a second of a thread, for rows of several tokens. Assumed: machine.json does not have it;
// sums of units take 1.5e11 to 1.8e11 on one AVX-512 core (docs/BENCHMARKS.md).
constexpr double kOpsPerThread = 1e11;
// A chunk's copy takes this many hand-offs, so that waiting for it costs little.
constexpr double kHandoffsPerChunk = 16;
constexpr uint64_t kMostShare = 16;  // one in so many bytes of the budget may be the ring's

// Bytes and elements of the cold rows.
struct Cold {
  double bytes = 0, elements = 0;
  double active_elements = 0;  // of a token
};

Cold cold_of(const PlacedLayer& layer, bool exact, const std::vector<double>* frequency) {
  Cold out;
  double detect_elements = 0;
  const NamedTensor& detect = layer.host.ffn_gate ? layer.host.ffn_gate : layer.host.ffn_up;
  for (const NamedTensor* each : {&layer.host.ffn_gate, &layer.host.ffn_up, &layer.host.ffn_down_t}) {
    if (!*each) continue;
    out.bytes += static_cast<double>(each->view.size_bytes());
    out.elements += static_cast<double>(each->view.n_rows * each->view.n_cols);
  }
  const bool detects = detect && layer.place.detect != DetectPlace::kDevice;
  if (detects) detect_elements = static_cast<double>(detect.view.n_rows * detect.view.n_cols);
  double share = 1;
  if (exact && frequency != nullptr && layer.n_units > layer.place.n_hot) {
    const auto cold = frequency->begin() + layer.place.n_hot;
    share = std::accumulate(cold, frequency->end(), 0.0) / static_cast<double>(layer.n_units - layer.place.n_hot);
  }
  out.active_elements = detect_elements + share * (out.elements - detect_elements);
  return out;
}

// Bytes that take long enough to copy, within what the budget allows.
uint64_t wanted_bytes(const StreamCosts& costs) {
  const double hidden = kHandoffsPerChunk * *costs.rates.handoff_us * costs.rates.pcie->h2d_gbps * 1e3;
  return std::min(static_cast<uint64_t>(std::min(hidden, 1e9)), costs.budget / kMostShare / StreamRing::kPlaces);
}

}  // namespace

size_t stream_place_bytes(const PlacedWeights& weights, uint64_t wanted) {
  size_t least = 0, most = 0;
  for (const PlacedLayer& layer : weights.layers) {
    if (layer.place.n_hot == layer.n_units) continue;
    least = std::max(least, least_place_bytes(layer)), most = std::max(most, most_place_bytes(layer));
  }
  const size_t out = static_cast<size_t>(std::min<uint64_t>(wanted, most));
  return std::max(out / StreamRing::kAlignment * StreamRing::kAlignment, least);
}

StreamChoice choose_stream(const PlacedWeights& weights, const StreamCosts& costs) {
  Cold cold;
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const Cold layer = cold_of(weights.layers[i], costs.exact, costs.frequencies.empty() ? nullptr : &costs.frequencies[i]);
    cold.bytes += layer.bytes, cold.active_elements += layer.active_elements;
  }
  if (cold.bytes == 0) return {};
  StreamChoice out;
  out.place_bytes = stream_place_bytes(weights, wanted_bytes(costs));
  const double n_chunks = std::ceil(cold.bytes / static_cast<double>(std::max<size_t>(out.place_bytes, 1)));
  const double streamed = cold.bytes / (costs.rates.pcie->h2d_gbps * 1e9) + n_chunks * *costs.rates.handoff_us * 1e-6;
  const double host_row = 2 * cold.active_elements / (kOpsPerThread * std::max(costs.n_threads, 1));
  if (!(host_row > 0)) return {};
  const double rows = std::ceil(streamed / host_row);
  if (!(rows < 1e9)) return {};
  out.from_rows = std::max(kFewestRows, static_cast<int64_t>(rows));
  return out;
}

}  // namespace hotset
