#include "core/unit_order.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <stdexcept>
#include <span>
#include <string_view>

#include "core/error.h"
#include "core/model.h"
#include "core/quantize_model.h"

namespace hotset {
namespace {

constexpr char kWhere[] = "quantize";
constexpr std::string_view kWithUnits[] = {"ffn_gate.weight", "ffn_up.weight", "ffn_down_t.weight", "ffn_gate.bias",
                                           "ffn_up.bias"};

void check_permutation(const std::vector<int32_t>& order, size_t layer, int64_t n_ff) {
  std::vector<bool> seen(static_cast<size_t>(n_ff));
  bool ok = static_cast<int64_t>(order.size()) == n_ff;
  for (size_t i = 0; ok && i < order.size(); ++i) {
    ok = order[i] >= 0 && order[i] < n_ff && !seen[static_cast<size_t>(order[i])];
    if (ok) seen[static_cast<size_t>(order[i])] = true;
  }
  if (!ok)
    throw std::invalid_argument(error_text(kWhere, cat("order of the units of layer ", layer),
                                           cat("each number from 0 to ", n_ff - 1, " once"), "something else",
                                           "use the order of this model"));
}

}  // namespace

UnitOrders::UnitOrders(const GgufFile& file, const UnitOrder& order) : order_(order) {
  for (size_t layer = 0; layer < order.size(); ++layer) {
    const std::string prefix = cat("blk.", layer, ".");
    const GgufTensor* up = file.find_tensor(prefix + "ffn_up.weight");
    if (!up || up->shape.n_dims != 2 || !file.find_tensor(prefix + "ffn_down_t.weight"))
      throw UnsupportedModelError(error_text(kWhere, cat("tensors of layer ", layer),
                                             "ffn_up and ffn_down_t, whose rows are units", "others",
                                             "lay the model out first: hotset quantize without an order"));
    check_permutation(order[layer], layer, up->shape.ne[1]);
  }
  if (!order.empty() && file.find_tensor(cat("blk.", order.size(), ".ffn_up.weight")))
    throw std::invalid_argument(error_text(kWhere, "order of units", "one for every layer",
                                           cat("one for ", order.size(), " layers"), "use the order of this model"));
}

const int32_t* UnitOrders::of(const GgufTensor& tensor) const {
  const std::string_view name = tensor.name;
  if (order_.empty() || !name.starts_with("blk.")) return nullptr;
  size_t layer = 0;
  const auto [end, error] = std::from_chars(name.data() + 4, name.data() + name.size(), layer);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.' || layer >= order_.size()) return nullptr;
  const std::string_view rest = name.substr(static_cast<size_t>(end + 1 - name.data()));
  if (std::find(std::begin(kWithUnits), std::end(kWithUnits), rest) == std::end(kWithUnits)) return nullptr;
  const int64_t n_units = tensor.shape.n_dims == 1 ? tensor.shape.ne[0] : tensor.shape.ne[1];
  // Elements of a vector in blocks cannot be moved one by one, and a third dimension is none of units.
  const bool is_movable = tensor.shape.n_dims == 2 || (tensor.shape.n_dims == 1 && find_dtype(tensor.type) &&
                                                       find_dtype(tensor.type)->block_size == 1);
  if (!is_movable)
    throw UnsupportedModelError(error_text(kWhere, "tensor " + quoted(tensor.name), "rows of units, or a float vector",
                                           "something else", "convert the model again"));
  if (n_units != static_cast<int64_t>(order_[layer].size()))
    throw ModelFormatError(error_text(kWhere, "units of tensor " + quoted(tensor.name), cat(order_[layer].size()),
                                      cat(n_units), "convert the model again"));
  return order_[layer].data();
}

std::vector<std::vector<int32_t>> read_unit_order(const std::string& sidecar, const std::string& model) {
  const auto file = GgufFile::open(sidecar);
  const auto loaded = Model::load(model);
  const std::string wanted = loaded->fingerprint();
  const std::string found = file->get_string("hotset.model_fingerprint").value_or("none");
  if (found != wanted)
    throw Error(error_text(kWhere, "model of " + quoted(sidecar, 200), "fingerprint " + wanted, quoted(found, 40),
                           "make the sidecar from statistics of this model"));
  UnitOrder out;
  for (int64_t layer = 0; layer < loaded->config().n_layer; ++layer) {
    const GgufTensor* slots = file->find_tensor(cat("blk.", layer, ".unit_of_slot"));
    if (!slots || slots->type != static_cast<uint32_t>(DType::kI32) || slots->shape.n_dims != 1)
      throw ModelFormatError(error_text(kWhere, quoted(sidecar, 200), cat("unit_of_slot (I32) of layer ", layer),
                                        slots ? "something else" : "none", "make the sidecar again"));
    out.emplace_back(static_cast<size_t>(slots->shape.ne[0]));
    std::memcpy(out.back().data(), slots->data, out.back().size() * sizeof(int32_t));
  }
  return out;
}

void set_unit_order(GgufWriter& writer, const GgufFile& file, const UnitOrder& order) {
  std::vector<int32_t> out;
  for (const std::vector<int32_t>& layer : order) out.insert(out.end(), layer.begin(), layer.end());
  if (const auto old = file.get_int_array("hotset.unit_order")) {
    if (old->size() != out.size())
      throw ModelFormatError(error_text(kWhere, "key hotset.unit_order", cat(out.size(), " numbers"), cat(old->size()),
                                        "start from another file"));
    size_t begin = 0;
    for (const std::vector<int32_t>& layer : order) {
      for (size_t i = 0; i < layer.size(); ++i)
        out[begin + i] = static_cast<int32_t>((*old)[begin + static_cast<size_t>(layer[i])]);
      begin += layer.size();
    }
  }
  writer.set_array("hotset.unit_order", std::span<const int32_t>(out));
}

}  // namespace hotset
