// The register tile of a product with a transposed matrix, C (R, n) = A (R, K) B^T with B (n, K): dot products of rows,
// lane by lane, so that both matrices are read as they are. It suits a B that is used too few times to be packed.
#pragma once

#include "lanes.h"

namespace svg_fast::SVG_ISA {

constexpr int kDotRows = kRegisters == 32 ? 6 : 3;  // times kSums vectors: with a row of each they fill the registers

// Rows of a and of b, which hold n numbers each and follow one another.
template <typename T>
struct RowPair {
  const T *a, *b;
  int64_t n;
};

template <typename T, int kRows>
using DotSums = Vec<T>[kRows][kSums<T>];

template <typename T, int kRows, typename Load>
SVG_INLINE void add_products(const T* const (&a)[kRows], const T* const (&b)[kSums<T>], int64_t k,
                             const Load& load_lanes, DotSums<T, kRows>& sums) {
  Vec<T> values[kRows];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    values[r] = load_lanes(a[r] + k);
  }
#pragma GCC unroll 4
  for (int j = 0; j < kSums<T>; ++j) {
    const Vec<T> factor = load_lanes(b[j] + k);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      sums[r][j] += values[r] * factor;
    }
  }
}

// The first b_rows rows of b are there; the last of them stands for those that are not.
template <typename T, int kRows>
SVG_INLINE void add_dots(const RowPair<T>& pair, int64_t b_rows, DotSums<T, kRows>& sums) {
  const int64_t n = pair.n;
  const T *a[kRows], *b[kSums<T>];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    a[r] = pair.a + r * n;
  }
#pragma GCC unroll 4
  for (int j = 0; j < kSums<T>; ++j) {
    b[j] = pair.b + (j < b_rows ? j : b_rows - 1) * n;
  }
  int64_t k = 0;
  for (; k + kLanes<T> <= n; k += kLanes<T>) {
    add_products<T, kRows>(a, b, k, [](const T* p) { return load(p); }, sums);
  }
  if (k < n) {
    add_products<T, kRows>(a, b, k, [n, k](const T* p) { return load_part(p, n - k); }, sums);
  }
}

// c[r][j] = the dot product of rows r and j of the first pair and that of the second; C's rows lie c_row apart, and
// kSums columns are written.
template <typename T, int kRows>
SVG_INLINE void dot_tile(const RowPair<T>& first, const RowPair<T>& second, int64_t b_rows, T* c, int64_t c_row) {
  DotSums<T, kRows> sums = {};
  add_dots<T, kRows>(first, b_rows, sums);
  add_dots<T, kRows>(second, b_rows, sums);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    store_sums<T>(c + r * c_row, sums[r]);
  }
}

// The same for a number of rows known at run time only, at most kDotRows.
template <typename T, int kRows = kDotRows>
void dot_rows(int64_t rows, const RowPair<T>& first, const RowPair<T>& second, int64_t b_rows, T* c, int64_t c_row) {
  if (rows == kRows) {
    dot_tile<T, kRows>(first, second, b_rows, c, c_row);
  } else if constexpr (kRows > 1) {
    dot_rows<T, kRows - 1>(rows, first, second, b_rows, c, c_row);
  }
}

}  // namespace svg_fast::SVG_ISA
