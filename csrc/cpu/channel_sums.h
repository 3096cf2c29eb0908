// Sums over the pixels of a map, channels last: the gradient of a convolution's bias.
#pragma once

#include <cstdint>

#include "capability.h"

namespace svg_fast {

struct ChannelSumsKernels {
  // x (rows, channels) -> sums (channels).
  void (*sum)(const float* x, int64_t rows, int64_t channels, float* sums);
};

SVG_DECLARE_KERNELS(ChannelSumsKernels, channel_sums_kernels)

}  // namespace svg_fast
