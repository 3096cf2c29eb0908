// Shared and global memory: where an access goes, and whether what it depends on is over.
#include "machine.h"

namespace emulator {
namespace {

constexpr uint32_t kSharedGranule = 2, kGlobalGranule = 4;  // bytes that share a history

// The range of granules that an access touches.
template <typename Address>
struct Granules {
  Address first, end;
  Granules(Address address, uint32_t bytes, uint32_t size)
      : first(address / size), end((address + bytes + size - 1) / size) {}
};

SharedBytes& shared_bytes(Block& block, uint32_t granule) {
  if (granule >= block.history.size()) {
    block.history.resize(granule + 1024);
  }
  SharedBytes& bytes = block.history[granule];
  bytes.read.resize(block.warps.size());
  return bytes;
}

void check_global(const void* pointer, uint32_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
    fail("global memory: an access of " + std::to_string(bytes) + " bytes that is not aligned");
  }
}

}  // namespace

// ---- shared memory ----

void check_extent(uint32_t offset, uint32_t bytes) {
  if (offset % bytes != 0) {
    fail("shared memory: an access of " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset));
  }
  const auto next = machine.extents.upper_bound(offset);
  if (next == machine.extents.begin() || offset + bytes > std::prev(next)->second) {
    fail("shared memory: an access outside every variable, at offset " + std::to_string(offset));
  }
}

char* in_own_block(uint32_t address, uint32_t bytes) {
  if (address > kOffsetMask) {
    fail("shared memory: an ordinary access by the address of a peer");
  }
  check_extent(address, bytes);
  return machine.current->warp->block->arena + address;
}

void* dynamic_shared() { return machine.current->warp->block->arena; }

void* shared_variable(const void* key, size_t bytes, size_t alignment) {
  constexpr uint32_t kGap = 64;  // that nobody may touch, behind every variable
  char* arena = machine.current->warp->block->arena;
  auto found = machine.layout.find(key);
  if (found == machine.layout.end()) {
    const uint32_t offset = (machine.layout_end + alignment - 1) / alignment * alignment;
    machine.declared += bytes;
    machine.layout_end = offset + bytes + kGap;
    if (machine.declared > kStaticSharedBytes || machine.layout_end > kArenaBytes) {
      fail("shared memory: " + std::to_string(machine.declared) + " bytes declared and " +
           std::to_string(machine.shape.shared_bytes) + " dynamic");
    }
    machine.extents[offset] = offset + bytes;
    found = machine.layout.emplace(key, offset).first;
  }
  sanitizer_allow(arena + found->second, bytes);
  return arena + found->second;
}

uint32_t shared_address(const void* pointer) {
  const char* arena = machine.current->warp->block->arena;
  const char* at = static_cast<const char*>(pointer);
  if (at < arena || at >= arena + kArenaBytes) {
    fail("shared memory: a pointer to somewhere else");
  }
  return at - arena;
}

const void* shared_read(uint32_t address, uint32_t bytes) {
  const char* at = in_own_block(address, bytes);
  Warp& warp = *machine.current->warp;
  const Granules<uint32_t> touched(address, bytes, kSharedGranule);
  for (uint32_t granule = touched.first; granule < touched.end; ++granule) {
    SharedBytes& history = shared_bytes(*warp.block, granule);
    if (history.write.event > warp.clock.at(history.write.source)) {
      fail("race: shared memory read before its last write is known to be over");
    }
    history.read[warp.number] = warp.clock.at(warp.source);
  }
  return at;
}

void note_shared_write(Block& block, uint32_t offset, uint32_t bytes, const Clock& writer, Write write) {
  const Granules<uint32_t> touched(offset, bytes, kSharedGranule);
  for (uint32_t granule = touched.first; granule < touched.end; ++granule) {
    SharedBytes& history = shared_bytes(block, granule);
    if (history.write.event > writer.at(history.write.source)) {
      fail("race: shared memory written before its last write is known to be over");
    }
    for (const Warp& warp : block.warps) {
      if (history.read[warp.number] > writer.at(warp.source)) {
        fail("race: shared memory written while it may still be read");
      }
    }
    history.write = write;
  }
}

void* shared_write(uint32_t address, uint32_t bytes) {
  char* at = in_own_block(address, bytes);
  Warp& warp = *machine.current->warp;
  note_shared_write(*warp.block, address, bytes, warp.clock, {warp.source, warp.clock.at(warp.source)});
  return at;
}

// ---- global memory ----

void global_read(const void* pointer, uint32_t bytes) {
  check_global(pointer, bytes);
  const Warp& warp = *machine.current->warp;
  const Granules<uintptr_t> touched(reinterpret_cast<uintptr_t>(pointer), bytes, kGlobalGranule);
  for (uintptr_t granule = touched.first; granule < touched.end; ++granule) {
    GlobalBytes& history = machine.global[granule];
    const bool other_group = history.group != 0 && history.group != machine.group->number;
    if (other_group || history.write.event > warp.clock.at(history.write.source)) {
      fail("race: global memory read before its last write is known to be over");
    }
    if (history.reading_group != machine.group->number) {
      history.reading_group = machine.group->number;
      history.reads.clear();
    }
    const uint32_t event = warp.clock.at(warp.source);
    for (Write& read : history.reads) {
      if (read.source == warp.source) {
        read.event = event;
        break;
      }
    }
    if (history.reads.empty() || history.reads.back().event != event || history.reads.back().source != warp.source) {
      history.reads.push_back({warp.source, event});
    }
  }
}

void global_write(const void* pointer, uint32_t bytes) {
  check_global(pointer, bytes);
  const Warp& warp = *machine.current->warp;
  const Granules<uintptr_t> touched(reinterpret_cast<uintptr_t>(pointer), bytes, kGlobalGranule);
  for (uintptr_t granule = touched.first; granule < touched.end; ++granule) {
    GlobalBytes& history = machine.global[granule];
    const bool other_group = history.group != 0 && history.group != machine.group->number;
    if (other_group || history.write.event > warp.clock.at(history.write.source)) {
      fail("race: global memory written before its last write is known to be over");
    }
    for (const Write& read : history.reads) {
      if (history.reading_group != machine.group->number || read.event > warp.clock.at(read.source)) {
        fail("race: global memory written while it may still be read");
      }
    }
    history.reads.clear();
    history.group = machine.group->number;
    history.write = {warp.source, warp.clock.at(warp.source)};
  }
}

void constant_read(const void* pointer, uint32_t bytes) {
  check_global(pointer, bytes);
  if (machine.global.empty()) {
    return;
  }
  const Granules<uintptr_t> touched(reinterpret_cast<uintptr_t>(pointer), bytes, kGlobalGranule);
  for (uintptr_t granule = touched.first; granule < touched.end; ++granule) {
    const auto found = machine.global.find(granule);
    if (found != machine.global.end() && found->second.group != 0) {
      fail("global memory: a read-only load of what this kernel writes");
    }
  }
}

// ---- flags ----

void add_release(uint32_t* flag, uint32_t n) {
  check_global(flag, sizeof(uint32_t));
  Warp& warp = *machine.current->warp;
  Flag& state = machine.flags[flag];
  state.clock.join(warp.clock);
  tick(warp);
  sanitizer_release(flag);
  *flag += n;
  std::erase_if(state.waiting, [&](const auto& waiting) {
    const auto& [thread, value] = waiting;
    if (*flag < value) {
      return false;
    }
    thread->warp->ready |= 1u << thread->lane;
    return true;
  });
}

uint32_t load_acquire(const uint32_t* flag) {
  check_global(flag, sizeof(uint32_t));
  machine.current->fiber.leave();  // others get on, and the value may change
  acquire(*machine.current->warp, machine.flags[flag].clock);
  sanitizer_acquire(const_cast<uint32_t*>(flag));
  return *flag;
}

void wait_at_least(const uint32_t* flag, uint32_t value) {
  check_global(flag, sizeof(uint32_t));
  if (*flag < value) {
    machine.flags[flag].waiting.push_back({machine.current, value});
    park("a flag");
  }
  acquire(*machine.current->warp, machine.flags[flag].clock);
  sanitizer_acquire(const_cast<uint32_t*>(flag));
}

}  // namespace emulator
