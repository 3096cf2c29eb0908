// What the two directions of a persistent LSTM layer share. T steps, B batch, H hidden units; gates packed (i, f, g,
// o).
//
// A group of kBlocks blocks carries kRows sequences through all steps. A block owns kUnits hidden units and keeps their
// recurrent weights on chip from the first step to the last; a warp owns kUnitsPerWarp. What units tell each other
// between two steps goes through an exchange: the shared memory of a cluster, or the second-level cache.
#pragma once

#include "../lstm_cell.h"
#include "elements.cuh"
#include "half_pair.cuh"
#include "primitives.h"
#include "scalar_math.cuh"

namespace svg_fast {

constexpr int kRows = 8;          // the N of the mma
constexpr int kUnitsPerWarp = 4;  // times four gates: the M of the mma
constexpr int kUnits = 32, kWarps = kUnits / kUnitsPerWarp, kThreads = 32 * kWarps;

// Code for a device without clusters is compiled, but not what needs them. kFewRegisters: a limit without spills, where
// one was found.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kHasClusters = false;
#else
constexpr bool kHasClusters = true;
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
constexpr int kFewRegisters = 168;
#else
constexpr int kFewRegisters = 255;
#endif

// float32 sequences keep 22 bits of a weight, 16-bit ones the 11 of its high half. Both halves of 512 x 2048 weights
// outgrow the registers of 16 blocks.
template <typename T, int kHidden>
constexpr Low kLowWeights = sizeof(T) == 2  ? Low::kNone
                            : kHidden > 256 ? Low::kShared
                                            : Low::kRegisters;

template <int kHidden>
constexpr int kBlocks = kHidden / kUnits;

// Where blocks that share no memory meet: `data` is theirs to lay out, `flags` has one counter for each group, zero at
// the start.
struct Meeting {
  void* data;
  uint32_t* flags;
};

// The block's place. Chunks of kRows sequences go round the groups.
template <int kHidden>
struct Place {
  int rank, group, groups;

  SVG_DEVICE Place()
      : rank(blockIdx.x % kBlocks<kHidden>),
        group(blockIdx.x / kBlocks<kHidden>),
        groups(gridDim.x / kBlocks<kHidden>) {}
};

// The barrier of a group by its counter: all that its blocks stored before is seen by all after. `times`: how often it
// was passed before.
template <int kHidden>
SVG_DEVICE void group_barrier(uint32_t* flag, uint32_t times) {
  block_sync();
  if (threadIdx.x == 0) {
    add_release_gpu(flag, 1);
    wait_at_least(flag, kBlocks<kHidden> * (times + 1));
  }
  block_sync();
}

// `count` mbarriers, all armed for `bytes` before any peer may store here.
SVG_DEVICE void open_mailbox(uint64_t* arrival, int count, uint32_t bytes) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < count; ++i) {
      mbarrier_init(shared_address(arrival + i), 1);
      mbarrier_arrive_expect_tx(shared_address(arrival + i), bytes);
    }
    fence_mbarrier_init();
  }
  cluster_arrive();
  cluster_wait();
}

// Waits for all of a message, and arms its mbarrier again before this block's next one, without which no peer gets to
// send once more. `times`: how often a message was received here before.
SVG_DEVICE void receive_mail(uint64_t& arrival, uint32_t times, uint32_t bytes) {
  mbarrier_wait(shared_address(&arrival), times & 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(shared_address(&arrival), bytes);
  }
}

// The gates of a unit lie H apart.
template <typename T, typename Stride>
SVG_DEVICE auto load_gates(const T* i, Stride hidden) {
  using V = decltype(load_element(i));
  return LSTMGates<V>{load_element(i), load_element(i + hidden), load_element(i + 2 * hidden),
                      load_element(i + 3 * hidden)};
}

template <typename T, typename Stride, typename V>
SVG_DEVICE void store_gates(T* i, Stride hidden, const LSTMGates<V>& gates) {
  store_element(i, gates.i);
  store_element(i + hidden, gates.f);
  store_element(i + 2 * hidden, gates.g);
  store_element(i + 3 * hidden, gates.o);
}

}  // namespace svg_fast
