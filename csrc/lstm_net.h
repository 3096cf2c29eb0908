// What every device's host function checks of a whole recurrent net's step. L layers, B batch, H hidden units, I
// inputs, O outputs of a head.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "lstm_stack.h"

namespace svg_fast {

// The arguments of `lstm_net_step_fwd`, in its order.
struct LSTMNet {
  Tensor x, h, c;                              // (B, I), (L, B, H) twice
  Tensor w_embed, b_embed;                     // (H, I), (H,)
  std::vector<Tensor> w_ih, w_hh, b_ih, b_hh;  // of each layer (4H, H) twice, (4H,) twice
  std::vector<Tensor> w_head, b_head;          // of one head or two (O, H), (O,)
  std::optional<Tensor> eps, seed;             // (B, O), (2,): of the sample that two heads give

  bool sampled() const { return w_head.size() == 2 && (eps.has_value() || seed.has_value()); }

  void check() const {
    check_states(x, h, c);
    const int64_t batch = x.size(0), hidden = h.size(2);
    check_shape("w_embed", w_embed, {hidden, x.size(1)});
    check_shape("b_embed", b_embed, {hidden});
    check_matrices("w_ih", w_ih, h, hidden);
    check_matrices("w_hh", w_hh, h, hidden);
    check_biases("b_ih", b_ih, h);
    check_biases("b_hh", b_hh, h);
    STD_TORCH_CHECK(w_head.size() == 1 || w_head.size() == 2, "w_head must hold 1 or 2 tensors, got ", w_head.size());
    check_count("b_head", b_head, static_cast<int64_t>(w_head.size()));
    check_rank("w_head", w_head[0], 2);
    const int64_t outputs = w_head[0].size(0);
    for (size_t k = 0; k < w_head.size(); ++k) {
      check_shape("w_head", w_head[k], {outputs, hidden});
      check_shape("b_head", b_head[k], {outputs});
    }
    if (sampled() && eps) {
      check_shape("eps", *eps, {batch, outputs});
    } else if (sampled()) {
      check_shape("seed", *seed, {2});
      check_dtype("seed", *seed, ScalarType::Long);
    }
  }
};

}  // namespace svg_fast
