// BatchNorm and the activation that follows, forward and backward, for a number or a vector of numbers V.
#pragma once

#include "inline.h"

namespace svg_fast {

enum class Activation { kLeakyReLU, kTanh, kIdentity };

// What is activated; `centred` is x - mean, `scale` weight / std. The backward computes it anew, by this same function,
// and so sees each sign that the forward saw.
template <typename V>
SVG_INLINE V pre_activation(V centred, V scale, V bias) {
  return centred * scale + bias;
}

// `Math` offers hyperbolic_tangent(V).
template <Activation kActivation, typename Math, typename T, typename V>
SVG_INLINE V activate(V z, T negative_slope) {
  if constexpr (kActivation == Activation::kLeakyReLU) {
    return z > V{} ? z : z * negative_slope;
  } else if constexpr (kActivation == Activation::kTanh) {
    return Math::hyperbolic_tangent(z);
  } else {
    return z;
  }
}

// dy -> dz
template <Activation kActivation, typename Math, typename T, typename V>
SVG_INLINE V activate_backward(V dy, V z, T negative_slope) {
  if constexpr (kActivation == Activation::kLeakyReLU) {
    return z > V{} ? dy : dy * negative_slope;
  } else if constexpr (kActivation == Activation::kTanh) {
    const V y = Math::hyperbolic_tangent(z);
    return dy - dy * (y * y);
  } else {
    return dy;
  }
}

// dz -> dx. Mean and variance depend on every x; what dx has from that is linear in x, and alike for a channel of a
// step.
template <typename V>
SVG_INLINE V normalise_backward(V dz, V centred, V scale, V dx_slope, V dx_offset) {
  return dz * scale + (centred * dx_slope + dx_offset);
}

template <typename T>
struct ChannelGradient {
  T dweight, dbias, dx_slope, dx_offset;
};

// Of one channel of a step: from `count` values' sums of dz and of dz * (x - mean).
template <typename T>
SVG_INLINE ChannelGradient<T> channel_gradient(T sum, T product, T scale, T inverse_std, T count) {
  return {product * inverse_std, sum, -scale * inverse_std * inverse_std * product / count, -scale * sum / count};
}

}  // namespace svg_fast
