// Elements of tensors as kernels compute with them: in float32, or what is wider.
#pragma once

#include "primitives.h"

namespace svg_fast {

struct BFloat16 {
  uint16_t bits;
};

SVG_DEVICE double load_element(const double* p) { return load_read_only(p); }
SVG_DEVICE float load_element(const float* p) { return load_read_only(p); }
SVG_DEVICE float load_element(const BFloat16* p) { return bits_as<float>(static_cast<uint32_t>(p->bits) << 16); }

SVG_DEVICE void store_element(double* p, double value) { *p = value; }
SVG_DEVICE void store_element(float* p, float value) { *p = value; }

// Rounded to the nearest, ties to even.
SVG_DEVICE void store_element(BFloat16* p, float value) {
  const uint32_t bits = bits_as<uint32_t>(value), rounded = bits + 0x7FFF + (bits >> 16 & 1);
  p->bits = static_cast<uint16_t>((value == value ? rounded : bits | 0x400000) >> 16);
}

}  // namespace svg_fast
