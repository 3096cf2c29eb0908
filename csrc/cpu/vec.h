// Vectors as wide as the instruction set that a file is compiled for, in the compilers' own vector types: operators act
// lane by lane, and `mask ? a : b` chooses lane by lane. For the files in vector/ alone.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef __SSE2__
#include <immintrin.h>
#endif

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

// Past the caches, for results too large to be found there again: they are not read from memory before they are
// written. A thread's work must end in finish_streaming().
template <typename T>
SVG_INLINE void store_streaming(T* p, Vec<T> v) {
  if (reinterpret_cast<uintptr_t>(p) % kVectorBytes != 0) {
    return store(p, v);
  }
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#elif defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
#else
  store(p, v);
#endif
}

SVG_INLINE void finish_streaming() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// Hides from the compiler that a vector is constant.
template <typename V>
SVG_INLINE V opaque(V v) {
#ifdef __SSE2__
  asm("" : "+v"(v));
#endif
  return v;
}

// Where one of them is NaN, b. One instruction, but gcc finds it only where neither is known to be constant.
template <typename V>
SVG_INLINE V minimum(V a, V b) {
  a = opaque(a);
  return a < b ? a : b;
}

template <typename V>
SVG_INLINE V maximum(V a, V b) {
  a = opaque(a);
  return a > b ? a : b;
}

// Compiles to the instruction, which the vector types have no operator for.
template <typename T>
SVG_INLINE Vec<T> square_root(Vec<T> v) {
  for (int64_t k = 0; k < kLanes<T>; ++k) {
    if constexpr (std::is_same_v<T, float>) {
      v[k] = __builtin_sqrtf(v[k]);
    } else {
      v[k] = __builtin_sqrt(v[k]);
    }
  }
  return v;
}

// Products of the low halves of 64-bit lanes, whatever the upper halves hold: one instruction on x86, which the
// compilers do not find by themselves.
SVG_INLINE Vec<uint64_t> multiply_low_halves(Vec<uint64_t> a, Vec<uint64_t> b) {
#if defined(__AVX512F__)
  // the unmasked form warns of an uninitialised value, in gcc 12's own header
  return (Vec<uint64_t>)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Vec<uint64_t>)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Vec<uint64_t>)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF);
#endif
}

// a0 b0 a1 b1 ..., in two vectors.
template <typename T>
struct Interleaved {
  Vec<T> half[2];
};

template <typename T, int... kLane>
SVG_INLINE Interleaved<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, kLane...>) {
  constexpr int kCount = sizeof...(kLane);
  return {{__builtin_shufflevector(a, b, (kLane % 2 * kCount + kLane / 2)...),
           __builtin_shufflevector(a, b, (kLane % 2 * kCount + kLane / 2 + kCount / 2)...)}};
}

template <typename T>
SVG_INLINE Interleaved<T> interleave(Vec<T> a, Vec<T> b) {
  return interleave<T>(a, b, std::make_integer_sequence<int, kLanes<T>>());
}

// Sum of the lanes, in a fixed order.
template <typename T>
SVG_INLINE T sum_lanes(Vec<T> v) {
#pragma GCC unroll 8
  for (int64_t half = kLanes<T> / 2; half > 0; half /= 2) {
#pragma GCC unroll 32
    for (int64_t k = 0; k < half; ++k) {
      v[k] += v[k + half];
    }
  }
  return v[0];
}

}  // namespace svg_fast::SVG_ISA
