// float32 products on tensor cores. A number is scaled by a power of two and held as two halves, high + low, each fp16:
// 22 bits in all (Ootomo & Yokota, "Recovering single precision accuracy from Tensor Cores", 2022). A product of two
// such numbers is high * high + high * low + low * high; what is left out is below 2^-22 of it. Infinities become NaN.
#pragma once

#include "primitives.h"

namespace svg_fast {

// Two neighbouring numbers: their high halves, and what rounding left over.
struct HalfPairs {
  uint32_t high, low;
};

SVG_DEVICE HalfPairs split(float first, float second) {
  const uint32_t high = pack_half(first, second);
  return {high, pack_half(first - half_low(high), second - half_high(high))};
}

// Numbers up to 2^14 in size leave room above for rounding, and below, down to fp16's smallest, 38 bits.
constexpr int kScaledExponent = 13;

struct PowerOfTwo {
  float factor, inverse;
};

// Takes numbers as large as `largest` to the range of fp16.
SVG_DEVICE PowerOfTwo scale_for(float largest) {
  constexpr int kBias = 127, kFractionBits = 23, kLeast = kScaledExponent + 1;
  int exponent = bits_as<int>(largest) >> kFractionBits;
  exponent = exponent < kLeast ? kLeast : exponent;
  return {bits_as<float>((2 * kBias + kScaledExponent - exponent) << kFractionBits),
          bits_as<float>((exponent - kScaledExponent) << kFractionBits)};
}

// A 16 x (16 kDepth) matrix as a warp multiplies it from the left: A fragments, the high halves in registers, the low
// ones too, or in shared memory where registers do not hold both, or left out.
enum class Low { kRegisters, kShared, kNone };

template <int kDepth, Low kLow>
struct MatrixTile {
  FragmentA high[kDepth];
  FragmentA low[kLow == Low::kRegisters ? kDepth : 1];
  uint32_t shared_low;  // address of [kDepth][32 lanes][16 bytes]
  float inverse[2];     // of the scales of rows lane / 4 and lane / 4 + 8

  static constexpr int kLaneBytes = sizeof(uint4);
  static constexpr int kSharedBytes = kLow == Low::kShared ? kDepth * 32 * kLaneBytes : 0;

  // All threads of the block together. number(half, column, next): of row lane / 4 + 8 half, the element in column + 2
  // (lane % 4) + next.
  template <typename Number>
  SVG_DEVICE void load(const Number& number, const void* place) {
    shared_low = shared_address(place) + threadIdx.x % 32 * kLaneBytes;
    const auto element = [&](int k, int r, int next) { return number(r % 2, 16 * k + 8 * (r / 2), next); };
    float largest[2] = {0.f, 0.f};
#pragma unroll 4  // beside the fragments of other tiles there is no room in registers for more loads at once
    for (int k = 0; k < kDepth; ++k) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        largest[i / 2 % 2] = fmaxf(largest[i / 2 % 2], fabsf(element(k, i / 2, i % 2)));
      }
    }
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // the four lanes of a row have all of it
      largest[half] = fmaxf(largest[half], shuffle_xor(largest[half], 1));
      largest[half] = fmaxf(largest[half], shuffle_xor(largest[half], 2));
      const PowerOfTwo scale = scale_for(largest[half]);
      factor[half] = scale.factor;
      inverse[half] = scale.inverse;
    }
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      constexpr int kAhead = 4;
      uint32_t rest[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const HalfPairs pairs = split(element(k, r, 0) * factor[r % 2], element(k, r, 1) * factor[r % 2]);
        high[k].r[r] = pairs.high;
        rest[r] = pairs.low;
      }
      keep_low(k, rest);
      if (k % kAhead == kAhead - 1) {
        block_sync();  // loads issued further ahead would take registers that there are not
      }
    }
  }

  SVG_DEVICE void keep_low(int k, const uint32_t (&rest)[4]) {
    if constexpr (kLow == Low::kRegisters) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        low[k].r[r] = rest[r];
      }
    } else if constexpr (kLow == Low::kShared) {
      store_shared(shared_low + 32 * kLaneBytes * k, uint4{rest[0], rest[1], rest[2], rest[3]});
    }
  }

  SVG_DEVICE FragmentA low_at(int k) const {
    if constexpr (kLow == Low::kShared) {
      const uint4 words = load_shared<uint4>(shared_low + 32 * kLaneBytes * k);
      return {{words.x, words.y, words.z, words.w}};
    } else {
      return low[k];
    }
  }
};

}  // namespace svg_fast
