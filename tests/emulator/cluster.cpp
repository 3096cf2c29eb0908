// mbarriers, clusters, and the asynchronous stores between their blocks.
#include <cstring>
#include <utility>

#include "machine.h"

namespace emulator {

// ---- mbarriers ----

namespace {

// The block of the address of an asynchronous store.
Block& block_at(uint32_t address) {
  Block& own = *machine.current->warp->block;
  const uint32_t peer = address >> kOffsetBits;
  const uint32_t first = own.rank / machine.shape.cluster * machine.shape.cluster;
  return peer == 0 ? own : machine.group->blocks[first + peer - 1];
}

MBarrier& mbarrier_at(uint32_t address) {
  in_own_block(address, sizeof(uint64_t));
  Warp& warp = *machine.current->warp;
  const auto found = warp.block->mbarriers.find(address);
  if (found == warp.block->mbarriers.end()) {
    fail("an mbarrier that was not initialised");
  }
  if (found->second.init_event > warp.clock.at(found->second.init_source)) {
    fail("race: an mbarrier used before its init is known to be over");
  }
  return found->second;
}

void end_phase_if_complete(MBarrier& barrier) {
  if (barrier.pending == 0 && barrier.bytes == 0) {
    barrier.completed.join(barrier.arriving);
    barrier.arriving = Clock();
    barrier.pending = barrier.expected;
    ++barrier.phase;
    barrier.completed.raise(barrier.source, barrier.phase);
    sanitizer_release(&barrier);
    wake(barrier.waiting);
  }
}

constexpr int64_t kMostBytes = (1 << 20) - 1;  // the ISA's range of a tx-count, either sign

}  // namespace

void mbarrier_init(uint32_t address, uint32_t count) {
  in_own_block(address, sizeof(uint64_t));
  const Warp& warp = *machine.current->warp;
  MBarrier barrier;
  barrier.expected = barrier.pending = count;
  barrier.source = machine.group->sources++;
  barrier.init_source = warp.source;
  barrier.init_event = warp.clock.at(warp.source);
  if (!warp.block->mbarriers.emplace(address, barrier).second) {
    fail("an mbarrier initialised twice");
  }
}

void fence_mbarrier_init() {
  const Warp& warp = *machine.current->warp;
  for (auto& [address, barrier] : warp.block->mbarriers) {
    barrier.fenced |= barrier.init_source == warp.source;
  }
}

void mbarrier_arrive_expect_tx(uint32_t address, uint32_t bytes) {
  MBarrier& barrier = mbarrier_at(address);
  if (barrier.pending == 0) {
    fail("more arrivals at an mbarrier than its count");
  }
  Warp& warp = *machine.current->warp;
  barrier.arriving.join(warp.clock);
  tick(warp);
  sanitizer_release(&barrier.arriving);
  barrier.bytes += bytes;
  if (barrier.bytes > kMostBytes) {
    fail("an mbarrier that waits for more bytes than it can count");
  }
  --barrier.pending;
  end_phase_if_complete(barrier);
}

bool mbarrier_try_wait(uint32_t address, uint32_t parity) {
  MBarrier& barrier = mbarrier_at(address);
  if (parity > 1) {
    fail("an mbarrier's parity that is neither 0 nor 1");
  }
  if ((barrier.phase & 1) == parity) {
    if (machine.chance(8)) {
      machine.current->fiber.leave();
      return false;
    }
    barrier.waiting.push_back(machine.current);
    park("an mbarrier");
  }
  acquire(*machine.current->warp, barrier.completed);
  sanitizer_acquire(&barrier);
  return true;
}

// ---- clusters ----

uint32_t cluster_rank() { return machine.current->warp->block->rank % machine.shape.cluster; }

uint32_t peer_address(uint32_t address, uint32_t rank) {
  if (address > kOffsetMask) {
    fail("the peer address of a peer address");
  }
  if (rank >= machine.shape.cluster) {
    fail("a peer address in block " + std::to_string(rank) + " of a cluster of " +
         std::to_string(machine.shape.cluster));
  }
  return (rank + 1) << kOffsetBits | address;
}

void store_async(uint32_t address, const void* value, uint32_t bytes, uint32_t barrier) {
  Block& to = block_at(address);
  if (&block_at(barrier) != &to) {
    fail("an asynchronous store whose mbarrier lies in another block");
  }
  Warp& warp = *machine.current->warp;
  Message message{&to, address & kOffsetMask, barrier & kOffsetMask, bytes,
                  {},  snapshot(warp),        warp.block->rank,      warp.number};
  check_extent(message.offset, bytes);
  check_extent(message.barrier, sizeof(uint64_t));
  std::memcpy(message.data, value, bytes);
  machine.group->under_way.push_back(std::move(message));
  if (machine.delivery == Delivery::kEager) {
    Thread* issuer = std::exchange(machine.current, nullptr);  // what goes wrong at the other end is not its fault
    deliver(machine.group->under_way.size() - 1);
    machine.current = issuer;
    if (!machine.error.empty()) {
      issuer->fiber.leave();
    }
  }
}

namespace {

void land(const Message& message) {
  if (message.to->alive == 0) {
    return fail("an asynchronous store into a block that has ended");
  }
  const auto found = message.to->mbarriers.find(message.barrier);
  if (found == message.to->mbarriers.end()) {
    return fail("an asynchronous store before the init of its mbarrier");
  }
  MBarrier& barrier = found->second;
  if (!barrier.fenced) {
    return fail("an asynchronous store whose mbarrier's init was not fenced");
  }
  if (barrier.init_event > message.clock->at(barrier.init_source)) {
    return fail("race: an asynchronous store before the init of its mbarrier is known to be over");
  }
  std::memcpy(message.to->arena + message.offset, message.data, message.bytes);
  note_shared_write(*message.to, message.offset, message.bytes, *message.clock, {barrier.source, barrier.phase + 1});
  barrier.arriving.join(*message.clock);
  barrier.bytes -= message.bytes;
  if (barrier.bytes < -kMostBytes) {
    return fail("more bytes stored than an mbarrier can count");
  }
  end_phase_if_complete(barrier);
}

}  // namespace

void deliver(size_t number) {
  std::vector<Message>& under_way = machine.group->under_way;
  std::swap(under_way[number], under_way.back());
  const Message message = std::move(under_way.back());
  under_way.pop_back();
  land(message);
  if (!machine.error.empty()) {
    machine.error += " [store of block " + std::to_string(message.from_block) + " warp " +
                     std::to_string(message.from_warp) + " into block " + std::to_string(message.to->rank) + "]";
  }
}

}  // namespace emulator
