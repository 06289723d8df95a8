// Placement: which parts of a model live on the device and which on the host, for the least predicted time of a decode
// token. Knows bytes, frequencies and rates, no models and no devices. See docs/ARCHITECTURE.md, "Placement".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace hotset {

enum class Place { kHost, kDevice };

// Where the detect matrix of a layer works: on the host, for all units; on both sides, each for its own units; on the
// device, for all units.
enum class DetectPlace { kHost, kSplit, kDevice };

const char* place_name(Place place);         // "host", "device"
const char* place_name(DetectPlace detect);  // "host", "split", "device"

// How fast one side reads rows of one size.
struct ReadRate {
  struct Gathered {
    double density = 0;  // above 0, at most 1
    double gbps = 0;
  };
  double dense_gbps = 0;
  std::vector<Gathered> gathered;  // ascending in density; empty = gathered rows count at the dense rate

  // Between the densities by interpolation in their logarithms, towards dense_gbps at 1; below them as at the lowest.
  double at(double density) const;
  // Seconds to read `n_active` of `n_units` pieces of unit_bytes: the active ones gathered, or all in order when that
  // is faster.
  double seconds(double n_active, double n_units, double unit_bytes) const;
};

// What a layer consists of. A unit of a dense layer is active for every token (frequency 1) and has no detect row of
// its own: all its bytes are unit_bytes. With a predictor, detect rows are read for candidates only, and a side that
// has rows of it reads those, and what all units share, for every token.
struct PlacementLayer {
  std::vector<double> frequency;  // (n_units) share of tokens for which the unit is active, descending
  uint64_t detect_bytes = 0;      // of one unit: its row of the detect matrix; 0 = nothing to detect
  uint64_t unit_bytes = 0;        // of one unit: its other rows, read when it is active
  uint64_t predictor_bytes = 0;   // of a predictor: what all units share
  uint64_t predictor_unit_bytes = 0;  // of a predictor: of one unit
  // On the device it predicts for all units, and each side verifies its own (LayerPlacement::device_predicts).
  bool only_device_predicts = false;
  double over_selection = 1;      // candidates of the predictor per active unit, at least 1
  uint64_t attention_bytes = 0;   // weights of attention and norms
  uint64_t kv_bytes = 0;          // memory of keys and values
  uint64_t kv_read_bytes = 0;     // what a token reads of them
  ReadRate device, host;

  int64_t n_units() const { return static_cast<int64_t>(frequency.size()); }
  bool predicts() const { return predictor_bytes + predictor_unit_bytes > 0; }
};

struct PlacementProblem {
  std::vector<PlacementLayer> layers;
  uint64_t head_bytes = 0;
  double handoff_seconds = 0;  // of giving a layer's work to the host and taking the result back
  uint64_t fixed_bytes = 0;    // of device memory that anything on the device costs (buffers)
  uint64_t budget = 0;         // device memory in bytes
  int64_t unit_step = 32;      // n_hot is a multiple of it, or all units
  double tolerance = 1e-4;     // relative gap at which the search ends
  int64_t max_nodes = 400;
};

struct LayerPlacement {
  int64_t n_hot = 0;  // units 0 to n_hot - 1, in slot order, have their rows on the device
  DetectPlace detect = DetectPlace::kHost;
  Place attention = Place::kHost;
  // With kSplit: the predictor is whole on the device, which hands the host its candidates. Else a predictor's rows lie
  // beside the detect rows.
  bool device_predicts = false;
  // With attention on the device: its keys and values are in host memory all the same, and the host attends to them. A
  // context grows without taking hot units' place, and the host reads its memory faster than the bus would bring it.
  bool host_kv = false;

  Place kv() const { return host_kv ? Place::kHost : attention; }

  // Whether the device has the whole predictor of a layer that has one.
  bool predictor_on_device() const {
    return detect == DetectPlace::kDevice || (detect == DetectPlace::kSplit && device_predicts);
  }
};

struct Placement {
  std::vector<LayerPlacement> layers;
  Place head = Place::kHost;
  double seconds = 0;         // predicted, of one decode token
  double bound = 0;           // proven: no placement of the same choices is faster
  uint64_t device_bytes = 0;  // fixed_bytes included; 0 when all is on the host
  int64_t n_nodes = 0;        // of the branch and bound

  double gap() const { return seconds > 0 ? (seconds - bound) / seconds : 0; }
  bool uses_device() const;
};

// The placement of least predict_seconds() within the budget, and a proven bound. Alternatives of a layer: attention on
// either side, or on the device with keys and values on the host; and all units hot (no hand-off), or detect on the
// device with any number of hot units, or detect split with the predictor split too or on the device, or everything on
// the host; the head on either side; and everything on
// the host without any hand-off. Where nothing is faster than everything on the host, or the budget is below
// fixed_bytes, that is the answer. Throws std::invalid_argument for frequencies that are not finite, not within 0 to 1
// or not descending, and for rates, steps and sizes that are not positive where they are used.
Placement place(const PlacementProblem& problem);

// Throws std::invalid_argument unless the placement has a possible entry for every layer of the problem, and the
// problem's numbers are as place() asks, rates of the device included.
void check_placement(const PlacementProblem& problem, const Placement& placement);

// Predicted seconds of a decode token with this placement, whatever its budget:
//   sum over layers [t_attention + t_kv + t_device_always + max(t_device_hot, t_host_cold + hand-off)] + t_head
// with a hand-off more where attention and its keys and values are on different sides.
// Times are bytes over rates; the number of active units of a side is its expectation, the sum of its units'
// frequencies, and rows are gathered at that density. The expectation of a maximum is at least the maximum of the
// expectations, and nothing but reads is counted: a prediction is a lower limit that real runs come near to.
double predict_seconds(const PlacementProblem& problem, const Placement& placement);

// Share of the activations that hot units have; nothing where no unit is ever active.
std::optional<double> hot_share(const PlacementProblem& problem, const Placement& placement);

// Device memory that a placement takes, fixed_bytes included.
uint64_t device_bytes(const PlacementProblem& problem, const Placement& placement);

// Makes a placement fit `problem.budget` without rates: gives back the hot units that are active least often for their
// bytes, a step at a time, then detect matrices, keys and values, the head and attention, the last layers first. A placement that fits
// is returned as it is. `seconds` and `bound` are not set.
Placement shorten(const PlacementProblem& problem, Placement placement);

}  // namespace hotset
