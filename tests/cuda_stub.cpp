// What PyTorch asks of CUDA when it differentiates (devices and streams) and when it chooses a convolution's memory
// layout (whether there is cuDNN), answered without CUDA: so a CPU build traces whole training steps over FakeTensors
// on "cuda" and gives them the strides of a GPU. Nothing can run.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>

namespace at {

constexpr long kCudnn = 91000;  // 9.10

// The name is the one under which PyTorch looks its hooks up.
struct CUDAHooks : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  bool compiledWithCuDNN() const override { return true; }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override { return true; }
  long versionCuDNN() const override { return kCudnn; }
  long versionRuntimeCuDNN() const override { return kCudnn; }
};

REGISTER_CUDA_HOOKS(CUDAHooks)
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::FakeGuardImpl<kCUDA>)

}  // namespace at
