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

// In each pair of lanes at distance kStep: the pair's sum in a, then that in b.
template <typename T, int kStep>
SVG_INLINE Vec<T> add_pairs(Vec<T> a, Vec<T> b) {
  return low_halves<T, kStep>(a, b, AllLanes<T>{}) + high_halves<T, kStep>(a, b, AllLanes<T>{});
}

template <typename T, int kStep>
SVG_INLINE Vec<T> add_far_lanes(Vec<T> v) {
  if constexpr (kStep < kLanes<T>) {
    return add_far_lanes<T, 2 * kStep>(add_pairs<T, kStep>(v, v));
  } else {
    return v;
  }
}

// How many vectors `store_sums` sums at once.
template <typename T>
constexpr int kSums = kLanes<T> < 4 ? 2 : 4;

// The sums of the vectors' lanes, one after another in memory, in a fixed order of additions.
template <typename T>
SVG_INLINE void store_sums(T* p, const Vec<T> (&v)[kSums<T>]) {
  const Vec<T> pairs = add_pairs<T, 1>(v[0], v[1]);
  if constexpr (kSums<T> == 2) {
    store<T>(p, pairs);
  } else {
    const Vec<T> quads = add_pairs<T, 2>(pairs, add_pairs<T, 1>(v[2], v[3]));
    store_part<T>(p, add_far_lanes<T, 4>(quads), 4);
  }
}

}  // namespace svg_fast::SVG_ISA
