// The Gaussian ops: samples and the KL of each time step, forward and backward. T steps, B batch, Z latent dimensions.
// The elements are cut into blocks, a block goes through all tensors in one pass, and its noise is drawn where it is
// used, forward and again backward. bfloat16, float16 and mixed types are converted to float32 first.
#include "gaussian.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <tuple>
#include <vector>

#include "../signature.h"
#include "../tensors.h"

namespace svg_fast {
namespace {

// They take some ten microseconds, longer than handing them to a thread.
constexpr int64_t kElementsPerTask = 4096;

// Bytes of a tensor; five to nine such tensors, as many as a pass goes through, are more than most caches hold.
constexpr int64_t kLargeTensor = int64_t{8} << 20;

// What an op was given; the gradient of a sample needs no mu.
struct Arguments {
  OptionalTensor mu, logvar, mu_p, logvar_p, eps, seed;
};

// The arguments as the kernels want them, and what keeps them alive.
template <typename T>
struct Inputs {
  GaussianInputs<T> raw{};
  std::vector<Tensor> kept;

  // All have the shape of `like`.
  Inputs(const Arguments& given, const Tensor& like, bool sample) {
    raw.large = like.numel() * static_cast<int64_t>(sizeof(T)) >= kLargeTensor;
    raw.mu = take("mu", given.mu, like);
    raw.logvar = take("logvar", given.logvar, like);
    raw.mu_p = take("mu_p", given.mu_p, like);
    raw.logvar_p = take("logvar_p", given.logvar_p, like);
    STD_TORCH_CHECK(given.mu_p.has_value() == given.logvar_p.has_value(), "mu_p and logvar_p must both be given");
    raw.eps = take("eps", given.eps, like);
    if (sample && !given.eps.has_value()) {
      STD_TORCH_CHECK(given.seed.has_value(), "eps or seed must be given");
      check_shape("seed", *given.seed, {2});
      check_dtype("seed", *given.seed, ScalarType::Long);
      const Tensor seed = dense(*given.seed, ScalarType::Long);
      const int64_t* words = seed.const_data_ptr<int64_t>();
      raw.seed = words[0];
      raw.offset = words[1];
    }
  }

  const T* take(const char* name, const OptionalTensor& tensor, const Tensor& like) {
    if (!tensor.has_value()) {
      return nullptr;
    }
    check_shape(name, *tensor, like.sizes());
    kept.push_back(dense(*tensor, kType<T>));
    return kept.back().template const_data_ptr<T>();
  }
};

// The elements as time steps, each cut into blocks.
struct Steps {
  int64_t count, size;
  int64_t batch;  // sequences that a KL is the mean of

  explicit Steps(const Tensor& tensor, bool kl) : count(1), size(tensor.numel()), batch(1) {
    if (kl) {
      check_rank("mu", tensor, 3);
      count = tensor.size(0);
      size = tensor.size(1) * tensor.size(2);
      batch = std::max<int64_t>(tensor.size(1), 1);
    }
  }

  int64_t blocks() const { return (size + kGaussianBlock - 1) / kGaussianBlock; }

  // task(step, k, block) for all, block k of all those of all steps.
  template <typename Task>
  void each_block(const Task& task) const {
    const int64_t block_size = std::clamp<int64_t>(size, 1, kGaussianBlock);
    const auto run = [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t step = k / blocks(), start = k % blocks() * kGaussianBlock;
        task(step, k, GaussianBlock{step * size + start, std::min(kGaussianBlock, size - start)});
      }
    };
    torch::stable::parallel_for(0, count * blocks(), std::max<int64_t>(1, kElementsPerTask / block_size), run);
  }
};

struct Outputs {
  OptionalTensor z, kl;
};

template <typename T>
Outputs forward_as(const Arguments& given, bool sample, bool kl) {
  const Tensor& mu = *given.mu;
  const Steps steps(mu, kl);
  const Inputs<T> inputs(given, mu, sample);
  const OptionalTensor z = sample ? OptionalTensor(new_tensor<T>(mu.sizes())) : std::nullopt;
  T* z_data = sample ? z->mutable_data_ptr<T>() : nullptr;
  const GaussianPasses<T>& kernels = gaussian_passes<T>();
  std::vector<double> sums(steps.count * steps.blocks());
  steps.each_block(
      [&](int64_t, int64_t k, GaussianBlock block) { sums[k] = kernels.forward(inputs.raw, block, z_data, kl); });
  Outputs outputs;
  if (sample) {
    outputs.z = converted(*z, mu.scalar_type());
  }
  if (kl) {
    outputs.kl = new_tensor<T>({steps.count});
    T* kl_data = outputs.kl->mutable_data_ptr<T>();
    for (int64_t t = 0; t < steps.count; ++t) {
      const auto first = sums.begin() + t * steps.blocks();
      kl_data[t] = std::accumulate(first, first + steps.blocks(), 0.0) / steps.batch;
    }
  }
  return outputs;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// dmu, dlogvar, dmu_p, dlogvar_p; empty where they are not asked for.
template <typename T>
Gradients backward_as(const Arguments& given, const OptionalTensor& dz, const OptionalTensor& dkl, ScalarType dtype) {
  const bool kl = dkl.has_value(), prior = given.mu_p.has_value();
  const Tensor& like = kl ? *given.mu : *given.logvar;
  const Steps steps(like, kl);
  Inputs<T> inputs(given, like, dz.has_value());
  const T* dz_data = inputs.take("dz", dz, like);
  const Tensor dkl_dense = kl ? dense(*dkl, kType<T>) : new_tensor<T>({0});
  check_shape("dkl", dkl_dense, {kl ? steps.count : 0});
  const T* dkl_data = dkl_dense.template const_data_ptr<T>();

  const auto make = [&](bool wanted) { return wanted ? new_tensor<T>(like.sizes()) : new_tensor<T>({0}); };
  const Tensor dmu = make(kl), dlogvar = make(true), dmu_p = make(prior), dlogvar_p = make(prior);
  const GaussianOutputs<T> outputs{dmu.mutable_data_ptr<T>(), dlogvar.mutable_data_ptr<T>(),
                                   dmu_p.mutable_data_ptr<T>(), dlogvar_p.mutable_data_ptr<T>()};
  const GaussianPasses<T>& kernels = gaussian_passes<T>();
  steps.each_block([&](int64_t step, int64_t, GaussianBlock block) {
    kernels.backward(inputs.raw, block, {dz_data, kl, kl ? dkl_data[step] / steps.batch : T{0}}, outputs);
  });
  return {converted(dmu, dtype), converted(dlogvar, dtype), converted(dmu_p, dtype), converted(dlogvar_p, dtype)};
}

Outputs forward(const Arguments& given, bool sample, bool kl) {
  const auto run = compute_dtype(*given.mu) == ScalarType::Double ? forward_as<double> : forward_as<float>;
  return run(given, sample, kl);
}

// `computed` has the type of the forward's results, `wanted` that of the gradients.
Gradients backward(const Arguments& given, const OptionalTensor& dz, const OptionalTensor& dkl, const Tensor& computed,
                   const Tensor& wanted) {
  const auto run = compute_dtype(computed) == ScalarType::Double ? backward_as<double> : backward_as<float>;
  return run(given, dz, dkl, wanted.scalar_type());
}

Tensor gaussian_rsample_fwd(const Tensor& mu, const Tensor& logvar, const OptionalTensor& eps,
                            const OptionalTensor& seed) {
  return *forward({mu, logvar, {}, {}, eps, seed}, true, false).z;
}

Tensor gaussian_rsample_bwd(const Tensor& dz, const Tensor& logvar, const OptionalTensor& eps,
                            const OptionalTensor& seed) {
  return std::get<1>(backward({{}, logvar, {}, {}, eps, seed}, dz, {}, dz, logvar));
}

Tensor gaussian_kl_fwd(const Tensor& mu, const Tensor& logvar, const OptionalTensor& mu_p,
                       const OptionalTensor& logvar_p) {
  return *forward({mu, logvar, mu_p, logvar_p, {}, {}}, false, true).kl;
}

Gradients gaussian_kl_bwd(const Tensor& dkl, const Tensor& mu, const Tensor& logvar, const OptionalTensor& mu_p,
                          const OptionalTensor& logvar_p) {
  return backward({mu, logvar, mu_p, logvar_p, {}, {}}, {}, dkl, mu, mu);
}

std::tuple<Tensor, Tensor> gaussian_rsample_kl_fwd(const Tensor& mu, const Tensor& logvar, const OptionalTensor& mu_p,
                                                   const OptionalTensor& logvar_p, const OptionalTensor& eps,
                                                   const OptionalTensor& seed) {
  const Outputs outputs = forward({mu, logvar, mu_p, logvar_p, eps, seed}, true, true);
  return {*outputs.z, *outputs.kl};
}

Gradients gaussian_rsample_kl_bwd(const Tensor& dz, const Tensor& dkl, const Tensor& mu, const Tensor& logvar,
                                  const OptionalTensor& mu_p, const OptionalTensor& logvar_p, const OptionalTensor& eps,
                                  const OptionalTensor& seed) {
  return backward({mu, logvar, mu_p, logvar_p, eps, seed}, dz, dkl, mu, mu);
}

STABLE_TORCH_LIBRARY_IMPL(svg_fast, CPU, m) {
  SVG_KERNEL(m, gaussian_rsample_fwd);
  SVG_KERNEL(m, gaussian_rsample_bwd);
  SVG_KERNEL(m, gaussian_kl_fwd);
  SVG_KERNEL(m, gaussian_kl_bwd);
  SVG_KERNEL(m, gaussian_rsample_kl_fwd);
  SVG_KERNEL(m, gaussian_rsample_kl_bwd);
}

}  // namespace
}  // namespace svg_fast
