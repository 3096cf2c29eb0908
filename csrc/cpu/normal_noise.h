// Standard normal noise in vectors: element e is lane e % 4 of the Philox counter (e / 4, offset), as the reference
// defines it. For the files in vector/ alone.
#pragma once

#include "../philox.h"
#include "vec_math.h"

namespace svg_fast::SVG_ISA {

struct VectorPhilox {
  static SVG_INLINE Vec<uint64_t> multiply_low_halves(Vec<uint64_t> a, uint64_t b) {
    return svg_fast::SVG_ISA::multiply_low_halves(a, broadcast(b));
  }
};

// Counters are drawn as many at a time as a vector has 64-bit lanes.
constexpr int64_t kNoiseStep = 4 * kLanes<uint64_t>;

// The words of both Box-Muller pairs side by side, counter by counter: `first` are lanes 0 or 1 of the counters, `second`
// lanes 2 or 3. They fill one vector of floats or two of doubles. (word + 1/2) / 2^32 of each.
template <typename T>
struct Uniforms {
  static constexpr int kVectors = sizeof(T) / sizeof(float);
  Vec<T> vector[kVectors];
};

template <typename T>
SVG_INLINE Uniforms<T> uniforms(Vec<uint64_t> first, Vec<uint64_t> second) {
  constexpr T kScale = 0x1p-32, kHalf = 0x1p-33;
  if constexpr (std::is_same_v<T, float>) {
    const auto words = (Vec<uint32_t>)((first & 0xFFFFFFFF) | second << 32);
    return {{__builtin_convertvector(words, Vec<float>) * kScale + kHalf}};
  } else {
    const Interleaved<uint64_t> words = interleave<uint64_t>(first & 0xFFFFFFFF, second & 0xFFFFFFFF);
    return {{__builtin_convertvector(words.half[0], Vec<double>) * kScale + kHalf,
             __builtin_convertvector(words.half[1], Vec<double>) * kScale + kHalf}};
  }
}

// Noise of the elements from 4 * counter on, a multiple of kNoiseStep of them.
template <typename T>
void draw_normal(uint64_t seed, uint64_t offset, uint64_t counter, int64_t size, T* noise) {
  Vec<uint64_t> lane;
  for (int64_t k = 0; k < kLanes<uint64_t>; ++k) {
    lane[k] = k;
  }
  for (int64_t at = 0; at < size; at += kNoiseStep, counter += kLanes<uint64_t>) {
    const Vec<uint64_t> block = lane + counter;
    Vec<uint64_t> word[4] = {block, block >> 32, broadcast(offset), broadcast(offset >> 32)};
    philox_rounds<VectorPhilox>(word, seed);
    const Uniforms<T> radii = uniforms<T>(word[0], word[2]), turns = uniforms<T>(word[1], word[3]);
    for (int k = 0; k < Uniforms<T>::kVectors; ++k) {
      const Vec<T> radius = square_root<T>(-2 * logarithm<T>(radii.vector[k]));
      const SineCosine<T> angle = sine_cosine_of_turns<T>(turns.vector[k]);
      const Interleaved<T> pairs = interleave<T>(radius * angle.cosine, radius * angle.sine);
      store(noise + at + 2 * k * kLanes<T>, pairs.half[0]);
      store(noise + at + (2 * k + 1) * kLanes<T>, pairs.half[1]);
    }
  }
}

}  // namespace svg_fast::SVG_ISA
