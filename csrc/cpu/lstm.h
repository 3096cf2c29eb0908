// The vector kernels of the LSTM ops, which lstm_layer.cpp and lstm_step.cpp call. B rows, H units, I inputs; gates
// packed (i, f, g, o). Matrices lie row by row without gaps.
#pragma once

#include <cstdint>

#include "../lstm_cell.h"
#include "capability.h"

namespace svg_fast {

// One step forward: where the states come from and go to.
template <typename T>
struct LSTMForward {
  int64_t hidden;
  const T* c_prev;  // (B, H)
  T* c;             // (B, H)
  T* h;             // (B, H)
  T* gates;         // (B, 4H), activated; null where nobody wants them
};

// One step backward. A null gradient is zero.
template <typename T>
struct LSTMBackward {
  int64_t hidden;
  const T *dy, *dc;              // (B, H): of this step's h and c as outputs
  const T *dh_later, *dc_later;  // (B, H): through the steps that follow
  const T* gates;                // (B, 4H)
  const T *c, *c_prev;           // (B, H)
  T* dgates;                     // (B, 4H): of the pre-activations
  T* dc_prev;                    // (B, H), may be dc_later
};

// One step of one layer with its weights as they are.
template <typename T>
struct LSTMWeights {
  int64_t inputs;
  const T *w_ih, *w_hh;  // (4H, I), (4H, H)
  const T *b_ih, *b_hh;  // (4H,)
};

template <typename T>
struct LSTMFunctions {
  // Units come in panels of `panel_units`, the last one filled up with zeros: [panel][...][4 panel_units].
  int64_t panel_units;
  // w_hh (4H, H) -> packed, H * 4 * panel_units numbers a panel.
  void (*pack)(const T* w_hh, int64_t hidden, int64_t panel, T* packed);
  // Rows [row, row + rows) of a panel's units, from gates_x (B, 4H) and h_prev (B, H).
  void (*forward)(const LSTMForward<T>& step, const T* gates_x, const T* h_prev, const T* packed, int64_t panel,
                  int64_t row, int64_t rows);
  // The same from inputs x (B, I), without packing.
  void (*forward_unpacked)(const LSTMForward<T>& step, const LSTMWeights<T>& weights, const T* x, const T* h_prev,
                           int64_t panel, int64_t row, int64_t rows);
  // Units [unit, unit + units) of row b.
  void (*backward)(const LSTMBackward<T>& step, int64_t row, int64_t rows, int64_t unit, int64_t units);
};

struct LSTMKernels {
  LSTMFunctions<float> float32;
  LSTMFunctions<double> float64;
};

SVG_DECLARE_KERNELS(LSTMKernels, lstm_kernels)

template <typename T>
const LSTMFunctions<T>& lstm_functions() {
  if constexpr (sizeof(T) == sizeof(double)) {
    return lstm_kernels().float64;
  } else {
    return lstm_kernels().float32;
  }
}

}  // namespace svg_fast
