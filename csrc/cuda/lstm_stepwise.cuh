// LSTM over a sequence, a product of matrices and a kernel of cells for each step: for float64, and for sizes that do
// not stay on chip. T steps, B batch, H hidden units; gates packed (i, f, g, o).
#pragma once

#include "../lstm_cell.h"
#include "../tensors.h"
#include "launch.h"
#include "lstm_layer.cuh"
#include "products.h"
#include "scalar_math.cuh"

namespace svg_fast {

// One step; a thread for each of the B * H cells.
template <typename S>
struct CellsForward {
  const S *gates_x, *product, *c_prev;  // (B, 4H), (B, 4H), (B, H)
  S *gates, *c, *h;                     // (B, 4H), (B, H), (B, H)
  int64_t cells, hidden;
};

template <typename S>
struct CellsBackward {
  const S *dh, *dy, *dc_given;  // (B, H); dy and dc_given or null
  const S *gates, *c, *c_prev;  // (B, 4H), (B, H), (B, H)
  S *dc, *dgates;               // (B, H), in place; (B, 4H)
  int64_t cells, hidden;
};

template <typename S>
__global__ void lstm_cells_forward(CellsForward<S> p) {
  const int64_t cell = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, gate = cell + cell / p.hidden * 3 * p.hidden;
  if (cell < p.cells) {
    const LSTMGates<S> pre = load_gates(p.gates_x + gate, p.hidden) + load_gates(p.product + gate, p.hidden);
    const LSTMGates<S> gates = lstm_activate<ScalarMath>(pre);
    const S c = lstm_cell_state(gates, p.c_prev[cell]);
    store_gates(p.gates + gate, p.hidden, gates);
    p.c[cell] = c;
    p.h[cell] = lstm_hidden_state<ScalarMath>(gates, c);
  }
}

template <typename S>
__global__ void lstm_cells_backward(CellsBackward<S> p) {
  const int64_t cell = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, gate = cell + cell / p.hidden * 3 * p.hidden;
  if (cell < p.cells) {
    const S dh = p.dh[cell] + (p.dy == nullptr ? 0 : p.dy[cell]);
    const S dc = p.dc[cell] + (p.dc_given == nullptr ? 0 : p.dc_given[cell]);
    const LSTMGradient<S> d =
        lstm_cell_bwd<ScalarMath>(dh, dc, load_gates(p.gates + gate, p.hidden), p.c[cell], p.c_prev[cell]);
    store_gates(p.dgates + gate, p.hidden, d.pre);
    p.dc[cell] = d.c_prev;
  }
}

template <typename Parameters>
void launch_cells(void (*kernel)(Parameters), const Parameters& p, const Tensor& like) {
  constexpr int64_t kCellThreads = 256;
  if (p.cells > 0) {
    const uint32_t blocks = static_cast<uint32_t>(divide_up(p.cells, kCellThreads));
    launch(kernel, {dim3(blocks), dim3(kCellThreads)}, current_stream(like), p);
  }
}

// All tensors in S and contiguous; y, c and gates are filled.
template <typename S>
void stepwise_forward(const Tensor& gates_x, const Tensor& h0, const Tensor& c0, const Tensor& w_hh, const Tensor& y,
                      const Tensor& c, const Tensor& gates) {
  const int64_t steps = y.size(0), hidden = y.size(2), cells = y.size(1) * hidden;
  const Tensor product = torch::stable::new_empty(h0, {y.size(1), kGates * hidden});
  const Tensor transposed = torch::stable::transpose(w_hh, 0, 1);
  for (int64_t t = 0; t < steps; ++t) {
    multiply(t == 0 ? h0 : torch::stable::select(y, 0, t - 1), transposed, product);
    const int64_t at = t * cells;
    const CellsForward<S> p{device_data<const S>(gates_x) + kGates * at,
                            device_data<const S>(product),
                            t == 0 ? device_data<const S>(c0) : device_data<const S>(c) + at - cells,
                            device_data<S>(gates) + kGates * at,
                            device_data<S>(c) + at,
                            device_data<S>(y) + at,
                            cells,
                            hidden};
    launch_cells(lstm_cells_forward<S>, p, gates_x);
  }
}

// dh and dc, zeros at first, become the gradients of h0 and c0.
template <typename S>
void stepwise_backward(const OptionalTensor& dy, const OptionalTensor& dc_given, const Tensor& gates, const Tensor& c,
                       const Tensor& c0, const Tensor& w_hh, const Tensor& dgates, const Tensor& dh, const Tensor& dc) {
  const int64_t steps = c.size(0), hidden = c.size(2), cells = c.size(1) * hidden;
  for (int64_t t = steps - 1; t >= 0; --t) {
    const int64_t at = t * cells;
    const CellsBackward<S> p{device_data<const S>(dh),
                             device_data_or_null<S>(dy, at),
                             device_data_or_null<S>(dc_given, at),
                             device_data<const S>(gates) + kGates * at,
                             device_data<const S>(c) + at,
                             t == 0 ? device_data<const S>(c0) : device_data<const S>(c) + at - cells,
                             device_data<S>(dc),
                             device_data<S>(dgates) + kGates * at,
                             cells,
                             hidden};
    launch_cells(lstm_cells_backward<S>, p, gates);
    multiply(torch::stable::select(dgates, 0, t), w_hh, dh);
  }
}

}  // namespace svg_fast
