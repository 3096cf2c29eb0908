// One step of a recurrent net, or of a stack of LSTM cells alone. L layers, B batch, H hidden units, I inputs, O
// outputs of a head. bfloat16, float16 and mixed types are converted to float32 first, by kernels of their own.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "../lstm_net.h"
#include "../tensors.h"
#include "launch.h"
#include "lstm_step.cuh"

namespace svg_fast {
namespace {

using torch::stable::new_empty, torch::stable::new_zeros;

// Every row at a multiple of 16 bytes.
template <typename... Pointers>
bool vectors(int64_t width, Pointers... rows) {
  constexpr int64_t kBytes = 16, kWidth = kBytes / sizeof(float);
  return width % kWidth == 0 && ((reinterpret_cast<uintptr_t>(rows) % kBytes == 0) && ...);
}

template <typename S>
bool vectors_of_state(const NetStep<S>& p) {
  bool all = vectors(p.hidden, p.embedded, p.h, p.h_next, p.w_head, p.w_second);
  for (int k = 0; k < p.layers; ++k) {
    const bool below_is_state = k > 0 || p.w_embed != nullptr;
    all = all && vectors(p.hidden, p.layer[k].w_hh) && (!below_is_state || vectors(p.hidden, p.layer[k].w_ih));
  }
  return all;
}

template <typename S>
void launch_step(NetStep<S> p, const Tensor& like) {
  if (p.batch == 0) {
    return;
  }
  p.vectors_of_x = vectors(p.inputs, p.x, p.w_embed != nullptr ? p.w_embed : p.layer[0].w_ih);
  p.vectors_of_state = vectors_of_state(p);
  const Tensor arrived = new_zeros(like, {1}, ScalarType::Int);
  p.arrived = device_data<uint32_t>(arrived);
  const int64_t columns = std::max<int64_t>(kGates * p.hidden, p.heads * p.outputs);
  const int64_t tiles = divide_up(p.batch, kTile) * divide_up(std::max<int64_t>(columns, 1), kTile);
  LaunchShape shape{.grid = {1}, .block = {kStepThreads}, .cooperative = true};
  shape.grid = dim3(static_cast<uint32_t>(std::min<int64_t>(tiles, most_at_once(lstm_net_step<S>, shape))));
  launch(lstm_net_step<S>, shape, current_stream(like), p);
}

// The parameters of L cells, dense and of the dtype that is computed in.
struct Cells {
  Tensors w_ih, w_hh, b_ih, b_hh;
};

template <typename S>
void set_layers(NetStep<S>& p, const Cells& cells, size_t first, size_t count) {
  for (size_t k = 0; k < count; ++k) {
    p.layer[k] = {device_data<const S>(cells.w_ih[first + k]), device_data<const S>(cells.w_hh[first + k]),
                  device_data<const S>(cells.b_ih[first + k]), device_data<const S>(cells.b_hh[first + k])};
  }
  p.layers = static_cast<int>(count);
}

// As many launches as it takes for all layers: the first one begins with what `p` has of an embedding, the last one
// ends with its heads. `p` has everything but the layers.
template <typename S>
void run(const NetStep<S>& p, const Cells& cells, const Tensor& like) {
  const size_t layers = cells.w_ih.size();
  for (size_t first = 0; first < layers; first += kMostStepLayers) {
    const size_t count = std::min<size_t>(kMostStepLayers, layers - first);
    const int64_t at = static_cast<int64_t>(first) * p.batch * p.hidden;
    NetStep<S> part = p;
    set_layers(part, cells, first, count);
    if (first > 0) {
      part.x = p.h_next + at - p.batch * p.hidden;
      part.inputs = p.hidden;
      part.w_embed = nullptr;
    }
    part.h += at;
    part.c += at;
    part.h_next += at;
    part.c_next += at;
    part.gates = p.gates == nullptr ? nullptr : p.gates + kGates * at;
    part.heads = first + count == layers ? p.heads : 0;
    launch_step(part, like);
  }
}

template <typename S>
NetStep<S> step_of(const Tensor& x, const Tensor& h, const Tensor& c, const Tensor& h_next, const Tensor& c_next) {
  NetStep<S> p{};
  p.x = device_data<const S>(x);
  p.h = device_data<const S>(h);
  p.c = device_data<const S>(c);
  p.h_next = device_data<S>(h_next);
  p.c_next = device_data<S>(c_next);
  p.batch = static_cast<int>(h.size(1));
  p.inputs = static_cast<int>(x.size(1));
  p.hidden = static_cast<int>(h.size(2));
  return p;
}

template <typename S>
std::tuple<Tensor, Tensor, Tensor> step_cells(const Tensor& x, const Tensor& h, const Tensor& c, const Cells& cells) {
  const Tensor h_next = new_empty(h, h.sizes()), c_next = new_empty(h, h.sizes());
  const Tensor gates = new_empty(h, {h.size(0), h.size(1), kGates * h.size(2)});
  NetStep<S> p = step_of<S>(x, h, c, h_next, c_next);
  p.gates = device_data<S>(gates);
  run(p, cells, x);
  return {h_next, c_next, gates};
}

std::tuple<Tensor, Tensor, Tensor> lstm_step_fwd(const Tensor& x, const Tensor& h, const Tensor& c, const Tensors& w_ih,
                                                 const Tensors& w_hh, const Tensors& b_ih, const Tensors& b_hh) {
  check_states(x, h, c);
  check_matrices("w_ih", w_ih, h, x.size(1));
  check_matrices("w_hh", w_hh, h, h.size(2));
  check_biases("b_ih", b_ih, h);
  check_biases("b_hh", b_hh, h);
  const CurrentDevice device(x);
  const ScalarType dtype = compute_dtype(x);
  const Cells cells{dense(w_ih, dtype), dense(w_hh, dtype), dense(b_ih, dtype), dense(b_hh, dtype)};
  const auto step = dtype == ScalarType::Double ? step_cells<double> : step_cells<float>;
  const auto [h_next, c_next, gates] = step(dense(x, dtype), dense(h, dtype), dense(c, dtype), cells);
  return {converted(h_next, h.scalar_type()), converted(c_next, c.scalar_type()), gates};
}

// Where the noise of a sample comes from, on the device.
template <typename S>
Tensor set_noise(NetStep<S>& p, const LSTMNet& net) {
  if (net.eps) {
    const Tensor eps = dense(*net.eps, kType<S>);
    p.eps = device_data<const S>(eps);
    return eps;
  }
  const auto device = net.x.device();
  const Tensor here =
      net.seed->device() == device ? *net.seed : torch::stable::to(*net.seed, device, /*non_blocking=*/true);
  const Tensor seed = dense(here, ScalarType::Long);
  p.seed = device_data<const int64_t>(seed);
  return seed;
}

template <typename S>
std::tuple<Tensor, Tensor, Tensors> step_net(const LSTMNet& net) {
  const auto as_S = [](const auto& given) { return dense(given, kType<S>); };
  const Tensor x = as_S(net.x), h = as_S(net.h), c = as_S(net.c), w_embed = as_S(net.w_embed);
  const Tensor b_embed = as_S(net.b_embed);
  const Cells cells{as_S(net.w_ih), as_S(net.w_hh), as_S(net.b_ih), as_S(net.b_hh)};
  const Tensors w_head = as_S(net.w_head), b_head = as_S(net.b_head);
  const Tensor h_next = new_empty(h, h.sizes()), c_next = new_empty(h, h.sizes());
  const Tensor embedded = new_empty(h, {h.size(1), h.size(2)});
  NetStep<S> p = step_of<S>(x, h, c, h_next, c_next);
  p.w_embed = device_data<const S>(w_embed);
  p.b_embed = device_data<const S>(b_embed);
  p.embedded = device_data<S>(embedded);
  p.heads = static_cast<int>(w_head.size());
  p.outputs = static_cast<int>(w_head[0].size(0));
  p.w_head = device_data<const S>(w_head[0]);
  p.b_head = device_data<const S>(b_head[0]);
  Tensors outputs;
  for (size_t k = 0; k < w_head.size() + net.sampled(); ++k) {
    outputs.push_back(new_empty(h, {h.size(1), w_head[0].size(0)}));
  }
  p.output = device_data<S>(outputs[0]);
  Tensor noise;
  if (p.heads == 2) {
    p.w_second = device_data<const S>(w_head[1]);
    p.b_second = device_data<const S>(b_head[1]);
    p.second_output = device_data<S>(outputs[1]);
  }
  if (net.sampled()) {
    noise = set_noise(p, net);
    p.sample = device_data<S>(outputs[2]);
  }
  run(p, cells, x);
  return {h_next, c_next, outputs};
}

std::tuple<Tensor, Tensor, Tensors> lstm_net_step_fwd(const Tensor& x, const Tensor& h, const Tensor& c,
                                                      const Tensor& w_embed, const Tensor& b_embed, const Tensors& w_ih,
                                                      const Tensors& w_hh, const Tensors& b_ih, const Tensors& b_hh,
                                                      const Tensors& w_head, const Tensors& b_head,
                                                      const OptionalTensor& eps, const OptionalTensor& seed) {
  const LSTMNet net{x, h, c, w_embed, b_embed, w_ih, w_hh, b_ih, b_hh, w_head, b_head, eps, seed};
  net.check();
  const CurrentDevice device(x);
  const auto step = compute_dtype(x) == ScalarType::Double ? step_net<double> : step_net<float>;
  auto [h_next, c_next, outputs] = step(net);
  for (Tensor& output : outputs) {
    output = converted(output, x.scalar_type());
  }
  return {converted(h_next, h.scalar_type()), converted(c_next, c.scalar_type()), outputs};
}

SVG_CUDA_LIBRARY(m) {
  SVG_KERNEL(m, lstm_step_fwd);
  SVG_KERNEL(m, lstm_net_step_fwd);
}

}  // namespace
}  // namespace svg_fast
