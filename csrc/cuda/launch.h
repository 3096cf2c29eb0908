// What host functions of CUDA kernels use: registration, the device and stream of a tensor, facts to choose a kernel
// by, and launches. Compiled by nvcc it is the CUDA runtime; by a C++ compiler the emulator (tests/emulator/host.h),
// whose device is the CPU and whose facts a test chooses.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

#include "../common.h"
#include "../signature.h"
#include "primitives.h"

namespace svg_fast {

// Of the current device.
struct DeviceFacts {
  int compute_capability;  // 10 * major + minor: 80, 90, 100
  int multiprocessors;
};
DeviceFacts device_facts();

// Blocks in one cluster or, of a cooperative launch, all alive together; dynamic shared memory of each block.
struct LaunchShape {
  dim3 grid, block;
  uint32_t cluster = 1;
  uint32_t shared_bytes = 0;
  bool cooperative = false;
};

// How many clusters of this shape, or blocks where it has none, the current device runs at once; 0 where it cannot.
template <typename... Parameters>
int most_at_once(void (*kernel)(Parameters...), const LaunchShape& shape);

// Runs the kernel on the stream, on the current device. Says which kernel it was, and why, where that cannot be.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream, Arguments... arguments);

// `const CurrentDevice device(tensor);` makes the tensor's device the current one while it lives.
// `current_stream(tensor)` is PyTorch's on the tensor's device.

// Throws where the tensor is not on the current device: a kernel would crash on its memory, some time later.
void check_on_current_device(const Tensor& tensor);

// Where a tensor's elements lie, for a kernel.
template <typename T>
T* device_data(const Tensor& tensor) {
  check_on_current_device(tensor);
  if constexpr (std::is_const_v<T>) {  // what is only read need not be copied where memory is shared until written
    return static_cast<T*>(tensor.const_data_ptr());
  } else {
    return static_cast<T*>(tensor.mutable_data_ptr());
  }
}

// From the element `at` on.
template <typename T>
const T* device_data_or_null(const std::optional<Tensor>& tensor, int64_t at = 0) {
  return tensor ? device_data<const T>(*tensor) + at : nullptr;
}

}  // namespace svg_fast

#ifdef __CUDACC__
#include "runtime.h"
#else
#include "emulator/host.h"
#endif
