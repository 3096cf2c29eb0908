// Diagonal Gaussians, one latent dimension of one sequence at a time: V is a number or a vector of them, `Math` offers
// exponential(V). logvar is the logarithm of the variance; KL in nats.
#pragma once

#include "inline.h"

namespace svg_fast {

template <typename V>
struct Gaussian {
  V mu, logvar;
};

template <typename Math, typename V>
SVG_INLINE V gaussian_sample(const Gaussian<V>& q, V eps) {
  return q.mu + eps * Math::exponential(q.logvar / 2);
}

// dz -> dlogvar; the gradient of mu is dz itself.
template <typename Math, typename V>
SVG_INLINE V gaussian_sample_bwd(V dz, V logvar, V eps) {
  return dz * eps * Math::exponential(logvar / 2) / 2;
}

// KL(q || N(0, 1)).
template <typename Math, typename V>
SVG_INLINE V gaussian_kl(const Gaussian<V>& q) {
  return (Math::exponential(q.logvar) + q.mu * q.mu - 1 - q.logvar) / 2;
}

// Gradients of mu and logvar.
template <typename Math, typename V>
SVG_INLINE Gaussian<V> gaussian_kl_bwd(V dkl, const Gaussian<V>& q) {
  return {dkl * q.mu, dkl * (Math::exponential(q.logvar) - 1) / 2};
}

// KL(q || p).
template <typename Math, typename V>
SVG_INLINE V gaussian_kl(const Gaussian<V>& q, const Gaussian<V>& p) {
  const V distance = q.mu - p.mu;
  return (p.logvar - q.logvar + Math::exponential(q.logvar - p.logvar) +
          distance * distance * Math::exponential(-p.logvar) - 1) /
         2;
}

template <typename V>
struct GaussianGradients {
  Gaussian<V> q, p;
};

template <typename Math, typename V>
SVG_INLINE GaussianGradients<V> gaussian_kl_bwd(V dkl, const Gaussian<V>& q, const Gaussian<V>& p) {
  const V ratio = Math::exponential(q.logvar - p.logvar), distance = q.mu - p.mu;
  const V scaled = distance * Math::exponential(-p.logvar), dmu = dkl * scaled;
  return {{dmu, dkl * (ratio - 1) / 2}, {-dmu, dkl * (1 - ratio - distance * scaled) / 2}};
}

}  // namespace svg_fast
