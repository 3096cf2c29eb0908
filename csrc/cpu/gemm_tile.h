// The register tile of a matrix product, C (R, n) = A (R, K) B (K, n): R rows by a panel of whole vectors, which stay
// in registers while K runs. B comes in panels, [n / width][K][width] with width = columns * lanes.
#pragma once

#include "vec.h"

namespace svg_fast::SVG_ISA {

constexpr int kTileRows = 6;
constexpr int kTileColumns = kRegisters == 32 ? 4 : 2;  // vectors: with 6 rows they fill the registers

// Where the operands lie: a(r, k) = a[r * row + k * step]; rows of b and of c lie so far apart.
struct TileStrides {
  int64_t a_row, a_step, b_row, c_row;
};

// `accumulate` adds to what c holds.
template <typename T, int kRows, int kColumns>
SVG_INLINE void multiply_tile(int64_t depth, const T* a, const T* b, T* c, const TileStrides& strides,
                              bool accumulate) {
  Vec<T> sum[kRows][kColumns] = {};
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[kColumns];
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) {
      row[j] = load(b + k * strides.b_row + j * kLanes<T>);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> x = broadcast(a[r * strides.a_row + k * strides.a_step]);
#pragma GCC unroll 4
      for (int j = 0; j < kColumns; ++j) {
        sum[r][j] += x * row[j];
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) {
      T* at = c + r * strides.c_row + j * kLanes<T>;
      store<T>(at, accumulate ? sum[r][j] + load(at) : sum[r][j]);
    }
  }
}

// The same for a number of rows known at run time only, at most kTileRows.
template <typename T, int kColumns>
void multiply_rows(int64_t rows, int64_t depth, const T* a, const T* b, T* c, const TileStrides& strides,
                   bool accumulate) {
  switch (rows) {
    case 6:
      return multiply_tile<T, 6, kColumns>(depth, a, b, c, strides, accumulate);
    case 5:
      return multiply_tile<T, 5, kColumns>(depth, a, b, c, strides, accumulate);
    case 4:
      return multiply_tile<T, 4, kColumns>(depth, a, b, c, strides, accumulate);
    case 3:
      return multiply_tile<T, 3, kColumns>(depth, a, b, c, strides, accumulate);
    case 2:
      return multiply_tile<T, 2, kColumns>(depth, a, b, c, strides, accumulate);
    case 1:
      return multiply_tile<T, 1, kColumns>(depth, a, b, c, strides, accumulate);
  }
}

}  // namespace svg_fast::SVG_ISA
