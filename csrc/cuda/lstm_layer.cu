// One LSTM layer over a whole sequence. T steps, B batch, H hidden units; gates packed (i, f, g, o).
//
// float32 and 16-bit sequences of up to 512 units stay on chip: in clusters where the device has them, otherwise in a
// cooperative launch. All others are computed step by step. The weight gradient is one product over all steps.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "../lstm_layer.h"
#include "../tensors.h"
#include "launch.h"
#include "lstm_layer_backward.cuh"
#include "lstm_layer_forward.cuh"
#include "lstm_stepwise.cuh"
#include "products.h"

namespace svg_fast {
namespace {

using torch::stable::new_empty, torch::stable::new_zeros;

constexpr int64_t kMostHidden = 512, kMostInStep = int64_t{1} << 31;

// The two ways to run one kernel, with what each block needs of shared memory, and each group of a board.
template <typename P>
struct Kernels {
  void (*mail)(P);
  void (*board)(P);
  uint32_t mail_shared, board_shared, blocks;
  int64_t board_bytes;
};

template <typename T, int kHidden>
Kernels<LayerForward<T>> kernels_for(const LayerForward<T>*) {
  return {lstm_layer_forward<T, kHidden, ForwardMail>,
          lstm_layer_forward<T, kHidden, ForwardBoard>,
          sizeof(ForwardMemory<T, kHidden, ForwardMail>),
          sizeof(ForwardMemory<T, kHidden, ForwardBoard>),
          kBlocks<kHidden>,
          2 * ForwardBoard<kHidden, kStateParts<T>>::kHalves * sizeof(uint16_t)};
}

template <typename T, int kHidden>
Kernels<LayerBackward<T>> kernels_for(const LayerBackward<T>*) {
  return {lstm_layer_backward<T, kHidden, BackwardMail>,
          lstm_layer_backward<T, kHidden, BackwardBoard>,
          sizeof(BackwardMemory<T, kHidden, BackwardMail>),
          sizeof(BackwardMemory<T, kHidden, BackwardBoard>),
          kBlocks<kHidden>,
          2 * kBlocks<kHidden> * static_cast<int64_t>(sizeof(typename BackwardBoard<kHidden>::Parts))};
}

// For the least number of units, of those there are kernels for, that holds `hidden`.
template <typename T, template <typename> typename P>
Kernels<P<T>> kernels_for(const P<T>& p) {
  return p.hidden <= 128   ? kernels_for<T, 128>(&p)
         : p.hidden <= 256 ? kernels_for<T, 256>(&p)
                           : kernels_for<T, 512>(&p);
}

// False where the device does not hold a single group.
template <typename P>
bool run_on_chip(P p, const Tensor& like) {
  const Kernels<P> kernels = kernels_for(p);
  const int chunks = static_cast<int>(divide_up(p.batch, kRows)), blocks = static_cast<int>(kernels.blocks);
  if (chunks == 0) {
    return true;
  }
  LaunchShape shape{dim3(kernels.blocks), dim3(kThreads), kernels.blocks, kernels.mail_shared};
  if (const int clusters = most_at_once(kernels.mail, shape); clusters > 0) {
    shape.grid = dim3(std::min(chunks, clusters) * blocks);
    launch(kernels.mail, shape, current_stream(like), p);
    return true;
  }
  shape = {dim3(kernels.blocks), dim3(kThreads), 1, kernels.board_shared, true};
  const int groups = std::min(chunks, most_at_once(kernels.board, shape) / blocks);
  if (groups == 0) {
    return false;
  }
  const Tensor board = new_empty(like, {groups * kernels.board_bytes}, ScalarType::Byte);
  const Tensor flags = new_zeros(like, {groups}, ScalarType::Int);
  p.meeting = {device_data<void>(board), device_data<uint32_t>(flags)};
  shape.grid = dim3(groups * blocks);
  launch(kernels.board, shape, current_stream(like), p);
  return true;
}

bool stays_on_chip(const Tensor& gates_x, int64_t batch, int64_t hidden) {
  return gates_x.scalar_type() != ScalarType::Double && hidden <= kMostHidden &&
         batch * kGates * hidden < kMostInStep && gates_x.size(0) < kMostInStep;
}

// What the kernels on chip compute with: bfloat16 as it is, everything else as float32.
ScalarType chip_dtype(const Tensor& sequence) {
  return sequence.scalar_type() == ScalarType::BFloat16 ? ScalarType::BFloat16 : ScalarType::Float;
}

struct Results {
  Tensor y, c, gates;
};

template <typename T>
bool forward_on_chip(const Tensor& gates_x, const Tensor& h0, const Tensor& c0, const Tensor& w_hh, const Results& to) {
  const LayerForward<T> p{device_data<const T>(gates_x),  device_data<const float>(h0),
                          device_data<const float>(c0),   device_data<const float>(w_hh),
                          device_data<T>(to.y),           device_data<float>(to.c),
                          device_data<float>(to.gates),   {},
                          static_cast<int>(to.y.size(0)), static_cast<int>(to.y.size(1)),
                          static_cast<int>(to.y.size(2))};
  return run_on_chip(p, gates_x);
}

std::tuple<Tensor, Tensor, Tensor> lstm_layer_fwd(const Tensor& gates_x, const Tensor& h0, const Tensor& c0,
                                                  const Tensor& w_hh) {
  check_layer(gates_x, h0, c0, w_hh);
  const int64_t steps = gates_x.size(0), batch = gates_x.size(1), hidden = h0.size(1);
  const CurrentDevice device(gates_x);
  const ScalarType wide = compute_dtype(gates_x);
  const Tensor h = dense(h0, wide), c = dense(c0, wide), w = dense(w_hh, wide);
  const auto results = [&](ScalarType dtype) {
    return Results{new_empty(gates_x, {steps, batch, hidden}, dtype), new_empty(gates_x, {steps, batch, hidden}, wide),
                   new_empty(gates_x, {steps, batch, kGates * hidden}, wide)};
  };
  if (stays_on_chip(gates_x, batch, hidden)) {
    const ScalarType dtype = chip_dtype(gates_x);
    const Results to = results(dtype);
    const auto run = dtype == ScalarType::BFloat16 ? forward_on_chip<BFloat16> : forward_on_chip<float>;
    if (run(dense(gates_x, dtype), h, c, w, to)) {
      return {converted(to.y, gates_x.scalar_type()), to.c, to.gates};
    }
  }
  const Results to = results(wide);
  const auto run = wide == ScalarType::Double ? stepwise_forward<double> : stepwise_forward<float>;
  run(dense(gates_x, wide), h, c, w, to.y, to.c, to.gates);
  return {converted(to.y, gates_x.scalar_type()), to.c, to.gates};
}

struct Given {
  OptionalTensor dy, dc;
  Tensor gates, c, c0, w_hh;
};

struct Gradients {
  Tensor dgates, dh0, dc0;
};

template <typename T>
bool backward_on_chip(const Given& given, const Gradients& to) {
  const LayerBackward<T> p{device_data_or_null<T>(given.dy),
                           device_data_or_null<float>(given.dc),
                           device_data<const float>(given.gates),
                           device_data<const float>(given.c),
                           device_data<const float>(given.c0),
                           device_data<const float>(given.w_hh),
                           device_data<T>(to.dgates),
                           device_data<float>(to.dh0),
                           device_data<float>(to.dc0),
                           {},
                           static_cast<int>(given.c.size(0)),
                           static_cast<int>(given.c.size(1)),
                           static_cast<int>(given.c.size(2))};
  return run_on_chip(p, given.gates);
}

// The hidden states before every step are those after the step before.
Tensor weight_gradient(const Tensor& dgates, const Tensor& h0, Tensor y) {
  const int64_t steps = y.size(0), rows = steps * y.size(1), hidden = y.size(2);
  Tensor before = new_empty(y, {steps, y.size(1), hidden}, dgates.scalar_type());
  if (steps > 0) {
    Tensor first = torch::stable::select(before, 0, 0), later = torch::stable::narrow(before, 0, 1, steps - 1);
    torch::stable::copy_(first, h0);
    torch::stable::copy_(later, torch::stable::narrow(y, 0, 0, steps - 1));
  }
  const Tensor product = new_empty(dgates, {kGates * hidden, hidden});
  const Tensor flat = torch::stable::view(dgates, {rows, kGates * hidden});
  multiply(torch::stable::transpose(flat, 0, 1), torch::stable::view(before, {rows, hidden}), product);
  return product;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_layer_bwd(const OptionalTensor& dy, const OptionalTensor& dc,
                                                          const Tensor& gates, const Tensor& y, const Tensor& c,
                                                          const Tensor& h0, const Tensor& c0, const Tensor& w_hh) {
  LayerCotangents{dy, dc, gates, y, c, h0, c0, w_hh}.check();
  const int64_t steps = y.size(0), batch = y.size(1), hidden = y.size(2);
  const CurrentDevice device(y);
  const ScalarType wide = compute_dtype(gates);
  const bool fits = stays_on_chip(gates, batch, hidden);
  const ScalarType dtype = fits ? chip_dtype(y) : wide;
  const Given given{dense(dy, dtype), dense(dc, wide), dense(gates, wide),
                    dense(c, wide),   dense(c0, wide), dense(w_hh, wide)};
  Gradients to{new_empty(y, {steps, batch, kGates * hidden}, dtype), new_zeros(y, {batch, hidden}, wide),
               new_zeros(y, {batch, hidden}, wide)};
  const auto run = dtype == ScalarType::BFloat16 ? backward_on_chip<BFloat16> : backward_on_chip<float>;
  if (!fits || !run(given, to)) {
    if (dtype != wide) {
      to.dgates = new_empty(y, {steps, batch, kGates * hidden}, wide);
    }
    const auto run_stepwise = wide == ScalarType::Double ? stepwise_backward<double> : stepwise_backward<float>;
    run_stepwise(dense(dy, wide), given.dc, given.gates, given.c, given.c0, given.w_hh, to.dgates, to.dh0, to.dc0);
  }
  const Tensor dw_hh = weight_gradient(to.dgates, h0, y);
  return {converted(to.dgates, y.scalar_type()), converted(to.dh0, h0.scalar_type()),
          converted(to.dc0, c0.scalar_type()), converted(dw_hh, w_hh.scalar_type())};
}

SVG_CUDA_LIBRARY(m) {
  SVG_KERNEL(m, lstm_layer_fwd);
  SVG_KERNEL(m, lstm_layer_bwd);
}

}  // namespace
}  // namespace svg_fast
