// One step of a whole recurrent net: embedding, LSTM cells, heads and the sample in one call. L layers, B batch, H
// hidden units, I inputs, O outputs of a head. bfloat16, float16 and mixed types are converted to float32 first.
#include "../lstm_net.h"

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>

#include "../signature.h"
#include "../tensors.h"
#include "gaussian.h"
#include "linear.h"
#include "lstm_step.h"
#include "parallel.h"

namespace svg_fast {
namespace {

// x (B, I), dense -> y (B, O)
template <typename T>
Tensor linear(const T* x, const Tensor& w, const Tensor& b, int64_t batch, bool tanh) {
  const LinearFunctions<T>& functions = linear_functions<T>();
  const LinearLayer<T> layer{w.size(1), w.size(0), w.const_data_ptr<T>(), b.const_data_ptr<T>(), tanh};
  const Tensor y = new_tensor<T>({batch, layer.outputs});
  T* data = y.mutable_data_ptr<T>();
  const int64_t blocks = divide_up(layer.outputs, functions.tile_outputs);
  parallel_panels(blocks, batch, functions.tile_rows, 2 * batch * layer.inputs * layer.outputs,
                  [&](int64_t block, int64_t row, int64_t rows) {
                    const int64_t first = block * functions.tile_outputs;
                    functions.forward(layer, x, data, row, rows, first,
                                      std::min(functions.tile_outputs, layer.outputs - first));
                  });
  return y;
}

template <typename T>
Tensor sample(const Tensor& mu, const Tensor& logvar, const LSTMNet& net) {
  const Tensor z = new_tensor<T>(mu.sizes());
  GaussianInputs<T> inputs{};
  inputs.mu = mu.const_data_ptr<T>();
  inputs.logvar = logvar.const_data_ptr<T>();
  const Tensor noise = net.eps ? dense(*net.eps, kType<T>) : dense(*net.seed, ScalarType::Long);
  if (net.eps) {
    inputs.eps = noise.const_data_ptr<T>();
  } else {
    const int64_t* words = noise.const_data_ptr<int64_t>();
    inputs.seed = words[0];
    inputs.offset = words[1];
  }
  const int64_t size = mu.numel();
  for (int64_t first = 0; first < size; first += kGaussianBlock) {
    const GaussianBlock block{first, std::min(kGaussianBlock, size - first)};
    gaussian_passes<T>().forward(inputs, block, z.mutable_data_ptr<T>(), false);
  }
  return z;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensors> forward(const LSTMNet& net) {
  const auto as_T = [](const auto& given) { return dense(given, kType<T>); };
  const int64_t layers = net.h.size(0), batch = net.h.size(1), hidden = net.h.size(2);
  const Tensor x = as_T(net.x);
  const Tensor embedded = linear(x.const_data_ptr<T>(), as_T(net.w_embed), as_T(net.b_embed), batch, false);
  const LSTMStack stack{as_T(net.w_ih), as_T(net.w_hh), as_T(net.b_ih), as_T(net.b_hh)};
  const auto [h_next, c_next] = step_stack<T>(embedded, as_T(net.h), as_T(net.c), stack, nullptr);
  const T* top = h_next.template const_data_ptr<T>() + (layers - 1) * batch * hidden;
  Tensors outputs;
  for (size_t k = 0; k < net.w_head.size(); ++k) {
    outputs.push_back(linear(top, as_T(net.w_head[k]), as_T(net.b_head[k]), batch, net.w_head.size() == 1));
  }
  if (net.sampled()) {
    outputs.push_back(sample<T>(outputs[0], outputs[1], net));
  }
  return {h_next, c_next, outputs};
}

std::tuple<Tensor, Tensor, Tensors> lstm_net_step_fwd(const Tensor& x, const Tensor& h, const Tensor& c,
                                                      const Tensor& w_embed, const Tensor& b_embed, const Tensors& w_ih,
                                                      const Tensors& w_hh, const Tensors& b_ih, const Tensors& b_hh,
                                                      const Tensors& w_head, const Tensors& b_head,
                                                      const OptionalTensor& eps, const OptionalTensor& seed) {
  const LSTMNet net{x, h, c, w_embed, b_embed, w_ih, w_hh, b_ih, b_hh, w_head, b_head, eps, seed};
  net.check();
  auto [h_next, c_next, outputs] = compute_dtype(x) == ScalarType::Double ? forward<double>(net) : forward<float>(net);
  for (Tensor& output : outputs) {
    output = converted(output, x.scalar_type());
  }
  return {converted(h_next, h.scalar_type()), converted(c_next, c.scalar_type()), outputs};
}

STABLE_TORCH_LIBRARY_IMPL(svg_fast, CPU, m) { SVG_KERNEL(m, lstm_net_step_fwd); }

}  // namespace
}  // namespace svg_fast
