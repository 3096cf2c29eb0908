// One time step of a stack of LSTM layers. L layers, B batch, H hidden units, I inputs; gates packed (i, f, g, o).
#include "lstm_step.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "../signature.h"
#include "../tensors.h"
#include "lstm.h"
#include "matrix.h"
#include "parallel.h"

namespace svg_fast {
namespace {

using torch::stable::select;

template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& h, const Tensor& c, const LSTMStack& stack) {
  const Tensor gates = new_tensor<T>({h.size(0), h.size(1), kGates * h.size(2)});
  const auto [h_next, c_next] = step_stack<T>(x, h, c, stack, gates.mutable_data_ptr<T>());
  return {h_next, c_next, gates};
}

std::tuple<Tensor, Tensor, Tensor> lstm_step_fwd(const Tensor& x, const Tensor& h, const Tensor& c, const Tensors& w_ih,
                                                 const Tensors& w_hh, const Tensors& b_ih, const Tensors& b_hh) {
  check_states(x, h, c);
  check_matrices("w_ih", w_ih, h, x.size(1));
  check_matrices("w_hh", w_hh, h, h.size(2));
  check_biases("b_ih", b_ih, h);
  check_biases("b_hh", b_hh, h);
  const ScalarType dtype = compute_dtype(x);
  const auto run = dtype == ScalarType::Double ? forward<double> : forward<float>;
  const auto [h_next, c_next, gates] =
      run(dense(x, dtype), dense(h, dtype), dense(c, dtype),
          {dense(w_ih, dtype), dense(w_hh, dtype), dense(b_ih, dtype), dense(b_hh, dtype)});
  return {converted(h_next, h.scalar_type()), converted(c_next, c.scalar_type()), gates};
}

template <typename T>
Tensor sum_rows(const Tensor& matrix) {
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  const Tensor sum = new_zeros<T>({columns});
  const T* from = matrix.const_data_ptr<T>();
  T* to = sum.mutable_data_ptr<T>();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < columns; ++k) {
      to[k] += from[r * columns + k];
    }
  }
  return sum;
}

struct StepGradients {
  Tensor dx, dh_prev, dc_prev;
  Tensors dw_ih, dw_hh, db;
};

template <typename T>
StepGradients backward(const OptionalTensor& dh, const OptionalTensor& dc, const Tensor& gates, const Tensor& h_next,
                       const Tensor& c_next, const Tensor& x, const Tensor& h, const Tensor& c, const Tensors& w_ih,
                       const Tensors& w_hh) {
  const int64_t layers = h.size(0), batch = h.size(1), hidden = h.size(2), state = batch * hidden;
  const Tensor dgates = new_tensor<T>({batch, kGates * hidden});
  StepGradients d;
  d.dh_prev = new_tensor<T>({layers, batch, hidden});
  d.dc_prev = new_tensor<T>({layers, batch, hidden});
  T* dpre = dgates.mutable_data_ptr<T>();
  const T* dh_above = nullptr;
  for (int64_t k = layers - 1; k >= 0; --k) {
    const int64_t at = k * state;
    const LSTMBackward<T> step{.hidden = hidden,
                               .dy = data_or_null<T>(dh, at),
                               .dc = data_or_null<T>(dc, at),
                               .dh_later = dh_above,
                               .dc_later = nullptr,
                               .gates = gates.const_data_ptr<T>() + kGates * at,
                               .c = c_next.const_data_ptr<T>() + at,
                               .c_prev = c.const_data_ptr<T>() + at,
                               .dgates = dpre,
                               .dc_prev = d.dc_prev.mutable_data_ptr<T>() + at};
    lstm_functions<T>().backward(step, 0, batch, 0, hidden);
    const Tensor below = k > 0 ? select(h_next, 0, k - 1) : x, dbelow = new_tensor<T>({batch, below.size(1)});
    multiply(dpre, PackedMatrix<T>(w_hh[k]), d.dh_prev.mutable_data_ptr<T>() + at, batch);
    multiply(dpre, PackedMatrix<T>(w_ih[k]), dbelow.mutable_data_ptr<T>(), batch);
    d.dw_ih.insert(d.dw_ih.begin(), multiply_transposed(dgates, PackedMatrix<T>(below)));
    d.dw_hh.insert(d.dw_hh.begin(), multiply_transposed(dgates, PackedMatrix<T>(select(h, 0, k))));
    d.db.insert(d.db.begin(), sum_rows<T>(dgates));
    d.dx = dbelow;
    dh_above = dbelow.const_data_ptr<T>();
  }
  return d;
}

std::tuple<Tensor, Tensor, Tensor, Tensors, Tensors, Tensors> lstm_step_bwd(
    const OptionalTensor& dh, const OptionalTensor& dc, const Tensor& gates, const Tensor& h_next, const Tensor& c_next,
    const Tensor& x, const Tensor& h, const Tensor& c, const Tensors& w_ih, const Tensors& w_hh) {
  check_states(x, h, c);
  check_matrices("w_ih", w_ih, h, x.size(1));
  check_matrices("w_hh", w_hh, h, h.size(2));
  const int64_t layers = h.size(0), batch = h.size(1), hidden = h.size(2);
  check_shape("gates", gates, {layers, batch, kGates * hidden});
  check_shape("h_next", h_next, {layers, batch, hidden});
  check_shape("c_next", c_next, {layers, batch, hidden});
  check_shape("dh", dh, {layers, batch, hidden});
  check_shape("dc", dc, {layers, batch, hidden});
  const ScalarType dtype = compute_dtype(gates);
  const auto run = dtype == ScalarType::Double ? backward<double> : backward<float>;
  const StepGradients d =
      run(dense(dh, dtype), dense(dc, dtype), dense(gates, dtype), dense(h_next, dtype), dense(c_next, dtype),
          dense(x, dtype), dense(h, dtype), dense(c, dtype), dense(w_ih, dtype), dense(w_hh, dtype));
  return {converted(d.dx, x.scalar_type()),      converted(d.dh_prev, h.scalar_type()),
          converted(d.dc_prev, c.scalar_type()), converted_like(d.dw_ih, w_ih),
          converted_like(d.dw_hh, w_hh),         converted_like(d.db, w_ih)};
}

STABLE_TORCH_LIBRARY_IMPL(svg_fast, CPU, m) {
  SVG_KERNEL(m, lstm_step_fwd);
  SVG_KERNEL(m, lstm_step_bwd);
}

}  // namespace
}  // namespace svg_fast
