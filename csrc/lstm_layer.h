// What every device's host function checks of an LSTM layer over a sequence. T steps, B batch, H hidden units.
#pragma once

#include <cstdint>

#include "lstm_cell.h"
#include "tensors.h"

namespace svg_fast {

// gates_x (T, B, 4H), h0, c0 (B, H), w_hh (4H, H)
inline void check_layer(const Tensor& gates_x, const Tensor& h0, const Tensor& c0, const Tensor& w_hh) {
  check_rank("gates_x", gates_x, 3);
  check_rank("h0", h0, 2);
  const int64_t batch = gates_x.size(1), hidden = h0.size(1);
  check_shape("gates_x", gates_x, {gates_x.size(0), batch, kGates * hidden});
  check_shape("h0", h0, {batch, hidden});
  check_shape("c0", c0, {batch, hidden});
  check_shape("w_hh", w_hh, {kGates * hidden, hidden});
}

// The arguments of `lstm_layer_bwd`, in its order.
struct LayerCotangents {
  OptionalTensor dy, dc;  // (T, B, H)
  Tensor gates, y, c;     // (T, B, 4H), (T, B, H) twice
  Tensor h0, c0, w_hh;    // (B, H) twice, (4H, H)

  void check() const {
    check_rank("y", y, 3);
    const int64_t steps = y.size(0), batch = y.size(1), hidden = y.size(2);
    check_shape("gates", gates, {steps, batch, kGates * hidden});
    check_shape("c", c, {steps, batch, hidden});
    check_shape("h0", h0, {batch, hidden});
    check_shape("c0", c0, {batch, hidden});
    check_shape("w_hh", w_hh, {kGates * hidden, hidden});
    check_shape("dy", dy, {steps, batch, hidden});
    check_shape("dc", dc, {steps, batch, hidden});
  }
};

}  // namespace svg_fast
