// CUDA's own names for a C++ compiler: what a kernel and its host function use of the language and its vector types.
#pragma once

#include <cmath>
#include <cstdint>

#include "engine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __restrict__ __restrict
#define __align__(n) alignas(n)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

// Approximate on a GPU, to about 2 units in the last place.
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }

inline double cospi(double x) { return std::cos(M_PI * x); }
inline double sinpi(double x) { return std::sin(M_PI * x); }
inline float cospi(float x) { return static_cast<float>(cospi(double{x})); }
inline float sinpi(float x) { return static_cast<float>(sinpi(double{x})); }

using cudaStream_t = void*;

#define threadIdx (emulator::here->thread)
#define blockIdx (emulator::here->block)
#define blockDim (emulator::here->threads)
#define gridDim (emulator::here->blocks)
