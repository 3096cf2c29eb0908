// Standard normal noise in vectors: element e is lane e % 4 of the Philox counter (e / 4, offset), lanes (0, 1) and
// (2, 3) are Box-Muller pairs, as the reference defines it. For the files in vector/ alone.
#pragma once

#include "../philox.h"
#include "vec_math.h"

namespace svg_fast::SVG_ISA {

// Elements are drawn in multiples of this: as many counters as a vector has 64-bit lanes.
constexpr int64_t kNoiseStep = 4 * kLanes<uint64_t>;

struct VectorPhilox {
  static SVG_INLINE Vec<uint64_t> multiply_low_halves(Vec<uint64_t> a, uint64_t b) {
    return svg_fast::SVG_ISA::multiply_low_halves(a, broadcast(b));
  }
};

// The words of the elements from 4 * counter on, those of radii and of angles apart: lanes 0 and 2 of each counter, and
// lanes 1 and 3.
inline void draw_words(uint64_t seed, uint64_t offset, uint64_t counter, int64_t size, uint32_t* radii,
                       uint32_t* angles) {
  Vec<uint64_t> lane;
  for (int64_t k = 0; k < kLanes<uint64_t>; ++k) {
    lane[k] = k;
  }
  const auto side_by_side = [](Vec<uint64_t> a, Vec<uint64_t> b) {
    return (Vec<uint32_t>)((a & 0xFFFFFFFF) | b << 32);
  };
  for (int64_t k = 0; 2 * k < size; k += kNoiseStep / 2, counter += kLanes<uint64_t>) {
    const Vec<uint64_t> element = lane + counter;
    Vec<uint64_t> word[4] = {element, element >> 32, broadcast(offset), broadcast(offset >> 32)};
    philox_rounds<VectorPhilox>(word, seed);
    store(radii + k, side_by_side(word[0], word[2]));
    store(angles + k, side_by_side(word[1], word[3]));
  }
}

// (word + 1/2) / 2^32 of the next words. Of angles a whole turn may be missing: they are read as signed numbers, which
// are quicker to convert.
template <typename T, typename Word>
SVG_INLINE Vec<T> load_uniform(const Word* p) {
  typedef Word Words __attribute__((vector_size(kLanes<T> * sizeof(Word))));
  Words words;
  std::memcpy(&words, p, sizeof(words));
  return __builtin_convertvector(words, Vec<T>) * T{0x1p-32} + T{0x1p-33};
}

// The words turned into noise, in the order of the elements.
template <typename T>
SVG_INLINE void box_muller(const uint32_t* radii, const uint32_t* angles, int64_t size, T* noise) {
  for (int64_t k = 0; 2 * k < size; k += kLanes<T>) {
    const Vec<T> radius = square_root<T>(T{-2} * logarithm<T>(load_uniform<T>(radii + k)));
    const SineCosine<T> angle = sine_cosine_of_turns<T>(load_uniform<T>(reinterpret_cast<const int32_t*>(angles + k)));
    const Interleaved<T> pairs = interleave<T>(radius * angle.cosine, radius * angle.sine);
    store(noise + 2 * k, pairs.half[0]);
    store(noise + 2 * k + kLanes<T>, pairs.half[1]);
  }
}

// Noise of `size` elements from 4 * counter on; the room for it is a multiple of kNoiseStep. In two loops over a chunk:
// both are long chains of dependent instructions, and of shorter ones the CPU works on more at the same time.
template <typename T>
void draw_normal(uint64_t seed, uint64_t offset, uint64_t counter, int64_t size, T* noise) {
  constexpr int64_t kChunk = 512;
  uint32_t radii[kChunk / 2], angles[kChunk / 2];
  for (int64_t at = 0; at < size; at += kChunk) {
    const int64_t n = size - at < kChunk ? size - at : kChunk;
    draw_words(seed, offset, counter + at / 4, n, radii, angles);
    box_muller(radii, angles, n, noise + at);
  }
}

}  // namespace svg_fast::SVG_ISA
