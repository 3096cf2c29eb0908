// Products of matrices with packed right-hand sides, shared out to threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "../tensors.h"
#include "parallel.h"
#include "product.h"

namespace svg_fast {

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
