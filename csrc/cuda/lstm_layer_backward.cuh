// LSTM over a sequence, backward. A thread owns one unit of one sequence. dh of the step before is W^T dgates: a block
// multiplies the gradients of its own gates, the part that they have in the dh of every unit, and sends each part to
// the block that owns the unit; the owner adds up the parts in the order of the blocks, whatever the order they came
// in.
#pragma once

#include "lstm_layer.cuh"

namespace svg_fast {

template <typename T>
struct LayerBackward {
  const T* dy;                         // (T, B, H), or null: zeros
  const float* dc;                     // (T, B, H), or null
  const float *gates, *c, *c0, *w_hh;  // (T, B, 4H), (T, B, H), (B, H), (4H, H)
  T* dgates;                           // (T, B, 4H)
  float *dh0, *dc0;                    // (B, H)
  Meeting meeting;
  int steps, batch, hidden;
};

constexpr int kBlockGates = kGates * kUnits;  // of a block; column unit * 4 + gate

template <int kHidden>
struct BackwardShape {
  static constexpr int kTiles = kHidden / 16 / kWarps, kDepth = kBlockGates / 16;
  static constexpr int kChains = kTiles < 4 ? 2 : 1;  // of products that do not wait for each other, for a tile
  static_assert(kTiles * kWarps * 16 == kHidden);
  using Parts = float[kBlocks<kHidden>][kUnits][kRows];  // what a block receives, by sender
};

// Parts go into the shared memory of the unit's owner.
template <int kHidden>
struct BackwardMail {
  static constexpr bool kNeedsCluster = true;
  using Parts = typename BackwardShape<kHidden>::Parts;
  struct Shared {
    alignas(16) Parts parts[2];
    uint64_t arrival[2];
  };
  Shared& shared;
  int rank;

  SVG_DEVICE BackwardMail(Shared& memory, const Place<kHidden>& place, const Meeting&)
      : shared(memory), rank(place.rank) {
    open_mailbox(shared.arrival, 2, sizeof(Parts));
  }

  // Of sequences `row` and `row + 1`.
  SVG_DEVICE void send(int buffer, int unit, int row, float first, float second) {
    const int owner = unit / kUnits;
    const uint32_t to = shared_address(&shared.parts[buffer][rank][unit % kUnits][row]);
    store_async(peer_address(to, owner), bits_as<uint64_t>(float2{first, second}),
                peer_address(shared_address(&shared.arrival[buffer]), owner));
  }

  SVG_DEVICE void receive(int buffer, uint32_t times) {
    receive_mail(shared.arrival[buffer], times / 2, sizeof(Parts));
  }

  SVG_DEVICE float part(int buffer, int from, int unit, int row) const {
    return load_shared<float>(shared_address(&shared.parts[buffer][from][unit][row]));
  }
};

// Parts go to memory that all blocks of the group read.
template <int kHidden>
struct BackwardBoard {
  static constexpr bool kNeedsCluster = false;
  using Parts = typename BackwardShape<kHidden>::Parts;
  struct Shared {};
  Parts* board;  // [2 buffers][owner]
  uint32_t* flag;
  int rank;

  SVG_DEVICE BackwardBoard(Shared&, const Place<kHidden>& place, const Meeting& meeting)
      : board(static_cast<Parts*>(meeting.data) + place.group * 2 * kBlocks<kHidden>),
        flag(meeting.flags + place.group),
        rank(place.rank) {}

  SVG_DEVICE void send(int buffer, int unit, int row, float first, float second) {
    float* to = &board[buffer * kBlocks<kHidden> + unit / kUnits][rank][unit % kUnits][row];
    store_global(reinterpret_cast<uint64_t*>(to), bits_as<uint64_t>(float2{first, second}));
  }

  SVG_DEVICE void receive(int, uint32_t times) { group_barrier<kHidden>(flag, times); }

  SVG_DEVICE float part(int buffer, int from, int unit, int row) const {
    return load_global(&board[buffer * kBlocks<kHidden> + rank][from][unit][row]);
  }
};

// The gradients of a block's gates as the mma takes them.
struct GateGradients {
  alignas(16) uint16_t high[kRows][kBlockGates + 8], low[kRows][kBlockGates + 8];
  alignas(16) float largest[kRows][kWarps];  // of a row, as far as each warp knows
  alignas(16) float inverse[kRows];          // of the rows' scales
};

template <typename T, int kHidden, template <int> typename Exchange>
struct BackwardMemory {
  using Shape = BackwardShape<kHidden>;
  typename Exchange<kHidden>::Shared exchange;
  GateGradients gradients;
  alignas(16) unsigned char weights[kWarps][Shape::kTiles]
                                   [MatrixTile<Shape::kDepth, kLowWeights<T, kHidden>>::kSharedBytes + 16];
};

// Row m of a tile: unit first_unit + m, whose dh is wanted; column k: gate k % 4 of the block's unit k / 4.
struct ColumnsOfWeights {
  const float* column[2];
  int hidden, units, gate_stride;

  SVG_DEVICE ColumnsOfWeights(const float* w_hh, int first_unit, int first_block_unit, int n) : hidden(n) {
    const int lane = threadIdx.x % 32, gate = lane % 2 * 2, block_unit = first_block_unit + lane % 4 / 2;
    units = hidden - block_unit;
    gate_stride = hidden * hidden;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int unit = first_unit + lane / 4 + 8 * half;
      const int64_t row = static_cast<int64_t>(gate) * hidden + block_unit;
      column[half] = unit < hidden ? w_hh + row * hidden + unit : nullptr;
    }
  }

  SVG_DEVICE float operator()(int half, int at, int next) const {
    const bool real = column[half] != nullptr && at / kGates < units;
    return real ? column[half][at / kGates * hidden + next * gate_stride] : 0.f;
  }
};

// Scales the gradients of a sequence, whatever their size, into the range of fp16, and leaves them for the mma.
template <typename T>
SVG_DEVICE void stage_gradients(GateGradients& memory, const LSTMGates<float>& d, int row, int local_unit) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float largest = fmaxf(fmaxf(fabsf(d.i), fabsf(d.f)), fmaxf(fabsf(d.g), fabsf(d.o)));
  largest = fmaxf(largest, shuffle_xor(largest, 8));  // the warp's four units of a row
  largest = fmaxf(largest, shuffle_xor(largest, 16));
  if (lane < kRows) {
    store_shared(shared_address(&memory.largest[row][warp]), largest);
  }
  block_sync();
  const float4 a = load_shared<float4>(shared_address(&memory.largest[row][0]));
  const float4 b = load_shared<float4>(shared_address(&memory.largest[row][4]));
  largest = fmaxf(fmaxf(fmaxf(a.x, a.y), fmaxf(a.z, a.w)), fmaxf(fmaxf(b.x, b.y), fmaxf(b.z, b.w)));
  const PowerOfTwo scale = scale_for(largest);
  const HalfPairs first = split(d.i * scale.factor, d.f * scale.factor);
  const HalfPairs second = split(d.g * scale.factor, d.o * scale.factor);
  const auto join = [](uint32_t low, uint32_t high) { return static_cast<uint64_t>(high) << 32 | low; };
  store_shared(shared_address(&memory.high[row][kGates * local_unit]), join(first.high, second.high));
  if constexpr (sizeof(T) > 2) {
    store_shared(shared_address(&memory.low[row][kGates * local_unit]), join(first.low, second.low));
  }
  if (threadIdx.x < kRows) {
    store_shared(shared_address(&memory.inverse[row]), scale.inverse);
  }
  block_sync();
}

// The block's part in the dh of the 16 units of each tile.
template <int kChains, int kTiles, int kDepth, Low kLow>
SVG_DEVICE void multiply_gradients(FragmentC (&sum)[kTiles][kChains], const MatrixTile<kDepth, kLow> (&weights)[kTiles],
                                   const GateGradients& memory) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kDepth; k += 2) {
    uint32_t high[4], low[4];
    ldmatrix_x4(high, shared_address(&memory.high[lane % 8][k * 16 + lane / 8 * 8]));
    if constexpr (kLow != Low::kNone) {
      ldmatrix_x4(low, shared_address(&memory.low[lane % 8][k * 16 + lane / 8 * 8]));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const FragmentB d_high{{high[2 * i], high[2 * i + 1]}};
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const MatrixTile<kDepth, kLow>& w = weights[tile];
        if constexpr (kLow == Low::kNone) {
          mma_m16n8k16(sum[tile][i % kChains], w.high[k + i], d_high);
        } else {
          mma_m16n8k16(sum[tile][0], w.high[k + i], d_high);
          mma_m16n8k16(sum[tile][kChains - 1], w.high[k + i], FragmentB{{low[2 * i], low[2 * i + 1]}});
          mma_m16n8k16(sum[tile][kChains - 1], w.low_at(k + i), d_high);
        }
      }
    }
  }
}

template <typename T, int kHidden, template <int> typename Exchange>
SVG_DEVICE void run_backward(const LayerBackward<T>& p) {
  using Shape = BackwardShape<kHidden>;
  SVG_DYNAMIC_SHARED(bytes);
  auto& memory = *reinterpret_cast<BackwardMemory<T, kHidden, Exchange>*>(bytes);
  const Place<kHidden> place;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = threadIdx.x % kRows, local_unit = threadIdx.x / kRows, unit = place.rank * kUnits + local_unit;

  MatrixTile<Shape::kDepth, kLowWeights<T, kHidden>> weights[Shape::kTiles];
#pragma unroll
  for (int tile = 0; tile < Shape::kTiles; ++tile) {
    const ColumnsOfWeights columns(p.w_hh, 16 * (warp * Shape::kTiles + tile), place.rank * kUnits, p.hidden);
    weights[tile].load(columns, memory.weights[warp][tile]);
  }
  Exchange<kHidden> exchange(memory.exchange, place, p.meeting);
  uint32_t received = 0;

  for (int first_row = place.group * kRows; first_row < p.batch; first_row += place.groups * kRows) {
    const int b = first_row + row, cell = b * p.hidden + unit, gate = b * kGates * p.hidden + unit;
    const bool real = b < p.batch && unit < p.hidden;
    const int64_t cells = static_cast<int64_t>(p.batch) * p.hidden;
    const auto gates_at = [&](int t) {
      return real && t >= 0 ? load_gates(p.gates + kGates * cells * t + gate, p.hidden) : LSTMGates<float>{};
    };
    const auto cell_at = [&](int t) {
      return real ? load_read_only(t < 0 ? p.c0 + cell : p.c + cells * t + cell) : 0.f;
    };
    const auto given = [&](const auto* gradient, int t) {
      return gradient != nullptr && real && t >= 0 ? load_element(gradient + cells * t + cell) : 0.f;
    };
    float dh = 0.f, dc = 0.f, c = cell_at(p.steps - 1);
    float next_dy = given(p.dy, p.steps - 1), next_dc = given(p.dc, p.steps - 1);
    LSTMGates<float> next_gates = gates_at(p.steps - 1);
    for (int t = p.steps - 1; t >= 0; --t) {
      const float c_prev = cell_at(t - 1);
      const LSTMGradient<float> d = lstm_cell_bwd<ScalarMath>(dh + next_dy, dc + next_dc, next_gates, c, c_prev);
      next_gates = gates_at(t - 1);  // they arrive while the product runs
      next_dy = given(p.dy, t - 1);
      next_dc = given(p.dc, t - 1);
      dc = d.c_prev;
      c = c_prev;
      if (real) {
        store_gates(p.dgates + kGates * cells * t + gate, p.hidden, d.pre);
      }
      stage_gradients<T>(memory.gradients, d.pre, row, local_unit);
      FragmentC sum[Shape::kTiles][Shape::kChains] = {};
      multiply_gradients(sum, weights, memory.gradients);
      // All warps have read the buffer's last parts: they did so before they met to stage these gradients.
      const int next = (received & 1) ^ 1, pair = lane % 4 * 2;
      const float2 scale = load_shared<float2>(shared_address(&memory.gradients.inverse[pair]));
#pragma unroll
      for (int i = 0; i < 2 * Shape::kTiles; ++i) {
        const int tile = i / 2, half = i % 2, to = 16 * (warp * Shape::kTiles + tile) + lane / 4 + 8 * half;
        const float undo = weights[tile].inverse[half];
        const auto total = [&](int r) {
          return Shape::kChains == 1 ? sum[tile][0].r[r] : sum[tile][0].r[r] + sum[tile][Shape::kChains - 1].r[r];
        };
        exchange.send(next, to, pair, total(2 * half) * undo * scale.x, total(2 * half + 1) * undo * scale.y);
      }
      exchange.receive(next, received++);
      dh = 0.f;
#pragma unroll
      for (int from = 0; from < kBlocks<kHidden>; ++from) {
        dh += exchange.part(next, from, local_unit, row);
      }
    }
    if (real) {
      p.dh0[cell] = dh;
      p.dc0[cell] = dc;
    }
  }
}

// A kernel for clusters is empty on devices that have none.
template <typename T, int kHidden, template <int> typename Exchange>
__global__ void __launch_bounds__(kThreads, 1) lstm_layer_backward(LayerBackward<T> p) {
  if constexpr (kHasClusters || !Exchange<kHidden>::kNeedsCluster) {
    run_backward<T, kHidden, Exchange>(p);
  }
}

}  // namespace svg_fast
