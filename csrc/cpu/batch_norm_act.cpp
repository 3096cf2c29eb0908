// BatchNorm with statistics per time step and an activation. G steps of N images, C channels.
#include "batch_norm_act.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>

#include "../signature.h"
#include "../tensors.h"
#include "parallel.h"

namespace svg_fast {
namespace {

using torch::stable::copy_, torch::stable::empty_like, torch::stable::parallel_for;

// Values of a channel in a tile, channels last and first: many, so that its sums are little beside it; few enough that
// the second look at it, for the squares, finds it in the cache.
constexpr int64_t kTileValuesLast = 128, kTileValuesFirst = 1024;
constexpr int64_t kTaskValues = 1 << 14;  // some microseconds of work: longer than handing it to a thread takes
constexpr int64_t kVectorChannels = 64;   // channels that a walk down the rows takes at once, or a multiple of that
constexpr int64_t kGroup = 32;            // channels whose sums are put together by one thread
// A step of this many bytes leaves room for another tensor in a core's own cache: one thread takes it alone.
constexpr int64_t kStepBytes = 1 << 20;

// Strides along dimensions of size one say nothing.
bool lies_as(const Tensor& x, const std::array<int64_t, 4>& strides) {
  for (int64_t k = 0; k < 4; ++k) {
    if (x.size(k) > 1 && x.stride(k) != strides[k]) {
      return false;
    }
  }
  return true;
}

// How the values of x, which is not empty, lie in memory, and how a step is cut up: by its shape alone, so that no sum
// depends on the number of threads.
struct Geometry {
  int64_t steps, channels, rows, run;  // see NormTile
  int64_t tile_rows, tiles;
  int64_t unit_channels, units_per_tile;  // a unit: some channels of a tile
  bool small_steps;  // each step is one thread's alone; else they come one after another, shared by all threads

  Geometry(const Tensor& x, int64_t n_steps) : steps(n_steps), channels(x.size(1)) {
    const int64_t images = x.size(0) / steps, width = x.size(3), map = x.size(2) * width;
    const bool last = lies_as(x, {map * channels, 1, width * channels, channels});
    STD_TORCH_CHECK(last || lies_as(x, {map * channels, map, width, 1}),
                    "x must be contiguous or channels_last in memory, got shape ", shape_text(x.sizes()), ", strides ",
                    shape_text(x.strides()));
    rows = last ? images * map : images;
    run = last ? 1 : map;
    tile_rows = std::min(rows, std::max<int64_t>(1, (last ? kTileValuesLast : kTileValuesFirst) / run));
    tiles = divide_up(rows, tile_rows);
    const int64_t together = last ? kVectorChannels : 1;
    unit_channels = std::min(channels, divide_up(kTaskValues / (tile_rows * run), together) * together);
    units_per_tile = divide_up(channels, unit_channels);
    small_steps = steps > 1 && step_values() * static_cast<int64_t>(x.element_size()) <= kStepBytes;
  }

  int64_t row_values() const { return channels * run; }
  int64_t step_values() const { return rows * row_values(); }
  int64_t unit_values() const { return tile_rows * run * unit_channels; }
  int64_t steps_at_once() const { return small_steps ? steps : 1; }
  NormCounts counts() const { return {channels, rows * run, tile_rows * run}; }
};

// How many pieces of so many values make a task.
int64_t pieces_of_a_task(int64_t values) { return std::max<int64_t>(1, kTaskValues / values); }

// Calls act(step, slot), with no slot < steps_at_once() twice at the same time.
template <typename Act>
void for_each_step(const Geometry& g, const Act& act) {
  if (g.small_steps) {
    parallel_for(0, g.steps, pieces_of_a_task(g.step_values()), [&](int64_t begin, int64_t end) {
      for (int64_t step = begin; step < end; ++step) {
        act(step, step);
      }
    });
  } else {
    for (int64_t step = 0; step < g.steps; ++step) {
      act(step, 0);
    }
  }
}

// Downwards, a thread begins with what it saw last, which may still be in its cache.
enum class Order { kUpwards, kDownwards };

// Calls act(part of a tile, the tile's number, where its values begin) for all of a step.
template <typename Act>
void for_each_unit(const Geometry& g, Order order, const Act& act) {
  parallel_for(0, g.tiles * g.units_per_tile, pieces_of_a_task(g.unit_values()), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t unit = order == Order::kUpwards ? k : begin + end - 1 - k;
      const int64_t tile = unit / g.units_per_tile, row = tile * g.tile_rows;
      const int64_t channel = unit % g.units_per_tile * g.unit_channels;
      act(NormTile{std::min(g.tile_rows, g.rows - row), g.channels, g.run, channel,
                   std::min(channel + g.unit_channels, g.channels)},
          tile, row * g.row_values());
    }
  });
}

// Calls act(begin, end) for ranges of a step's channels.
template <typename Act>
void for_each_group(const Geometry& g, const Act& act) {
  parallel_for(0, divide_up(g.channels, kGroup), pieces_of_a_task(kGroup * g.tiles),
               [&](int64_t begin, int64_t end) { act(begin * kGroup, std::min(end * kGroup, g.channels)); });
}

template <typename T>
const BatchNormActFunctions<T>& kernels() {
  if constexpr (std::is_same_v<T, float>) {
    return batch_norm_act_kernels().float32;
  } else {
    return batch_norm_act_kernels().float64;
  }
}

struct Options {
  Activation activation;
  double negative_slope, eps;
};

template <typename T>
void forward(const Geometry& g, const Options& options, const Tensor& x, const Tensor& weight, const Tensor& bias,
             const Tensor& y, const Tensor& mean, const Tensor& var) {
  const int64_t C = g.channels, moments_size = g.tiles * 3 * C;
  const auto moments_of_slots = std::make_unique_for_overwrite<T[]>(g.steps_at_once() * moments_size);
  const auto scales = std::make_unique_for_overwrite<T[]>(g.steps_at_once() * C);
  const T *xs = x.const_data_ptr<T>(), *weights = weight.const_data_ptr<T>(), *biases = bias.const_data_ptr<T>();
  T *ys = y.mutable_data_ptr<T>(), *means = mean.mutable_data_ptr<T>(), *vars = var.mutable_data_ptr<T>();
  for_each_step(g, [&](int64_t step, int64_t slot) {
    const T* x_t = xs + step * g.step_values();
    T *y_t = ys + step * g.step_values(), *mean_t = means + step * C, *var_t = vars + step * C;
    T *moments = moments_of_slots.get() + slot * moments_size, *scale = scales.get() + slot * C;
    for_each_unit(g, Order::kUpwards, [&](const NormTile& part, int64_t tile, int64_t at) {
      kernels<T>().moments(part, x_t + at, moments + tile * 3 * C);
    });
    for_each_group(g, [&](int64_t begin, int64_t end) {
      kernels<T>().statistics(g.counts(), begin, end, moments, mean_t, var_t);
      kernels<T>().scale(end - begin, weights + begin, var_t + begin, options.eps, scale + begin);
    });
    const NormParameters<T> parameters{options.activation, static_cast<T>(options.negative_slope), mean_t, scale,
                                       biases};
    for_each_unit(g, Order::kDownwards, [&](const NormTile& part, int64_t, int64_t at) {
      kernels<T>().normalise(part, parameters, x_t + at, y_t + at);
    });
  });
}

// The steps' gradients (G, 2, C) of weight and bias -> their sums.
template <typename T>
void sum_steps(const Geometry& g, const double* gradients, const Tensor& dweight, const Tensor& dbias) {
  T *dweights = dweight.mutable_data_ptr<T>(), *dbiases = dbias.mutable_data_ptr<T>();
  for (int64_t c = 0; c < g.channels; ++c) {
    double weight_sum = 0, bias_sum = 0;
    for (int64_t step = 0; step < g.steps; ++step) {
      weight_sum += gradients[2 * step * g.channels + c];
      bias_sum += gradients[(2 * step + 1) * g.channels + c];
    }
    dweights[c] = static_cast<T>(weight_sum);
    dbiases[c] = static_cast<T>(bias_sum);
  }
}

template <typename T>
void backward(const Geometry& g, const Options& options, const Tensor& dy, const Tensor& x, const Tensor& weight,
              const Tensor& bias, const Tensor& mean, const Tensor& var, const Tensor& dx, const Tensor& dweight,
              const Tensor& dbias) {
  const int64_t C = g.channels, sums_size = g.tiles * 2 * C;
  const auto sums_of_slots = std::make_unique_for_overwrite<T[]>(g.steps_at_once() * sums_size);
  const auto channels_of_slots = std::make_unique_for_overwrite<T[]>(g.steps_at_once() * 3 * C);
  const auto gradients = std::make_unique_for_overwrite<double[]>(g.steps * 2 * C);
  const T *dys = dy.const_data_ptr<T>(), *xs = x.const_data_ptr<T>(), *weights = weight.const_data_ptr<T>();
  const T *biases = bias.const_data_ptr<T>(), *means = mean.const_data_ptr<T>(), *vars = var.const_data_ptr<T>();
  T* dxs = dx.mutable_data_ptr<T>();
  for_each_step(g, [&](int64_t step, int64_t slot) {
    const T *dy_t = dys + step * g.step_values(), *x_t = xs + step * g.step_values(), *var_t = vars + step * C;
    T *dx_t = dxs + step * g.step_values(), *sums = sums_of_slots.get() + slot * sums_size;
    T *scale = channels_of_slots.get() + slot * 3 * C, *dx_slope = scale + C, *dx_offset = dx_slope + C;
    double *dweight_t = gradients.get() + step * 2 * C, *dbias_t = dweight_t + C;
    kernels<T>().scale(C, weights, var_t, options.eps, scale);
    const NormParameters<T> parameters{options.activation, static_cast<T>(options.negative_slope), means + step * C,
                                       scale, biases};
    for_each_unit(g, Order::kUpwards, [&](const NormTile& part, int64_t tile, int64_t at) {
      kernels<T>().sums(part, parameters, dy_t + at, x_t + at, sums + tile * 2 * C);
    });
    for_each_group(g, [&](int64_t begin, int64_t end) {
      kernels<T>().gradients(g.counts(), begin, end, sums, scale, var_t, options.eps,
                             {dweight_t, dbias_t, dx_slope, dx_offset});
    });
    for_each_unit(g, Order::kDownwards, [&](const NormTile& part, int64_t, int64_t at) {
      kernels<T>().input_gradient(part, parameters, dx_slope, dx_offset, dy_t + at, x_t + at, dx_t + at);
    });
  });
  sum_steps<T>(g, gradients.get(), dweight, dbias);
}

Options check_options(const Tensor& x, int64_t steps, const std::string& activation, double negative_slope,
                      double eps) {
  check_rank("x", x, 4);
  check_at_least("steps", steps, 1);
  STD_TORCH_CHECK(x.size(0) % steps == 0, "dimension 0 of x must be a multiple of steps, got ", x.size(0),
                  " images for ", steps, " steps");
  constexpr std::pair<const char*, Activation> kActivations[] = {
      {"leaky_relu", Activation::kLeakyReLU}, {"tanh", Activation::kTanh}, {"identity", Activation::kIdentity}};
  for (const auto& [name, kind] : kActivations) {
    if (activation == name) {
      return {kind, negative_slope, eps};
    }
  }
  STD_TORCH_CHECK(false, "activation must be one of leaky_relu, tanh, identity, got ", activation);
}

Tensor zeros_as(ScalarType dtype, std::initializer_list<int64_t> sizes) {
  return dtype == ScalarType::Double ? new_zeros<double>(sizes) : new_zeros<float>(sizes);
}

// In x's dtype and order in memory.
Tensor lying_like(const Tensor& tensor, const Tensor& x) {
  const auto strides = x.strides();
  if (tensor.scalar_type() == x.scalar_type() && lies_as(tensor, {strides[0], strides[1], strides[2], strides[3]})) {
    return tensor;
  }
  Tensor copy = empty_like(x);
  return copy_(copy, tensor);
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act_fwd(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                      int64_t steps, StringHandle activation, double negative_slope,
                                                      double eps) {
  const Options options = check_options(x, steps, take_string(activation), negative_slope, eps);
  const int64_t channels = x.size(1);
  check_shape("weight", weight, {channels});
  check_shape("bias", bias, {channels});
  const ScalarType dtype = compute_dtype(x);
  const Tensor wide = converted(x, dtype), y = empty_like(wide);
  const Tensor mean = zeros_as(dtype, {steps, channels}), var = zeros_as(dtype, {steps, channels});
  if (x.numel() > 0) {
    const auto compute = dtype == ScalarType::Double ? forward<double> : forward<float>;
    compute(Geometry(wide, steps), options, wide, dense(weight, dtype), dense(bias, dtype), y, mean, var);
  }
  return {converted(y, x.scalar_type()), mean, var};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act_bwd(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                                      const Tensor& bias, const Tensor& mean, const Tensor& var,
                                                      int64_t steps, StringHandle activation, double negative_slope,
                                                      double eps) {
  const Options options = check_options(x, steps, take_string(activation), negative_slope, eps);
  const int64_t channels = x.size(1);
  check_shape("dy", dy, {x.size(0), channels, x.size(2), x.size(3)});
  check_shape("weight", weight, {channels});
  check_shape("bias", bias, {channels});
  check_shape("mean", mean, {steps, channels});
  check_shape("var", var, {steps, channels});
  const ScalarType dtype = compute_dtype(x);
  const Tensor wide = converted(x, dtype), dx = empty_like(wide);
  const Tensor dweight = zeros_as(dtype, {channels}), dbias = zeros_as(dtype, {channels});
  if (x.numel() > 0) {
    const auto compute = dtype == ScalarType::Double ? backward<double> : backward<float>;
    compute(Geometry(wide, steps), options, lying_like(dy, wide), wide, dense(weight, dtype), dense(bias, dtype),
            dense(mean, dtype), dense(var, dtype), dx, dweight, dbias);
  }
  return {converted(dx, x.scalar_type()), converted(dweight, weight.scalar_type()),
          converted(dbias, weight.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(svg_fast, CPU, m) {
  SVG_KERNEL(m, batch_norm_act_fwd);
  SVG_KERNEL(m, batch_norm_act_bwd);
}

}  // namespace
}  // namespace svg_fast
