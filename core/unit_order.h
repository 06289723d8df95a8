// Writing the units of a model in another order.
#pragma once

#include <cstdint>
#include <vector>

#include "core/gguf.h"
#include "core/gguf_writer.h"

namespace hotset {

// For each layer which unit comes at which place.
using UnitOrder = std::vector<std::vector<int32_t>>;

// An order that was checked against a file. Both must outlive it.
class UnitOrders {
 public:
  // Throws std::invalid_argument (not a permutation of the units of every layer), UnsupportedModelError (a file whose
  // down projections are not rows of units, or whose layers have no units of this kind).
  UnitOrders(const GgufFile& file, const UnitOrder& order);

  // The order of a tensor's units, which are its rows or, of a vector, its elements; nullptr for one without units.
  const int32_t* of(const GgufTensor& tensor) const;

 private:
  const UnitOrder& order_;
};

// Writes the key `hotset.unit_order`: the numbers of all layers' units, as the first file had them, one layer after the
// other. Throws ModelFormatError when the input's own key does not fit its layers.
void set_unit_order(GgufWriter& writer, const GgufFile& file, const UnitOrder& order);

}  // namespace hotset
