// The LSTM cell of torch.nn.LSTM, forward and backward: V is a number or a vector of units, `Math` offers logistic(V)
// and hyperbolic_tangent(V).
#pragma once

#include "inline.h"

namespace svg_fast {

constexpr int kGates = 4;

template <typename V>
struct LSTMGates {
  V i, f, g, o;
};

template <typename V>
SVG_INLINE LSTMGates<V> operator+(const LSTMGates<V>& a, const LSTMGates<V>& b) {
  return {a.i + b.i, a.f + b.f, a.g + b.g, a.o + b.o};
}

template <typename Math, typename V>
SVG_INLINE LSTMGates<V> lstm_activate(const LSTMGates<V>& pre) {
  return {Math::logistic(pre.i), Math::logistic(pre.f), Math::hyperbolic_tangent(pre.g), Math::logistic(pre.o)};
}

template <typename V>
SVG_INLINE V lstm_cell_state(const LSTMGates<V>& gates, V c_prev) {
  return gates.f * c_prev + gates.i * gates.g;
}

template <typename Math, typename V>
SVG_INLINE V lstm_hidden_state(const LSTMGates<V>& gates, V c) {
  return gates.o * Math::hyperbolic_tangent(c);
}

template <typename V>
struct LSTMGradient {
  LSTMGates<V> pre;
  V c_prev;
};

// dh and dc: gradients of h and c as far as later steps and other uses of them go.
template <typename Math, typename V>
SVG_INLINE LSTMGradient<V> lstm_cell_bwd(V dh, V dc, const LSTMGates<V>& gates, V c, V c_prev) {
  const V tanh_c = Math::hyperbolic_tangent(c);
  dc += dh * gates.o * (1 - tanh_c * tanh_c);
  const LSTMGates<V> pre{dc * gates.g * gates.i * (1 - gates.i), dc * c_prev * gates.f * (1 - gates.f),
                         dc * gates.i * (1 - gates.g * gates.g), dh * tanh_c * gates.o * (1 - gates.o)};
  return {pre, dc * gates.f};
}

}  // namespace svg_fast
