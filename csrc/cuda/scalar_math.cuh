// The functions that the shared maths of cells, samples and noise asks for, of a float or a double.
#pragma once

#include <cmath>

#include "primitives.h"

namespace svg_fast {

struct ScalarMath {
  template <typename S>
  static SVG_DEVICE S exponential(S x) {
    return std::exp(x);
  }
  template <typename S>
  static SVG_DEVICE S logistic(S x) {
    return 1 / (1 + std::exp(-x));
  }
  template <typename S>
  static SVG_DEVICE S hyperbolic_tangent(S x) {
    return std::tanh(x);
  }
  template <typename S>
  static SVG_DEVICE S logarithm(S x) {
    return std::log(x);
  }
  template <typename S>
  static SVG_DEVICE S square_root(S x) {
    return std::sqrt(x);
  }
  template <typename S>
  static SVG_DEVICE S cosine_of_turns(S x) {
    return cospi(2 * x);
  }
  template <typename S>
  static SVG_DEVICE S sine_of_turns(S x) {
    return sinpi(2 * x);
  }
};

}  // namespace svg_fast
