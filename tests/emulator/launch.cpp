// Launches, and the order in which threads run.
#include <atomic>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "engine.h"
#include "machine.h"

namespace emulator {

namespace {

void leave_warp(Warp& warp, uint32_t lane) {
  warp.ready &= ~(1u << lane);
  warp.lanes &= ~(1u << lane);
}

void run_thread() {
  Thread& thread = *machine.current;
  thread.fiber.entered();
  (*machine.body)();
  thread.done = true;
  if (thread.warp->collective) {
    fail("a lane ended while others of its warp wait at " + std::string(thread.warp->collective));
  }
  leave_warp(*thread.warp, thread.lane);
  --thread.warp->block->alive;
  leave(thread.warp->barrier);
  leave(thread.warp->block->barrier);
  leave(cluster_barrier());
  sanitizer_release(&machine);
  thread.fiber.leave(true);
}

// ---- the order in which threads run ----

// A new order of blocks and of the warps in each, or of all warps.
void redraw(std::vector<Warp*>& warps) {
  std::shuffle(warps.begin(), warps.end(), machine.random);
  if (machine.chance(2)) {
    std::vector<uint32_t> of_block(machine.group->blocks.size());
    std::generate(of_block.begin(), of_block.end(), std::ref(machine.random));
    std::stable_sort(warps.begin(), warps.end(),
                     [&](const Warp* a, const Warp* b) { return of_block[a->block->rank] < of_block[b->block->rank]; });
  }
}

void throw_error() {
  if (!machine.error.empty()) {
    throw std::runtime_error(machine.error);
  }
}

// Every lane that can run does until it waits; now and then one stays behind.
bool run(Warp& warp) {
  uint32_t order[kWarpLanes], count = 0;
  for (uint32_t ready = warp.ready; ready; ready &= ready - 1) {
    order[count++] = std::countr_zero(ready);
  }
  if (machine.shuffled) {
    std::shuffle(order, order + count, machine.random);
  }
  for (uint32_t k = 0; k < count; ++k) {
    if (machine.shuffled && k && machine.chance(64)) {
      continue;
    }
    machine.current = warp.threads[order[k]];
    here = &machine.current->place;
    machine.current->fiber.resume();
    machine.current = nullptr;
    throw_error();
  }
  return count > 0;
}

// Fair: every warp has its turn. Otherwise the first that can run does, in an order that changes now and then, so that
// some get as far ahead of others as the barriers let them.
bool run_some(const std::vector<Warp*>& warps) {
  bool progress = false;
  for (Warp* warp : warps) {
    if (warp->ready && run(*warp)) {
      progress = true;
      if (!machine.fair) {
        break;
      }
    }
  }
  return progress;
}

// Asynchronous stores: some at random, or, where they come late, only when nothing else can go on.
bool deliver_some(bool must) {
  constexpr size_t kMost = 64;
  const size_t count = machine.group->under_way.size();
  size_t landing = 0;
  if (count && must) {
    landing = 1 + machine.random() % std::min(count, kMost);
  } else if (count && machine.delivery == Delivery::kRandom) {
    landing = machine.random() % std::min(count + 1, kMost);
  }
  for (size_t k = 0; k < landing; ++k) {
    deliver(machine.random() % machine.group->under_way.size());
    throw_error();
  }
  return landing > 0;
}

// Who waits where, each place once, with the number of threads there.
std::string deadlock() {
  std::map<std::string, int> waiting;
  for (const Thread& thread : machine.group->threads) {
    if (!thread.done) {
      const Warp& warp = *thread.warp;
      ++waiting["block " + std::to_string(warp.block->rank) + " warp " + std::to_string(warp.number) + " for " +
                (thread.waits_for ? thread.waits_for : "nothing")];
    }
  }
  std::string text = "deadlock:";
  for (const auto& [place, threads] : waiting) {
    text += " " + std::to_string(threads) + " threads of " + place + ";";
  }
  return text;
}

void run_group() {
  std::vector<Warp*> warps;
  for (Block& block : machine.group->blocks) {
    for (Warp& warp : block.warps) {
      warps.push_back(&warp);
    }
  }
  for (;;) {
    if (machine.shuffled && (machine.fair || machine.chance(200))) {
      redraw(warps);
    }
    const bool progress = run_some(warps);
    if (!deliver_some(!progress) && !progress) {
      break;
    }
  }
  for (const Thread& thread : machine.group->threads) {
    if (!thread.done) {
      throw std::runtime_error(deadlock());
    }
  }
}

// ---- launch ----

dim3 index_of(uint32_t number, const dim3& sizes) {
  return {number % sizes.x, number / sizes.x % sizes.y, number / sizes.x / sizes.y};
}

void add_threads(Block& block, const dim3& index) {
  Group& group = *machine.group;
  const Shape& shape = machine.shape;
  block.alive = block.barrier.expected = shape.block.x * shape.block.y * shape.block.z;
  for (uint32_t k = 0; k < block.alive; ++k) {
    const uint32_t lane = k % kWarpLanes;
    if (lane == 0) {
      Warp& warp = block.warps.emplace_back();
      warp.block = &block;
      warp.number = k / kWarpLanes;
      warp.source = group.sources++;
      tick(warp);
    }
    Warp& warp = block.warps.back();
    Thread& thread = group.threads.emplace_back();
    thread.place = {index_of(k, shape.block), index, shape.block, shape.grid};
    thread.warp = &warp;
    thread.lane = lane;
    thread.fiber.prepare(stack_of_fiber(group.threads.size() - 1), kStackBytes, run_thread);
    warp.threads.push_back(&thread);
    warp.lanes |= 1u << lane;
    ++warp.barrier.expected;
  }
  for (Warp& warp : block.warps) {
    warp.ready = warp.lanes;
  }
}

void run_blocks(uint32_t number, uint32_t count) {
  constexpr uint32_t kAlignment = 1024;
  Group group;
  machine.group = &group;
  group.number = number + 1;
  group.cluster_barriers.resize(count / machine.shape.cluster);
  for (uint32_t rank = 0; rank < count; ++rank) {
    Block& block = group.blocks.emplace_back();
    block.rank = rank;
    block.storage = std::make_unique_for_overwrite<char[]>(kArenaBytes + kAlignment);
    const auto address = reinterpret_cast<uintptr_t>(block.storage.get());
    block.arena = block.storage.get() + (kAlignment - address % kAlignment);
    std::memset(block.arena, 0xFF, kArenaBytes);  // not a number, of any width
    sanitizer_forbid(block.arena + machine.shape.shared_bytes, kArenaBytes - machine.shape.shared_bytes);
    add_threads(block, index_of(number * count + rank, machine.shape.grid));
    group.cluster_barriers[rank / machine.shape.cluster].expected += block.alive;
  }
  run_group();
}

// No std::mutex, on which ThreadSanitizer would have its own ideas: it is told to look away here.
class OneAtATime {
 public:
  OneAtATime() {
    while (busy_.test_and_set()) {
      busy_.wait(true);
    }
  }
  OneAtATime(const OneAtATime&) = delete;
  ~OneAtATime() {
    busy_.clear();
    busy_.notify_one();
  }

 private:
  static inline std::atomic_flag busy_;
};

uint32_t environment_seed() {
  const char* text = std::getenv("SVG_EMULATED_SEED");
  return text ? std::strtoul(text, nullptr, 10) : 1;
}

}  // namespace

void launch(const Shape& shape, const std::function<void()>& body) {
  const OneAtATime guard;
  const uint32_t blocks = shape.grid.x * shape.grid.y * shape.grid.z;
  const uint32_t threads = shape.block.x * shape.block.y * shape.block.z;
  if (blocks == 0 || threads == 0 || threads > 1024 || shape.cluster == 0 || blocks % shape.cluster != 0) {
    throw std::runtime_error("a launch of " + std::to_string(blocks) + " blocks of " + std::to_string(threads) +
                             " threads in clusters of " + std::to_string(shape.cluster));
  }
  const uint32_t seed = environment_seed();
  machine = Machine();
  machine.shape = shape;
  machine.body = &body;
  machine.random.seed(seed);
  machine.shuffled = seed % 3 != 0;
  machine.fair = seed % 3 != 2;
  machine.delivery = Delivery(seed / 3 % 3);
  if (shape.shared_bytes) {
    machine.extents[0] = machine.layout_end = shape.shared_bytes;
  }
  const uint32_t together = shape.cooperative ? blocks : shape.cluster;
  std::vector<uint32_t> order(blocks / together);
  for (uint32_t k = 0; k < order.size(); ++k) {
    order[k] = k;
  }
  if (machine.shuffled) {
    std::shuffle(order.begin(), order.end(), machine.random);
  }
  for (const uint32_t number : order) {
    run_blocks(number, together);
  }
  sanitizer_acquire(&machine);
}

Device device() {
  Device device{9, 0, 132};
  if (const char* text = std::getenv("SVG_EMULATED_DEVICE")) {
    int capability = 0;
    if (std::sscanf(text, "sm_%d %d", &capability, &device.multiprocessors) != 2) {
      throw std::runtime_error("SVG_EMULATED_DEVICE must be like \"sm_80 108\", got \"" + std::string(text) + "\"");
    }
    device.major = capability / 10;
    device.minor = capability % 10;
  }
  return device;
}

}  // namespace emulator
