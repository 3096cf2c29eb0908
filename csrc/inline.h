// How the maths that every device shares is inlined: always, so that no copy of it, compiled for one CPU's
// instructions, is ever linked into the code of another.
#pragma once

#ifdef __CUDACC__
#define SVG_INLINE __host__ __device__ __forceinline__
#else
#define SVG_INLINE inline __attribute__((always_inline))
#endif
