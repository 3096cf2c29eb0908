// The convolutions of the frame networks by Winograd: 4 x 4 with stride 2 and padding 1, and 3 x 3 with stride 1 and
// padding 1, float32, channels last.
//
// A weight (D0, D1, k, k) ties two maps: a small one (N, h, w, D0) and a large one (N, stride h, stride w, D1). `down`
// goes from the large map to the small (a convolution, or the gradient of a transposed one), `up` from the small to the
// large. Seen with stride 2, `down` is a sum over the large map's 2 x 2 phases, and `up` has one result for each phase,
// of convolutions with 2 x 2 taps: those take Winograd.
#pragma once

#include <cstdint>

#include "capability.h"

namespace svg_fast {

struct ConvMaps {
  int64_t images, height, width;  // of the small map
  int64_t d0, d1;                 // channels: multiples of kWinogradChannels
};

constexpr int64_t kWinogradChannels = 16, kMostConvChannels = 4096;

struct WinogradForward {
  ConvMaps maps;
  const float* input;
  const float* packed;
  const float* bias;    // or null
  const float* addend;  // like the output, but of `addend_images` images that repeat; or null
  int64_t addend_images;
  float* output;
  int64_t block_tiles, block_columns;  // tiles and output channels of one task
};

struct WinogradGradient {
  ConvMaps maps;
  const float* large;
  const float* small;
  float* dpacked;    // [P^2][phases][D0][D1]
  int64_t block_d0;  // channels of the small map of one task
};

// One kernel size, number of outputs M and direction.
struct WinogradKernels {
  struct Direction {
    // Weight (D0, D1, k, k) -> its transform in panels; tasks are blocks of input channels.
    void (*pack)(const ConvMaps& maps, const float* weight, float* packed, int64_t first, int64_t last);
    int64_t (*packed_size)(const ConvMaps& maps);
    // Tasks: blocks of tiles x blocks of output channels.
    void (*run)(const WinogradForward& conv, float* scratch, int64_t first, int64_t last);
    int64_t (*tiles)(const ConvMaps& maps);
    int64_t most_tiles;  // of one task
    int64_t (*scratch_size)(const WinogradForward& conv);
  };
  struct Variant {
    Direction down, up;
    // Tasks: rows of transformed taps x rows of phases (`gradient_tasks`) x blocks of the small map's channels.
    void (*gradient)(const WinogradGradient& conv, float* scratch, int64_t first, int64_t last);
    int64_t gradient_tasks, gradient_planes;
    int64_t (*gradient_scratch_size)(const ConvMaps& maps);
    // [P^2][phases][D0][D1] -> the gradient (D0, D1, k, k); tasks are channels of D0.
    void (*unpack)(const ConvMaps& maps, const float* dpacked, float* dweight, int64_t first, int64_t last);
  };
  Variant k4m2, k4m4, k3m2, k3m4;
};

SVG_DECLARE_KERNELS(WinogradKernels, winograd_kernels)

}  // namespace svg_fast
