#include "core/unit_exchange.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace hotset {
namespace {

// A tensor of a layer that has one row, or one element, for each unit: slots [0, n_device) on the device, the others on
// the host.
struct UnitTensor {
  std::byte *device, *host;
  int64_t n_device;
  size_t row_bytes;

  bool is_there(int64_t slot) const { return slot < n_device; }
  std::byte* row(int64_t slot) const {
    return is_there(slot) ? device + static_cast<size_t>(slot) * row_bytes
                          : host + static_cast<size_t>(slot - n_device) * row_bytes;
  }
};

// The tensors of a layer's units. What others read through their views, this file alone writes, while nobody reads.
template <class F>
void visit_tensors(const PlacedLayer& layer, F&& f) {
  struct Which {
    NamedTensor LayerWeights::*tensor;
    bool is_vector;
  };
  for (const Which& which : {Which{&LayerWeights::ffn_gate, false}, {&LayerWeights::ffn_gate_b, true},
                             {&LayerWeights::ffn_up, false}, {&LayerWeights::ffn_up_b, true},
                             {&LayerWeights::ffn_down_t, false}}) {
    const TensorView &there = (layer.device.*which.tensor).view, &here = (layer.host.*which.tensor).view;
    if (!there && !here) continue;
    const TensorView& any = there ? there : here;
    f(UnitTensor{const_cast<std::byte*>(there.data), const_cast<std::byte*>(here.data),
                 which.is_vector ? there.n_cols : there.n_rows,
                 which.is_vector ? row_bytes(any.dtype, 1) : any.row_stride});
  }
}

size_t unit_bytes(const PlacedLayer& layer) {
  size_t out = 0;
  visit_tensors(layer, [&](const UnitTensor& rows) { out += rows.row_bytes; });
  return out;
}

}  // namespace

uint64_t UnitExchange::staging_bytes(const PlacedWeights& weights, int64_t max_swaps) {
  size_t most = 0;
  for (const PlacedLayer& layer : weights.layers) most = std::max(most, unit_bytes(layer));
  return 2 * most * static_cast<uint64_t>(max_swaps);
}

SwapCost UnitExchange::cost(const PlacedLayer& layer) {
  SwapCost out;
  visit_tensors(layer, [&](const UnitTensor& rows) {
    const int64_t n = rows.n_device == layer.n_units ? 2 : 1;
    out.n_copies += 2 * n;
    out.to_device += static_cast<uint64_t>(n) * rows.row_bytes;
    out.to_host += static_cast<uint64_t>(n) * rows.row_bytes;
  });
  return out;
}

UnitExchange::UnitExchange(const PlacedWeights& weights, Device& device, int64_t max_swaps)
    : weights_(weights), device_(device), max_swaps_(max_swaps) {
  staging_ = device.alloc_shared(std::max<uint64_t>(staging_bytes(weights, max_swaps), 1));
}

// First all rows that change are fetched, then each goes to its new place. Copies are waited for one by one. On a device
// that copies while it computes (kCopyLane) all of them can be queued there, in this order, and the next step waits for
// the last; the host's rows can be written once what was fetched has come, and that too before the next step.
void UnitExchange::exchange(size_t layer, std::span<const SlotSwap> swaps) {
  HS_CHECK(std::ssize(swaps) <= max_swaps_, "unit exchange");
  const PlacedLayer& of = weights_.layers[layer];
  std::byte* staged = staging_->data();
  // Calls f(tensor, swap, its two rows in staging).
  const auto visit = [&](auto&& f) {
    std::byte* at = staged;
    for (const SlotSwap& swap : swaps)
      visit_tensors(of, [&](const UnitTensor& rows) {
        f(rows, swap, at, at + rows.row_bytes);
        at += 2 * rows.row_bytes;
      });
  };
  visit([&](const UnitTensor& rows, const SlotSwap& swap, std::byte* hot, std::byte* cold) {
    if (rows.is_there(swap.hot)) device_.download(rows.row(swap.hot), hot, rows.row_bytes);
    if (rows.is_there(swap.cold)) device_.download(rows.row(swap.cold), cold, rows.row_bytes);
    if (!rows.is_there(swap.hot)) std::memcpy(hot, rows.row(swap.hot), rows.row_bytes);
    if (!rows.is_there(swap.cold)) std::memcpy(cold, rows.row(swap.cold), rows.row_bytes);
  });
  visit([&](const UnitTensor& rows, const SlotSwap& swap, std::byte* hot, std::byte* cold) {
    const auto put = [&](int64_t slot, const std::byte* from) {
      if (rows.is_there(slot))
        device_.upload(rows.row(slot), from, rows.row_bytes);
      else
        std::memcpy(rows.row(slot), from, rows.row_bytes);
    };
    put(swap.hot, cold), put(swap.cold, hot);
  });
}

}  // namespace hotset
