// One step forward of a stack of LSTM layers on the CPU. L layers, B batch, H hidden units, I inputs; gates packed
// (i, f, g, o). The weights are read as they are: packing them would cost a small batch more than the step itself.
#pragma once

#include <cstdint>
#include <tuple>

#include "../lstm_stack.h"
#include "../tensors.h"
#include "lstm.h"
#include "parallel.h"
#include "product.h"

namespace svg_fast {

// The parameters of L cells, dense and of the dtype that is computed in.
struct LSTMStack {
  Tensors w_ih, w_hh, b_ih, b_hh;
};

// x (B, I), h, c (L, B, H), all dense -> the next h, c; and activated gates (L, B, 4H), unless they are null.
template <typename T>
std::tuple<Tensor, Tensor> step_stack(const Tensor& x, const Tensor& h, const Tensor& c, const LSTMStack& stack,
                                      T* gates) {
  const int64_t layers = h.size(0), batch = h.size(1), hidden = h.size(2), state = batch * hidden;
  const Tensor h_next = new_tensor<T>({layers, batch, hidden}), c_next = new_tensor<T>({layers, batch, hidden});
  const int64_t panels = divide_up(hidden, lstm_functions<T>().panel_units);
  const T *below = x.const_data_ptr<T>(), *h_prev = h.const_data_ptr<T>();
  LSTMForward<T> step{hidden, c.const_data_ptr<T>(), c_next.mutable_data_ptr<T>(), h_next.mutable_data_ptr<T>(), gates};
  for (int64_t k = 0; k < layers; ++k) {
    const LSTMWeights<T> weights{stack.w_ih[k].size(1), stack.w_ih[k].const_data_ptr<T>(),
                                 stack.w_hh[k].const_data_ptr<T>(), stack.b_ih[k].const_data_ptr<T>(),
                                 stack.b_hh[k].const_data_ptr<T>()};
    const int64_t flops = 2 * batch * kGates * hidden * (weights.inputs + hidden);
    parallel_panels(panels, batch, product_functions<T>().tile_rows, flops,
                    [&](int64_t panel, int64_t row, int64_t rows) {
                      lstm_functions<T>().forward_unpacked(step, weights, below, h_prev, panel, row, rows);
                    });
    below = step.h;
    h_prev += state;
    step = {hidden, step.c_prev + state, step.c + state, step.h + state,
            step.gates == nullptr ? nullptr : step.gates + kGates * state};
  }
  return {h_next, c_next};
}

}  // namespace svg_fast
