#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#ifndef __x86_64__
#error "the emulator switches stacks in x86-64 assembly"
#endif

// There when a sanitizer is in the process.
#define WEAK __attribute__((weak))
extern "C" {
void* WEAK __tsan_get_current_fiber();
void* WEAK __tsan_create_fiber(unsigned flags);
void WEAK __tsan_destroy_fiber(void* fiber);
void WEAK __tsan_switch_to_fiber(void* fiber, unsigned flags);
void WEAK __tsan_release(void* address);
void WEAK __tsan_acquire(void* address);
void WEAK __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
void WEAK __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
void WEAK __asan_poison_memory_region(const volatile void* memory, size_t bytes);
void WEAK __asan_unpoison_memory_region(const volatile void* memory, size_t bytes);

// Keeps the registers that a function must preserve on the stack, and the stack where `save` says; goes on with `load`.
void emulator_switch(void** save, void* load);
}
__asm__(R"(
.text
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

namespace emulator {
namespace {

constexpr size_t kPage = 4096, kPreservedRegisters = 6;
constexpr unsigned kSwitchOrdersNothing = 1;  // __tsan_switch_to_fiber_no_sync

struct Scheduler {
  void *stack_pointer, *as_tsan_thread, *fake_stack;
  const void* stack;
  size_t bytes;
} scheduler;

}  // namespace

void Fiber::prepare(char* stack, size_t bytes, void (*entry)()) {
  stack_ = stack;
  bytes_ = bytes;
  // As emulator_switch leaves it: registers, the function to go on in, and its caller, which is none.
  void** top = reinterpret_cast<void**>(stack + bytes) - 2;
  top[0] = reinterpret_cast<void*>(entry);
  top[1] = nullptr;
  stack_pointer_ = top - kPreservedRegisters;
  std::memset(stack_pointer_, 0, kPreservedRegisters * sizeof(void*));
  if (__tsan_create_fiber) {
    as_tsan_thread_ = __tsan_create_fiber(0);
  }
}

Fiber::~Fiber() {
  if (as_tsan_thread_) {
    __tsan_destroy_fiber(as_tsan_thread_);
  }
}

void Fiber::resume() {
  if (__tsan_switch_to_fiber) {
    scheduler.as_tsan_thread = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(as_tsan_thread_, kSwitchOrdersNothing);
  }
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(&scheduler.fake_stack, stack_, bytes_);
  }
  emulator_switch(&scheduler.stack_pointer, stack_pointer_);
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(scheduler.fake_stack, nullptr, nullptr);
  }
}

// Who had this stack before has left it.
void Fiber::entered() {
  sanitizer_acquire(stack_);
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.bytes);
  }
}

void Fiber::leave(bool for_good) {
  if (for_good) {
    sanitizer_release(stack_);
  }
  if (__tsan_switch_to_fiber) {
    __tsan_switch_to_fiber(scheduler.as_tsan_thread, kSwitchOrdersNothing);
  }
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, scheduler.stack, scheduler.bytes);
  }
  emulator_switch(&stack_pointer_, scheduler.stack_pointer);
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(fake_stack_, &scheduler.stack, &scheduler.bytes);
  }
}

char* stack_of_fiber(size_t number) {
  static std::vector<char*> stacks;
  while (stacks.size() <= number) {
    const size_t bytes = kStackBytes + kPage;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      throw std::bad_alloc();
    }
    mprotect(memory, kPage, PROT_NONE);
    stacks.push_back(static_cast<char*>(memory) + kPage);
  }
  return stacks[number];
}

void sanitizer_release(void* address) {
  if (__tsan_release) {
    __tsan_release(address);
  }
}

void sanitizer_acquire(void* address) {
  if (__tsan_acquire) {
    __tsan_acquire(address);
  }
}

void sanitizer_forbid(const void* memory, size_t bytes) {
  if (__asan_poison_memory_region) {
    __asan_poison_memory_region(memory, bytes);
  }
}

void sanitizer_allow(const void* memory, size_t bytes) {
  if (__asan_unpoison_memory_region) {
    __asan_unpoison_memory_region(memory, bytes);
  }
}

}  // namespace emulator
