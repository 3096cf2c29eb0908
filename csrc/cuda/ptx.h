// The functions of primitives.h as instructions.
#pragma once

#include "primitives.h"

namespace svg_fast {

SVG_DEVICE void mma_m16n8k16(FragmentC& c, const FragmentA& a, const FragmentB& b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c.r[0]), "+f"(c.r[1]), "+f"(c.r[2]), "+f"(c.r[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
}

SVG_DEVICE uint32_t pack_half(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

SVG_DEVICE float half_low(uint32_t pair) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<uint16_t>(pair)));
  return value;
}

SVG_DEVICE float half_high(uint32_t pair) { return half_low(pair >> 16); }

SVG_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row_address)
               : "memory");
}

template <typename T>
SVG_DEVICE T shuffle_xor(T value, uint32_t mask) {
  return bits_as<T>(__shfl_xor_sync(~0u, bits_as<uint32_t>(value), mask));
}

SVG_DEVICE void block_sync() { __syncthreads(); }
SVG_DEVICE void warp_sync() { __syncwarp(); }

SVG_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

template <typename T>
SVG_DEVICE void store_shared(uint32_t address, T value) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  if constexpr (sizeof(T) == 2) {
    asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"(bits_as<uint16_t>(value)) : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(bits_as<uint32_t>(value)) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    const uint2 v = bits_as<uint2>(value);
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(v.x), "r"(v.y) : "memory");
  } else {
    const uint4 v = bits_as<uint4>(value);
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
  }
}

template <typename T>
SVG_DEVICE T load_shared(uint32_t address) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  if constexpr (sizeof(T) == 2) {
    uint16_t v;
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(v) : "r"(address) : "memory");
    return bits_as<T>(v);
  } else if constexpr (sizeof(T) == 4) {
    uint32_t v;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return bits_as<T>(v);
  } else if constexpr (sizeof(T) == 8) {
    uint2 v;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
    return bits_as<T>(v);
  } else {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return bits_as<T>(v);
  }
}

template <typename T>
SVG_DEVICE T load_read_only(const T* pointer) {
  return __ldg(pointer);
}

// Not __ldcg and __stcg: the former does not tell the compiler that it reads memory.
template <typename T>
SVG_DEVICE void store_global(T* pointer, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  const size_t address = __cvta_generic_to_global(pointer);
  if constexpr (sizeof(T) == 4) {
    asm volatile("st.global.cg.b32 [%0], %1;" ::"l"(address), "r"(bits_as<uint32_t>(value)) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    const uint2 v = bits_as<uint2>(value);
    asm volatile("st.global.cg.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(v.x), "r"(v.y) : "memory");
  } else {
    const uint4 v = bits_as<uint4>(value);
    asm volatile("st.global.cg.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
  }
}

template <typename T>
SVG_DEVICE T load_global(const T* pointer) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  const size_t address = __cvta_generic_to_global(pointer);
  if constexpr (sizeof(T) == 4) {
    uint32_t v;
    asm volatile("ld.global.cg.b32 %0, [%1];" : "=r"(v) : "l"(address) : "memory");
    return bits_as<T>(v);
  } else if constexpr (sizeof(T) == 8) {
    uint2 v;
    asm volatile("ld.global.cg.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address) : "memory");
    return bits_as<T>(v);
  } else {
    uint4 v;
    asm volatile("ld.global.cg.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address)
                 : "memory");
    return bits_as<T>(v);
  }
}

SVG_DEVICE void add_release_gpu(uint32_t* flag, uint32_t n) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(flag)), "r"(n) : "memory");
}

SVG_DEVICE uint32_t load_acquire_gpu(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(flag)) : "memory");
  return value;
}

SVG_DEVICE void wait_at_least(const uint32_t* flag, uint32_t value) {
  while (load_acquire_gpu(flag) < value) {
  }
}

SVG_DEVICE void mbarrier_init(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

SVG_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

SVG_DEVICE void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

SVG_DEVICE bool mbarrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t ended;
  asm volatile(
      "{\n"
      "  .reg .pred ended;\n"
      "  mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ended, [%1], %2;\n"
      "  selp.u32 %0, 1, 0, ended;\n"
      "}"
      : "=r"(ended)
      : "r"(barrier), "r"(parity)
      : "memory");
  return ended;
}

SVG_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

SVG_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
SVG_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

SVG_DEVICE uint32_t peer_address(uint32_t address, uint32_t rank) {
  uint32_t peer;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(address), "r"(rank));
  return peer;
}

template <typename T>
SVG_DEVICE void store_async(uint32_t address, T value, uint32_t barrier) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if constexpr (sizeof(T) == 4) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(address),
                 "r"(bits_as<uint32_t>(value)), "r"(barrier)
                 : "memory");
  } else {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(address),
                 "l"(bits_as<uint64_t>(value)), "r"(barrier)
                 : "memory");
  }
}

}  // namespace svg_fast
