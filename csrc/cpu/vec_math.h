// exp, expm1, tanh, sigmoid, logarithm, and sine and cosine of vectors, to two units in the last place, in float and
// double. NaN stays NaN.
#pragma once

#include <limits>
#include <type_traits>

#include "vec.h"

namespace svg_fast::SVG_ISA {

template <typename T>
struct Float;

template <>
struct Float<float> {
  using Int = int32_t;
  static constexpr int kMantissaBits = 23, kBias = 127, kExpTerms = 7, kLogTerms = 5, kTurnTerms = 7;
  static constexpr float kRound = 0x1.8p23f;  // adding it leaves a small number rounded, in the last bits
  static constexpr float kLog2e = 0x1.715476p+0f, kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kSqrtHalf = 0x1.6a09e6p-1f;
  static constexpr float kExpLow = -87.2f, kExpHigh = 89.5f, kTanhHigh = 10.0f;
};

template <>
struct Float<double> {
  using Int = int64_t;
  static constexpr int kMantissaBits = 52, kBias = 1023, kExpTerms = 13, kLogTerms = 10, kTurnTerms = 11;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLog2e = 0x1.71547652b82fep+0, kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 0x1.ef35793c7673p-45;
  static constexpr double kSqrtHalf = 0x1.6a09e667f3bcdp-1;
  static constexpr double kExpLow = -708.3, kExpHigh = 710.2, kTanhHigh = 20.0;
};

constexpr double inverse_factorial(int n) {
  double product = 1;
  for (int k = 2; k <= n; ++k) {
    product *= k;
  }
  return 1 / product;
}

// 2^n for integers n that a normal number's exponent can hold; zero and infinity for one less and one more.
template <typename T>
SVG_INLINE Vec<T> power_of_two(Vec<typename Float<T>::Int> n) {
  return (Vec<T>)((n + Float<T>::kBias) << Float<T>::kMantissaBits);
}

// x = n ln 2 + r with |r| <= ln(2) / 2.
template <typename T>
struct Reduced {
  Vec<typename Float<T>::Int> n;
  Vec<T> r;
};

template <typename T>
SVG_INLINE Reduced<T> reduce(Vec<T> x) {
  using F = Float<T>;
  const Vec<T> shifted = x * F::kLog2e + F::kRound;
  const Vec<T> n = shifted - F::kRound;
  const auto bits = (Vec<typename F::Int>)shifted - (Vec<typename F::Int>)broadcast(F::kRound);
  return {bits, (x - n * F::kLn2High) - n * F::kLn2Low};
}

// e^r - 1 for |r| <= ln(2) / 2: the Taylor series.
template <typename T>
SVG_INLINE Vec<T> expm1_small(Vec<T> r) {
  constexpr int kTerms = Float<T>::kExpTerms;
  Vec<T> sum = broadcast(static_cast<T>(inverse_factorial(kTerms)));
#pragma GCC unroll 16
  for (int k = kTerms - 1; k >= 2; --k) {
    sum = sum * r + static_cast<T>(inverse_factorial(k));
  }
  return sum * (r * r) + r;
}

// 2 e^r 2^(n - 1), since the largest results have a 2^n beyond an exponent's range. At the ends 2^(n - 1) is infinity,
// or zero: for results below 1.5 times the smallest normal number.
template <typename T>
SVG_INLINE Vec<T> exponential(Vec<T> x) {
  using F = Float<T>;
  x = minimum(broadcast(F::kExpHigh), maximum(broadcast(F::kExpLow), x));
  const Reduced<T> reduced = reduce<T>(x);
  return (expm1_small<T>(reduced.r) * T{2} + T{2}) * power_of_two<T>(reduced.n - 1);
}

template <typename T>
SVG_INLINE Vec<T> logistic(Vec<T> x) {
  return T{1} / (T{1} + exponential<T>(-x));
}

// (e^2|x| - 1) / (e^2|x| + 1), by expm1 so that small x keep their precision.
template <typename T>
SVG_INLINE Vec<T> hyperbolic_tangent(Vec<T> x) {
  using F = Float<T>;
  using Bits = Vec<typename F::Int>;
  const Bits sign = (Bits)x & std::numeric_limits<typename F::Int>::min();
  Vec<T> magnitude = (Vec<T>)((Bits)x ^ sign);
  magnitude = magnitude > F::kTanhHigh ? broadcast(F::kTanhHigh) : magnitude;
  const Reduced<T> reduced = reduce<T>(magnitude + magnitude);
  const Vec<T> power = power_of_two<T>(reduced.n);
  const Vec<T> expm1 = expm1_small<T>(reduced.r) * power + (power - T{1});
  return (Vec<T>)((Bits)(expm1 / (expm1 + T{2})) | sign);
}

// Of positive normal numbers. x = 2^n m with m within a factor of sqrt(2) of one, and log m = 2 artanh s with
// s = (m - 1) / (m + 1), |s| < 0.172: the Taylor series.
template <typename T>
SVG_INLINE Vec<T> logarithm(Vec<T> x) {
  using F = Float<T>;
  using Int = Vec<typename F::Int>;
  const Int n = ((Int)x - (Int)broadcast(F::kSqrtHalf)) >> F::kMantissaBits;
  const Vec<T> f = (Vec<T>)((Int)x - (n << F::kMantissaBits)) - T{1};
  const Vec<T> s = f / (f + T{2}), square = s * s, exponent = __builtin_convertvector(n, Vec<T>);
  Vec<T> sum = broadcast(T{2} / (2 * F::kLogTerms - 1));
#pragma GCC unroll 16
  for (int k = F::kLogTerms - 2; k >= 1; --k) {
    sum = sum * square + T{2} / (2 * k + 1);
  }
  return exponent * F::kLn2High + (exponent * F::kLn2Low + s * square * sum + (s + s));
}

// Of sine (odd n) and cosine (even n) of 2 pi x: (2 pi)^n / n!.
template <int kSize>
struct TurnSeries {
  double coefficient[kSize] = {1};
  constexpr TurnSeries() {
    for (int n = 1; n < kSize; ++n) {
      coefficient[n] = coefficient[n - 1] * 6.283185307179586 / n;
    }
  }
};

template <typename T>
struct SineCosine {
  Vec<T> sine, cosine;
};

// Of x turns, that is of 2 pi x, |x| <= 1; errors relative to one. x = n / 2 + r with |r| <= 1 / 4: the Taylor series,
// negative for odd n.
template <typename T>
SVG_INLINE SineCosine<T> sine_cosine_of_turns(Vec<T> x) {
  using F = Float<T>;
  using Int = Vec<typename F::Int>;
  const Vec<T> shifted = x * T{2} + F::kRound;
  const Vec<T> r = x - (shifted - F::kRound) * T{0.5}, square = r * r;
  constexpr TurnSeries<2 * F::kTurnTerms> kSeries;
  Vec<T> sine = broadcast(static_cast<T>(kSeries.coefficient[2 * F::kTurnTerms - 1]));
  Vec<T> cosine = broadcast(static_cast<T>(kSeries.coefficient[2 * F::kTurnTerms - 2]));
#pragma GCC unroll 16
  for (int k = F::kTurnTerms - 2; k >= 0; --k) {
    sine = static_cast<T>(kSeries.coefficient[2 * k + 1]) - sine * square;
    cosine = static_cast<T>(kSeries.coefficient[2 * k]) - cosine * square;
  }
  const Int sign = (Int)shifted << (8 * sizeof(T) - 1);
  return {(Vec<T>)((Int)(sine * r) ^ sign), (Vec<T>)((Int)cosine ^ sign)};
}

}  // namespace svg_fast::SVG_ISA
