#include "core/hybrid_planner.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/lane_builder.h"

namespace hotset {
namespace {

int32_t lane_of(Place place) { return place == Place::kDevice ? kDeviceLane : kHostLane; }

// Steps of two lanes. What crosses between them is in shared buffers, of which one set serves all layers: lanes meet
// twice a layer, so nothing is overwritten before it is read.
class TwoLaneBuilder : private LaneBuilder {
 public:
  TwoLaneBuilder(const ModelConfig& config, const PlacedWeights& weights, const PlanOptions& options)
      : LaneBuilder(config, options),
        weights_(weights),
        observe_(options.observe),
        stream_(options.stream),
        counts_units_(options.tally) {}

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
      first_tally_ += layer.n_units;
    }
    logits();
    return finish();
  }

 private:
  static const LayerWeights& side(const PlacedLayer& layer, int32_t lane) {
    return lane == kDeviceLane ? layer.device : layer.host;
  }
  static int64_t n_units(const PlacedLayer& layer, int32_t lane) {
    return lane == kDeviceLane ? layer.place.n_hot : layer.n_units - layer.place.n_hot;
  }
  static const Predictor::Layer& predictor(const PlacedLayer& layer, int32_t lane) {
    return lane == kDeviceLane ? layer.device_predictor : layer.host_predictor;
  }
  // Whether a lane's own predictor reads the residual.
  static bool wants_residual(const PlacedLayer& layer, int32_t lane) {
    return predictor(layer, lane) && predictor(layer, lane).reads_residual;
  }
  // Whether the device detects the host's units too, and hands it a list of those that are active.
  bool hands_active(const PlacedLayer& layer) const {
    return exact_ && layer.place.detect == DetectPlace::kDevice && n_units(layer, kHostLane) > 0;
  }
  // Whether the device predicts for the host, and hands it a list of candidates.
  bool hands_candidates(const PlacedLayer& layer) const {
    return exact_ && layer.place.detect == DetectPlace::kSplit && layer.place.device_predicts &&
           layer.device_predictor && n_units(layer, kHostLane) > 0;
  }
  bool hands_list(const PlacedLayer& layer) const { return hands_active(layer) || hands_candidates(layer); }
  Activations& at(int32_t lane) { return at_[static_cast<size_t>(lane)]; }
  // A layer's normed input: that is x itself where it is normed after additions, and a copy of it on the other lane.
  BufferId x_norm_of(int32_t lane) {
    return config_.norms_after && lane == x_lane_ ? x_of(lane) : LaneBuilder::x_norm_of(lane);
  }
  // The residual before a layer's FFN, for predictors that read it: x itself, and a copy of it on the other lane.
  BufferId residual_of(int32_t lane) {
    if (lane == x_lane_) return x_of(lane);
    return lane == kHostLane ? shared("residual", config_.n_embd) : of_device("residual");
  }

  // The embedding, which is the host's, and what the lanes that have attention need.
  void begin() {
    embed(weights_.token_embd, weights_.token_embd_proj, weights_.position_embd, x_of(kHostLane));
    for (const int32_t lane : {kDeviceLane, kHostLane}) {
      const auto is_here = [&](const PlacedLayer& layer) { return lane_of(layer.place.attention) == lane; };
      if (std::none_of(weights_.layers.begin(), weights_.layers.end(), is_here)) continue;
      on(lane);
      const BufferId x_norm = config_.norms_after ? x_of(lane) : x_norm_of(lane);
      at(lane) = activations(lane == kHostLane ? "host_" : "", x_of(lane), x_norm);
      for (size_t i = 0; i < weights_.layers.size(); ++i)
        if (is_here(weights_.layers[i])) angles_of(static_cast<int64_t>(i), at(lane));
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
    project_qkv(layer.device, layer_number(), a);
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
    begin_ffn(w, a);
    const bool is_alone = n_units(layer, other(x_lane_)) == 0 && !(x_lane_ == kHostLane && hands_list(layer));
    if (stream_ && n_units(layer, kHostLane) > 0)
      stream_cold(layer);
    else if (is_alone)
      compute_alone(layer, a.y, w.ffn_down_b);
    else if (x_lane_ == kDeviceLane)
      share_from_device(layer);
    else
      share_from_host(layer);
    on(x_lane_);
    end_ffn(w, a);
  }

  void compute_alone(const PlacedLayer& layer, BufferId out, const NamedTensor& down_bias) {
    const bool on_device = lane_ == kDeviceLane;
    compute_units(layer, out, down_bias);
    if (!observe_) return;
    if (on_device) {
      add(op::Copy{x_norm_of(kDeviceLane), x_norm_of(kHostLane)});
      wait(kHostLane, show(layer));
    }
    observe(layer);
    if (on_device && next_is_on_device()) wait(kDeviceLane, signal(cat("observed ", layer_number())));
  }
  // Whether the device goes on to write what this layer has brought to the host, with no word from the host in between.
  bool next_is_on_device() const {
    const size_t next = plan_.kv_lanes.size();
    return next < weights_.layers.size() && weights_.layers[next].place.attention == Place::kDevice;
  }

  // The device gives the layer's input and, where it detects or predicts for all, the host's list.
  void share_from_device(const PlacedLayer& layer) {
    add(op::Copy{x_norm_of(kDeviceLane), x_norm_of(kHostLane)});
    if (wants_residual(layer, kHostLane)) add(op::Copy{x_of(kDeviceLane), residual_of(kHostLane)});
    if (hands_list(layer)) hand_list(layer);
    const FlagId fork = signal(cat("fork ", layer_number()));
    BufferId y_hot;
    FlagId shown;
    if (layer.place.n_hot > 0) {
      compute_units(layer, y_hot = own_sums("y_hot"), {});
      if (observe_) shown = show(layer);
    }
    wait(kHostLane, fork);
    const BufferId y_cold = shared_sums();
    compute_units(layer, y_cold, {});
    if (observe_ && y_hot) wait(kHostLane, shown);
    if (observe_) observe(layer);
    wait(kDeviceLane, signal(cat("join ", layer_number())));
    const BufferId y_back = own_sums("y_back");
    add(op::Copy{y_cold, y_back});
    merge(y_hot ? y_hot : y_back, y_hot ? y_back : BufferId{}, layer.device.ffn_down_b);
  }

  // The device works for the host: its input comes over, its sums go back.
  void share_from_host(const PlacedLayer& layer) {
    const bool has_hot = layer.place.n_hot > 0, wants_x = wants_residual(layer, kDeviceLane);
    wait(kDeviceLane, signal(cat("fork ", layer_number())));
    if (has_hot || hands_active(layer) || !wants_x) add(op::Copy{x_norm_of(kHostLane), x_norm_of(kDeviceLane)});
    if (wants_x) add(op::Copy{x_of(kHostLane), residual_of(kDeviceLane)});
    FlagId list, join;
    if (hands_list(layer)) {
      hand_list(layer);
      list = signal(cat("list ", layer_number()));
    }
    if (has_hot) {
      const BufferId y_hot = own_sums("y_hot");
      compute_units(layer, y_hot, {});
      add(op::Copy{y_hot, shared_sums()});
      join = observe_ ? show(layer) : signal(cat("join ", layer_number()));
    }
    on(kHostLane);
    BufferId y_cold;
    if (hands_list(layer)) wait(kHostLane, list);
    if (n_units(layer, kHostLane) > 0) compute_units(layer, y_cold = own_sums("y_cold"), {});
    if (has_hot) wait(kHostLane, join);
    if (observe_) observe(layer);
    merge(y_cold ? y_cold : shared_sums(), y_cold && has_hot ? shared_sums() : BufferId{}, layer.host.ffn_down_b);
  }

  // The device computes all units: the hot ones, then the cold ones as their rows come.
  void stream_cold(const PlacedLayer& layer) {
    const bool from_host = x_lane_ == kHostLane;
    if (from_host) hand_over(x_norm_of(kDeviceLane), x_norm_of(kHostLane), cat("fork ", layer_number()));
    const BufferId sums = own_sums("y_hot");
    int64_t slot = 0;
    const auto sum = [&](const UnitRows& rows) {
      sum_rows(rows, slot, slot == 0 ? BufferId{} : sums, sums);
      slot += rows.n;
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

  // sums = onto, where there is one, + the sums of these units, which have the slots from first_slot on.
  void sum_rows(const UnitRows& rows, int64_t first_slot, BufferId onto, BufferId sums) {
    op::SparseFfn ffn{};
    ffn.activation = config_.activation, ffn.threshold = config_.activation_threshold;
    if (exact_) {
      const bool gated = static_cast<bool>(rows.gate);
      ffn.detected = own("detected", rows.n), ffn.units = own("hot", rows.n + 1, BufferKind::kUnits);
      const WeightId matrix = weight(gated ? rows.gate : rows.up);
      add(op::Detect{matrix, weight(gated ? rows.gate_bias : rows.up_bias), x_norm_of(lane_), ffn.detected});
      add(op::SelectUnits{ffn.detected, ffn.units, {}, UnitSet::kActive, 0, rows.n, tally(first_slot)});
    }
    ffn.gate = weight(rows.gate), ffn.gate_bias = weight(rows.gate_bias);
    ffn.up = weight(rows.up), ffn.up_bias = weight(rows.up_bias), ffn.down_t = weight(rows.down_t);
    ffn.in = x_norm_of(lane_), ffn.out = sums, ffn.onto = onto;
    add(ffn);
  }

  int64_t layer_number() const { return static_cast<int64_t>(plan_.kv_lanes.size()) - 1; }
  // Where the layer's units are counted from a slot on: all layers' slots follow each other.
  int64_t tally(int64_t slot) const { return counts_units_ ? first_tally_ + slot : -1; }
  BufferId own_sums(const std::string& name) { return own(name, config_.n_embd, BufferKind::kSums); }
  BufferId shared_sums() { return shared("y", config_.n_embd, BufferKind::kSums); }
  BufferId cold_list(const PlacedLayer& layer) {
    return shared("cold", 2 * n_units(layer, kHostLane) + 1, BufferKind::kActive);
  }
  BufferId cold_candidates(const PlacedLayer& layer) {
    return shared("candidates", n_units(layer, kHostLane) + 1, BufferKind::kUnits);
  }
  void merge(BufferId a, BufferId b, const NamedTensor& bias) {
    add(op::MergeSums{a, b, weight(bias), at(lane_).y});
  }

  // Detect values of all units whose detect rows a lane has, and the candidates that it has looked at; none without a
  // predictor: then it looks at all.
  struct Detected {
    BufferId values, candidates;
  };

  static const NamedTensor& detect_bias(const LayerWeights& w) { return w.ffn_gate ? w.ffn_gate_b : w.ffn_up_b; }

  Detected detect(const PlacedLayer& layer) {
    const LayerWeights& w = side(layer, lane_);
    const NamedTensor& matrix = w.ffn_gate ? w.ffn_gate : w.ffn_up;
    const BufferId candidates = exact_ ? propose(layer, matrix.view.n_rows) : BufferId{};
    const Detected out{own("detected", matrix.view.n_rows), candidates};
    const WeightId id = weight(matrix);
    add(op::Detect{id, weight(detect_bias(w)), x_norm_of(lane_), out.values, candidates});
    return out;
  }

  // The margins of all units of the lane's predictor.
  BufferId margins(const PlacedLayer& layer) {
    const Predictor::Layer& p = predictor(layer, lane_);
    const BufferId out = own("margins", p.n_units());
    BufferId hidden;
    if (p.fc1) hidden = own(cat("hidden", p.fc1.view.n_rows), p.fc1.view.n_rows);
    const WeightId bias = p.planes ? weight(p.bias ? p.bias : detect_bias(side(layer, lane_))) : WeightId{};
    predict(p, bias, {p.reads_residual ? residual_of(lane_) : x_norm_of(lane_), hidden, out});
    return out;
  }

  // The candidates among the lane's first n units; none without a predictor.
  BufferId propose(const PlacedLayer& layer, int64_t n) {
    if (lane_ == kHostLane && hands_candidates(layer)) return cold_candidates(layer);
    if (!predictor(layer, lane_)) return {};
    const BufferId from = hands_candidates(layer) ? own("margins", layer.n_units) : margins(layer);
    const BufferId out = own("candidates", n + 1, BufferKind::kUnits);
    add(op::SelectUnits{from, out, {}, UnitSet::kCandidates, 0, n});
    return out;
  }

  void hand_list(const PlacedLayer& layer) {
    const int64_t n_hot = layer.place.n_hot, n_cold = layer.n_units - n_hot;
    if (hands_candidates(layer)) {
      const BufferId from = margins(layer);
      add(op::SelectUnits{from, cold_candidates(layer), {}, UnitSet::kCandidates, n_hot, n_cold});
      return;
    }
    handed_ = detect(layer);
    add(op::SelectUnits{handed_.values, cold_list(layer), handed_.candidates, UnitSet::kActive, n_hot, n_cold,
                        tally(n_hot)});
  }

  // The sum of the lane's units. With a list from the device their detect values are known, and no detect row is read.
  void compute_units(const PlacedLayer& layer, BufferId out, const NamedTensor& down_bias) {
    const LayerWeights& w = side(layer, lane_);
    const int64_t n = n_units(layer, lane_);
    const bool is_listed = hands_active(layer) && lane_ == kHostLane;
    op::SparseFfn ffn{};
    ffn.activation = config_.activation, ffn.threshold = config_.activation_threshold;
    if (is_listed) {
      ffn.units = cold_list(layer);
    } else {
      if (exact_) list_units(layer, ffn);
      if (observe_) look_at_all(layer, ffn);
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
    const Detected detected = hands_active(layer) ? handed_ : detect(layer);
    const BufferId units = own(lane_ == kDeviceLane ? "hot" : "cold", n + 1, BufferKind::kUnits);
    const int64_t first_slot = lane_ == kDeviceLane ? 0 : layer.place.n_hot;
    add(op::SelectUnits{detected.values, units, detected.candidates, UnitSet::kActive, 0, n, tally(first_slot)});
    ffn.detected = detected.values, ffn.units = units;
  }

  // What an observer wants to see of the lane's units, which are all computed.
  void look_at_all(const PlacedLayer& layer, op::SparseFfn& ffn) {
    if (predictor(layer, lane_)) margins(layer);
    ffn.detected = detect(layer).values, ffn.h = own("h", n_units(layer, lane_));
  }

  // Brings it from the device to the host, where observers are; the flag that says so.
  FlagId show(const PlacedLayer& layer) {
    const int64_t n = n_units(layer, kDeviceLane);
    add(op::Copy{own("detected", n), shared("detected", n)});
    add(op::Copy{own("h", n), shared("h", n)});
    if (layer.device_predictor) add(op::Copy{own("margins", n), shared("margins", n)});
    return signal(cat("shown ", layer_number()));
  }

  void observe(const PlacedLayer& layer) {
    const WeightId units = weight(layer.unit_of_slot);
    const int64_t n_hot = n_units(layer, kDeviceLane), n_cold = n_units(layer, kHostLane);
    const auto joined = [&](const std::string& name) {
      const BufferId hot = n_hot > 0 ? shared(name, n_hot) : BufferId{},
                     cold = n_cold > 0 ? own(name, n_cold) : BufferId{};
      const BufferId out = own("all_" + name, layer.n_units);
      add(op::JoinUnits{n_hot, hot, cold, units, out});
      return out;
    };
    const BufferId detected = joined("detected"), h = joined("h");
    const bool is_predicted = layer.device_predictor || layer.host_predictor;
    add(op::Observe{layer_number(), x_norm_of(kHostLane), detected, h, is_predicted ? joined("margins") : BufferId{}});
  }

  // The rows whose logits are asked for, as a lane has them.
  BufferId output_rows(int32_t lane) {
    const bool on_device = lane == kDeviceLane;
    return named({on_device ? "x_out" : "shared_x_out", config_.n_embd, BufferRows::kOutput, BufferKind::kFloats,
                  on_device ? kDeviceLane : kSharedLane});
  }

  // Logits end where the host reads them.
  void logits() {
    const int32_t lane = lane_of(weights_.head);
    on(x_lane_);
    add(op::SelectRows{x_of(x_lane_), output_rows(x_lane_)});
    if (lane != x_lane_) hand_over(output_rows(kDeviceLane), output_rows(kHostLane), "x_out");
    const BufferId x_out = output_rows(lane);
    const BufferId logits = buffer("logits", config_.n_vocab, BufferRows::kOutput);
    head(weights_.head_weights, x_out, logits);
    plan_.logits = logits;
    if (lane == kHostLane) return;
    plan_.logits = buffer("shared_logits", config_.n_vocab, BufferRows::kOutput);
    plan_.buffers.back().lane = kSharedLane;
    hand_over(logits, plan_.logits, "logits");
  }

  const PlacedWeights& weights_;
  const bool observe_;
  std::array<Activations, kMaxLanes> at_;
  Detected handed_;             // by the device, to itself and to the host
  int32_t x_lane_ = kHostLane;  // that has the residual
  int64_t n_moves_ = 0;
  const StreamRing* const stream_;  // null: cold units are the host's
  std::vector<std::vector<StreamedChunk>> chunks_;  // of each layer
  int64_t n_chunks_ = 0, n_fetched_ = 0;
  std::array<FlagId, StreamRing::kPlaces> free_;  // that the device signals when it is done with what a place has now
  const bool counts_units_;
  int64_t first_tally_ = 0;  // of the layer
};

}  // namespace

Plan build_plan(const ModelConfig& config, const PlacedWeights& weights, const PlanOptions& options) {
  HS_CHECK(!options.stream || options.stream->place_bytes % StreamRing::kAlignment == 0, "hybrid planner");
  const auto predicts = [](const PlacedLayer& layer) { return layer.device_predictor || layer.host_predictor; };
  const bool sees_all = options.observe || std::any_of(weights.layers.begin(), weights.layers.end(), predicts);
  HS_CHECK(!options.stream || !sees_all, "hybrid planner");
  check_placed(weights, config, options.exact);
  return TwoLaneBuilder(config, weights, options).build();
}

}  // namespace hotset
