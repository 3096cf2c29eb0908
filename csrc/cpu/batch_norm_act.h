// The vector kernels of batch_norm_act, which batch_norm_act.cpp calls. C channels; a step is a number of rows, each of
// C runs of values: channels last, a row is a pixel and a run one value; channels first, a row is an image and a run
// its map. Sums run over one tile of a step in T, then over its tiles in double, in their order.
#pragma once

#include <cstdint>

#include "../batch_norm_act.h"
#include "capability.h"

namespace svg_fast {

// Some rows of a step, and of those the channels [first_channel, last_channel).
struct NormTile {
  int64_t rows, channels, run;
  int64_t first_channel, last_channel;
};

// How many values each channel has in a step, and in each of its tiles but the last.
struct NormCounts {
  int64_t channels, step, tile;
};

// Of one step: z = (x - mean) * scale + bias, each (C,), is activated.
template <typename T>
struct NormParameters {
  Activation activation;
  T negative_slope;
  const T *mean, *scale, *bias;
};

// What the sums of dz make of one step, (C,) each.
template <typename T>
struct NormGradients {
  double *dweight, *dbias;
  T *dx_slope, *dx_offset;
};

template <typename T>
struct BatchNormActFunctions {
  // x of a tile -> moments (3, C): a shift near the tile's mean, the sum of x - shift and that of its square.
  void (*moments)(const NormTile& tile, const T* x, T* moments);
  // moments (tiles, 3, C) -> mean, var of the channels [begin, end).
  void (*statistics)(const NormCounts& counts, int64_t begin, int64_t end, const T* moments, T* mean, T* var);
  // weight, var -> scale of n channels.
  void (*scale)(int64_t n, const T* weight, const T* var, double eps, T* scale);
  // x of a tile -> y
  void (*normalise)(const NormTile& tile, const NormParameters<T>& parameters, const T* x, T* y);
  // dy, x of a tile -> sums (2, C): of dz and of dz * (x - mean).
  void (*sums)(const NormTile& tile, const NormParameters<T>& parameters, const T* dy, const T* x, T* sums);
  // sums (tiles, 2, C) -> gradients of the channels [begin, end).
  void (*gradients)(const NormCounts& counts, int64_t begin, int64_t end, const T* sums, const T* scale, const T* var,
                    double eps, const NormGradients<T>& gradients);
  // dy, x of a tile -> dx
  void (*input_gradient)(const NormTile& tile, const NormParameters<T>& parameters, const T* dx_slope,
                         const T* dx_offset, const T* dy, const T* x, T* dx);
};

struct BatchNormActKernels {
  BatchNormActFunctions<float> float32;
  BatchNormActFunctions<double> float64;
};

SVG_DECLARE_KERNELS(BatchNormActKernels, batch_norm_act_kernels)

}  // namespace svg_fast
