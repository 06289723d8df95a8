#include "core/relayout.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "core/error.h"
#include "core/gguf.h"
#include "core/quantize.h"
#include "core/thread_pool.h"

namespace hotset {
namespace {

// Units transposed at a time: whole blocks of every type. A tile of 4096 columns takes 4 MiB.
constexpr int64_t kTileUnits = 256;

// Squares of what storing lost, and of what was stored.
void add_squares(const float* was, const float* is, int64_t n, double& error, double& size) {
  for (int64_t i = 0; i < n; ++i) {
    const double difference = static_cast<double>(is[i]) - static_cast<double>(was[i]);
    error += difference * difference;
    size += static_cast<double>(was[i]) * static_cast<double>(was[i]);
  }
}

// `relative_error` is NaN when it cannot be told.
std::string summary(size_t n_layers, uint64_t n_bytes, double seconds, double relative_error) {
  char text[160];
  std::snprintf(text, sizeof text, "%.1f MiB in %.2f s, ", static_cast<double>(n_bytes) / (1 << 20), seconds);
  const std::string out =
      cat("[engine] the down projection of ", n_layers, " layers was laid out anew for sparse execution: ", text);
  if (relative_error == 0) return out + "lossless";
  if (std::isnan(relative_error)) return out + "with an unknown error, because some weights are NaN or infinite";
  std::snprintf(text, sizeof text, "%.2f %%", 100 * relative_error);
  return out + cat("quantised anew with a relative error of ", text, " (`hotset quantize` does it once, from better weights)");
}

}  // namespace

Relayout::Relayout(const Model& model, int32_t n_threads, const LogSink& log) : weights_(model.weights()) {
  const auto is_standard = [](const LayerWeights& layer) { return !layer.ffn_down_t; };
  const auto n_layers = std::count_if(weights_.layers.begin(), weights_.layers.end(), is_standard);
  if (n_layers == 0) return;
  ThreadPool pool(n_threads);
  DownRows rows(model, pool);
  for (LayerWeights& layer : weights_.layers) {
    if (!is_standard(layer)) continue;
    const TensorView down = layer.ffn_down.view;
    arenas_.push_back(rows.make(down));
    replace_down(layer, arenas_.back().data(), fitting_type(down.dtype, down.n_rows));
    n_bytes_ += arenas_.back().size();
  }
  rows.report(log);
}

DownRows::DownRows(const Model& model, ThreadPool& pool)
    : model_(model), pool_(pool), errors_(static_cast<size_t>(pool.size())) {}

void DownRows::report(const LogSink& log) const {
  if (n_layers_ == 0) return;
  Error2 total;
  for (const Error2& each : errors_) total.error += each.error, total.size += each.size;
  log_to(log, LogLevel::kWarning,
         summary(n_layers_, n_bytes_, seconds_, total.error == 0 ? 0 : std::sqrt(total.error / total.size)));
}

Arena DownRows::make(const TensorView& down) {
  const auto start = std::chrono::steady_clock::now();
  const int64_t n_ff = down.n_cols, n_embd = down.n_rows;
  const DType type = fitting_type(down.dtype, n_embd);
  const size_t stride = row_bytes(type, n_embd);
  Arena arena(static_cast<size_t>(n_ff) * stride, Pages::kHuge);
  std::atomic<int64_t> next{0};
  pool_.run([&](int32_t worker) {
    std::vector<float> slice(kTileUnits), tile(static_cast<size_t>(std::min(kTileUnits, n_ff) * n_embd)), back(static_cast<size_t>(n_embd));
    Error2 sums;
    for (int64_t first = kTileUnits * next++; first < n_ff; first = kTileUnits * next++) {
      const int64_t n = std::min(kTileUnits, n_ff - first);
      for (int64_t row = 0; row < n_embd; ++row) {
        dequantize_row(down.dtype, down.row(row) + row_bytes(down.dtype, first), n, slice.data());
        for (int64_t unit = 0; unit < n; ++unit)
          tile[static_cast<size_t>(unit * n_embd + row)] = slice[static_cast<size_t>(unit)];
      }
      for (int64_t unit = 0; unit < n; ++unit) {
        std::byte* const to = arena.data() + static_cast<size_t>(first + unit) * stride;
        const float* const from = tile.data() + unit * n_embd;
        quantize_row(type, from, n_embd, to);
        dequantize_row(type, to, n_embd, back.data());
        add_squares(from, back.data(), n_embd, sums.error, sums.size);
      }
    }
    errors_[static_cast<size_t>(worker)].error += sums.error;
    errors_[static_cast<size_t>(worker)].size += sums.size;
  });
  model_.file().drop_pages(down);
  ++n_layers_, n_bytes_ += arena.size();
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return arena;
}

void Relayout::replace_down(LayerWeights& layer, const std::byte* data, DType type) {
  const TensorView& down = layer.ffn_down.view;
  layer.ffn_down_t.name = layer.ffn_down.name;
  layer.ffn_down_t.name.replace(layer.ffn_down_t.name.rfind("ffn_down"), 8, "ffn_down_t");
  layer.ffn_down_t.view = {data, type, down.n_rows, down.n_cols, row_bytes(type, down.n_rows)};
  layer.ffn_down = {};
}

std::shared_ptr<const Relayout> Relayout::outline(const Model& model) {
  std::shared_ptr<Relayout> out(new Relayout(model.weights()));
  for (LayerWeights& layer : out->weights_.layers) {
    if (layer.ffn_down_t) continue;
    const TensorView down = layer.ffn_down.view;
    out->replace_down(layer, down.data, fitting_type(down.dtype, down.n_rows));
    out->n_bytes_ += layer.ffn_down_t.view.size_bytes();
  }
  return out;
}

}  // namespace hotset
