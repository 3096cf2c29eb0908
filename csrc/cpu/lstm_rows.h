// The LSTM cell over rows of units, a vector of units at a time. For the files in vector/ alone.
#pragma once

#include "../lstm_cell.h"
#include "lstm.h"
#include "vec_math.h"

namespace svg_fast::SVG_ISA {

template <typename T>
struct VectorMath {
  static SVG_INLINE Vec<T> logistic(Vec<T> x) { return svg_fast::SVG_ISA::logistic<T>(x); }
  static SVG_INLINE Vec<T> hyperbolic_tangent(Vec<T> x) { return svg_fast::SVG_ISA::hyperbolic_tangent<T>(x); }
};

// A vector of units, or what is left of one at the end of a row.
template <typename T, bool kWhole>
struct Units {
  int64_t n;

  SVG_INLINE Vec<T> read(const T* p) const { return kWhole ? load(p) : load_part(p, n); }
  SVG_INLINE Vec<T> read_or_zero(const T* p, int64_t at) const { return p == nullptr ? Vec<T>{} : read(p + at); }
  SVG_INLINE void write(T* p, Vec<T> v) const { kWhole ? store<T>(p, v) : store_part<T>(p, v, n); }

  SVG_INLINE LSTMGates<Vec<T>> read_gates(const T* p, int64_t apart) const {
    return {read(p), read(p + apart), read(p + 2 * apart), read(p + 3 * apart)};
  }
  SVG_INLINE void write_gates(T* p, int64_t apart, const LSTMGates<Vec<T>>& gates) const {
    write(p, gates.i);
    write(p + apart, gates.f);
    write(p + 2 * apart, gates.g);
    write(p + 3 * apart, gates.o);
  }
};

// What is added to the products of a vector of units: one row for all rows of the batch where `row` is zero.
template <typename T>
struct Addend {
  const T* data;
  int64_t row, gate;  // how far apart they lie
};

// In two passes, with the activated gates in place of the products in between: short dependent chains one after another
// keep the CPU busier than the long one of a whole cell.
template <typename T, bool kWhole>
SVG_INLINE void forward_units(const LSTMForward<T>& step, T* products, Addend<T> addend, int64_t row, int64_t rows,
                              int64_t unit) {
  constexpr int64_t kWidth = kGates * kLanes<T>;
  const Units<T, true> panel{kLanes<T>};
  const Units<T, kWhole> units{step.hidden - unit};
  for (int64_t r = 0; r < rows; ++r) {
    const auto pre = panel.read_gates(products + r * kWidth, kLanes<T>) +
                     units.read_gates(addend.data + r * addend.row, addend.gate);
    const auto gates = lstm_activate<VectorMath<T>>(pre);
    panel.write_gates(products + r * kWidth, kLanes<T>, gates);
    if (step.gates != nullptr) {
      units.write_gates(step.gates + kGates * (row + r) * step.hidden + unit, step.hidden, gates);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = (row + r) * step.hidden + unit;
    const auto gates = panel.read_gates(products + r * kWidth, kLanes<T>);
    const Vec<T> c = lstm_cell_state(gates, units.read(step.c_prev + at));
    units.write(step.c + at, c);
    units.write(step.h + at, lstm_hidden_state<VectorMath<T>>(gates, c));
  }
}

// Rows [row, row + rows) of the vector of units that begins at `unit`: products [rows][gate][lane] and what is added to
// them are the pre-activations.
template <typename T>
void forward_cells(const LSTMForward<T>& step, T* products, Addend<T> addend, int64_t row, int64_t rows, int64_t unit) {
  if (step.hidden - unit >= kLanes<T>) {
    forward_units<T, true>(step, products, addend, row, rows, unit);
  } else {
    forward_units<T, false>(step, products, addend, row, rows, unit);
  }
}

template <typename T, bool kWhole>
SVG_INLINE void backward_units(const LSTMBackward<T>& step, int64_t b, int64_t unit, int64_t n) {
  const Units<T, kWhole> units{n};
  const int64_t at = b * step.hidden + unit, at_gates = kGates * b * step.hidden + unit;
  const Vec<T> dh = units.read_or_zero(step.dy, at) + units.read_or_zero(step.dh_later, at);
  const Vec<T> dc = units.read_or_zero(step.dc, at) + units.read_or_zero(step.dc_later, at);
  const auto gradient = lstm_cell_bwd<VectorMath<T>>(dh, dc, units.read_gates(step.gates + at_gates, step.hidden),
                                                     units.read(step.c + at), units.read(step.c_prev + at));
  units.write_gates(step.dgates + at_gates, step.hidden, gradient.pre);
  units.write(step.dc_prev + at, gradient.c_prev);
}

}  // namespace svg_fast::SVG_ISA
