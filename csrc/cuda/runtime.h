// launch.h by the CUDA runtime.
#pragma once

#include <cuda_runtime.h>
#include <cxxabi.h>
#include <torch/csrc/stable/accelerator.h>

#include <cstdlib>
#include <memory>

#include "launch.h"

// In the body: SVG_KERNEL(m, <op>_fwd); as in CPU files.
#define SVG_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(svg_fast, CUDA, m)

// Only a PyTorch with CUDA has it; the stable ABI of 2.11 has no other way to a stream.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace svg_fast {

class CurrentDevice {
 public:
  explicit CurrentDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

inline cudaStream_t current_stream(const Tensor& tensor) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this PyTorch was built without CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, " failed: ", cudaGetErrorString(error));
}

inline void check_on_current_device(const Tensor& tensor) {
  int current = 0;
  check_cuda(cudaGetDevice(&current), "cudaGetDevice");
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == current, "all tensors must be on cuda:", current,
                  ", got one on ",
                  tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "another kind of device");
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

inline DeviceFacts device_facts() {
  return {
      10 * device_attribute(cudaDevAttrComputeCapabilityMajor) + device_attribute(cudaDevAttrComputeCapabilityMinor),
      device_attribute(cudaDevAttrMultiProcessorCount)};
}

inline std::string kernel_name(const void* kernel) {
  const char* mangled = nullptr;
  if (cudaFuncGetName(&mangled, kernel) != cudaSuccess) {
    return "a kernel";
  }
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name(abi::__cxa_demangle(mangled, nullptr, nullptr, &status), std::free);
  return name ? name.get() : mangled;
}

inline void check_kernel(cudaError_t error, const void* kernel, const LaunchShape& shape) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // or the next call would be told of it too
    STD_TORCH_CHECK(false, kernel_name(kernel), " with ", shape.grid.x, " x ", shape.grid.y, " x ", shape.grid.z,
                    " blocks of ", shape.block.x * shape.block.y * shape.block.z, " threads and ", shape.shared_bytes,
                    " bytes of shared memory, in clusters of ", shape.cluster,
                    shape.cooperative ? ", cooperative, failed: " : ", failed: ", cudaGetErrorString(error));
  }
}

// A shape as the runtime takes it, and what must be said of the kernel beforehand.
class LaunchConfig {
 public:
  LaunchConfig(const void* kernel, const LaunchShape& shape, cudaStream_t stream) {
    constexpr uint32_t kSharedBytesOfEveryDevice = 48 << 10, kClusterOfEveryDevice = 8;
    if (shape.shared_bytes > kSharedBytesOfEveryDevice) {
      check_kernel(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes),
                   kernel, shape);
    }
    if (shape.cluster > kClusterOfEveryDevice) {
      check_kernel(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), kernel, shape);
    }
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream;
    config.attrs = attributes_;
    if (shape.cluster > 1) {
      cudaLaunchAttribute& attribute = attributes_[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = shape.cluster;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    if (shape.cooperative) {
      cudaLaunchAttribute& attribute = attributes_[config.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;

  cudaLaunchConfig_t config = {};

 private:
  cudaLaunchAttribute attributes_[2];
};

// The compute capability that the code which would run was written for: a later device compiles older code.
inline int compiled_for(const void* kernel) {
  cudaFuncAttributes attributes;
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  return attributes.ptxVersion;
}

template <typename... Parameters>
int most_at_once(void (*kernel)(Parameters...), const LaunchShape& shape) {
  const auto function = reinterpret_cast<const void*>(kernel);
  const int most_shared = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (static_cast<int>(shape.shared_bytes) > most_shared || (shape.cluster > 1 && compiled_for(function) < 90)) {
    return 0;
  }
  const LaunchConfig launch(function, shape, nullptr);
  int count = 0;
  if (shape.cluster > 1) {
    if (cudaOccupancyMaxActiveClusters(&count, kernel, &launch.config) != cudaSuccess) {
      cudaGetLastError();  // of clusters that a device does not have: the next call would be told of it too
      return 0;
    }
    return count;
  }
  const int threads = shape.block.x * shape.block.y * shape.block.z;
  check_kernel(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, threads, shape.shared_bytes), function,
               shape);
  return count * device_facts().multiprocessors;
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream, Arguments... arguments) {
  const auto function = reinterpret_cast<const void*>(kernel);
  const LaunchConfig launch(function, shape, stream);
  check_kernel(cudaLaunchKernelEx(&launch.config, kernel, static_cast<Parameters>(arguments)...), function, shape);
}

}  // namespace svg_fast
