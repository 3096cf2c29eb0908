// The warp's matrix instructions, all lanes at once, by the layouts of the PTX ISA.
#include "primitives.h"

namespace emulator {

using svg_fast::FragmentA;
using svg_fast::FragmentB;
using svg_fast::FragmentC;

// Products of halves are exact in double; the tensor cores' own rounding of sums is not known.
void mma_m16n8k16(void* const (&operands)[32]) {
  constexpr uint32_t kM = 16, kN = 8, kK = 16;
  const auto half = [](uint32_t pair, uint32_t k) {
    return k % 2 ? svg_fast::half_high(pair) : svg_fast::half_low(pair);
  };
  const auto operand = [&](uint32_t lane, uint32_t number) {
    return static_cast<void* const*>(operands[lane])[number];
  };
  float a[kM][kK], b[kK][kN];
  for (uint32_t k = 0; k < kK; ++k) {
    for (uint32_t row = 0; row < kM; ++row) {
      const auto& fragment = *static_cast<const FragmentA*>(operand(row % 8 * 4 + k % 8 / 2, 1));
      a[row][k] = half(fragment.r[row / 8 + k / 8 * 2], k);
    }
    for (uint32_t column = 0; column < kN; ++column) {
      const auto& fragment = *static_cast<const FragmentB*>(operand(column * 4 + k % 8 / 2, 2));
      b[k][column] = half(fragment.r[k / 8], k);
    }
  }
  for (uint32_t row = 0; row < kM; ++row) {
    double sum[kN] = {};
    for (uint32_t k = 0; k < kK; ++k) {
      for (uint32_t column = 0; column < kN; ++column) {
        sum[column] += static_cast<double>(a[row][k]) * b[k][column];
      }
    }
    for (uint32_t column = 0; column < kN; ++column) {
      auto& fragment = *static_cast<FragmentC*>(operand(row % 8 * 4 + column / 2, 0));
      float& c = fragment.r[row / 8 * 2 + column % 2];
      c = static_cast<float>(c + sum[column]);
    }
  }
}

void ldmatrix_x4(void* const (&operands)[32]) {
  struct Operands {
    uint32_t *received, *row;
  };
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t matrix = 0; matrix < 4; ++matrix) {
      const auto& owner = *static_cast<const Operands*>(operands[matrix * 8 + lane / 4]);
      static_cast<Operands*>(operands[lane])->received[matrix] = owner.row[lane % 4];
    }
  }
}

}  // namespace emulator
