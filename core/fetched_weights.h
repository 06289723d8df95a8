// What lint knows of device memory that weights take turns in.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/plan.h"

namespace hotset {

// The weights that a plan's Fetch steps have brought so far, and who has read them when.
class FetchedWeights {
 public:
  // By lane, a number of its steps.
  using Clock = std::array<int64_t, kMaxLanes>;

  explicit FetchedWeights(const Plan& plan) : plan_(plan) {}

  // The weight is brought in a step of kCopyLane. "" or what is wrong: what lay there has not been read, or `known` to
  // that lane is less than that the device has ended to read it.
  std::string fetch(const WeightDesc& weight, const Clock& known) {
    std::string problem = is_in_ring(weight.view) ? "" : weight.name + " lies in the ring";
    std::erase_if(live_, [&](const Piece& piece) {
      if (!piece.overlaps(weight.view)) return false;
      if (piece.read == 0) problem = piece.weight->name + " is read before it is lost";
      if (piece.read > known[kDeviceLane]) problem = "kCopyLane knows that " + piece.weight->name + " has been read";
      return true;
    });
    live_.push_back({&weight, known[kCopyLane], 0});
    return problem;
  }

  // A step of kDeviceLane reads the weight. "" or what is wrong.
  std::string read(const WeightDesc& weight, const Clock& known) {
    if (!is_in_ring(weight.view)) return "";
    for (Piece& piece : live_) {
      if (!piece.overlaps(weight.view)) continue;
      if (piece.weight->name != weight.name || piece.weight->view.data != weight.view.data)
        return weight.name + " is still where it was fetched to";
      piece.read = known[kDeviceLane];
      return known[kCopyLane] >= piece.written ? "" : "kDeviceLane knows that " + weight.name + " has been fetched";
    }
    return weight.name + " is fetched before it is read";
  }

  // "" or the name of a weight that nobody has read.
  std::string unread() const {
    for (const Piece& piece : live_)
      if (piece.read == 0) return piece.weight->name;
    return "";
  }

 private:
  struct Piece {
    const WeightDesc* weight;
    int64_t written;   // by this step of kCopyLane
    int64_t read;      // the last step of kDeviceLane that has; 0: none
    bool overlaps(const TensorView& other) const {
      const TensorView& own = weight->view;
      return own.data < other.data + other.size_bytes() && other.data < own.data + own.size_bytes();
    }
  };

  bool is_in_ring(const TensorView& view) const {
    return view.data >= plan_.ring && view.data + view.size_bytes() <= plan_.ring + plan_.ring_bytes;
  }

  const Plan& plan_;
  std::vector<Piece> live_;
};

}  // namespace hotset
