// Vectors across their lanes: a square of them turned over, a few of them summed. For the files in vector/ alone.
#pragma once

#include <utility>

#include "vec.h"

namespace svg_fast::SVG_ISA {

// The two halves of a square's transposition at distance kStep: lanes without that bit from a, the others from b.
template <typename T, int kStep, int... kLane>
SVG_INLINE Vec<T> low_halves(Vec<T> a, Vec<T> b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (kLane & kStep ? kLane - kStep + int{kLanes<T>} : kLane)...);
}

template <typename T, int kStep, int... kLane>
SVG_INLINE Vec<T> high_halves(Vec<T> a, Vec<T> b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (kLane & kStep ? kLane + int{kLanes<T>} : kLane + kStep)...);
}

template <typename T>
using AllLanes = std::make_integer_sequence<int, kLanes<T>>;

// rows[r][k] becomes rows[k][r].
template <typename T, int kStep = 1>
SVG_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
#pragma GCC unroll 16
  for (int r = 0; r < kLanes<T>; ++r) {
    if ((r & kStep) == 0) {
      const Vec<T> a = rows[r], b = rows[r + kStep];
      rows[r] = low_halves<T, kStep>(a, b, AllLanes<T>{});
      rows[r + kStep] = high_halves<T, kStep>(a, b, AllLanes<T>{});
    }
  }
  if constexpr (2 * kStep < kLanes<T>) {
    transpose<T, 2 * kStep>(rows);
  }
}

// Within 16 bytes lanes change place at least cost. So many vectors are summed at once that their sums fill as much.
template <typename T>
constexpr int kSums = 16 / sizeof(T);

// 16 bytes by 16 bytes: the sums of a's neighbouring lanes, then those of b's.
template <typename T, int... kLane>
SVG_INLINE Vec<T> add_neighbours(Vec<T> a, Vec<T> b, std::integer_sequence<int, kLane...>) {
  constexpr auto from = [](int lane) {
    const int first = lane / kSums<T> * kSums<T>, place = lane % kSums<T>, half = kSums<T> / 2;
    return place < half ? first + 2 * place : first + 2 * (place - half) + int{kLanes<T>};
  };
  return __builtin_shufflevector(a, b, from(kLane)...) + __builtin_shufflevector(a, b, (from(kLane) + 1)...);
}

template <typename T, int kBytes>
struct VectorOfBytes {
  typedef T type __attribute__((vector_size(kBytes)));
};

template <typename T, int kBytes, int... kLane>
SVG_INLINE auto add_halves(typename VectorOfBytes<T, kBytes>::type v, std::integer_sequence<int, kLane...>) {
  constexpr int kHalf = sizeof...(kLane);
  return __builtin_shufflevector(v, v, kLane...) + __builtin_shufflevector(v, v, (kLane + kHalf)...);
}

// The sum of the vector's 16-byte parts.
template <typename T, int kBytes = kVectorBytes>
SVG_INLINE typename VectorOfBytes<T, 16>::type add_parts(typename VectorOfBytes<T, kBytes>::type v) {
  if constexpr (kBytes == 16) {
    return v;
  } else {
    constexpr int kHalf = kBytes / 2;
    return add_parts<T, kHalf>(add_halves<T, kBytes>(v, std::make_integer_sequence<int, kHalf / sizeof(T)>{}));
  }
}

// The sums of the vectors' lanes, one after another in memory; in a fixed order of additions.
template <typename T>
SVG_INLINE void store_sums(T* p, const Vec<T> (&v)[kSums<T>]) {
  Vec<T> sums = add_neighbours<T>(v[0], v[1], AllLanes<T>{});
  if constexpr (kSums<T> == 4) {
    sums = add_neighbours<T>(sums, add_neighbours<T>(v[2], v[3], AllLanes<T>{}), AllLanes<T>{});
  }
  const auto sum = add_parts<T>(sums);
  std::memcpy(p, &sum, sizeof sum);
}

}  // namespace svg_fast::SVG_ISA
