// What the Winograd kernels of one kernel size, number of outputs and direction have in common (winograd_conv.h).
#pragma once

#include "../gemm_tile.h"
#include "../winograd_conv.h"
#include "winograd.h"

namespace svg_fast::SVG_ISA {

constexpr int64_t kVector = kLanes<float>;
constexpr int64_t kPad =
    16;  // floats between rows of scratch, so that rows a power of two long do not share cache sets

template <int kKernelSize, int kOutputs, bool kIsUp>
struct Geometry {
  static constexpr bool kUp = kIsUp;
  static constexpr int kKernel = kKernelSize, M = kOutputs;
  static constexpr int kStride = kKernel == 4 ? 2 : 1, kTaps = kKernel / kStride, P = M + kTaps - 1;
  static constexpr int kInPhases = kUp ? 1 : kStride, kOutPhases = kUp ? kStride : 1;
  using Filter = Winograd<M, kTaps>;
  using Input = Linear<Filter::kInput, false>;
  using Weight = Linear<Filter::kWeight, false>;
  using Output = Linear<Filter::kOutput, false>;

  static int64_t in_channels(const ConvMaps& maps) { return kUp ? maps.d0 : maps.d1; }
  static int64_t out_channels(const ConvMaps& maps) { return kUp ? maps.d1 : maps.d0; }

  // Which of the kernel's taps is the k-th of a phase.
  static constexpr int tap(int phase, int k) { return kUp ? kKernel - 1 - phase - kStride * k : phase + kStride * k; }
};

// Tiles of M x M points of the small map, image by image, row by row; those at the edge may stand over.
struct Tiles {
  int64_t rows, columns;

  Tiles(const ConvMaps& maps, int64_t m) : rows((maps.height + m - 1) / m), columns((maps.width + m - 1) / m) {}
  int64_t per_image() const { return rows * columns; }
};

struct Tile {
  int64_t image, row, column;

  Tile(const Tiles& tiles, int64_t index)
      : image(index / tiles.per_image()),
        row(index % tiles.per_image() / tiles.columns),
        column(index % tiles.columns) {}
};

// The channels of a pixel outside the image.
alignas(kVectorBytes) constexpr float kZeros[kMostConvChannels] = {};

// The pixels (y + a dy, x + b dx) of an image, by columns, zeros outside; without branches, since most tiles of a small
// map lie at an edge.
template <int kRows, int kColumns>
struct Window {
  const float* pixel[kColumns][kRows];

  SVG_INLINE Window(const float* image, int64_t height, int64_t width, int64_t channels, int64_t y, int64_t dy,
                    int64_t x, int64_t dx) {
    const uintptr_t zeros = reinterpret_cast<uintptr_t>(kZeros);
    const uintptr_t pixel_bytes = channels * sizeof(float), row_bytes = width * pixel_bytes;
    const uintptr_t corner = reinterpret_cast<uintptr_t>(image) - zeros + y * row_bytes + x * pixel_bytes;
    uintptr_t row[kRows], row_inside[kRows];
#pragma GCC unroll 8
    for (int a = 0; a < kRows; ++a) {
      row[a] = corner + a * dy * row_bytes;
      row_inside[a] = -static_cast<uintptr_t>(static_cast<uint64_t>(y + a * dy) < static_cast<uint64_t>(height));
    }
#pragma GCC unroll 8
    for (int b = 0; b < kColumns; ++b) {
      const uintptr_t inside =
          -static_cast<uintptr_t>(static_cast<uint64_t>(x + b * dx) < static_cast<uint64_t>(width));
#pragma GCC unroll 8
      for (int a = 0; a < kRows; ++a) {
        const uintptr_t offset = (row[a] + b * dx * pixel_bytes) & row_inside[a] & inside;
        pixel[b][a] = reinterpret_cast<const float*>(zeros + offset);
      }
    }
  }
};

// Vectors in a panel of packed weights: the most that divide the output channels.
inline int64_t panel_columns(int64_t channels) {
  int64_t columns = kTileColumns;
  while (channels % (columns * kVector) != 0) {
    columns /= 2;
  }
  return columns;
}

// multiply_rows over all rows and all panels of `columns` vectors; b_panel floats from one panel of b to the next.
inline void multiply_panels(int64_t rows, int64_t width, int64_t depth, const float* a, const float* b, float* c,
                            int64_t columns, int64_t b_panel, const TileStrides& strides, bool accumulate) {
  const int64_t panel = columns * kVector, panels = width / panel;
  for (int64_t j = 0; j < panels; ++j) {
    for (int64_t i = 0; i < rows; i += kTileRows) {
      const int64_t count = rows - i < kTileRows ? rows - i : kTileRows;
      const float *a_i = a + i * strides.a_row, *b_j = b + j * b_panel;
      float* c_ij = c + i * strides.c_row + j * panel;
      if (columns == kTileColumns) {
        multiply_rows<float, kTileColumns>(count, depth, a_i, b_j, c_ij, strides, accumulate);
      } else if (columns == 2) {
        multiply_rows<float, 2>(count, depth, a_i, b_j, c_ij, strides, accumulate);
      } else {
        multiply_rows<float, 1>(count, depth, a_i, b_j, c_ij, strides, accumulate);
      }
    }
  }
}

}  // namespace svg_fast::SVG_ISA
