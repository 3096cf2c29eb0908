// The vector kernel of linear layers whose weights are used too few times to be packed: y (B, O) = x (B, I) w^T + b.
#pragma once

#include <cstdint>

#include "capability.h"

namespace svg_fast {

template <typename T>
struct LinearLayer {
  int64_t inputs, outputs;
  const T *w, *b;  // (O, I), (O,)
  bool tanh;       // y goes through it
};

template <typename T>
struct LinearFunctions {
  // Work is best cut up in multiples of these.
  int64_t tile_rows, tile_outputs;
  // Rows [row, row + rows) and outputs [first, first + count) of y.
  void (*forward)(const LinearLayer<T>& layer, const T* x, T* y, int64_t row, int64_t rows, int64_t first,
                  int64_t count);
};

struct LinearKernels {
  LinearFunctions<float> float32;
  LinearFunctions<double> float64;
};

SVG_DECLARE_KERNELS(LinearKernels, linear_kernels)

template <typename T>
const LinearFunctions<T>& linear_functions() {
  if constexpr (sizeof(T) == sizeof(double)) {
    return linear_kernels().float64;
  } else {
    return linear_kernels().float32;
  }
}

}  // namespace svg_fast
