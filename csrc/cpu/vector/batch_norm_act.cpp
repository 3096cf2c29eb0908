// A tile is walked in vectors; what is done to each of them is written once for both layouts.
#include "../batch_norm_act.h"

#include <cmath>

#include "../vec_math.h"

namespace svg_fast::SVG_ISA {
namespace {

template <typename T>
struct VectorMath {
  static SVG_INLINE Vec<T> hyperbolic_tangent(Vec<T> x) { return svg_fast::SVG_ISA::hyperbolic_tangent<T>(x); }
};

template <typename T>
SVG_INLINE Vec<T> first_lanes(Vec<T> v, int64_t n) {
  return load_part(reinterpret_cast<const T*>(&v), n);
}

// A walk visits all values of a few channels of a tile, a vector at a time: visit(k, at, lanes) gets the number
// k < kVectors of the sums that the vector adds to, its offset, and how many of its lanes hold values. It finishes
// sums, and takes parameters from and puts results into arrays of all channels.

// Channels last: some vectors of channels, down the rows.
template <typename T, int kWidth>
struct LastWalk {
  static constexpr int kVectors = kWidth;
  const NormTile& tile;
  int64_t channel, lanes;

  template <typename Visit>
  SVG_INLINE void each(Visit visit) const {
    for (int64_t row = 0; row < tile.rows; ++row) {
#pragma GCC unroll 4
      for (int k = 0; k < kVectors; ++k) {
        visit(k, row * tile.channels + channel + k * kLanes<T>, lanes);
      }
    }
  }

  // Each lane is a channel of its own.
  SVG_INLINE void finish(Vec<T> (&)[kVectors]) const {}

  SVG_INLINE void take(const T* values, Vec<T> (&v)[kVectors]) const {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      v[k] = load_part(values + channel + k * kLanes<T>, lanes);
    }
  }

  SVG_INLINE void put(T* values, const Vec<T> (&v)[kVectors]) const {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      store_part(values + channel + k * kLanes<T>, v[k], lanes);
    }
  }
};

// Channels first: one channel, along its runs; sums side by side, so that none waits for the one before.
template <typename T>
struct FirstWalk {
  static constexpr int kVectors = 4;
  const NormTile& tile;
  int64_t channel;

  template <typename Visit>
  SVG_INLINE void each(Visit visit) const {
    for (int64_t row = 0; row < tile.rows; ++row) {
      int64_t at = (row * tile.channels + channel) * tile.run, left = tile.run;
      for (; left >= kVectors * kLanes<T>; left -= kVectors * kLanes<T>, at += kVectors * kLanes<T>) {
#pragma GCC unroll 4
        for (int k = 0; k < kVectors; ++k) {
          visit(k, at + k * kLanes<T>, kLanes<T>);
        }
      }
      for (; left >= kLanes<T>; left -= kLanes<T>, at += kLanes<T>) {
        visit(0, at, kLanes<T>);
      }
      if (left > 0) {
        visit(0, at, left);
      }
    }
  }

  // All lanes are one channel's.
  SVG_INLINE void finish(Vec<T> (&sum)[kVectors]) const {
    const T total = sum_lanes<T>((sum[0] + sum[1]) + (sum[2] + sum[3]));
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      sum[k] = broadcast(total);
    }
  }

  SVG_INLINE void take(const T* values, Vec<T> (&v)[kVectors]) const {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      v[k] = broadcast(values[channel]);
    }
  }

  SVG_INLINE void put(T* values, const Vec<T> (&v)[kVectors]) const { values[channel] = v[0][0]; }
};

// Calls `act` with walks over all channels of a tile.
template <typename T, typename Act>
SVG_INLINE void for_each_walk(const NormTile& tile, Act act) {
  constexpr int kWidth = 4;
  int64_t channel = tile.first_channel;
  if (tile.run > 1) {
    for (; channel < tile.last_channel; ++channel) {
      act(FirstWalk<T>{tile, channel});
    }
    return;
  }
  for (; channel + kWidth * kLanes<T> <= tile.last_channel; channel += kWidth * kLanes<T>) {
    act(LastWalk<T, kWidth>{tile, channel, kLanes<T>});
  }
  if (tile.last_channel - tile.first_channel < kLanes<T>) {
    act(LastWalk<T, 1>{tile, channel, tile.last_channel - channel});
    return;
  }
  for (; channel < tile.last_channel; channel += kLanes<T>) {
    // the last vector may begin among the channels of the one before, and does them again
    const int64_t latest = tile.last_channel - kLanes<T>;
    act(LastWalk<T, 1>{tile, channel < latest ? channel : latest, kLanes<T>});
  }
}

template <typename T>
[[gnu::flatten]] void moments(const NormTile& tile, const T* x, T* moments) {
  const T count = static_cast<T>(tile.rows * tile.run);
  for_each_walk<T>(tile, [=]<typename Walk>(const Walk& walk) {
    Vec<T> shift[Walk::kVectors] = {}, sum[Walk::kVectors] = {}, square[Walk::kVectors] = {};
    walk.each([&](int k, int64_t at, int64_t lanes) { shift[k] += load_part(x + at, lanes); });
    walk.finish(shift);
    for (Vec<T>& v : shift) {
      v /= count;
    }
    walk.each([&](int k, int64_t at, int64_t lanes) {
      const Vec<T> centred = first_lanes<T>(load_part(x + at, lanes) - shift[k], lanes);
      sum[k] += centred;
      square[k] += centred * centred;
    });
    walk.finish(sum);
    walk.finish(square);
    walk.put(moments, shift);
    walk.put(moments + tile.channels, sum);
    walk.put(moments + 2 * tile.channels, square);
  });
}

template <Activation kActivation>
struct Kind {
  static constexpr Activation value = kActivation;
};

template <typename Act>
SVG_INLINE void with_activation(Activation activation, Act act) {
  switch (activation) {
    case Activation::kLeakyReLU:
      return act(Kind<Activation::kLeakyReLU>{});
    case Activation::kTanh:
      return act(Kind<Activation::kTanh>{});
    case Activation::kIdentity:
      return act(Kind<Activation::kIdentity>{});
  }
}

// The parameters of a walk's channels, in registers.
template <typename T, int kVectors>
struct Channels {
  Vec<T> mean[kVectors], scale[kVectors], bias[kVectors];

  template <typename Walk>
  SVG_INLINE Channels(const Walk& walk, const NormParameters<T>& parameters) {
    walk.take(parameters.mean, mean);
    walk.take(parameters.scale, scale);
    walk.take(parameters.bias, bias);
  }
};

template <typename T>
[[gnu::flatten]] void normalise(const NormTile& tile, const NormParameters<T>& parameters, const T* x, T* y) {
  with_activation(parameters.activation, [&]<typename Kind>(Kind) {
    for_each_walk<T>(tile, [&]<typename Walk>(const Walk& walk) {
      const Channels<T, Walk::kVectors> of(walk, parameters);
      const T negative_slope = parameters.negative_slope;
      walk.each([&](int k, int64_t at, int64_t lanes) {
        const Vec<T> z = pre_activation(load_part(x + at, lanes) - of.mean[k], of.scale[k], of.bias[k]);
        store_part(y + at, activate<Kind::value, VectorMath<T>>(z, negative_slope), lanes);
      });
    });
  });
}

// Visits dz and x - mean, and the scale.
template <Activation kActivation, typename T, typename Walk, typename Visit>
SVG_INLINE void each_gradient(const Walk& walk, const NormParameters<T>& parameters, const T* dy, const T* x,
                              Visit visit) {
  const Channels<T, Walk::kVectors> of(walk, parameters);
  const T negative_slope = parameters.negative_slope;
  walk.each([&](int k, int64_t at, int64_t lanes) {
    const Vec<T> centred = load_part(x + at, lanes) - of.mean[k];
    const Vec<T> z = pre_activation(centred, of.scale[k], of.bias[k]);
    const Vec<T> dz = activate_backward<kActivation, VectorMath<T>>(load_part(dy + at, lanes), z, negative_slope);
    visit(k, at, lanes, dz, centred, of.scale[k]);
  });
}

template <typename T>
[[gnu::flatten]] void sums(const NormTile& tile, const NormParameters<T>& parameters, const T* dy, const T* x,
                           T* sums) {
  with_activation(parameters.activation, [&]<typename Kind>(Kind) {
    for_each_walk<T>(tile, [&]<typename Walk>(const Walk& walk) {
      Vec<T> sum[Walk::kVectors] = {}, product[Walk::kVectors] = {};
      each_gradient<Kind::value>(walk, parameters, dy, x,
                                 [&](int k, int64_t, int64_t, Vec<T> dz, Vec<T> centred, Vec<T>) {
                                   sum[k] += dz;
                                   product[k] += dz * centred;
                                 });
      walk.finish(sum);
      walk.finish(product);
      walk.put(sums, sum);
      walk.put(sums + tile.channels, product);
    });
  });
}

template <typename T>
[[gnu::flatten]] void input_gradient(const NormTile& tile, const NormParameters<T>& parameters, const T* dx_slope,
                                     const T* dx_offset, const T* dy, const T* x, T* dx) {
  with_activation(parameters.activation, [&]<typename Kind>(Kind) {
    for_each_walk<T>(tile, [&]<typename Walk>(const Walk& walk) {
      Vec<T> slope[Walk::kVectors], offset[Walk::kVectors];
      walk.take(dx_slope, slope);
      walk.take(dx_offset, offset);
      each_gradient<Kind::value>(
          walk, parameters, dy, x, [&](int k, int64_t at, int64_t lanes, Vec<T> dz, Vec<T> centred, Vec<T> scale) {
            store_part(dx + at, normalise_backward(dz, centred, scale, slope[k], offset[k]), lanes);
          });
    });
  });
}

SVG_INLINE int64_t values_of_tile(const NormCounts& counts, int64_t tile) {
  const int64_t left = counts.step - tile * counts.tile;
  return left < counts.tile ? left : counts.tile;
}

constexpr int64_t kGroup = 32;  // channels whose sums over the tiles advance together

template <typename T>
void statistics(const NormCounts& counts, int64_t begin, int64_t end, const T* moments, T* mean, T* var) {
  const int64_t tiles = (counts.step + counts.tile - 1) / counts.tile;
  for (int64_t first = begin; first < end; first += kGroup) {
    const int64_t n = end - first < kGroup ? end - first : kGroup;
    double centre[kGroup] = {}, squares[kGroup] = {};
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const T *shift = moments + 3 * tile * counts.channels + first, *sum = shift + counts.channels;
      const double count = values_of_tile(counts, tile);
      for (int64_t c = 0; c < n; ++c) {
        centre[c] += count * shift[c] + sum[c];
      }
    }
    for (int64_t c = 0; c < n; ++c) {
      centre[c] /= counts.step;
    }
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const T *shift = moments + 3 * tile * counts.channels + first, *sum = shift + counts.channels;
      const T* square = sum + counts.channels;
      const double count = values_of_tile(counts, tile);
      for (int64_t c = 0; c < n; ++c) {
        const double apart = shift[c] - centre[c];  // the sum of (x - shift + apart)^2
        squares[c] += square[c] + apart * (2 * static_cast<double>(sum[c]) + count * apart);
      }
    }
    for (int64_t c = 0; c < n; ++c) {
      mean[first + c] = static_cast<T>(centre[c]);
      var[first + c] = static_cast<T>((squares[c] < 0 ? 0 : squares[c]) / counts.step);  // below zero by rounding
    }
  }
}

SVG_INLINE double inverse_std(double var, double eps) { return 1 / std::sqrt(var + eps); }

template <typename T>
void scale(int64_t n, const T* weight, const T* var, double eps, T* scale) {
  for (int64_t c = 0; c < n; ++c) {
    scale[c] = static_cast<T>(weight[c] * inverse_std(var[c], eps));
  }
}

template <typename T>
void gradients(const NormCounts& counts, int64_t begin, int64_t end, const T* sums, const T* scale, const T* var,
               double eps, const NormGradients<T>& gradients) {
  const int64_t tiles = (counts.step + counts.tile - 1) / counts.tile;
  for (int64_t first = begin; first < end; first += kGroup) {
    const int64_t n = end - first < kGroup ? end - first : kGroup;
    double sum[kGroup] = {}, product[kGroup] = {};
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const T *tile_sum = sums + 2 * tile * counts.channels + first, *tile_product = tile_sum + counts.channels;
      for (int64_t c = 0; c < n; ++c) {
        sum[c] += tile_sum[c];
        product[c] += tile_product[c];
      }
    }
    for (int64_t c = 0; c < n; ++c) {
      const int64_t at = first + c;
      const auto channel =
          channel_gradient<double>(sum[c], product[c], scale[at], inverse_std(var[at], eps), counts.step);
      gradients.dweight[at] = channel.dweight;
      gradients.dbias[at] = channel.dbias;
      gradients.dx_slope[at] = static_cast<T>(channel.dx_slope);
      gradients.dx_offset[at] = static_cast<T>(channel.dx_offset);
    }
  }
}

template <typename T>
constexpr BatchNormActFunctions<T> kFunctions{moments<T>, statistics<T>, scale<T>,         normalise<T>,
                                              sums<T>,    gradients<T>,  input_gradient<T>};

}  // namespace

const BatchNormActKernels batch_norm_act_kernels{kFunctions<float>, kFunctions<double>};

}  // namespace svg_fast::SVG_ISA
