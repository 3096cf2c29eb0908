// The gradient of a Winograd convolution's weight: one matrix product over all tiles for each transformed tap.
#pragma once

#include "winograd_geometry.h"

namespace svg_fast::SVG_ISA {

constexpr int64_t kGradientTiles = kRegisters == 32 ? 128 : 64;  // of one block

template <typename G>
int64_t gradient_scratch_size(const ConvMaps& maps) {
  return G::P * kGradientTiles * (G::kStride * maps.d1 + kPad + maps.d0 + kPad);
}

// Row kRow of the transformed taps, for one row of phases.
template <typename G, int kRow>
struct GradientRow {
  using Spread = Linear<G::Filter::kOutput, true>;
  const WinogradGradient& conv;
  Tiles tiles;
  int64_t phase_y, first_d0, d0;  // which channels of the small map
  float *large, *small;           // [P][tile][channel]

  int64_t large_stride() const { return G::kStride * conv.maps.d1 + kPad; }
  int64_t small_stride() const { return conv.block_d0 + kPad; }

  // The large map's windows, transformed as in `down`.
  void transform_large(const Tile& tile, int64_t t) const {
    const ConvMaps& maps = conv.maps;
    const int64_t height = G::kStride * maps.height, width = G::kStride * maps.width;
    for (int phase_x = 0; phase_x < G::kStride; ++phase_x) {
      const Window<G::P, G::P> window(conv.large + tile.image * height * width * maps.d1, height, width, maps.d1,
                                      G::kStride * G::M * tile.row - 1 + phase_y, G::kStride,
                                      G::kStride * G::M * tile.column - 1 + phase_x, G::kStride);
      float* out = large + t * large_stride() + phase_x * maps.d1;
      for (int64_t c = 0; c < maps.d1; c += kVector) {
        Vec<float> half[G::P], v[G::P];
#pragma GCC unroll 8
        for (int b = 0; b < G::P; ++b) {
          Vec<float> x[G::P];
#pragma GCC unroll 8
          for (int a = 0; a < G::P; ++a) {
            x[a] = load(window.pixel[b][a] + c);
          }
          half[b] = dot_row<typename G::Input, kRow>(x);
        }
        multiply<typename G::Input>(half, v, 1);
#pragma GCC unroll 8
        for (int i = 0; i < G::P; ++i) {
          store<float>(out + i * kGradientTiles * large_stride() + c, v[i]);
        }
      }
    }
  }

  // The small map's tiles, by the transpose of the output transform.
  void transform_small(const Tile& tile, int64_t t) const {
    const ConvMaps& maps = conv.maps;
    const Window<G::M, G::M> window(conv.small + tile.image * maps.height * maps.width * maps.d0, maps.height,
                                    maps.width, maps.d0, G::M * tile.row, 1, G::M * tile.column, 1);
    float* out = small + t * small_stride();
    for (int64_t c = 0; c < d0; c += kVector) {
      Vec<float> half[G::M], v[G::P];
#pragma GCC unroll 4
      for (int b = 0; b < G::M; ++b) {
        Vec<float> y[G::M];
#pragma GCC unroll 4
        for (int a = 0; a < G::M; ++a) {
          y[a] = load(window.pixel[b][a] + first_d0 + c);
        }
        half[b] = dot_row<Spread, kRow>(y);
      }
      multiply<Spread>(half, v, 1);
#pragma GCC unroll 8
      for (int i = 0; i < G::P; ++i) {
        store<float>(out + i * kGradientTiles * small_stride() + c, v[i]);
      }
    }
  }

  void accumulate(int64_t count, bool first) const {
    const int64_t d1 = conv.maps.d1, vectors = panel_columns(d1), panel = vectors * kVector;
    const TileStrides strides{1, small_stride(), large_stride(), d1};
    for (int i = 0; i < G::P; ++i) {
      for (int phase_x = 0; phase_x < G::kStride; ++phase_x) {
        const int64_t plane = ((kRow * G::P + i) * G::kStride + phase_y) * G::kStride + phase_x;
        multiply_panels(d0, d1, count, small + i * kGradientTiles * small_stride(),
                        large + i * kGradientTiles * large_stride() + phase_x * d1,
                        conv.dpacked + (plane * conv.maps.d0 + first_d0) * d1, vectors, panel, strides, !first);
      }
    }
  }

  void run() const {
    const int64_t all = conv.maps.images * tiles.per_image();
    for (int64_t from = 0; from < all; from += kGradientTiles) {
      const int64_t count = all - from < kGradientTiles ? all - from : kGradientTiles;
      for (int64_t t = 0; t < count; ++t) {
        const Tile tile(tiles, from + t);
        transform_large(tile, t);
        transform_small(tile, t);
      }
      accumulate(count, from == 0);
    }
  }
};

template <typename G, int kRow = 0>
void gradient_row(const WinogradGradient& conv, float* scratch, int64_t row, int64_t phase_y, int64_t first_d0) {
  if constexpr (kRow < G::P) {
    if (row != kRow) {
      return gradient_row<G, kRow + 1>(conv, scratch, row, phase_y, first_d0);
    }
    const int64_t left = conv.maps.d0 - first_d0, d0 = left < conv.block_d0 ? left : conv.block_d0;
    float* small = scratch + G::P * kGradientTiles * (G::kStride * conv.maps.d1 + kPad);
    GradientRow<G, kRow>{conv, Tiles(conv.maps, G::M), phase_y, first_d0, d0, scratch, small}.run();
  }
}

template <typename G>
void gradient(const WinogradGradient& conv, float* scratch, int64_t first, int64_t last) {
  const int64_t blocks = (conv.maps.d0 + conv.block_d0 - 1) / conv.block_d0;
  for (int64_t task = first; task < last; ++task) {
    const int64_t row = task / blocks;
    gradient_row<G>(conv, scratch, row / G::kStride, row % G::kStride, task % blocks * conv.block_d0);
  }
}

template <typename G>
void unpack(const ConvMaps& maps, const float* dpacked, float* dweight, int64_t first, int64_t last) {
  constexpr int kTapCount = G::kKernel * G::kKernel, kPhases = G::kStride * G::kStride;
  const int64_t plane = maps.d0 * maps.d1;
  for (int64_t d0 = first; d0 < last; ++d0) {
    for (int64_t d1 = 0; d1 < maps.d1; d1 += kVector) {
      alignas(kVectorBytes) float taps[kTapCount * kVector];
      for (int phase = 0; phase < kPhases; ++phase) {
        Vec<float> u[G::P][G::P], g[G::kTaps][G::kTaps];
#pragma GCC unroll 36
        for (int p = 0; p < G::P * G::P; ++p) {
          u[p % G::P][p / G::P] = load(dpacked + (p * kPhases + phase) * plane + d0 * maps.d1 + d1);
        }
        multiply_both<Linear<G::Filter::kWeight, true>>(u, g);
        for (int t = 0; t < G::kTaps * G::kTaps; ++t) {
          const int row = G::tap(phase / G::kStride, t / G::kTaps), column = G::tap(phase % G::kStride, t % G::kTaps);
          store<float>(taps + (row * G::kKernel + column) * kVector, g[t / G::kTaps][t % G::kTaps]);
        }
      }
      for (int64_t lane = 0; lane < kVector; ++lane) {
        for (int t = 0; t < kTapCount; ++t) {
          dweight[(d0 * maps.d1 + d1 + lane) * kTapCount + t] = taps[t * kVector + lane];
        }
      }
    }
  }
}

}  // namespace svg_fast::SVG_ISA
