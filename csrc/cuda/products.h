// Matrix products by PyTorch's own libraries, for what is no kernel's own business.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/stableivalue_conversions.h>
#include <torch/csrc/stable/tensor.h>

#include <array>

#include "../common.h"

namespace svg_fast {

// a b into `product`; of one dtype. The form with an output is one that autocast leaves alone.
inline void multiply(const Tensor& a, const Tensor& b, const Tensor& product) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(product)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  const Tensor same = torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace svg_fast
