#include "core/hybrid_planner.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/plan_builder.h"

namespace hotset {
namespace {

int32_t lane_of(Place place) { return place == Place::kDevice ? kDeviceLane : kHostLane; }
int32_t other(int32_t lane) { return lane == kHostLane ? kDeviceLane : kHostLane; }

// The first n rows of a matrix, or values of a vector.
NamedTensor first_rows(NamedTensor tensor, int64_t n, bool is_vector = false) {
  int64_t& size = is_vector ? tensor.view.n_cols : tensor.view.n_rows;
  if (!tensor || size == n) return tensor;
  size = n;
  if (is_vector) tensor.view.row_stride = static_cast<size_t>(n) * sizeof(float);
  tensor.name += cat("[:", n, "]");
  return tensor;
}
NamedTensor first_values(const NamedTensor& vector, int64_t n) { return first_rows(vector, n, true); }

// Steps of two lanes. What crosses between them is in shared buffers, of which one set serves all layers: lanes meet
// twice a layer, so nothing is overwritten before it is read.
class TwoLaneBuilder : private PlanBuilder {
 public:
  TwoLaneBuilder(const ModelConfig& config, const PlacedWeights& weights, const PlanOptions& options)
      : PlanBuilder(config, options), weights_(weights), stream_(options.stream) {}

  Plan build() {
    set_rope_freqs(weights_.rope_freqs);
    if (stream_) cut_chunks();
    begin();
    for (size_t i = 0; i < weights_.layers.size(); ++i) {
      const PlacedLayer& layer = weights_.layers[i];
      move_x(lane_of(layer.place.attention));
      on(x_lane_);
      plan_.kv_lanes.push_back(lane_of(layer.place.kv()));
      if (layer.place.host_kv)
        attend_on_host(layer);
      else
        attention(side(layer, x_lane_), layer_number(), at(x_lane_));
      feed_forward(layer);
    }
    head();
    return finish();
  }

 private:
  static const LayerWeights& side(const PlacedLayer& layer, int32_t lane) {
    return lane == kDeviceLane ? layer.device : layer.host;
  }
  static int64_t n_units(const PlacedLayer& layer, int32_t lane) {
    return lane == kDeviceLane ? layer.place.n_hot : layer.n_units - layer.place.n_hot;
  }
  // Whether the device detects the host's units too, and hands it a list of those that are active.
  bool hands_list(const PlacedLayer& layer) const {
    return exact_ && layer.place.detect == DetectPlace::kDevice && n_units(layer, kHostLane) > 0;
  }
  Activations& at(int32_t lane) { return at_[static_cast<size_t>(lane)]; }

  // The buffer of this name; as wide as the layer needs that needs most.
  BufferId named(const BufferDesc& desc) {
    const auto found = std::find_if(plan_.buffers.begin(), plan_.buffers.end(),
                                    [&](const BufferDesc& each) { return each.name == desc.name; });
    if (found == plan_.buffers.end()) {
      plan_.buffers.push_back(desc);
      return {static_cast<int32_t>(plan_.buffers.size()) - 1};
    }
    found->n_cols = std::max(found->n_cols, desc.n_cols);
    return {static_cast<int32_t>(found - plan_.buffers.begin())};
  }
  BufferId shared(const std::string& name, int64_t n_cols, BufferKind kind = BufferKind::kFloats) {
    return named({"shared_" + name, n_cols, BufferRows::kAll, kind, kSharedLane});
  }
  BufferId own(const std::string& name, int64_t n_cols, BufferKind kind = BufferKind::kFloats) {
    return named({(lane_ == kHostLane ? "host_" : "") + name, n_cols, BufferRows::kAll, kind, lane_});
  }

  FlagId signal(const std::string& name) {
    plan_.flags.push_back(name);
    const FlagId flag{static_cast<int32_t>(plan_.flags.size()) - 1};
    add(op::Signal{flag});
    return flag;
  }
  // Goes on with the other lane, once the flag is up.
  void wait(int32_t lane, FlagId flag) {
    on(lane);
    add(op::Wait{flag});
  }
  // Takes a value from the current lane to the other one. The host's is the shared buffer itself.
  void hand_over(BufferId device, BufferId shared, const std::string& name) {
    const int32_t from = lane_;
    if (from == kDeviceLane) add(op::Copy{device, shared});
    wait(other(from), signal(name));
    if (from == kHostLane) add(op::Copy{shared, device});
  }

  // The residual and a layer's normed input, as a lane has them.
  BufferId x_of(int32_t lane) { return lane == kHostLane ? shared("x", config_.n_embd) : of_device("x"); }
  BufferId x_norm_of(int32_t lane) {
    return lane == kHostLane ? shared("x_norm", config_.n_embd) : of_device("x_norm");
  }
  BufferId of_device(const std::string& name) {
    return named({name, config_.n_embd, BufferRows::kAll, BufferKind::kFloats, kDeviceLane});
  }

  // The embedding, which is the host's, and what the lanes that have attention need.
  void begin() {
    embed(weights_.token_embd, weights_.position_embd, x_of(kHostLane));
    for (const int32_t lane : {kDeviceLane, kHostLane}) {
      const auto is_here = [&](const PlacedLayer& layer) { return lane_of(layer.place.attention) == lane; };
      if (std::none_of(weights_.layers.begin(), weights_.layers.end(), is_here)) continue;
      on(lane);
      at(lane) = activations(lane == kHostLane ? "host_" : "", x_of(lane), x_norm_of(lane));
      if (has_rope()) add(op::RopeAngles{at(lane).angles});
    }
  }

  void move_x(int32_t lane) {
    if (x_lane_ == lane) return;
    on(x_lane_);
    hand_over(x_of(kDeviceLane), x_of(kHostLane), cat("x ", n_moves_++));
    x_lane_ = lane;
  }

  // The device has the weights, the host the keys and values: q, k and v go over, what was attended to comes back.
  void attend_on_host(const PlacedLayer& layer) {
    const Activations& a = at(kDeviceLane);
    project_qkv(layer.device, a);
    Activations host;
    host.q = shared("q", plan_.buffer(a.q).n_cols), host.attn = shared("attn", plan_.buffer(a.attn).n_cols);
    host.k = shared("k", plan_.buffer(a.k).n_cols), host.v = shared("v", plan_.buffer(a.v).n_cols);
    add(op::Copy{a.q, host.q});
    add(op::Copy{a.k, host.k});
    add(op::Copy{a.v, host.v});
    wait(kHostLane, signal(cat("qkv ", layer_number())));
    attend(layer_number(), host);
    wait(kDeviceLane, signal(cat("attn ", layer_number())));
    add(op::Copy{host.attn, a.attn});
    add_attention(layer.device, a);
  }

  void feed_forward(const PlacedLayer& layer) {
    const LayerWeights& w = side(layer, x_lane_);
    const Activations& a = at(x_lane_);
    norm(w.ffn_norm, w.ffn_norm_b, a.x, a.x_norm);
    const bool is_alone = n_units(layer, other(x_lane_)) == 0 && !(x_lane_ == kHostLane && hands_list(layer));
    if (stream_ && n_units(layer, kHostLane) > 0)
      stream_cold(layer);
    else if (is_alone)
      compute_units(layer, a.y, w.ffn_down_b);
    else if (x_lane_ == kDeviceLane)
      share_from_device(layer);
    else
      share_from_host(layer);
    on(x_lane_);
    add(op::Add{a.x, a.y, a.x});
  }

  // The device gives the layer's input and, where it detects for all, the host's active units.
  void share_from_device(const PlacedLayer& layer) {
    add(op::Copy{x_norm_of(kDeviceLane), x_norm_of(kHostLane)});
    if (hands_list(layer)) hand_list(layer);
    const FlagId fork = signal(cat("fork ", layer_number()));
    BufferId y_hot;
    if (layer.place.n_hot > 0) compute_units(layer, y_hot = own_sums("y_hot"), {});
    wait(kHostLane, fork);
    const BufferId y_cold = shared_sums();
    compute_units(layer, y_cold, {});
    wait(kDeviceLane, signal(cat("join ", layer_number())));
    const BufferId y_back = own_sums("y_back");
    add(op::Copy{y_cold, y_back});
    merge(y_hot ? y_hot : y_back, y_hot ? y_back : BufferId{}, layer.device.ffn_down_b);
  }

  // The device works for the host: its input comes over, its sums go back.
  void share_from_host(const PlacedLayer& layer) {
    hand_over(x_norm_of(kDeviceLane), x_norm_of(kHostLane), cat("fork ", layer_number()));
    FlagId list, join;
    if (hands_list(layer)) {
      hand_list(layer);
      list = signal(cat("list ", layer_number()));
    }
    const bool has_hot = layer.place.n_hot > 0;
    if (has_hot) {
      const BufferId y_hot = own_sums("y_hot");
      compute_units(layer, y_hot, {});
      add(op::Copy{y_hot, shared_sums()});
      join = signal(cat("join ", layer_number()));
    }
    on(kHostLane);
    BufferId y_cold;
    if (hands_list(layer)) wait(kHostLane, list);
    if (n_units(layer, kHostLane) > 0) compute_units(layer, y_cold = own_sums("y_cold"), {});
    if (has_hot) wait(kHostLane, join);
    merge(y_cold ? y_cold : shared_sums(), y_cold && has_hot ? shared_sums() : BufferId{}, layer.host.ffn_down_b);
  }

  // The device computes all units: the hot ones, then the cold ones as their rows come.
  void stream_cold(const PlacedLayer& layer) {
    const bool from_host = x_lane_ == kHostLane;
    if (from_host) hand_over(x_norm_of(kDeviceLane), x_norm_of(kHostLane), cat("fork ", layer_number()));
    const BufferId sums = own_sums("y_hot");
    bool is_first = true;
    const auto sum = [&](const UnitRows& rows) {
      sum_rows(rows, is_first ? BufferId{} : sums, sums);
      is_first = false;
    };
    if (layer.place.n_hot > 0) sum(hot_rows(layer));
    for (const StreamedChunk& chunk : chunks_[static_cast<size_t>(layer_number())]) {
      const int64_t n = n_fetched_++, place = n % StreamRing::kPlaces;
      fetch(chunk, n);
      sum(chunk.rows);
      if (n + StreamRing::kPlaces < n_chunks_) free_[static_cast<size_t>(place)] = signal(cat("free ", n));
    }
    if (!from_host) return merge(sums, {}, layer.device.ffn_down_b);
    add(op::Copy{sums, shared_sums()});
    wait(kHostLane, signal(cat("join ", layer_number())));
    merge(shared_sums(), {}, layer.host.ffn_down_b);
  }

  void cut_chunks() {
    plan_.ring = stream_->data, plan_.ring_bytes = stream_->size_bytes();
    for (const PlacedLayer& layer : weights_.layers) {
      chunks_.push_back(stream_units(layer, *stream_, n_chunks_));
      n_chunks_ += static_cast<int64_t>(chunks_.back().size());
    }
  }

  // Chunk n comes to its place, once the one that had it is no longer needed.
  void fetch(const StreamedChunk& chunk, int64_t n) {
    on(kCopyLane);
    if (n >= StreamRing::kPlaces) add(op::Wait{free_[static_cast<size_t>(n % StreamRing::kPlaces)]});
    for (const StreamedChunk::Move& move : chunk.moves) {
      on(kHostLane);
      const WeightId from = weight(move.from);
      on(kDeviceLane);
      const WeightId to = weight(move.to);
      on(kCopyLane);
      add(op::Fetch{from, to});
    }
    wait(kDeviceLane, signal(cat("rows ", n)));
  }

  static UnitRows hot_rows(const PlacedLayer& layer) {
    const LayerWeights& w = layer.device;
    const int64_t n = layer.place.n_hot;
    return {first_rows(w.ffn_gate, n), first_values(w.ffn_gate_b, n), first_rows(w.ffn_up, n),
            first_values(w.ffn_up_b, n), w.ffn_down_t, n};
  }

  // sums = onto, where there is one, + the sums of these units.
  void sum_rows(const UnitRows& rows, BufferId onto, BufferId sums) {
    op::SparseFfn ffn{};
    ffn.activation = config_.activation;
    if (exact_) {
      const bool gated = static_cast<bool>(rows.gate);
      ffn.detected = own("detected", rows.n), ffn.units = own("hot", rows.n + 1, BufferKind::kUnits);
      const WeightId matrix = weight(gated ? rows.gate : rows.up);
      add(op::Detect{matrix, weight(gated ? rows.gate_bias : rows.up_bias), x_norm_of(lane_), ffn.detected});
      add(op::SelectUnits{ffn.detected, ffn.units, {}, UnitSet::kActive, 0, rows.n});
    }
    ffn.gate = weight(rows.gate), ffn.gate_bias = weight(rows.gate_bias);
    ffn.up = weight(rows.up), ffn.up_bias = weight(rows.up_bias), ffn.down_t = weight(rows.down_t);
    ffn.in = x_norm_of(lane_), ffn.out = sums, ffn.onto = onto;
    add(ffn);
  }

  int64_t layer_number() const { return static_cast<int64_t>(plan_.kv_lanes.size()) - 1; }
  BufferId own_sums(const std::string& name) { return own(name, config_.n_embd, BufferKind::kSums); }
  BufferId shared_sums() { return shared("y", config_.n_embd, BufferKind::kSums); }
  BufferId cold_list(const PlacedLayer& layer) {
    return shared("cold", 2 * n_units(layer, kHostLane) + 1, BufferKind::kActive);
  }
  void merge(BufferId a, BufferId b, const NamedTensor& bias) {
    add(op::MergeSums{a, b, weight(bias), at(lane_).y});
  }

  // The detect values of all rows that the lane has.
  BufferId detect(const PlacedLayer& layer) {
    const LayerWeights& w = side(layer, lane_);
    const NamedTensor& matrix = w.ffn_gate ? w.ffn_gate : w.ffn_up;
    const BufferId out = own("detected", matrix.view.n_rows);
    const WeightId id = weight(matrix);
    add(op::Detect{id, weight(w.ffn_gate ? w.ffn_gate_b : w.ffn_up_b), x_norm_of(lane_), out});
    return out;
  }

  void hand_list(const PlacedLayer& layer) {
    const int64_t n_hot = layer.place.n_hot;
    const BufferId detected = detect(layer);
    add(op::SelectUnits{detected, cold_list(layer), {}, UnitSet::kActive, n_hot, layer.n_units - n_hot});
  }

  // The sum of the lane's units. With a list from the device their detect values are known, and no detect row is read.
  void compute_units(const PlacedLayer& layer, BufferId out, const NamedTensor& down_bias) {
    const LayerWeights& w = side(layer, lane_);
    const int64_t n = n_units(layer, lane_);
    const bool is_listed = hands_list(layer) && lane_ == kHostLane;
    op::SparseFfn ffn{};
    ffn.activation = config_.activation;
    if (is_listed) {
      ffn.units = cold_list(layer);
    } else {
      if (exact_) list_units(layer, ffn);
      ffn.gate = weight(first_rows(w.ffn_gate, n)), ffn.gate_bias = weight(first_values(w.ffn_gate_b, n));
    }
    if (!is_listed || config_.arch->gated)
      ffn.up = weight(first_rows(w.ffn_up, n)), ffn.up_bias = weight(first_values(w.ffn_up_b, n));
    ffn.down_t = weight(w.ffn_down_t), ffn.down_bias = weight(down_bias);
    ffn.in = x_norm_of(lane_), ffn.out = out;
    add(ffn);
  }

  // The lane's own list of active units, and the detect values that it is from.
  void list_units(const PlacedLayer& layer, op::SparseFfn& ffn) {
    const int64_t n = n_units(layer, lane_);
    const BufferId detected = hands_list(layer) ? own("detected", n) : detect(layer);
    const BufferId units = own(lane_ == kDeviceLane ? "hot" : "cold", n + 1, BufferKind::kUnits);
    add(op::SelectUnits{detected, units, {}, UnitSet::kActive, 0, n});
    ffn.detected = detected, ffn.units = units;
  }

  // The rows whose logits are asked for, as a lane has them.
  BufferId output_rows(int32_t lane) {
    const bool on_device = lane == kDeviceLane;
    return named({on_device ? "x_out" : "shared_x_out", config_.n_embd, BufferRows::kOutput, BufferKind::kFloats,
                  on_device ? kDeviceLane : kSharedLane});
  }

  // Logits end where the host reads them.
  void head() {
    const int32_t lane = lane_of(weights_.head);
    on(x_lane_);
    add(op::SelectRows{x_of(x_lane_), output_rows(x_lane_)});
    if (lane != x_lane_) hand_over(output_rows(kDeviceLane), output_rows(kHostLane), "x_out");
    const BufferId x_out = output_rows(lane);
    norm(weights_.output_norm, weights_.output_norm_b, x_out, x_out);
    const BufferId logits = buffer("logits", config_.n_vocab, BufferRows::kOutput);
    mat_mul(weights_.output, {}, x_out, logits);
    plan_.logits = logits;
    if (lane == kHostLane) return;
    plan_.logits = buffer("shared_logits", config_.n_vocab, BufferRows::kOutput);
    plan_.buffers.back().lane = kSharedLane;
    hand_over(logits, plan_.logits, "logits");
  }

  const PlacedWeights& weights_;
  std::array<Activations, kMaxLanes> at_;
  int32_t x_lane_ = kHostLane;  // that has the residual
  int64_t n_moves_ = 0;
  const StreamRing* const stream_;  // null: cold units are the host's
  std::vector<std::vector<StreamedChunk>> chunks_;  // of each layer
  int64_t n_chunks_ = 0, n_fetched_ = 0;
  std::array<FlagId, StreamRing::kPlaces> free_;  // that the device signals when it is done with what a place has now
};

[[noreturn]] void fail(const std::string& what, const std::string& expected, const std::string& got) {
  throw Error(error_text("planner", what, expected, got, "place the model anew"));
}

// What is placed must be what a plan with these options reads; shapes are left to lint.
void check(const PlacedLayer& layer, size_t index, const ModelConfig& config, bool exact) {
  const std::string where = cat("placement of layer ", index);
  const int64_t n_hot = layer.place.n_hot;
  if (layer.n_units < 1 || n_hot < 0 || n_hot > layer.n_units)
    fail(where, cat("0 to ", layer.n_units, " hot units"), cat(n_hot));
  if (layer.place.host_kv && layer.place.attention == Place::kHost)
    fail(where, "keys and values on the host with the attention", "apart from it");
  if (layer.place.detect == DetectPlace::kHost && n_hot > 0)
    fail(where, "no hot units without detect rows", cat(n_hot));
  const int64_t n_cold = layer.n_units - n_hot;
  const auto rows = [&](const NamedTensor& tensor, int64_t n, const char* what) {
    const int64_t got = tensor ? tensor.view.n_rows : 0;
    if (got != n) fail(cat(where, ", ", what), cat(n, " rows"), cat(got));
  };
  rows(layer.device.ffn_down_t, n_hot, "ffn_down_t of the device");
  rows(layer.host.ffn_down_t, n_cold, "ffn_down_t of the host");
  const bool gated = config.arch->gated, on_device = layer.place.detect == DetectPlace::kDevice;
  if (on_device && !exact && n_cold > 0)
    fail(cat(where, ", mode dense"), "detect rows beside their units", "all on the device");
  rows(gated ? layer.device.ffn_gate : layer.device.ffn_up, on_device ? layer.n_units : n_hot, "detect of the device");
  rows(gated ? layer.host.ffn_gate : layer.host.ffn_up, on_device ? 0 : n_cold, "detect of the host");
  if (!gated) return;
  rows(layer.device.ffn_up, n_hot, "ffn_up of the device");
  rows(layer.host.ffn_up, n_cold, "ffn_up of the host");
}

}  // namespace

Plan build_plan(const ModelConfig& config, const PlacedWeights& weights, const PlanOptions& options) {
  HS_CHECK(!options.stream || options.stream->place_bytes % StreamRing::kAlignment == 0, "hybrid planner");
  if (options.observe || options.predictor)
    throw Error(error_text("planner", "plan of two devices", "modes exact or dense, and no observer",
                           options.observe ? "an observer" : "a predictor", "use --device cpu"));
  if (static_cast<int64_t>(weights.layers.size()) != config.n_layer)
    fail("layers", cat(config.n_layer), cat(weights.layers.size()));
  for (size_t i = 0; i < weights.layers.size(); ++i) check(weights.layers[i], i, config, options.exact);
  return TwoLaneBuilder(config, weights, options).build();
}

}  // namespace hotset
