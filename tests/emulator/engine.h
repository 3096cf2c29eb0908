// Runs CUDA kernels on the CPU, to test their numbers and their synchronisation. What kernels see of it.
//
// Every CUDA thread is a fiber; one thread of the operating system runs them all, in an order that a seed draws. The
// blocks of a cluster, or of a cooperative grid, are alive together; clusters run one after the other. Shared memory is
// poisoned with NaN. Asynchronous stores land late and out of order. Beside the values, vector clocks tell which access
// came before which: one that no barrier orders is an error in every order of threads, even where the values are right.
//
// This folder's .cpp files are compiled apart from the kernels and without sanitizers, so that ThreadSanitizer looks at
// the accesses of the kernels only, each fiber a thread to it, ordered by the kernel's barriers and by nothing else.
//
// Not modelled: speed, rounding inside the tensor cores, partial warps at collectives, the order of the asynchronous
// proxy among ordinary accesses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

namespace emulator {

// Where a thread is.
struct Place {
  dim3 thread, block, threads, blocks;
};
extern const Place* here;
uint32_t lane();

struct Shape {
  dim3 grid, block;
  uint32_t cluster, shared_bytes;
  bool cooperative;
};
// Runs the kernel to its end; `body` is what every thread does. Throws std::runtime_error with what a kernel did wrong.
// SVG_EMULATED_SEED: the order of threads (seed % 9 % 3: as they stand, shuffled, some far ahead) and of asynchronous
// stores (seed % 9 / 3: at random, at once, as late as can be).
void launch(const Shape& shape, const std::function<void()>& body);

// The device that host functions are told of: SVG_EMULATED_DEVICE="sm_80 108", or else sm_90 with 132 multiprocessors.
struct Device {
  int major, minor, multiprocessors;
};
Device device();

// Ends the launch with this message, from a thread of it.
[[noreturn]] void stop(const char* message);

// All lanes of the warp come to the same one; the last to come runs it on everybody's operands, by lane.
using Collective = void (*)(void* const (&operands)[32]);
void collective(const char* name, void* operands, Collective run);
struct Shuffle {
  uint32_t sent, from, received;
};
void shuffle(void* const (&operands)[32]);
void mma_m16n8k16(void* const (&operands)[32]);
void ldmatrix_x4(void* const (&operands)[32]);

void block_sync();
void warp_sync();

// Shared memory.
void* shared_variable(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared();
uint32_t shared_address(const void* pointer);
// Where an access goes, after a look at whether it may: it lies in this block, aligned, and what came before is over.
const void* shared_read(uint32_t address, uint32_t bytes);
void* shared_write(uint32_t address, uint32_t bytes);

// Global memory. Of the flags: the value is added or read in here.
void global_read(const void* pointer, uint32_t bytes);
void global_write(const void* pointer, uint32_t bytes);
void constant_read(const void* pointer, uint32_t bytes);
void add_release(uint32_t* flag, uint32_t n);
uint32_t load_acquire(const uint32_t* flag);
void wait_at_least(const uint32_t* flag, uint32_t value);

void mbarrier_init(uint32_t barrier, uint32_t count);
void fence_mbarrier_init();
void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes);
bool mbarrier_try_wait(uint32_t barrier, uint32_t parity);

uint32_t cluster_rank();
void cluster_arrive();
void cluster_wait();
uint32_t peer_address(uint32_t address, uint32_t rank);
void store_async(uint32_t address, const void* value, uint32_t bytes, uint32_t barrier);

}  // namespace emulator
