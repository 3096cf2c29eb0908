// Products of packed matrices: panels of whole vectors through the register tile.
#include "../product.h"

#include "../gemm_tile.h"

namespace svg_fast::SVG_ISA {
namespace {

template <typename T>
constexpr int64_t kPanel = kTileColumns * kLanes<T>;

// A block of A^T is packed while K runs over this depth: with 8 tiles of rows it is 48 KiB of floats, and reads whole
// cache lines of A.
constexpr int64_t kDepth = 256, kBlockTiles = 8, kBlockRows = kBlockTiles * kTileRows;

template <typename T>
void pack(const T* b, int64_t depth, int64_t columns, int64_t row, int64_t rows, T* packed) {
  for (int64_t first = 0; first < columns; first += kPanel<T>, packed += depth * kPanel<T>) {
    const int64_t n = columns - first < kPanel<T> ? columns - first : kPanel<T>;
    for (int64_t k = 0; k < rows; ++k) {
      T* out = packed + (row + k) * kPanel<T>;
      for (int64_t j = 0; j < n; ++j) {
        out[j] = b[k * columns + first + j];
      }
      for (int64_t j = n; j < kPanel<T>; ++j) {
        out[j] = 0;
      }
    }
  }
}

// C is as wide as it is: a panel that sticks out goes through a tile of its own.
template <typename T>
SVG_INLINE void multiply_columns(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_step, const T* b,
                                 T* c, int64_t columns, int64_t first, bool accumulate) {
  if (columns - first >= kPanel<T>) {
    const TileStrides strides{a_row, a_step, kPanel<T>, columns};
    return multiply_rows<T, kTileColumns>(rows, depth, a, b, c + first, strides, accumulate);
  }
  T tile[kTileRows * kPanel<T>];
  multiply_rows<T, kTileColumns>(rows, depth, a, b, tile, TileStrides{a_row, a_step, kPanel<T>, kPanel<T>}, false);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = first; j < columns; ++j) {
      const T sum = tile[r * kPanel<T> + j - first];
      c[r * columns + j] = accumulate ? c[r * columns + j] + sum : sum;
    }
  }
}

template <typename T>
void multiply(const T* a, const T* packed, T* c, int64_t depth, int64_t columns, int64_t panel, int64_t row,
              int64_t rows) {
  const T* b = packed + panel * depth * kPanel<T>;
  for (int64_t r = row; r < row + rows; r += kTileRows) {
    const int64_t n = row + rows - r < kTileRows ? row + rows - r : kTileRows;
    multiply_columns<T>(n, depth, a + r * depth, depth, 1, b, c + r * columns, columns, panel * kPanel<T>, false);
  }
}

// Rows [k, k + depth) of columns [first, first + n) of A (K, M) -> [tile][depth][kTileRows], filled up with anything.
template <typename T>
void pack_transposed(const T* a, int64_t rows, int64_t first, int64_t n, int64_t depth, T* tiles) {
  for (int64_t k = 0; k < depth; ++k) {
    const T* from = a + k * rows + first;
    for (int64_t r = 0; r < n; r += kTileRows) {
      T* to = tiles + r * depth + k * kTileRows;
      if (n - r >= kTileRows) {
        std::memcpy(to, from + r, kTileRows * sizeof(T));
      } else {
        std::memcpy(to, from + r, (n - r) * sizeof(T));
      }
    }
  }
}

template <typename T>
void multiply_transposed(const T* a, const T* packed, T* c, int64_t rows, int64_t depth, int64_t columns, int64_t block,
                         int64_t end) {
  T tiles[kDepth * kBlockRows];
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t d = depth - k < kDepth ? depth - k : kDepth;
    for (int64_t first = block * kBlockRows; first < end * kBlockRows && first < rows; first += kBlockRows) {
      const int64_t n = rows - first < kBlockRows ? rows - first : kBlockRows;
      pack_transposed(a + k * rows, rows, first, n, d, tiles);
      for (int64_t column = 0; column < columns; column += kPanel<T>) {
        const T* b = packed + column * depth + k * kPanel<T>;
        for (int64_t r = 0; r < n; r += kTileRows) {
          const int64_t tile_rows = n - r < kTileRows ? n - r : kTileRows;
          multiply_columns<T>(tile_rows, d, tiles + r * d, 1, kTileRows, b, c + (first + r) * columns, columns, column,
                              k > 0);
        }
      }
    }
  }
}

template <typename T>
constexpr ProductFunctions<T> kFunctions{
    kPanel<T>, kTileRows, kBlockRows, pack<T>, multiply<T>, multiply_transposed<T>,
};

}  // namespace

const ProductKernels product_kernels{kFunctions<float>, kFunctions<double>};

}  // namespace svg_fast::SVG_ISA
