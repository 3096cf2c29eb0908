// The passes over one block: one loop forward and one backward, with and without sample, KL and learned prior.
#include "../gaussian.h"

#include "../../gaussian.h"
#include "../normal_noise.h"

namespace svg_fast::SVG_ISA {
namespace {

template <typename T>
struct VectorMath {
  static SVG_INLINE Vec<T> exponential(Vec<T> x) { return svg_fast::SVG_ISA::exponential<T>(x); }
};

// visit(k, lanes) for each vector of a block: it begins at k, and has all its lanes but at the block's end.
template <typename T, typename Visit>
SVG_INLINE void each_vector(int64_t size, const Visit& visit) {
  int64_t k = 0;
  for (; k + kLanes<T> <= size; k += kLanes<T>) {
    visit(k, kLanes<T>);
  }
  if (k < size) {
    visit(k, size - k);
  }
}

constexpr int64_t kNoiseRoom = kGaussianBlock + kNoiseStep;

// The noise of a block: what was given, or drawn into `room`, from the counter on that its first element belongs to.
template <typename T>
const T* noise_of(const GaussianInputs<T>& in, GaussianBlock block, T* room) {
  if (in.eps != nullptr) {
    return in.eps + block.first;
  }
  const int64_t before = block.first % 4;
  draw_normal(in.seed, in.offset, block.first / 4, before + block.size, room);
  return room + before;
}

template <typename T>
SVG_INLINE Gaussian<Vec<T>> load_gaussian(const T* mu, const T* logvar, int64_t at, int64_t lanes) {
  return {load_part(mu + at, lanes), load_part(logvar + at, lanes)};
}

template <typename T>
SVG_INLINE void store_result(T* p, Vec<T> v, int64_t lanes, bool large) {
  if (large && lanes == kLanes<T>) {
    store_streaming(p, v);
  } else {
    store_part(p, v, lanes);
  }
}

// Lanes beyond the end are standard normal and add nothing to the KL.
template <bool kSample, bool kKL, bool kPrior, typename T>
T forward_as(const GaussianInputs<T>& in, GaussianBlock block, T* z) {
  using Math = VectorMath<T>;
  T room[kNoiseRoom];
  const T* eps = kSample ? noise_of(in, block, room) : nullptr;
  Vec<T> sum{};
  each_vector<T>(block.size, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
    const int64_t at = block.first + k;
    const Gaussian<Vec<T>> q = load_gaussian(in.mu, in.logvar, at, lanes);
    if constexpr (kSample) {
      store_result(z + at, gaussian_sample<Math>(q, load_part(eps + k, lanes)), lanes, in.large);
    }
    if constexpr (kKL && kPrior) {
      sum += gaussian_kl<Math>(q, load_gaussian(in.mu_p, in.logvar_p, at, lanes));
    } else if constexpr (kKL) {
      sum += gaussian_kl<Math>(q);
    }
  });
  if (in.large) {
    finish_streaming();
  }
  return sum_lanes<T>(sum);
}

template <bool kSample, bool kKL, bool kPrior, typename T>
void backward_as(const GaussianInputs<T>& in, GaussianBlock block, const GaussianCotangents<T>& cotangents,
                 const GaussianOutputs<T>& out) {
  using Math = VectorMath<T>;
  T room[kNoiseRoom];
  const T* eps = kSample ? noise_of(in, block, room) : nullptr;
  const Vec<T> dkl = broadcast(cotangents.dkl);
  each_vector<T>(block.size, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
    const int64_t at = block.first + k;
    GaussianGradients<Vec<T>> d{};
    if constexpr (kKL && kPrior) {
      d = gaussian_kl_bwd<Math>(dkl, load_gaussian(in.mu, in.logvar, at, lanes),
                                load_gaussian(in.mu_p, in.logvar_p, at, lanes));
      store_result(out.dmu_p + at, d.p.mu, lanes, in.large);
      store_result(out.dlogvar_p + at, d.p.logvar, lanes, in.large);
    } else if constexpr (kKL) {
      d.q = gaussian_kl_bwd<Math>(dkl, load_gaussian(in.mu, in.logvar, at, lanes));
    }
    if constexpr (kSample) {
      const Vec<T> dz = load_part(cotangents.dz + at, lanes);
      d.q.mu += dz;
      d.q.logvar += gaussian_sample_bwd<Math>(dz, load_part(in.logvar + at, lanes), load_part(eps + k, lanes));
    }
    if constexpr (kKL) {
      store_result(out.dmu + at, d.q.mu, lanes, in.large);
    }
    store_result(out.dlogvar + at, d.q.logvar, lanes, in.large);
  });
  if (in.large) {
    finish_streaming();
  }
}

template <typename T>
T forward(const GaussianInputs<T>& in, GaussianBlock block, T* z, bool kl) {
  const bool prior = in.mu_p != nullptr;
  if (z == nullptr) {
    return prior ? forward_as<false, true, true>(in, block, z) : forward_as<false, true, false>(in, block, z);
  }
  if (!kl) {
    return forward_as<true, false, false>(in, block, z);
  }
  return prior ? forward_as<true, true, true>(in, block, z) : forward_as<true, true, false>(in, block, z);
}

template <typename T>
void backward(const GaussianInputs<T>& in, GaussianBlock block, const GaussianCotangents<T>& d,
              const GaussianOutputs<T>& out) {
  const bool prior = in.mu_p != nullptr;
  if (d.dz == nullptr) {
    return prior ? backward_as<false, true, true>(in, block, d, out)
                 : backward_as<false, true, false>(in, block, d, out);
  }
  if (!d.kl) {
    return backward_as<true, false, false>(in, block, d, out);
  }
  return prior ? backward_as<true, true, true>(in, block, d, out) : backward_as<true, true, false>(in, block, d, out);
}

}  // namespace

const GaussianKernels gaussian_kernels{{forward<float>, backward<float>}, {forward<double>, backward<double>}};

}  // namespace svg_fast::SVG_ISA
