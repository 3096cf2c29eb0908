// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
// Every word is a function of a key and a counter alone: any device or thread draws the same.
#pragma once

#include <cstdint>

#include "inline.h"

namespace svg_fast {

// Turns a counter into random words. W is a 64-bit number or a vector of them, with the words in the low halves; what
// is above is left over from products. `Math` offers multiply_low_halves(W, uint64_t).
template <typename Math, typename W>
SVG_INLINE void philox_rounds(W (&word)[4], uint64_t key) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kKeyStep0 = 0x9E3779B9, kKeyStep1 = 0xBB67AE85;
  constexpr int kRounds = 10;
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < kRounds; ++round) {
    const W product0 = Math::multiply_low_halves(word[0], kMultiplier0);
    const W product1 = Math::multiply_low_halves(word[2], kMultiplier1);
    word[0] = (product1 >> 32) ^ word[1] ^ uint64_t { key0 };
    word[1] = product1;
    word[2] = (product0 >> 32) ^ word[3] ^ uint64_t { key1 };
    word[3] = product0;
    key0 += kKeyStep0;
    key1 += kKeyStep1;
  }
}

struct PhiloxWords {
  uint32_t word[4];
};

struct PhiloxMath {
  static SVG_INLINE uint64_t multiply_low_halves(uint64_t a, uint64_t b) { return (a & 0xFFFFFFFF) * b; }
};

SVG_INLINE PhiloxWords philox4x32(const PhiloxWords& counter, uint64_t key) {
  uint64_t word[4] = {counter.word[0], counter.word[1], counter.word[2], counter.word[3]};
  philox_rounds<PhiloxMath>(word, key);
  return {{static_cast<uint32_t>(word[0]), static_cast<uint32_t>(word[1]), static_cast<uint32_t>(word[2]),
           static_cast<uint32_t>(word[3])}};
}

}  // namespace svg_fast
