// Linear layers, by dot products of the rows of x and w.
#include "../linear.h"

#include "../dot_tile.h"
#include "../vec_math.h"

namespace svg_fast::SVG_ISA {
namespace {

SVG_INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T>
void tanh_in_place(T* y, int64_t n) {
  int64_t k = 0;
  for (; k + kLanes<T> <= n; k += kLanes<T>) {
    store<T>(y + k, hyperbolic_tangent<T>(load(y + k)));
  }
  if (k < n) {
    store_part<T>(y + k, hyperbolic_tangent<T>(load_part(y + k, n - k)), n - k);
  }
}

// The rows of a tile stay in the nearest cache while the weights pass by.
template <typename T>
void forward(const LinearLayer<T>& layer, const T* x, T* y, int64_t row, int64_t rows, int64_t first, int64_t count) {
  const int64_t inputs = layer.inputs, end = first + count;
  T sums[kDotRows * kSums<T>];
  for (int64_t r = row; r < row + rows; r += kDotRows) {
    const int64_t tile_rows = at_most(kDotRows, row + rows - r);
    const T* x_rows = x + r * inputs;
    for (int64_t o = first; o < end; o += kSums<T>) {
      const T* w_rows = layer.w + o * inputs;
      const int64_t outputs = at_most(kSums<T>, end - o);
      dot_rows<T>(tile_rows, {x_rows, w_rows, inputs}, {x_rows, w_rows, 0}, outputs, sums, kSums<T>);
      for (int64_t j = 0; j < tile_rows; ++j) {
        for (int64_t k = 0; k < outputs; ++k) {
          y[(r + j) * layer.outputs + o + k] = sums[j * kSums<T> + k] + layer.b[o + k];
        }
      }
    }
    for (int64_t j = 0; layer.tanh && j < tile_rows; ++j) {
      tanh_in_place(y + (r + j) * layer.outputs + first, count);
    }
  }
}

template <typename T>
constexpr LinearFunctions<T> kFunctions{kDotRows, 2 * kLanes<T>, forward<T>};

}  // namespace

const LinearKernels linear_kernels{kFunctions<float>, kFunctions<double>};

}  // namespace svg_fast::SVG_ISA
