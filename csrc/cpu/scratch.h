// Memory that a thread keeps for its kernels, from one call to the next: it grows to the largest that was asked for.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace svg_fast {

inline float* scratch(int64_t floats) {
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  constexpr int64_t kAlignment = 64;
  static thread_local std::unique_ptr<float, Free> memory;
  static thread_local int64_t size = 0;
  if (size < floats) {
    const int64_t bytes = (floats * static_cast<int64_t>(sizeof(float)) + kAlignment - 1) / kAlignment * kAlignment;
    size = 0;
    memory.reset();
    memory.reset(static_cast<float*>(std::aligned_alloc(kAlignment, bytes)));
    if (memory == nullptr) {
      throw std::bad_alloc();
    }
    size = floats;
  }
  return memory.get();
}

}  // namespace svg_fast
