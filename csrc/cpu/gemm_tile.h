// The register tile of a matrix product, C (R, n) = A (R, K) B (K, n): R rows by a panel of whole vectors, which stay
// in registers while K runs. B comes in panels, [n / width][K][width] with width = columns * lanes.
#pragma once

#include "vec.h"

namespace svg_fast::SVG_ISA {

constexpr int kTileRows = 6;
constexpr int kTileColumns = kRegisters == 32 ? 4 : 2;  // vectors: with 6 rows they fill the registers

// a(r, k) = a[r * a_row + k * kStep]: kStep is 1 for rows in memory, kTileRows for a packed A. C rows lie c_row apart;
// `accumulate` adds to what is there.
template <typename T, int kRows, int kColumns, int kStep>
SVG_INLINE void multiply_tile(int64_t depth, const T* a, int64_t a_row, const T* b, T* c, int64_t c_row,
                              bool accumulate) {
  constexpr int64_t kWidth = kColumns * kLanes<T>;
  Vec<T> sum[kRows][kColumns] = {};
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[kColumns];
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) {
      row[j] = load(b + k * kWidth + j * kLanes<T>);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> x = broadcast(a[r * a_row + k * kStep]);
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
      T* at = c + r * c_row + j * kLanes<T>;
      store<T>(at, accumulate ? sum[r][j] + load(at) : sum[r][j]);
    }
  }
}

// The same for a number of rows known at run time only, at most kTileRows.
template <typename T, int kColumns, int kStep>
void multiply_rows(int64_t rows, int64_t depth, const T* a, int64_t a_row, const T* b, T* c, int64_t c_row,
                   bool accumulate) {
  switch (rows) {
    case 6:
      return multiply_tile<T, 6, kColumns, kStep>(depth, a, a_row, b, c, c_row, accumulate);
    case 5:
      return multiply_tile<T, 5, kColumns, kStep>(depth, a, a_row, b, c, c_row, accumulate);
    case 4:
      return multiply_tile<T, 4, kColumns, kStep>(depth, a, a_row, b, c, c_row, accumulate);
    case 3:
      return multiply_tile<T, 3, kColumns, kStep>(depth, a, a_row, b, c, c_row, accumulate);
    case 2:
      return multiply_tile<T, 2, kColumns, kStep>(depth, a, a_row, b, c, c_row, accumulate);
    case 1:
      return multiply_tile<T, 1, kColumns, kStep>(depth, a, a_row, b, c, c_row, accumulate);
  }
}

}  // namespace svg_fast::SVG_ISA
