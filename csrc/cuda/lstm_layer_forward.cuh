// LSTM over a sequence, forward. A warp multiplies the weights of its units' gates by h, and goes on with the cells.
#pragma once

#include "lstm_layer.cuh"

namespace svg_fast {

template <typename T>
struct LayerForward {
  const T* gates_x;             // (T, B, 4H)
  const float *h0, *c0, *w_hh;  // (B, H), (B, H), (4H, H)
  T* y;                         // (T, B, H)
  float *c, *gates;             // (T, B, H), (T, B, 4H)
  Meeting meeting;
  int steps, batch, hidden;
};

// Halves that h is sent in: of a 16-bit sequence the high one, 11 bits, three more than it is given and returned in.
template <typename T>
constexpr int kStateParts = sizeof(T) == 2 ? 1 : 2;

// h of kRows sequences as the mma takes it. Eight rows of an ldmatrix lie in different banks by 16 bytes of padding.
template <int kHidden, int kParts>
struct HiddenState {
  alignas(16) uint16_t part[kParts][kRows][kHidden + 8];
};

// Four units of one sequence.
template <int kParts>
struct HiddenUnits {
  uint64_t part[kParts];
};

// Every warp stores its units into the shared memory of all blocks. An mbarrier for each sender tells when its part is
// whole, so that the product of one part hides the way of the next.
template <int kHidden, int kParts>
struct ForwardMail {
  static constexpr bool kNeedsCluster = true;
  // Left alone, the compiler takes all that there are for loads that it issues early.
  static constexpr int kMostRegisters = kHidden > 256 ? 255 : kFewRegisters;
  // The waits of 512 units would take registers that there are not: one message has the parts of all.
  static constexpr int kMessages = kHidden > 256 ? 1 : kBlocks<kHidden>;
  static constexpr uint32_t kBytes = kParts * kRows * kHidden / kMessages * sizeof(uint16_t);

  struct Shared {
    HiddenState<kHidden, kParts> state[2];
    uint64_t arrival[2][kMessages];
  };
  Shared& shared;
  int rank;

  SVG_DEVICE ForwardMail(Shared& memory, const Place<kHidden>& place, const Meeting&)
      : shared(memory), rank(place.rank) {
    open_mailbox(shared.arrival[0], 2 * kMessages, kBytes);
  }

  // Four lanes hold the same units; each serves a quarter of the peers.
  SVG_DEVICE void send(int buffer, int row, int unit, int lane_of_units, const HiddenUnits<kParts>& units) {
    const uint32_t arrival = shared_address(&shared.arrival[buffer][rank % kMessages]);
#pragma unroll
    for (int first = 0; first < kBlocks<kHidden>; first += 4) {
      const int peer = first + lane_of_units;
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        const uint32_t to = shared_address(&shared.state[buffer].part[i][row][unit]);
        store_async(peer_address(to, peer), units.part[i], peer_address(arrival, peer));
      }
    }
  }

  SVG_DEVICE void receive(int, uint32_t) {}  // part by part, where they are needed

  SVG_DEVICE void await_part(int buffer, int from, uint32_t times) {
    receive_mail(shared.arrival[buffer][from % kMessages], times / 2, kBytes);
  }
};

// Every warp stores its units to memory that all blocks of the group read; each block copies all of it.
template <int kHidden, int kParts>
struct ForwardBoard {
  static constexpr bool kNeedsCluster = false;
  static constexpr int kMostRegisters = 255;

  struct Shared {
    HiddenState<kHidden, kParts> state[2];
  };
  static constexpr int kHalves = kParts * kRows * kHidden;  // of one buffer
  Shared& shared;
  uint16_t* board;  // [2 buffers][kParts][kRows][kHidden]
  uint32_t* flag;

  SVG_DEVICE ForwardBoard(Shared& memory, const Place<kHidden>& place, const Meeting& meeting)
      : shared(memory),
        board(static_cast<uint16_t*>(meeting.data) + place.group * 2 * kHalves),
        flag(meeting.flags + place.group) {}

  SVG_DEVICE void send(int buffer, int row, int unit, int lane_of_units, const HiddenUnits<kParts>& units) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if (lane_of_units == i) {
        uint16_t* to = board + buffer * kHalves + (i * kRows + row) * kHidden + unit;
        store_global(reinterpret_cast<uint64_t*>(to), units.part[i]);
      }
    }
  }

  SVG_DEVICE void receive(int buffer, uint32_t times) {
    group_barrier<kHidden>(flag, times);
    constexpr int kPerLoad = sizeof(uint4) / sizeof(uint16_t);
    const uint4* from = reinterpret_cast<const uint4*>(board + buffer * kHalves);
    for (int i = threadIdx.x; i < kHalves / kPerLoad; i += kThreads) {
      const int row = i * kPerLoad / kHidden, unit = i * kPerLoad % kHidden;
      uint16_t* to = &shared.state[buffer].part[row / kRows][row % kRows][unit];
      store_shared(shared_address(to), load_global(from + i));
    }
    block_sync();
  }

  static constexpr int kMessages = 0;
  SVG_DEVICE void await_part(int, int, uint32_t) {}
};

template <typename T, int kHidden, template <int, int> typename Exchange>
struct ForwardMemory {
  typename Exchange<kHidden, kStateParts<T>>::Shared exchange;
  float first_scale[kRows];  // what h0 was multiplied by, undone
  // Of no use where it holds no low halves, but an array must have a byte.
  alignas(16) unsigned char weights[kWarps][MatrixTile<kHidden / 16, kLowWeights<T, kHidden>>::kSharedBytes + 16];
};

// The scale of every later h, whose size is at most 1.
constexpr float kHiddenScale = 1 << kScaledExponent;

// One sequence for each warp: h0, as large as it may be, takes the place of a received state.
template <int kHidden, int kParts>
SVG_DEVICE void start_state(HiddenState<kHidden, kParts>& state, float (&first_scale)[kRows], const float* h0,
                            int first_row, int batch, int hidden) {
  static_assert(kRows == kWarps);
  const int row = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float* h = h0 + static_cast<int64_t>(first_row + row) * hidden;
  const int units = first_row + row < batch ? hidden : 0;
  float largest = 1.f;
  for (int unit = lane; unit < units; unit += 32) {
    largest = fmaxf(largest, fabsf(h[unit]));
  }
  for (int mask = 1; mask < 32; mask *= 2) {
    largest = fmaxf(largest, shuffle_xor(largest, mask));
  }
  const PowerOfTwo scale = scale_for(largest);
  if (lane == 0) {
    store_shared(shared_address(&first_scale[row]), scale.inverse);
  }
  for (int unit = 2 * lane; unit < kHidden; unit += 64) {
    const float a = unit < units ? h[unit] : 0.f, b = unit + 1 < units ? h[unit + 1] : 0.f;
    const HalfPairs pairs = split(a * scale.factor, b * scale.factor);
    store_shared(shared_address(&state.part[0][row][unit]), pairs.high);
    if constexpr (kParts == 2) {
      store_shared(shared_address(&state.part[1][row][unit]), pairs.low);
    }
  }
}

// The block whose units come as the k-th in a product: first the own, whose h is there first, then the next, round the
// group. Turning the columns of 512 units would take registers that there are not.
template <int kHidden>
SVG_DEVICE int block_in_turn(int rank, int k) {
  return kHidden > 256 ? k : (rank + k) % kBlocks<kHidden>;
}

// Row gate * 4 + u of a warp's tile: gate `gate` of its unit u. Columns: units, by blocks in turn.
template <int kHidden>
struct RowsOfWeights {
  const float* row[2];
  int columns, rank;  // of which none are the lane's where it has no unit

  SVG_DEVICE RowsOfWeights(const float* w_hh, int first_unit, int hidden, int rank) : rank(rank) {
    const int lane = threadIdx.x % 32, unit = first_unit + lane / 4 % kUnitsPerWarp, gate = lane / 16;
    const int first = lane % 4 * 2;
    columns = unit < hidden ? hidden - first : 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row[half] = w_hh + (static_cast<int64_t>(gate + 2 * half) * hidden + unit) * hidden + first;
    }
  }

  SVG_DEVICE float operator()(int half, int column, int next) const {
    const int at = block_in_turn<kHidden>(rank, column / kUnits) * kUnits + column % kUnits + next;
    return at < columns ? row[half][at] : 0.f;
  }
};

// W h of the warp's units, in independent chains. `times`: how often a state was received before this one.
template <int kHidden, int kParts, Low kLow, typename Exchange>
SVG_DEVICE FragmentC recurrent_product(const MatrixTile<kHidden / 16, kLow>& weights, Exchange& exchange, int rank,
                                       int buffer, bool received, uint32_t times) {
  const int lane = threadIdx.x % 32;
  const HiddenState<kHidden, kParts>& state = exchange.shared.state[buffer];
  FragmentC sum[3] = {};
#pragma unroll
  for (int k = 0; k < kHidden / 16; k += 2) {
    const int from = block_in_turn<kHidden>(rank, k / 2);
    if (received && k / 2 < Exchange::kMessages) {
      exchange.await_part(buffer, from, times);
    }
    uint32_t h[kParts][4];
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      ldmatrix_x4(h[i], shared_address(&state.part[i][lane % 8][lane / 8 * 8]) + from * kUnits * sizeof(uint16_t));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const FragmentB h_high{{h[0][2 * i], h[0][2 * i + 1]}};
      if constexpr (kParts == 1) {
        mma_m16n8k16(sum[i], weights.high[k + i], h_high);
      } else {
        mma_m16n8k16(sum[0], weights.high[k + i], h_high);
        mma_m16n8k16(sum[1], weights.high[k + i], FragmentB{{h[1][2 * i], h[1][2 * i + 1]}});
        mma_m16n8k16(sum[2], weights.low_at(k + i), h_high);
      }
    }
  }
  FragmentC total;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    total.r[r] = (sum[0].r[r] + (sum[1].r[r] + sum[2].r[r])) * weights.inverse[r / 2];
  }
  return total;
}

// The mma leaves gates i and g of a unit in a lane below 16, f and o in lane + 16, each for two sequences. The two
// lanes swap; the lower one goes on with all gates of the first sequence, the upper one with those of the second.
SVG_DEVICE LSTMGates<float> gates_of_lane(const FragmentC& product, bool upper) {
  const float first = shuffle_xor(upper ? product.r[0] : product.r[1], 16);
  const float second = shuffle_xor(upper ? product.r[2] : product.r[3], 16);
  return {upper ? first : product.r[0], upper ? product.r[1] : first, upper ? second : product.r[2],
          upper ? product.r[3] : second};
}

// A lane's h and those of the three lanes with the warp's other units of the same sequence.
template <int kParts>
SVG_DEVICE HiddenUnits<kParts> gather_units(float h, int lane_of_units) {
  const float neighbour = shuffle_xor(h, 4);
  const bool odd = lane_of_units & 1, upper = lane_of_units & 2;
  const HalfPairs pairs = odd ? split(neighbour, h) : split(h, neighbour);
  HiddenUnits<kParts> units;
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const uint32_t own = i == 0 ? pairs.high : pairs.low;
    const uint64_t other = shuffle_xor(own, 8);
    units.part[i] = upper ? static_cast<uint64_t>(own) << 32 | other : other << 32 | own;
  }
  return units;
}

template <typename T, int kHidden, template <int, int> typename Exchange>
SVG_DEVICE void run_forward(const LayerForward<T>& p) {
  constexpr int kParts = kStateParts<T>;
  SVG_DYNAMIC_SHARED(bytes);
  auto& memory = *reinterpret_cast<ForwardMemory<T, kHidden, Exchange>*>(bytes);
  const Place<kHidden> place;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, lane_of_units = lane / 4 % kUnitsPerWarp;
  const int first_unit = place.rank * kUnits + warp * kUnitsPerWarp, unit = first_unit + lane_of_units;
  const bool upper = lane >= 16;
  const int row = lane % 4 * 2 + upper;

  MatrixTile<kHidden / 16, kLowWeights<T, kHidden>> weights;
  weights.load(RowsOfWeights<kHidden>(p.w_hh, first_unit, p.hidden, place.rank), memory.weights[warp]);
  Exchange<kHidden, kParts> exchange(memory.exchange, place, p.meeting);
  uint32_t received = 0;

  for (int first_row = place.group * kRows; first_row < p.batch; first_row += place.groups * kRows) {
    block_sync();  // the state of the chunk before has been read
    start_state(memory.exchange.state[received & 1], memory.first_scale, p.h0, first_row, p.batch, p.hidden);
    block_sync();
    // A thread's place within a step fits 32 bits; where the step begins is the same for all threads.
    const int b = first_row + row, cell = b * p.hidden + unit, gate = b * kGates * p.hidden + unit;
    const bool real = b < p.batch && unit < p.hidden;
    const int64_t cells = static_cast<int64_t>(p.batch) * p.hidden;
    const auto input_at = [&](int t) {
      return real && t < p.steps ? load_gates(p.gates_x + kGates * cells * t + gate, p.hidden) : LSTMGates<float>{};
    };
    float c = real ? p.c0[cell] : 0.f, scale = load_shared<float>(shared_address(&memory.first_scale[row]));
    LSTMGates<float> next_input = input_at(0);
    for (int t = 0; t < p.steps; ++t) {
      const LSTMGates<float> input = next_input;
      next_input = input_at(t + 1);  // arrives while the product runs
      const FragmentC product =
          recurrent_product<kHidden, kParts>(weights, exchange, place.rank, received & 1, t > 0, received - 1);
      const LSTMGates<float> recurrent = gates_of_lane(product, upper);
      const LSTMGates<float> pre{recurrent.i * scale + input.i, recurrent.f * scale + input.f,
                                 recurrent.g * scale + input.g, recurrent.o * scale + input.o};
      const LSTMGates<float> gates = lstm_activate<ScalarMath>(pre);
      c = lstm_cell_state(gates, c);
      const float h = lstm_hidden_state<ScalarMath>(gates, c);
      scale = 1 / kHiddenScale;
      // A peer stores into the state that was just read only when it has all parts of this step, and no warp sends
      // its own before it has read.
      const bool last = t + 1 == p.steps;
      const int next = (received & 1) ^ 1;
      if (!last) {
        exchange.send(next, row, unit - lane_of_units, lane_of_units,
                      gather_units<kParts>(h * kHiddenScale, lane_of_units));
      }
      if (real) {
        store_element(p.y + cells * t + cell, h);
        store_element(p.c + cells * t + cell, c);
        store_gates(p.gates + kGates * cells * t + gate, p.hidden, gates);
      }
      if (!last) {
        exchange.receive(next, received++);
      }
    }
  }
  // A block may end now: its last wait saw all stores that will ever come to it.
}

// A kernel for clusters is empty on devices that have none.
template <typename T, int kHidden, template <int, int> typename Exchange>
__global__ void __maxnreg__((Exchange<kHidden, kStateParts<T>>::kMostRegisters)) lstm_layer_forward(LayerForward<T> p) {
  if constexpr (kHasClusters || !Exchange<kHidden, kStateParts<T>>::kNeedsCluster) {
    run_forward<T, kHidden, Exchange>(p);
  }
}

}  // namespace svg_fast
