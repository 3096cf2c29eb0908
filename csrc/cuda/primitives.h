// The instructions that CUDA kernels of this library use beyond C++, each one small function: PTX where nvcc compiles
// (ptx.h), a twin written from the definition in the PTX ISA where a C++ compiler does (tests/emulator/twins.h).
//
// A shared address is PTX's 32-bit one, of this block (`shared_address`) or of another in the cluster (`peer_address`).
// What warps exchange goes through load_shared, store_shared, load_global and store_global: these the emulator holds
// against the barriers that must order them. Plain C++ accesses only ThreadSanitizer sees.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "emulator/cuda.h"
#endif

#include <cstdint>
#include <type_traits>

#define SVG_DEVICE __device__ __forceinline__

// A variable in the shared memory of the block, uninitialised: `SVG_SHARED(Tile[2], tiles);`. A kernel has 48 KiB for
// all of them; more must be dynamic: `SVG_DYNAMIC_SHARED(bytes);` is a pointer to LaunchShape::shared_bytes bytes.
#ifdef __CUDACC__
#define SVG_SHARED(Type, name) __shared__ std::type_identity_t<Type> name
#define SVG_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#else
#define SVG_SHARED(Type, name)       \
  static const char name##_key = 0;  \
  std::type_identity_t<Type>& name = \
      *static_cast<std::type_identity_t<Type>*>(emulator::shared_variable(&name##_key, sizeof(Type), alignof(Type)))
#define SVG_DYNAMIC_SHARED(name) unsigned char* name = static_cast<unsigned char*>(emulator::dynamic_shared())
#endif

namespace svg_fast {

// The same bits as another type.
template <typename To, typename From>
SVG_DEVICE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// Matrix fragments of one warp, as mma.m16n8k16 has them. With group = lane / 4 and pair = 2 * (lane % 4), a lane holds
//   A (16, 16), half:  r[0] A[group][pair, +1]      r[1] A[group + 8][pair, +1]
//                      r[2] A[group][pair + 8, +9]  r[3] A[group + 8][pair + 8, +9]
//   B (16, 8), half:   r[0] B[pair, +1][group]      r[1] B[pair + 8, +9][group]
//   C (16, 8), float:  r[0] C[group][pair]  r[1] C[group][pair + 1]  r[2] C[group + 8][pair]  r[3] C[group + 8][pair +
//   1]
struct FragmentA {
  uint32_t r[4];
};
struct FragmentB {
  uint32_t r[2];
};
struct FragmentC {
  float r[4];
};

// c += a b, all lanes of the warp together.
SVG_DEVICE void mma_m16n8k16(FragmentC& c, const FragmentA& a, const FragmentB& b);

// Two halves in a word, each rounded to the nearest, ties to even; `low` in the low half.
SVG_DEVICE uint32_t pack_half(float low, float high);
SVG_DEVICE float half_low(uint32_t pair);
SVG_DEVICE float half_high(uint32_t pair);

// Four 8 x 8 matrices of 16-bit elements, all lanes together. Lane i gives the address of row i % 8 of matrix i / 8, 16
// bytes; into r[m] it receives elements 2 * (lane % 4) and the next one of row lane / 4 of matrix m.
SVG_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t row_address);

// The value of lane `lane ^ mask`, all lanes together. T has 4 bytes.
template <typename T>
SVG_DEVICE T shuffle_xor(T value, uint32_t mask);

// Barriers of the block and of the warp: all accesses of its threads before it come before all those after it.
SVG_DEVICE void block_sync();
SVG_DEVICE void warp_sync();

// Shared memory of this block. T has 2, 4, 8 or 16 bytes and lies at a multiple of its size.
SVG_DEVICE uint32_t shared_address(const void* pointer);
template <typename T>
SVG_DEVICE void store_shared(uint32_t address, T value);
template <typename T = float>
SVG_DEVICE T load_shared(uint32_t address);

// Global memory that this kernel does not write: float, float2, float4, uint32_t, uint4 and the like.
template <typename T>
SVG_DEVICE T load_read_only(const T* pointer);

// Global memory through which blocks exchange: past the L1 of the multiprocessor. T as in load_read_only.
template <typename T>
SVG_DEVICE void store_global(T* pointer, T value);
template <typename T>
SVG_DEVICE T load_global(const T* pointer);

// Flags in global memory. What a thread stored, or saw through a barrier, before its add_release_gpu, a thread sees
// after it has read that sum, and so do those that a barrier lets go after it.
SVG_DEVICE void add_release_gpu(uint32_t* flag, uint32_t n);
SVG_DEVICE uint32_t load_acquire_gpu(const uint32_t* flag);
SVG_DEVICE void wait_at_least(const uint32_t* flag, uint32_t value);

// mbarriers, 8 bytes in shared memory, sm_90. A phase ends when `count` arrivals have come and as many bytes have been
// stored as arrivals announced; then the next begins.
SVG_DEVICE void mbarrier_init(uint32_t barrier, uint32_t count);
// By the thread that made the inits, before the cluster barrier that shows them to the peers.
SVG_DEVICE void fence_mbarrier_init();
SVG_DEVICE void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes);
// True if the phase of this parity (phase number & 1) has ended; false also now and then when it has.
SVG_DEVICE bool mbarrier_try_wait(uint32_t barrier, uint32_t parity);
SVG_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity);

// Clusters, sm_90. Every thread arrives, then waits; accesses before the arrival come before those after the wait.
SVG_DEVICE uint32_t cluster_rank();
SVG_DEVICE void cluster_arrive();
SVG_DEVICE void cluster_wait();
// The same variable in the shared memory of block `rank` of the cluster.
SVG_DEVICE uint32_t peer_address(uint32_t address, uint32_t rank);
// Stores some time later and then counts the bytes off the mbarrier, which lies in the same block. T has 4 or 8 bytes.
template <typename T>
SVG_DEVICE void store_async(uint32_t address, T value, uint32_t barrier);

}  // namespace svg_fast

#ifdef __CUDACC__
#include "ptx.h"
#else
#include "emulator/twins.h"
#endif

namespace svg_fast {

SVG_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

}  // namespace svg_fast
