// One LSTM layer over a whole sequence. T steps, B batch, H hidden units; gates packed (i, f, g, o).
//
// Threads share out the units of a step: the recurrent product of a panel of units and their cells are one task, and
// the weights, packed once, stay in the cache of the core that uses them. The weight gradient is one product over all
// steps.
#include "../lstm_layer.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>

#include "../signature.h"
#include "../tensors.h"
#include "lstm.h"
#include "matrix.h"
#include "parallel.h"

namespace svg_fast {
namespace {

template <typename T>
Tensor pack(const Tensor& w_hh) {
  const int64_t hidden = w_hh.size(1), width = kGates * lstm_functions<T>().panel_units;
  const int64_t panels = divide_up(hidden, lstm_functions<T>().panel_units);
  const Tensor packed = new_tensor<T>({panels, hidden, width});
  const T* from = w_hh.const_data_ptr<T>();
  T* to = packed.mutable_data_ptr<T>();
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      lstm_functions<T>().pack(from, hidden, p, to + p * hidden * width);
    }
  };
  torch::stable::parallel_for(0, panels, divide_up(kTaskFlops, hidden * width + 1), run);
  return packed;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& gates_x, const Tensor& h0, const Tensor& c0,
                                           const Tensor& w_hh) {
  const int64_t steps = gates_x.size(0), batch = h0.size(0), hidden = h0.size(1), state = batch * hidden;
  const Tensor y = new_tensor<T>({steps, batch, hidden}), c = new_tensor<T>({steps, batch, hidden});
  const Tensor gates = new_tensor<T>({steps, batch, kGates * hidden}), packed = pack<T>(w_hh);
  const T *pre = gates_x.const_data_ptr<T>(), *weights = packed.const_data_ptr<T>();
  const T *h_prev = h0.const_data_ptr<T>(), *c_prev = c0.const_data_ptr<T>();
  LSTMForward<T> step{hidden, c_prev, c.mutable_data_ptr<T>(), y.mutable_data_ptr<T>(), gates.mutable_data_ptr<T>()};
  const int64_t panels = packed.size(0), flops = 2 * batch * kGates * hidden * hidden;
  for (int64_t t = 0; t < steps; ++t) {
    parallel_panels(panels, batch, product_functions<T>().tile_rows, flops,
                    [&](int64_t panel, int64_t row, int64_t rows) {
                      lstm_functions<T>().forward(step, pre, h_prev, weights, panel, row, rows);
                    });
    h_prev = step.h;
    pre += kGates * state;
    step = {hidden, step.c, step.c + state, step.h + state, step.gates + kGates * state};
  }
  return {y, c, gates};
}

std::tuple<Tensor, Tensor, Tensor> lstm_layer_fwd(const Tensor& gates_x, const Tensor& h0, const Tensor& c0,
                                                  const Tensor& w_hh) {
  check_layer(gates_x, h0, c0, w_hh);
  const ScalarType dtype = compute_dtype(gates_x);
  const auto run = dtype == ScalarType::Double ? forward<double> : forward<float>;
  auto [y, c, gates] = run(dense(gates_x, dtype), dense(h0, dtype), dense(c0, dtype), dense(w_hh, dtype));
  return {converted(y, gates_x.scalar_type()), c, gates};
}

struct LayerGradients {
  Tensor dgates, dh0, dc0, dw_hh;
};

template <typename T>
Tensor weight_gradient(const Tensor& dgates, const Tensor& h0, const Tensor& y) {
  const int64_t steps = y.size(0), batch = y.size(1), hidden = y.size(2);
  PackedMatrix<T> h_prev(steps * batch, hidden);
  if (steps > 0) {
    h_prev.set_rows(h0.const_data_ptr<T>(), 0, batch);
    h_prev.set_rows(y.const_data_ptr<T>(), batch, (steps - 1) * batch);
  }
  return multiply_transposed(dgates, h_prev);
}

template <typename T>
LayerGradients backward(const OptionalTensor& dy, const OptionalTensor& dc, const Tensor& gates, const Tensor& y,
                        const Tensor& c, const Tensor& h0, const Tensor& c0, const Tensor& w_hh) {
  const int64_t steps = y.size(0), batch = y.size(1), hidden = y.size(2), state = batch * hidden;
  const Tensor dgates = new_tensor<T>({steps, batch, kGates * hidden});
  const Tensor dh_prev = new_zeros<T>({batch, hidden}), dc_prev = new_zeros<T>({batch, hidden});
  const PackedMatrix<T> weights(w_hh);
  const ProductFunctions<T>& product = product_functions<T>();
  const int64_t flops = 2 * batch * kGates * hidden * hidden;
  T *dpre = dgates.mutable_data_ptr<T>(), *dh = dh_prev.mutable_data_ptr<T>(), *dc_t = dc_prev.mutable_data_ptr<T>();
  for (int64_t t = steps - 1; t >= 0; --t) {
    const int64_t at = t * state;
    const LSTMBackward<T> step{.hidden = hidden,
                               .dy = data_or_null<T>(dy, at),
                               .dc = data_or_null<T>(dc, at),
                               .dh_later = dh,
                               .dc_later = dc_t,
                               .gates = gates.const_data_ptr<T>() + kGates * at,
                               .c = c.const_data_ptr<T>() + at,
                               .c_prev = t > 0 ? c.const_data_ptr<T>() + at - state : c0.const_data_ptr<T>(),
                               .dgates = dpre + kGates * at,
                               .dc_prev = dc_t};
    parallel_panels(weights.panels, batch, product.tile_rows, flops, [&](int64_t panel, int64_t row, int64_t rows) {
      if (t < steps - 1) {
        product.multiply(step.dgates + kGates * state, weights.data(), dh, kGates * hidden, hidden, panel, row, rows);
      }
      const int64_t unit = panel * product.panel_columns;
      lstm_functions<T>().backward(step, row, rows, unit, std::min(product.panel_columns, hidden - unit));
    });
  }
  if (steps > 0) {
    multiply(dpre, weights, dh, batch);
  }
  return {dgates, dh_prev, dc_prev, weight_gradient<T>(dgates, h0, y)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_layer_bwd(const OptionalTensor& dy, const OptionalTensor& dc,
                                                          const Tensor& gates, const Tensor& y, const Tensor& c,
                                                          const Tensor& h0, const Tensor& c0, const Tensor& w_hh) {
  LayerCotangents{dy, dc, gates, y, c, h0, c0, w_hh}.check();
  const ScalarType dtype = compute_dtype(gates);
  const auto run = dtype == ScalarType::Double ? backward<double> : backward<float>;
  const LayerGradients d = run(dense(dy, dtype), dense(dc, dtype), dense(gates, dtype), dense(y, dtype),
                               dense(c, dtype), dense(h0, dtype), dense(c0, dtype), dense(w_hh, dtype));
  return {converted(d.dgates, y.scalar_type()), converted(d.dh0, h0.scalar_type()), converted(d.dc0, c0.scalar_type()),
          converted(d.dw_hh, w_hh.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(svg_fast, CPU, m) {
  SVG_KERNEL(m, lstm_layer_fwd);
  SVG_KERNEL(m, lstm_layer_bwd);
}

}  // namespace
}  // namespace svg_fast
