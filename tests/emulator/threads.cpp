// What threads do together: barriers of warp, block and cluster, and collectives of a warp.
#include <bit>
#include <cstdlib>
#include <cstring>

#include "engine.h"
#include "machine.h"

namespace emulator {

Machine machine;
const Place* here = nullptr;

uint32_t lane() { return machine.current->lane; }

namespace {

std::string position(const Thread& thread) {
  return "block " + std::to_string(thread.warp->block->rank) + " warp " + std::to_string(thread.warp->number) +
         " lane " + std::to_string(thread.lane);
}

}  // namespace

void fail(const std::string& what) {
  if (machine.error.empty()) {
    machine.error = what + (machine.current ? " [" + position(*machine.current) + "]" : "");
  }
  if (machine.current) {
    machine.current->fiber.leave();  // never to come back
  }
}

void stop(const char* message) {
  fail(message);
  std::abort();
}

void park(const char* waits_for) {
  Thread& thread = *machine.current;
  thread.waits_for = waits_for;
  thread.warp->ready &= ~(1u << thread.lane);
  thread.fiber.leave();
  thread.waits_for = nullptr;
}

void wake(std::vector<Thread*>& waiting) {
  for (Thread* thread : waiting) {
    thread->warp->ready |= 1u << thread->lane;
  }
  waiting.clear();
}

// ---- clocks ----

void tick(Warp& warp) {
  warp.clock.raise(warp.source, warp.clock.at(warp.source) + 1);
  warp.snapshot.reset();
}

void acquire(Warp& warp, const Clock& clock) {
  warp.clock.join(clock);
  warp.snapshot.reset();
}

std::shared_ptr<const Clock> snapshot(Warp& warp) {
  if (!warp.snapshot) {
    warp.snapshot = std::make_shared<const Clock>(warp.clock);
  }
  return warp.snapshot;
}

// ---- barriers ----

namespace {

void complete(Barrier& barrier) {
  barrier.arrived = 0;
  ++barrier.generation;
  barrier.clock[barrier.generation & 1] = Clock();
  wake(barrier.waiting);
}

}  // namespace

uint32_t arrive(Barrier& barrier) {
  const uint32_t generation = barrier.generation;
  Warp& warp = *machine.current->warp;
  barrier.clock[generation & 1].join(warp.clock);
  tick(warp);
  sanitizer_release(&barrier);
  if (++barrier.arrived >= barrier.expected) {
    complete(barrier);
  }
  return generation;
}

void wait(Barrier& barrier, uint32_t generation, const char* waits_for) {
  if (barrier.generation == generation) {
    barrier.waiting.push_back(machine.current);
    park(waits_for);
  }
  acquire(*machine.current->warp, barrier.clock[generation & 1]);
  sanitizer_acquire(&barrier);
}

void leave(Barrier& barrier) {
  --barrier.expected;
  if (barrier.expected && barrier.arrived >= barrier.expected) {
    complete(barrier);
  }
}

void block_sync() {
  Barrier& barrier = machine.current->warp->block->barrier;
  wait(barrier, arrive(barrier), "the block");
}

void warp_sync() {
  Barrier& barrier = machine.current->warp->barrier;
  wait(barrier, arrive(barrier), "the warp");
}

Barrier& cluster_barrier() {
  return machine.group->cluster_barriers[machine.current->warp->block->rank / machine.shape.cluster];
}

void cluster_arrive() {
  Thread& thread = *machine.current;
  if (thread.between_cluster_barriers) {
    fail("two arrivals at the cluster barrier without a wait between them");
  }
  thread.between_cluster_barriers = true;
  thread.cluster_generation = arrive(cluster_barrier());
}

void cluster_wait() {
  Thread& thread = *machine.current;
  if (!thread.between_cluster_barriers) {
    fail("a wait at the cluster barrier without an arrival");
  }
  thread.between_cluster_barriers = false;
  wait(cluster_barrier(), thread.cluster_generation, "the cluster");
}

// ---- collectives ----

void collective(const char* name, void* operands, Collective run) {
  Thread& thread = *machine.current;
  Warp& warp = *thread.warp;
  if (std::popcount(warp.lanes) != kWarpLanes) {
    fail("a " + std::string(name) + " of a warp that has " + std::to_string(std::popcount(warp.lanes)) + " lanes");
  }
  if (warp.collective && std::strcmp(warp.collective, name) != 0) {
    fail("lanes of a warp meet at different collectives, " + std::string(warp.collective) + " and " + name);
  }
  warp.collective = name;
  warp.operands[thread.lane] = operands;
  warp.arrived |= 1u << thread.lane;
  if (warp.arrived != ~0u) {
    park(name);
    return;
  }
  run(warp.operands);
  warp.collective = nullptr;
  warp.arrived = 0;
  warp.ready = ~0u;
}

void shuffle(void* const (&operands)[32]) {
  for (void* mine : operands) {
    Shuffle& lane = *static_cast<Shuffle*>(mine);
    lane.received = static_cast<const Shuffle*>(operands[lane.from])->sent;
  }
}

}  // namespace emulator
