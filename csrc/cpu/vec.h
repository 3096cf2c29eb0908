// Vectors as wide as the instruction set that a file is compiled for, in the compilers' own vector types: operators act
// lane by lane, and `mask ? a : b` chooses lane by lane. For the files in vector/ alone.
#pragma once

#include <cstdint>
#include <cstring>

#include "../inline.h"

namespace svg_fast::SVG_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vec = typename VectorOf<T>::type;

template <typename T>
constexpr int64_t kLanes = kVectorBytes / sizeof(T);

template <typename T>
SVG_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, kVectorBytes);
  return v;
}

template <typename T>
SVG_INLINE void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, kVectorBytes);
}

// The first n lanes; the others are zero.
template <typename T>
SVG_INLINE Vec<T> load_part(const T* p, int64_t n) {
  Vec<T> v{};
  std::memcpy(&v, p, n * sizeof(T));
  return v;
}

template <typename T>
SVG_INLINE void store_part(T* p, Vec<T> v, int64_t n) {
  std::memcpy(p, &v, n * sizeof(T));
}

// The compilers fold a difference with zero away, a sum they may not.
template <typename T>
SVG_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

template <typename V>
SVG_INLINE V minimum(V a, V b) {
  return a < b ? a : b;
}

template <typename V>
SVG_INLINE V maximum(V a, V b) {
  return a > b ? a : b;
}

// Sum of the lanes, in a fixed order.
template <typename T>
SVG_INLINE T sum_lanes(Vec<T> v) {
  for (int64_t half = kLanes<T> / 2; half > 0; half /= 2) {
    for (int64_t k = 0; k < half; ++k) {
      v[k] += v[k + half];
    }
  }
  return v[0];
}

}  // namespace svg_fast::SVG_ISA
