// The same convolutions where the large map has few channels (a frame's): matrix products over gathered taps.
#pragma once

#include <cstdint>

#include "winograd_conv.h"

namespace svg_fast {

constexpr int64_t kThinChannels = 4;  // of the large map, at most
constexpr int64_t kThinGroups = 32;   // parts of the batch whose weight gradients are summed apart

struct ThinConv {
  ConvMaps maps;
  int64_t kernel;  // 4 or 3
  const float* weight;
  const float* bias;    // or null
  const float* addend;  // or null
  int64_t addend_images;
  const float *large_in, *small_in;
  float *large_out, *small_out;
  float* dweight;  // [group][k k d1][d0]
};

// Tasks are images; of `gradient`, groups of images.
struct ThinConvKernels {
  int64_t (*scratch_size)(const ThinConv& conv);
  void (*down)(const ThinConv& conv, float* scratch, int64_t first, int64_t last);
  void (*up)(const ThinConv& conv, float* scratch, int64_t first, int64_t last);
  void (*gradient)(const ThinConv& conv, float* scratch, int64_t first, int64_t last);
};

SVG_DECLARE_KERNELS(ThinConvKernels, thin_conv_kernels)

}  // namespace svg_fast
