// What host functions do with whole tensors: dense copies where they are needed, and products of matrices.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "../common.h"
#include "parallel.h"
#include "product.h"

namespace svg_fast {

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

inline std::optional<Tensor> dense(const std::optional<Tensor>& tensor, ScalarType dtype) {
  return tensor ? std::optional(dense(*tensor, dtype)) : std::nullopt;
}

using Tensors = std::vector<Tensor>;

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
constexpr bool kIsDouble = sizeof(T) == sizeof(double);

// Uninitialised and contiguous. The shim is called by its name in C: a look-up of aten::empty by its own costs a
// microsecond, which a step of a small batch would feel.
template <typename T, size_t kRank>
Tensor new_tensor(const int64_t (&shape)[kRank]) {
  int64_t strides[kRank];
  int64_t stride = 1;
  for (size_t k = kRank; k-- > 0; stride *= std::max<int64_t>(shape[k], 1)) {
    strides[k] = stride;
  }
  const int32_t dtype = kIsDouble<T> ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  AtenTensorHandle tensor = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(kRank, shape, strides, dtype, aoti_torch_device_type_cpu(), 0, &tensor));
  return Tensor(tensor);
}

template <typename T, size_t kRank>
Tensor new_zeros(const int64_t (&shape)[kRank]) {
  Tensor tensor = new_tensor<T>(shape);
  return torch::stable::zero_(tensor);
}

// A gradient may be left out: it is zero.
inline void check_gradient(const char* name, const std::optional<Tensor>& gradient,
                           std::initializer_list<int64_t> shape) {
  if (gradient) {
    check_shape(name, *gradient, shape);
  }
}

// Where the elements from `at` on lie.
template <typename T>
const T* data_or_null(const std::optional<Tensor>& tensor, int64_t at) {
  return tensor ? tensor->const_data_ptr<T>() + at : nullptr;
}

// A matrix (K, N), packed to be the right-hand side of products.
template <typename T>
class PackedMatrix {
 public:
  // Without its rows.
  PackedMatrix(int64_t depth, int64_t columns)
      : depth(depth),
        columns(columns),
        panels(divide_up(columns, product_functions<T>().panel_columns)),
        memory_(new_tensor<T>({panels, depth, product_functions<T>().panel_columns})) {}

  explicit PackedMatrix(const Tensor& matrix) : PackedMatrix(matrix.size(0), matrix.size(1)) {
    set_rows(matrix.const_data_ptr<T>(), 0, depth);
  }

  // Rows [row, row + rows) from b (rows, N).
  void set_rows(const T* b, int64_t row, int64_t rows) {
    T* packed = memory_.mutable_data_ptr<T>();
    const auto pack = [&](int64_t begin, int64_t end) {
      product_functions<T>().pack(b + begin * columns, depth, columns, row + begin, end - begin, packed);
    };
    torch::stable::parallel_for(0, rows, divide_up(kTaskFlops, columns + 1), pack);
  }

  const T* data() const { return memory_.const_data_ptr<T>(); }

  const int64_t depth, columns, panels;

 private:
  Tensor memory_;
};

// C (M, N) = A (M, K) B.
template <typename T>
void multiply(const T* a, const PackedMatrix<T>& b, T* c, int64_t rows) {
  const T* packed = b.data();
  const ProductFunctions<T>& product = product_functions<T>();
  const int64_t flops = 2 * rows * b.depth * b.columns;
  parallel_panels(b.panels, rows, product.tile_rows, flops, [&](int64_t panel, int64_t row, int64_t n) {
    product.multiply(a, packed, c, b.depth, b.columns, panel, row, n);
  });
}

// C (M, N) = A^T B, with A (..., M) of K rows.
template <typename T>
Tensor multiply_transposed(const Tensor& a, const PackedMatrix<T>& b) {
  const ProductFunctions<T>& product = product_functions<T>();
  const int64_t rows = a.size(a.dim() - 1), blocks = divide_up(rows, product.block_rows);
  if (b.depth == 0) {
    return new_zeros<T>({rows, b.columns});
  }
  const Tensor c = new_tensor<T>({rows, b.columns});
  const T *from = a.const_data_ptr<T>(), *packed = b.data();
  T* to = c.mutable_data_ptr<T>();
  const auto run = [&](int64_t begin, int64_t end) {
    product.multiply_transposed(from, packed, to, rows, b.depth, b.columns, begin, end);
  };
  const int64_t block_flops = std::max<int64_t>(2 * product.block_rows * b.depth * b.columns, 1);
  torch::stable::parallel_for(0, blocks, divide_up(kTaskFlops, block_flops), run);
  return c;
}

}  // namespace svg_fast
