// The state of one emulated launch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine.h"
#include "fiber.h"

namespace emulator {

constexpr uint32_t kWarpLanes = 32;
constexpr uint32_t kArenaBytes = 227 << 10;        // what one block may have on sm_90
constexpr uint32_t kStaticSharedBytes = 48 << 10;  // what it may declare
constexpr uint32_t kOffsetBits = 24;               // a shared address is (rank + 1) << kOffsetBits | offset
constexpr uint32_t kOffsetMask = (1 << kOffsetBits) - 1;

// seen[s]: the newest event of source s that is known here. Sources are the warps of the blocks that are alive together
// and their mbarriers, whose events are completed phases.
struct Clock {
  std::vector<uint32_t> seen;

  uint32_t at(uint32_t source) const { return source < seen.size() ? seen[source] : 0; }
  void raise(uint32_t source, uint32_t event) {
    seen.resize(std::max<size_t>(seen.size(), source + 1));
    seen[source] = std::max(seen[source], event);
  }
  void join(const Clock& other) {
    seen.resize(std::max(seen.size(), other.seen.size()));
    for (size_t s = 0; s < other.seen.size(); ++s) {
      seen[s] = std::max(seen[s], other.seen[s]);
    }
  }
};

struct Thread;

// A barrier of all threads of a warp, a block or a cluster.
struct Barrier {
  uint32_t expected = 0, arrived = 0, generation = 0;
  Clock clock[2];  // of the arrivals of even and of odd generations
  std::vector<Thread*> waiting;
};

struct MBarrier {
  uint32_t expected, pending, phase = 0;
  int64_t bytes = 0;  // announced and not yet stored
  uint32_t source, init_source, init_event;
  bool fenced = false;
  Clock arriving, completed;
  std::vector<Thread*> waiting;
};

struct Block;

struct Warp {
  Block* block;
  uint32_t number;     // in its block
  uint32_t source;     // its place in clocks
  uint32_t lanes = 0;  // that there are, as bits
  uint32_t ready = 0;  // that can run
  std::vector<Thread*> threads;
  Clock clock;
  std::shared_ptr<const Clock> snapshot;  // of clock, for stores under way
  Barrier barrier;
  const char* collective = nullptr;  // the one that lanes have come to
  uint32_t arrived = 0;
  void* operands[kWarpLanes];
};

struct Thread {
  Place place;
  Warp* warp;
  uint32_t lane;
  bool done = false;
  const char* waits_for = nullptr;
  bool between_cluster_barriers = false;  // arrived and not yet waited
  uint32_t cluster_generation = 0;
  Fiber fiber;
};

// The last accesses to a few bytes, as (source, event).
struct Write {
  uint32_t source = 0, event = 0;
};
struct SharedBytes {
  Write write;
  std::vector<uint32_t> read;  // newest event of each warp of the block
};
struct GlobalBytes {
  uint32_t group = 0;  // in which the write was
  Write write;
  uint32_t reading_group = 0;
  std::vector<Write> reads;
};
struct Flag {
  Clock clock;
  std::vector<std::pair<Thread*, uint32_t>> waiting;
};

struct Block {
  uint32_t rank;  // among those alive together
  uint32_t alive = 0;
  Barrier barrier;
  std::deque<Warp> warps;
  std::unique_ptr<char[]> storage;
  char* arena = nullptr;
  std::vector<SharedBytes> history;
  std::map<uint32_t, MBarrier> mbarriers;
};

struct Message {  // an asynchronous store under way
  Block* to;
  uint32_t offset, barrier, bytes;
  unsigned char data[16];
  std::shared_ptr<const Clock> clock;
  uint32_t from_block, from_warp;
};

// The blocks that are alive together: a cluster, or all of a cooperative grid.
struct Group {
  uint32_t number;
  uint32_t sources = 0;
  std::deque<Block> blocks;
  std::deque<Thread> threads;
  std::vector<Barrier> cluster_barriers;
  std::vector<Message> under_way;
};

enum class Delivery { kRandom, kEager, kLazy };

struct Machine {
  Shape shape;
  const std::function<void()>* body = nullptr;
  std::mt19937 random;
  bool shuffled = false, fair = true;
  Delivery delivery = Delivery::kRandom;
  std::string error;
  Group* group = nullptr;
  Thread* current = nullptr;               // null in the scheduler
  std::map<const void*, uint32_t> layout;  // offsets of shared variables, the same in every block
  std::map<uint32_t, uint32_t> extents;    // of these variables, begin to end
  uint32_t layout_end = 0, declared = 0;
  std::unordered_map<uintptr_t, GlobalBytes> global;
  std::unordered_map<const uint32_t*, Flag> flags;

  bool chance(uint32_t one_in) { return random() % one_in == 0; }
};
extern Machine machine;

void fail(const std::string& what);  // returns in the scheduler only
void park(const char* waits_for);
void wake(std::vector<Thread*>& waiting);

void tick(Warp& warp);
void acquire(Warp& warp, const Clock& clock);
std::shared_ptr<const Clock> snapshot(Warp& warp);

uint32_t arrive(Barrier& barrier);  // the generation to wait for
void wait(Barrier& barrier, uint32_t generation, const char* waits_for);
void leave(Barrier& barrier);

Barrier& cluster_barrier();

// Shared memory, by offset: an access lies in one variable and is aligned; a write comes after what was done before.
void check_extent(uint32_t offset, uint32_t bytes);
char* in_own_block(uint32_t address, uint32_t bytes);
void note_shared_write(Block& block, uint32_t offset, uint32_t bytes, const Clock& writer, Write write);
void deliver(size_t message);

}  // namespace emulator
