// Binds rows of weights: from the stored types to float32 and back, for what the offline phase makes of them.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <optional>
#include <tuple>

#include "core/powerinfer_convert.h"
#include "core/quantize.h"
#include "python/bindings.h"

namespace hotset::python {
namespace {

using Matrix = nb::ndarray<nb::numpy, float, nb::ndim<2>, nb::c_contig>;
using MatrixIn = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

using TensorInfo = std::optional<std::tuple<int64_t, int64_t, uint64_t>>;

TensorInfo tensor_info(const NativeEngine& self, const std::string& name) {
  const std::optional<TensorView> found = self.model().tensor(name);
  if (!found) return std::nullopt;
  return std::tuple(found->n_rows, found->n_cols, found->size_bytes());
}

Matrix tensor(const NativeEngine& self, const std::string& name) {
  const std::optional<TensorView> found = self.model().tensor(name);
  if (!found)
    throw std::invalid_argument(error_text("tensor", quoted(name), "a tensor of weights", "no such tensor",
                                           "choose one of `hotset inspect`"));
  const size_t n_rows = static_cast<size_t>(found->n_rows), n_cols = static_cast<size_t>(found->n_cols);
  std::unique_ptr<float[]> values;
  {
    ReleasedGil release;
    values = std::make_unique_for_overwrite<float[]>(n_rows * n_cols);
    for (size_t row = 0; row < n_rows; ++row)
      dequantize_row(found->dtype, found->row(static_cast<int64_t>(row)), found->n_cols, values.get() + row * n_cols);
  }
  nb::capsule owner(values.get(), [](void* data) noexcept { delete[] static_cast<float*>(data); });
  return Matrix(values.release(), {n_rows, n_cols}, owner);
}

nb::bytes quantize(const MatrixIn& values, const std::string& type) {
  DType dtype = DType::kF32;
  for (const DType each : {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_0})
    if (dtype_name(each) == type) dtype = each;
  const int64_t n_cols = static_cast<int64_t>(values.shape(1));
  if (dtype_name(dtype) != type || n_cols % dtype_info(dtype).block_size != 0)
    throw std::invalid_argument(error_text("quantize", "type", "F32, F16, or Q8_0 or Q4_0 for rows of whole blocks of 32",
                                           cat(type, " for rows of ", n_cols), "choose another type"));
  std::string out(values.shape(0) * row_bytes(dtype, n_cols), '\0');
  {
    ReleasedGil release;
    for (size_t row = 0; row < values.shape(0); ++row)
      quantize_row(dtype, values.data() + row * values.shape(1), n_cols,
                   reinterpret_cast<std::byte*>(out.data()) + row * row_bytes(dtype, n_cols));
  }
  return nb::bytes(out.data(), out.size());
}

std::tuple<uint64_t, uint64_t, uint64_t, std::string> convert(const std::string& input, const std::string& output) {
  Interrupt interrupt;
  const PowerInferConversion done =
      compute_without_gil(interrupt, [&] { return convert_powerinfer(input, output, interrupt.stop_check()); });
  return {done.n_tensors, done.n_params, done.n_bytes, done.sidecar};
}

}  // namespace

void bind_tensors(nb::module_& module) {
  module.def("tensor", &tensor, nb::arg("engine"), nb::arg("name"),
             "A tensor of the model's file as float32 (n_rows, n_cols), a vector as one row.");
  module.def("tensor_info", &tensor_info, nb::arg("engine"), nb::arg("name"),
             "Rows, columns and bytes of a tensor of the model's file; None without one.");
  module.def("convert_powerinfer", &convert, nb::arg("input"), nb::arg("output"),
             "Writes a PowerInfer file as GGUF and sidecar: tensors, parameters, bytes, path of the sidecar or \"\".");
  module.def("quantize", &quantize, nb::arg("values"), nb::arg("type"), "Rows of a matrix in a stored type.");
}

}  // namespace hotset::python
