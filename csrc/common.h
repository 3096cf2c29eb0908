// What every kernel's host function uses, above all checks that say what was wanted and what came.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <string>

namespace svg_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename Sizes>
std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  const char* separator = "[";
  for (const int64_t size : sizes) {
    text << separator << size;
    separator = ", ";
  }
  text << (sizes.size() == 0 ? "[]" : "]");
  return text.str();
}

inline void check_rank(const char* name, const Tensor& tensor, int64_t rank) {
  STD_TORCH_CHECK(tensor.dim() == rank, name, " must have ", rank, " dimensions, got shape ",
                  shape_text(tensor.sizes()));
}

template <typename Sizes = std::initializer_list<int64_t>>
void check_shape(const char* name, const Tensor& tensor, const Sizes& shape) {
  const auto sizes = tensor.sizes();
  const bool same = std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end());
  STD_TORCH_CHECK(same, name, " must have shape ", shape_text(shape), ", got ", shape_text(sizes));
}

inline void check_dtype(const char* name, const Tensor& tensor, ScalarType dtype) {
  const ScalarType got = tensor.scalar_type();
  STD_TORCH_CHECK(got == dtype, name, " must be ", dtype, ", got ", got);
}

inline void check_at_least(const char* name, int64_t value, int64_t least) {
  STD_TORCH_CHECK(value >= least, name, " must be at least ", least, ", got ", value);
}

// The text of a `str` argument, whose handle a kernel owns. PyTorch's own conversion to std::string loses one on every
// call.
inline std::string take_string(StringHandle handle) {
  size_t length = 0;
  const char* characters = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &characters));
  const std::string text(characters, length);
  STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return text;
}

}  // namespace svg_fast
