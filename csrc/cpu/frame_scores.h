// The vector kernels of frame_scores, which frame_scores.cpp calls for one plane after another. All sums are in double:
// they slide from row to row, and variances are small differences of large ones.
#pragma once

#include <cstdint>

#include "../inline.h"
#include "capability.h"

namespace svg_fast {

constexpr int64_t kScoreWindow = 7;  // pixels along either side

// One channel of one frame.
struct FramePlane {
  int64_t height, width;

  // Of windows that lie inside.
  SVG_INLINE int64_t rows() const { return height < kScoreWindow ? 0 : height - kScoreWindow + 1; }
  SVG_INLINE int64_t columns() const { return width < kScoreWindow ? 0 : width - kScoreWindow + 1; }

  // From one row of sums to the next: whole vectors, and one more that windows reach into.
  SVG_INLINE int64_t stride() const {
    constexpr int64_t kWidest = 8;
    return (width + kWidest - 1) / kWidest * kWidest + kWidest;
  }
};

// What truth tells score, and what both work in.
struct ScoreRoom {
  double* columns;         // (3, stride): sums down the last seven rows
  double *sum, *variance;  // (rows, stride): of the true plane's windows, as vector/frame_scores.cpp scales them
};

struct FrameScores {
  double mse, ssim, ssim_published;
};

template <typename T>
struct FrameScoresFunctions {
  void (*truth)(const FramePlane& plane, const T* y, const ScoreRoom& room);
  // After truth; next is the x of the next call, which is fetched from memory meanwhile.
  FrameScores (*score)(const FramePlane& plane, const T* x, const T* y, const T* next, const ScoreRoom& room);
};

struct FrameScoresKernels {
  FrameScoresFunctions<float> float32;
  FrameScoresFunctions<double> float64;
};

SVG_DECLARE_KERNELS(FrameScoresKernels, frame_scores_kernels)

}  // namespace svg_fast
