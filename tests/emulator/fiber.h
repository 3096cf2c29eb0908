// Stacks that one thread of the operating system switches between, made known to the sanitizers where they are there.
#pragma once

#include <cstddef>

namespace emulator {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  ~Fiber();
  // `entry` must not return: it ends in a switch to the scheduler.
  void prepare(char* stack, size_t bytes, void (*entry)());
  // From the scheduler into the fiber, and back.
  void resume();
  void leave(bool for_good = false);
  // The first thing that `entry` does.
  void entered();

 private:
  void* stack_pointer_ = nullptr;
  char* stack_ = nullptr;
  size_t bytes_ = 0;
  void* as_tsan_thread_ = nullptr;
  void* fake_stack_ = nullptr;
};

// Kept between launches; a page that cannot be touched lies below each.
char* stack_of_fiber(size_t number);
constexpr size_t kStackBytes = 128 << 10;

// To ThreadSanitizer: what was done before a release comes before what follows an acquire of the same address.
void sanitizer_release(void* address);
void sanitizer_acquire(void* address);
// To AddressSanitizer: memory that nobody may touch, and that one may again.
void sanitizer_forbid(const void* memory, size_t bytes);
void sanitizer_allow(const void* memory, size_t bytes);

}  // namespace emulator
