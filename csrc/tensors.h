// What host functions do with whole tensors: new ones, and dense ones of the dtype that a kernel computes in.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/stableivalue_conversions.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "common.h"

namespace svg_fast {

using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

// float64 computes in float64; float32, bfloat16 and float16 in float32.
inline ScalarType compute_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The tensor itself where it has that dtype.
inline Tensor converted(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// The tensor itself where it is contiguous and has that dtype.
inline Tensor dense(const Tensor& tensor, ScalarType dtype) {
  const Tensor same = converted(tensor, dtype);
  return same.is_contiguous() ? same : torch::stable::contiguous(same);
}

inline OptionalTensor dense(const OptionalTensor& tensor, ScalarType dtype) {
  return tensor ? std::optional(dense(*tensor, dtype)) : std::nullopt;
}

inline Tensors dense(const Tensors& tensors, ScalarType dtype) {
  Tensors all;
  all.reserve(tensors.size());
  for (const Tensor& tensor : tensors) {
    all.push_back(dense(tensor, dtype));
  }
  return all;
}

// Each in the dtype of its counterpart.
inline Tensors converted_like(const Tensors& tensors, const Tensors& like) {
  Tensors all;
  for (size_t k = 0; k < tensors.size(); ++k) {
    all.push_back(converted(tensors[k], like[k].scalar_type()));
  }
  return all;
}

template <typename T>
constexpr ScalarType kType = sizeof(T) == sizeof(double) ? ScalarType::Double : ScalarType::Float;

// Uninitialised and contiguous, on the CPU. The shim is called by its name in C: a look-up of aten::empty by its own
// costs a microsecond, which a step of a small batch would feel.
template <typename T>
Tensor new_tensor(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t k = sizes.size(); k > 1; --k) {
    strides[k - 2] = strides[k - 1] * std::max<int64_t>(sizes[k - 1], 1);
  }
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(kType<T>));
  AtenTensorHandle tensor = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), dtype,
                                                         aoti_torch_device_type_cpu(), 0, &tensor));
  return Tensor(tensor);
}

template <typename T>
Tensor new_zeros(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  Tensor tensor = new_tensor<T>(sizes);
  return torch::stable::zero_(tensor);
}

// A tensor that may be left out, like a gradient of zeros, then has no shape to check.
inline void check_shape(const char* name, const OptionalTensor& tensor, std::initializer_list<int64_t> shape) {
  if (tensor) {
    check_shape(name, *tensor, shape);
  }
}

// Where the elements from `at` on lie.
template <typename T>
const T* data_or_null(const OptionalTensor& tensor, int64_t at = 0) {
  return tensor ? tensor->const_data_ptr<T>() + at : nullptr;
}

}  // namespace svg_fast
