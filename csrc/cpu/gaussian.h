// The vector kernels of the Gaussian ops. They work on a block of elements at a time, all of one time step.
#pragma once

#include <cstdint>

#include "capability.h"

namespace svg_fast {

// The KL of a step is summed lane by lane over a block, and in double over its blocks, which are the same for any
// number of threads. Noise of a block fits the first-level cache.
constexpr int64_t kGaussianBlock = 1024;

// The elements of one block.
struct GaussianBlock {
  int64_t first, size;  // size <= kGaussianBlock
};

// Contiguous tensors, null where there is none.
template <typename T>
struct GaussianInputs {
  const T *mu, *logvar;
  const T *mu_p, *logvar_p;  // null: the standard normal prior
  const T* eps;              // null: drawn by seed and offset
  uint64_t seed, offset;
  bool large;  // results are too large to be found in a cache again
};

template <typename T>
struct GaussianCotangents {
  const T* dz;  // null: no sample
  bool kl;
  T dkl;  // of the block's time step, over the batch
};

// Null where not wanted.
template <typename T>
struct GaussianOutputs {
  T *dmu, *dlogvar, *dmu_p, *dlogvar_p;
};

template <typename T>
struct GaussianPasses {
  // Samples z, unless it is null; returns the sum of the KL, zero unless it is wanted.
  T (*forward)(const GaussianInputs<T>&, GaussianBlock, T* z, bool kl);
  void (*backward)(const GaussianInputs<T>&, GaussianBlock, const GaussianCotangents<T>&, const GaussianOutputs<T>&);
};

struct GaussianKernels {
  GaussianPasses<float> float32;
  GaussianPasses<double> float64;
};

SVG_DECLARE_KERNELS(GaussianKernels, gaussian_kernels)

template <typename T>
const GaussianPasses<T>& gaussian_passes() {
  if constexpr (sizeof(T) == sizeof(double)) {
    return gaussian_kernels().float64;
  } else {
    return gaussian_kernels().float32;
  }
}

}  // namespace svg_fast
