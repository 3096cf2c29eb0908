// csrc/cuda/launch.h on the emulator: tensors are the CPU's.
#pragma once

#include "engine.h"

// Python defines this library with the schemas of svg_fast (tests/emulation.py). The build of a planted fault names one
// of its own, so that many live in one process.
#ifndef SVG_EMULATED_LIBRARY
#define SVG_EMULATED_LIBRARY svg_fast_emulated
#endif
#define SVG_CUDA_LIBRARY(m) SVG_CUDA_LIBRARY_NAMED(SVG_EMULATED_LIBRARY, m)
#define SVG_CUDA_LIBRARY_NAMED(name, m) STABLE_TORCH_LIBRARY_IMPL(name, CPU, m)

namespace svg_fast {

class CurrentDevice {
 public:
  explicit CurrentDevice(const Tensor&) {}
};

inline void check_on_current_device(const Tensor&) {}

inline cudaStream_t current_stream(const Tensor&) { return nullptr; }

inline DeviceFacts device_facts() {
  const emulator::Device device = emulator::device();
  return {10 * device.major + device.minor, device.multiprocessors};
}

// Of a block, in bytes.
inline uint32_t most_shared(int compute_capability) {
  return compute_capability == 80                               ? 163 << 10
         : compute_capability == 86 || compute_capability == 89 ? 99 << 10
                                                                : 227 << 10;
}

// One block on a multiprocessor.
template <typename... Parameters>
int most_at_once(void (*)(Parameters...), const LaunchShape& shape) {
  const DeviceFacts facts = device_facts();
  if ((shape.cluster > 1 && facts.compute_capability < 90) ||
      shape.shared_bytes > most_shared(facts.compute_capability)) {
    return 0;
  }
  return facts.multiprocessors / shape.cluster;
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t, Arguments... arguments) {
  const int blocks = shape.grid.x * shape.grid.y * shape.grid.z;
  if (shape.cluster > 1) {
    STD_TORCH_CHECK(device_facts().compute_capability >= 90, "clusters must have sm_90 or later, got sm_",
                    device_facts().compute_capability);
  }
  if (shape.cooperative) {
    STD_TORCH_CHECK(blocks <= most_at_once(kernel, shape), "a cooperative launch of ", blocks, " blocks where ",
                    most_at_once(kernel, shape), " fit");
  }
  emulator::launch({shape.grid, shape.block, shape.cluster, shape.shared_bytes, shape.cooperative},
                   [&] { kernel(static_cast<Parameters>(arguments)...); });
}

}  // namespace svg_fast
