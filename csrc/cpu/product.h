// Products of matrices that lie row by row without gaps, as the register tile of gemm_tile.h wants them: the right-hand
// side B (K, N) packed in panels of whole columns, [panel][K][panel_columns], the last one filled up with zeros.
#pragma once

#include <cstdint>

#include "capability.h"

namespace svg_fast {

template <typename T>
struct ProductFunctions {
  int64_t panel_columns, tile_rows;
  int64_t block_rows;  // of C, in `multiply_transposed`

  // b (rows, N) into the rows [row, row + rows) of all panels.
  void (*pack)(const T* b, int64_t depth, int64_t columns, int64_t row, int64_t rows, T* packed);
  // Rows [row, row + rows) of one panel of C (M, N) = A (M, K) B.
  void (*multiply)(const T* a, const T* packed, T* c, int64_t depth, int64_t columns, int64_t panel, int64_t row,
                   int64_t rows);
  // Blocks [block, end) of rows of C (M, N) = A^T B, with A (K, M).
  void (*multiply_transposed)(const T* a, const T* packed, T* c, int64_t rows, int64_t depth, int64_t columns,
                              int64_t block, int64_t end);
};

struct ProductKernels {
  ProductFunctions<float> float32;
  ProductFunctions<double> float64;
};

SVG_DECLARE_KERNELS(ProductKernels, product_kernels)

template <typename T>
const ProductFunctions<T>& product_functions() {
  if constexpr (sizeof(T) == sizeof(double)) {
    return product_kernels().float64;
  } else {
    return product_kernels().float32;
  }
}

}  // namespace svg_fast
