// The LSTM cell with the products that lead to it, while the pre-activations are in the nearest cache.
#include "../lstm.h"

#include "../dot_tile.h"
#include "../gemm_tile.h"
#include "../lstm_rows.h"

namespace svg_fast::SVG_ISA {
namespace {

SVG_INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// The four gates of a panel's units take this many register tiles side by side.
constexpr int kTilesAcross = kGates / kTileColumns;

// Columns [k, k + lanes) of the rows of w_hh that belong to a panel's units and one gate.
template <typename T>
SVG_INLINE void load_square(const T* w, int64_t row, int64_t n_rows, int64_t n_columns, Vec<T> (&square)[kLanes<T>]) {
#pragma GCC unroll 16
  for (int64_t u = 0; u < kLanes<T>; ++u) {
    square[u] = u >= n_rows ? Vec<T>{} : n_columns < kLanes<T> ? load_part(w + u * row, n_columns) : load(w + u * row);
  }
}

// packed [tile across][k][gate of the tile][lane]: each tile reads on.
template <typename T>
void pack(const T* w_hh, int64_t hidden, int64_t panel, T* packed) {
  constexpr int64_t kTileWidth = kTileColumns * kLanes<T>;
  const int64_t unit = panel * kLanes<T>;
  for (int gate = 0; gate < kGates; ++gate) {
    const T* w = w_hh + (gate * hidden + unit) * hidden;
    T* out = packed + gate / kTileColumns * hidden * kTileWidth + gate % kTileColumns * kLanes<T>;
    for (int64_t k = 0; k < hidden; k += kLanes<T>) {
      Vec<T> square[kLanes<T>];
      load_square(w + k, hidden, hidden - unit, hidden - k, square);
      transpose<T>(square);
      for (int64_t j = 0; j < at_most(kLanes<T>, hidden - k); ++j) {
        store<T>(out + (k + j) * kTileWidth, square[j]);
      }
    }
  }
}

template <typename T>
void forward(const LSTMForward<T>& step, const T* gates_x, const T* h_prev, const T* packed, int64_t panel, int64_t row,
             int64_t rows) {
  constexpr int64_t kWidth = kGates * kLanes<T>, kTileWidth = kTileColumns * kLanes<T>;
  const int64_t hidden = step.hidden, unit = panel * kLanes<T>;
  const T* weights = packed + panel * hidden * kWidth;
  T products[kTileRows * kWidth];
  for (int64_t b = row; b < row + rows; b += kTileRows) {
    const int64_t tile_rows = at_most(kTileRows, row + rows - b);
    for (int across = 0; across < kTilesAcross; ++across) {
      multiply_rows<T, kTileColumns>(tile_rows, hidden, h_prev + b * hidden, weights + across * hidden * kTileWidth,
                                     products + across * kTileWidth, TileStrides{hidden, 1, kTileWidth, kWidth}, false);
    }
    forward_cells(step, products, {gates_x + b * kGates * hidden + unit, kGates * hidden, hidden}, b, tile_rows, unit);
  }
}

// So many rows of a batch stay in the nearest cache while the weights pass by.
constexpr int64_t kBlockBytes = 32 << 10, kBlockRows = 24;

// Products of `rows` rows with the weights of a panel's units, [rows][gate][lane]. Tiles are about equally high.
template <typename T>
void multiply_unpacked(const LSTMWeights<T>& weights, const T* x, const T* h, int64_t hidden, int64_t rows,
                       int64_t unit, T* products) {
  constexpr int64_t kWidth = kGates * kLanes<T>;
  const int64_t inputs = weights.inputs, tiles = (rows + kDotRows - 1) / kDotRows;
  for (int64_t column = 0; column < kWidth; column += kSums<T>) {
    const int64_t u = unit + column % kLanes<T>, w_row = column / kLanes<T> * hidden + u;
    for (int64_t tile = 0, r = 0; tile < tiles && u < hidden; ++tile) {
      const int64_t tile_rows = (rows - r + tiles - tile - 1) / (tiles - tile);
      dot_rows<T>(tile_rows, {x + r * inputs, weights.w_ih + w_row * inputs, inputs},
                  {h + r * hidden, weights.w_hh + w_row * hidden, hidden}, hidden - u, products + r * kWidth + column,
                  kWidth);
      r += tile_rows;
    }
  }
}

template <typename T>
void forward_unpacked(const LSTMForward<T>& step, const LSTMWeights<T>& weights, const T* x, const T* h_prev,
                      int64_t panel, int64_t row, int64_t rows) {
  const int64_t hidden = step.hidden, unit = panel * kLanes<T>, units = at_most(kLanes<T>, hidden - unit);
  T bias[kGates * kLanes<T>], products[kBlockRows * kGates * kLanes<T>] = {};
  for (int gate = 0; gate < kGates; ++gate) {
    for (int64_t u = 0; u < units; ++u) {
      const int64_t at = gate * hidden + unit + u;
      bias[gate * kLanes<T> + u] = weights.b_ih[at] + weights.b_hh[at];
    }
  }
  const int64_t row_bytes = (weights.inputs + hidden) * sizeof(T), fitting = kBlockBytes / row_bytes;
  const int64_t block_rows = fitting < kDotRows ? kDotRows : at_most(fitting, kBlockRows);
  for (int64_t b = row; b < row + rows; b += block_rows) {
    const int64_t n = at_most(block_rows, row + rows - b);
    multiply_unpacked(weights, x + b * weights.inputs, h_prev + b * hidden, hidden, n, unit, products);
    forward_cells(step, products, {bias, 0, kLanes<T>}, b, n, unit);
  }
}

template <typename T>
void backward(const LSTMBackward<T>& step, int64_t row, int64_t rows, int64_t unit, int64_t units) {
  const int64_t end = unit + units;
  for (int64_t b = row; b < row + rows; ++b) {
    int64_t u = unit;
    for (; u + kLanes<T> <= end; u += kLanes<T>) {
      backward_units<T, true>(step, b, u, kLanes<T>);
    }
    if (u < end) {
      backward_units<T, false>(step, b, u, end - u);
    }
  }
}

template <typename T>
constexpr LSTMFunctions<T> kFunctions{kLanes<T>, pack<T>, forward<T>, forward_unpacked<T>, backward<T>};

}  // namespace

const LSTMKernels lstm_kernels{kFunctions<float>, kFunctions<double>};

}  // namespace svg_fast::SVG_ISA
