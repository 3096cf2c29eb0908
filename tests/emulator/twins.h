// The functions of csrc/cuda/primitives.h as the emulator runs them, written from their definitions in the PTX ISA.
#pragma once

#include <bit>
#include <cstring>

#include "engine.h"

namespace svg_fast {

SVG_DEVICE void mma_m16n8k16(FragmentC& c, const FragmentA& a, const FragmentB& b) {
  const void* operands[] = {&c, &a, &b};
  emulator::collective("mma", operands, emulator::mma_m16n8k16);
}

// Of a half in the low bits. Scaling by a power of two moves the exponent's bias from 15 to 127, denormals included.
SVG_DEVICE float half_low(uint32_t pair) {
  const uint32_t infinite = (pair & 0x7C00) == 0x7C00 ? 0x7F800000 : 0;
  const float magnitude = std::bit_cast<float>(infinite | (pair & 0x7FFF) << 13) * (infinite ? 1.0f : 0x1p112f);
  return pair & 0x8000 ? -magnitude : magnitude;
}

SVG_DEVICE float half_high(uint32_t pair) { return half_low(pair >> 16); }

SVG_DEVICE uint32_t pack_half(float low, float high) {
  const auto bits = [](float value) -> uint32_t { return std::bit_cast<uint16_t>(static_cast<_Float16>(value)); };
  return bits(high) << 16 | bits(low);
}

SVG_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t row_address) {
  uint32_t row[4];
  std::memcpy(row, emulator::shared_read(row_address, sizeof(row)), sizeof(row));
  void* operands[] = {r, row};
  emulator::collective("ldmatrix", operands, emulator::ldmatrix_x4);
}

template <typename T>
SVG_DEVICE T shuffle_xor(T value, uint32_t mask) {
  static_assert(sizeof(T) == 4);
  if (mask >= 32) {
    emulator::stop("a shuffle from a lane beyond the warp");
  }
  emulator::Shuffle mine{std::bit_cast<uint32_t>(value), emulator::lane() ^ mask, 0};
  emulator::collective("shuffle", &mine, emulator::shuffle);
  return std::bit_cast<T>(mine.received);
}

SVG_DEVICE void block_sync() { emulator::block_sync(); }
SVG_DEVICE void warp_sync() { emulator::warp_sync(); }

SVG_DEVICE uint32_t shared_address(const void* pointer) { return emulator::shared_address(pointer); }

template <typename T>
SVG_DEVICE void store_shared(uint32_t address, T value) {
  std::memcpy(emulator::shared_write(address, sizeof(T)), &value, sizeof(T));
}

template <typename T>
SVG_DEVICE T load_shared(uint32_t address) {
  T value;
  std::memcpy(&value, emulator::shared_read(address, sizeof(T)), sizeof(T));
  return value;
}

template <typename T>
SVG_DEVICE T load_read_only(const T* pointer) {
  emulator::constant_read(pointer, sizeof(T));
  return *pointer;
}

template <typename T>
SVG_DEVICE void store_global(T* pointer, T value) {
  emulator::global_write(pointer, sizeof(T));
  *pointer = value;
}

template <typename T>
SVG_DEVICE T load_global(const T* pointer) {
  emulator::global_read(pointer, sizeof(T));
  return *pointer;
}

SVG_DEVICE void add_release_gpu(uint32_t* flag, uint32_t n) { emulator::add_release(flag, n); }
SVG_DEVICE uint32_t load_acquire_gpu(const uint32_t* flag) { return emulator::load_acquire(flag); }
SVG_DEVICE void wait_at_least(const uint32_t* flag, uint32_t value) { emulator::wait_at_least(flag, value); }

SVG_DEVICE void mbarrier_init(uint32_t barrier, uint32_t count) { emulator::mbarrier_init(barrier, count); }
SVG_DEVICE void fence_mbarrier_init() { emulator::fence_mbarrier_init(); }
SVG_DEVICE void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  emulator::mbarrier_arrive_expect_tx(barrier, bytes);
}
SVG_DEVICE bool mbarrier_try_wait(uint32_t barrier, uint32_t parity) {
  return emulator::mbarrier_try_wait(barrier, parity);
}

SVG_DEVICE uint32_t cluster_rank() { return emulator::cluster_rank(); }
SVG_DEVICE void cluster_arrive() { emulator::cluster_arrive(); }
SVG_DEVICE void cluster_wait() { emulator::cluster_wait(); }
SVG_DEVICE uint32_t peer_address(uint32_t address, uint32_t rank) { return emulator::peer_address(address, rank); }

template <typename T>
SVG_DEVICE void store_async(uint32_t address, T value, uint32_t barrier) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  emulator::store_async(address, &value, sizeof(T), barrier);
}

}  // namespace svg_fast
