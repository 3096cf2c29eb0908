// Winograd's minimal filtering: M outputs of an R-tap filter, y[i] = sum_k x[i + k] g[k], with P = M + R - 1
// multiplications, y = Output ((Weight g) * (Input x)) (Lavin & Gray 2016). In two dimensions P^2 serve M^2 outputs.
// The matrices are Cook-Toom's for the points named; those with the smallest float32 error of the small ones tried.
#pragma once

#include "../vec.h"

namespace svg_fast::SVG_ISA {

template <int kOutputs, int kTaps>
struct Winograd;

template <>
struct Winograd<2, 2> {  // 0, -1, infinity
  static constexpr double kInput[3][3] = {{1, 1, 0}, {0, 1, 0}, {0, 1, 1}};
  static constexpr double kWeight[3][2] = {{1, 0}, {-1, 1}, {0, 1}};
  static constexpr double kOutput[2][3] = {{1, 1, 0}, {0, -1, 1}};
};

template <>
struct Winograd<4, 2> {  // 0, 1, -1, 1/2, infinity
  static constexpr double kInput[5][5] = {
      {0.5, -1, -0.5, 1, 0}, {0, -0.5, 0.5, 1, 0}, {0, 0.5, -1.5, 1, 0}, {0, -1, 0, 1, 0}, {0, 0.5, -1, -0.5, 1}};
  static constexpr double kWeight[5][2] = {{2, 0}, {1, 1}, {-1.0 / 3, 1.0 / 3}, {-8.0 / 3, -4.0 / 3}, {0, 1}};
  static constexpr double kOutput[4][5] = {
      {1, 1, 1, 1, 0}, {0, 1, -1, 0.5, 0}, {0, 1, 1, 0.25, 0}, {0, 1, -1, 0.125, 1}};
};

template <>
struct Winograd<2, 3> {  // 0, 1, -1, infinity
  static constexpr double kInput[4][4] = {{-1, 0, 1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}};
  static constexpr double kWeight[4][3] = {{-1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
  static constexpr double kOutput[2][4] = {{1, 1, 1, 0}, {0, 1, -1, 1}};
};

template <>
struct Winograd<4, 3> {  // 0, 1, -1, 1/2, -2, infinity
  static constexpr double kInput[6][6] = {{1, -1.5, -2, 1.5, 1, 0}, {0, -1, 0.5, 2.5, 1, 0},  {0, 1, -2.5, 0.5, 1, 0},
                                          {0, -2, -1, 2, 1, 0},     {0, 0.5, -1, -0.5, 1, 0}, {0, 1, -1.5, -2, 1.5, 1}};
  static constexpr double kWeight[6][3] = {{1, 0, 0},
                                           {1.0 / 3, 1.0 / 3, 1.0 / 3},
                                           {-1.0 / 3, 1.0 / 3, -1.0 / 3},
                                           {-16.0 / 15, -8.0 / 15, -4.0 / 15},
                                           {1.0 / 15, -2.0 / 15, 4.0 / 15},
                                           {0, 0, 1}};
  static constexpr double kOutput[4][6] = {
      {1, 1, 1, 1, 1, 0}, {0, 1, -1, 0.5, -2, 0}, {0, 1, 1, 0.25, 4, 0}, {0, 1, -1, 0.125, -8, 1}};
};

// A constant matrix, or its transpose.
template <const auto& kMatrix, bool kTransposed>
struct Linear {
  static constexpr int kOuter = sizeof(kMatrix) / sizeof(kMatrix[0]);
  static constexpr int kInner = sizeof(kMatrix[0]) / sizeof(kMatrix[0][0]);
  static constexpr int kRows = kTransposed ? kInner : kOuter, kColumns = kTransposed ? kOuter : kInner;
  static constexpr double at(int row, int column) { return kTransposed ? kMatrix[column][row] : kMatrix[row][column]; }
};

// One row of a matrix times x: its zeros and ones are known when it is compiled, and cost nothing.
template <typename L, int kRow, int kColumn = 0, bool kStarted = false, typename V>
SVG_INLINE V dot_row(const V* x, V sum = V{}) {
  if constexpr (kColumn == L::kColumns) {
    return sum;
  } else {
    constexpr double k = L::at(kRow, kColumn);
    constexpr bool kLater = kStarted || k != 0;
    if constexpr (k == 1) {
      sum = kStarted ? sum + x[kColumn] : x[kColumn];
    } else if constexpr (k == -1) {
      sum = kStarted ? sum - x[kColumn] : -x[kColumn];
    } else if constexpr (k != 0) {
      const V term = x[kColumn] * static_cast<float>(k);
      sum = kStarted ? sum + term : term;
    }
    return dot_row<L, kRow, kColumn + 1, kLater>(x, sum);
  }
}

// y[r * step] = row r times x, for all rows.
template <typename L, int kRow = 0, typename V>
SVG_INLINE void multiply(const V* x, V* y, int step) {
  if constexpr (kRow < L::kRows) {
    y[kRow * step] = dot_row<L, kRow>(x);
    multiply<L, kRow + 1>(x, y, step);
  }
}

// y = L x L^T; x is given by its columns, x[b][a].
template <typename L, typename V>
SVG_INLINE void multiply_both(const V (&x)[L::kColumns][L::kColumns], V (&y)[L::kRows][L::kRows]) {
  V half[L::kRows][L::kColumns];
#pragma GCC unroll 8
  for (int b = 0; b < L::kColumns; ++b) {
    multiply<L>(x[b], &half[0][b], L::kColumns);
  }
#pragma GCC unroll 8
  for (int r = 0; r < L::kRows; ++r) {
    multiply<L>(half[r], y[r], 1);
  }
}

}  // namespace svg_fast::SVG_ISA
