// Standard normal noise, one element at a time: element e is lane e % 4 of the Philox counter (e / 4, offset), lanes
// (0, 1) and (2, 3) are Box-Muller pairs, as the reference defines it.
#pragma once

#include <cstdint>

#include "inline.h"
#include "philox.h"

namespace svg_fast {

// `Math` offers logarithm(S), square_root(S), and cosine_of_turns(S) and sine_of_turns(S) of whole turns.
template <typename S, typename Math>
SVG_INLINE S normal_element(uint64_t seed, uint64_t offset, uint64_t element) {
  const uint64_t counter = element / 4;
  const PhiloxWords words = philox4x32({{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                                         static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32)}},
                                       seed);
  const auto uniform = [](uint32_t word) { return static_cast<S>(word) * S{0x1p-32} + S{0x1p-33}; };
  const bool second = element % 4 >= 2;
  const S radius = Math::square_root(S{-2} * Math::logarithm(uniform(second ? words.word[2] : words.word[0])));
  const S turns = uniform(second ? words.word[3] : words.word[1]);
  return radius * (element % 2 == 0 ? Math::cosine_of_turns(turns) : Math::sine_of_turns(turns));
}

}  // namespace svg_fast
