// The LSTM cell with the products that lead to it, while the pre-activations are in the nearest cache.
#include "../lstm.h"

#include "../gemm_tile.h"
#include "../lanes.h"
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
      multiply_rows<T, kTileColumns, 1>(tile_rows, hidden, h_prev + b * hidden, hidden,
                                        weights + across * hidden * kTileWidth, products + across * kTileWidth, kWidth,
                                        false);
    }
    forward_cells(step, products, {gates_x + b * kGates * hidden + unit, kGates * hidden, hidden}, b, tile_rows, unit);
  }
}

// A tile of dot products: kRows rows of x with the rows of w that belong to kSums units.
constexpr int kDotRows = kRegisters == 32 ? 6 : 3;

template <typename T, int kRows>
using DotSums = Vec<T>[kRows][kSums<T>];

template <typename T, int kRows, typename Load>
SVG_INLINE void add_products(const T* x, int64_t row, const T* const (&w)[kSums<T>], int64_t k, const Load& load_lanes,
                             DotSums<T, kRows>& sums) {
  Vec<T> values[kRows];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    values[r] = load_lanes(x + r * row + k);
  }
#pragma GCC unroll 4
  for (int u = 0; u < kSums<T>; ++u) {
    const Vec<T> weights = load_lanes(w[u] + k);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      sums[r][u] += values[r] * weights;
    }
  }
}

// Rows of x and of w (4H, n) hold n numbers each; the units' rows of w begin at w_row, `units` of them are there.
template <typename T, int kRows>
SVG_INLINE void add_dots(const T* x, const T* w, int64_t n, int64_t w_row, int64_t units, DotSums<T, kRows>& sums) {
  const T* rows[kSums<T>];
#pragma GCC unroll 4
  for (int u = 0; u < kSums<T>; ++u) {
    rows[u] = w + (w_row + at_most(u, units - 1)) * n;
  }
  int64_t k = 0;
  for (; k + kLanes<T> <= n; k += kLanes<T>) {
    add_products<T, kRows>(x, n, rows, k, [](const T* p) { return load(p); }, sums);
  }
  if (k < n) {
    add_products<T, kRows>(x, n, rows, k, [n, k](const T* p) { return load_part(p, n - k); }, sums);
  }
}

// One step of rows [0, rows) of a batch, for the units of a panel.
template <typename T>
struct UnpackedStep {
  const LSTMWeights<T>& weights;
  int64_t hidden, unit, units;

  // products [kRows][gate][lane]
  template <int kRows>
  SVG_INLINE void multiply(const T* x, const T* h, T* products) const {
    for (int gate = 0; gate < kGates; ++gate) {
      for (int64_t u = 0; u < units; u += kSums<T>) {
        const int64_t w_row = gate * hidden + unit + u;
        DotSums<T, kRows> sums = {};
        add_dots<T, kRows>(x, weights.w_ih, weights.inputs, w_row, units - u, sums);
        add_dots<T, kRows>(h, weights.w_hh, hidden, w_row, units - u, sums);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          store_sums<T>(products + (r * kGates + gate) * kLanes<T> + u, sums[r]);
        }
      }
    }
  }

  template <int kRows = kDotRows>
  void multiply_rows(int64_t rows, const T* x, const T* h, T* products) const {
    if (rows == kRows) {
      multiply<kRows>(x, h, products);
    } else if constexpr (kRows > 1) {
      multiply_rows<kRows - 1>(rows, x, h, products);
    }
  }

  // bias [gate][lane]
  void add_biases(T* bias) const {
    for (int gate = 0; gate < kGates; ++gate) {
      for (int64_t u = 0; u < units; ++u) {
        const int64_t at = gate * hidden + unit + u;
        bias[gate * kLanes<T> + u] = weights.b_ih[at] + weights.b_hh[at];
      }
    }
  }
};

template <typename T>
void forward_unpacked(const LSTMForward<T>& step, const LSTMWeights<T>& weights, const T* x, const T* h_prev,
                      int64_t panel, int64_t row, int64_t rows) {
  const int64_t unit = panel * kLanes<T>, end = row + rows;
  const UnpackedStep<T> unpacked{weights, step.hidden, unit, at_most(kLanes<T>, step.hidden - unit)};
  T bias[kGates * kLanes<T>], products[kDotRows * kGates * kLanes<T>] = {};
  unpacked.add_biases(bias);
  for (int64_t tiles = (rows + kDotRows - 1) / kDotRows; tiles > 0; --tiles) {
    const int64_t tile_rows = (end - row + tiles - 1) / tiles;  // all tiles about equal
    unpacked.multiply_rows(tile_rows, x + row * weights.inputs, h_prev + row * step.hidden, products);
    forward_cells(step, products, {bias, 0, kLanes<T>}, row, tile_rows, unit);
    row += tile_rows;
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
