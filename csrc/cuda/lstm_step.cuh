// One step of a recurrent net in one cooperative launch. B batch, H hidden units, I inputs, L layers, O outputs of a
// head; gates packed (i, f, g, o).
//
// Embedding, each cell and the heads are stages, every one a product with weights that are read once: tiles of 16 rows
// of the batch by 16 columns, shared out to all blocks, whose warps divide the inputs of a tile among them. Between two
// stages all blocks wait for each other, for what one writes the next reads, through the second-level cache.
#pragma once

#include "../gaussian.h"
#include "../lstm_cell.h"
#include "../normal.h"
#include "primitives.h"
#include "scalar_math.cuh"
#include "tile_products.cuh"

namespace svg_fast {

constexpr int kMostStepLayers = 8;  // of one launch

template <typename S>
struct StepLayer {
  const S *w_ih, *w_hh, *b_ih, *b_hh;  // (4H, I or H), (4H, H), (4H,) twice
};

template <typename S>
struct NetStep {
  const S* x;                  // (B, I)
  const S *w_embed, *b_embed;  // (H, I), (H,), or null: the cells read x
  S* embedded;                 // (B, H)
  StepLayer<S> layer[kMostStepLayers];
  const S *h, *c;                                  // (L, B, H)
  S *h_next, *c_next;                              // (L, B, H)
  S* gates;                                        // (L, B, 4H), activated, or null
  const S *w_head, *b_head, *w_second, *b_second;  // (O, H), (O,)
  S *output, *second_output, *sample;              // (B, O)
  const S* eps;                                    // (B, O), or null
  const int64_t* seed;                             // (seed, offset), or null
  uint32_t* arrived;                               // zero at the start
  int batch, inputs, hidden, layers, heads, outputs;
  bool vectors_of_x, vectors_of_state;  // as in Factors, of I and of H
};

// Stages, one after another: what all blocks stored before they ended one is seen after `wait`. In between a block goes
// on with what does not depend on the others.
class GridBarrier {
 public:
  explicit SVG_DEVICE GridBarrier(uint32_t* arrived) : arrived_(arrived) {}

  SVG_DEVICE void end_stage() {
    block_sync();
    if (threadIdx.x == 0) {
      add_release_gpu(arrived_, 1);
    }
    expected_ += gridDim.x;
    waiting_ = true;
  }

  SVG_DEVICE void wait() {
    if (waiting_) {
      if (threadIdx.x == 0) {
        wait_at_least(arrived_, expected_);
      }
      block_sync();
    }
    waiting_ = false;
  }

 private:
  uint32_t* arrived_;
  uint32_t expected_ = 0;
  bool waiting_ = false;
};

// What a stage multiplies: `before`, inputs of the step, and `below`, what the stage before it made.
template <typename S>
struct StageFactors {
  Factors<S> before, below;
};

// All tiles of a stage: finish(row, column, quad) has the sums of four columns of a row of the batch. The products of
// `before`, and the weights of `below`, need not wait for other blocks.
template <int kParts, typename S, typename Finish>
SVG_DEVICE void run_stage(PartialSums<S>& partial, GridBarrier& stages, const StageFactors<S>& factors, int batch,
                          int elements, const Finish& finish) {
  const int across = (kParts * elements + kTile - 1) / kTile, tiles = across * ((batch + kTile - 1) / kTile);
  const int warp = threadIdx.x / 32, turn = (warp + chunks_of(factors.before.width) * (kStepWarps - 1)) % kStepWarps;
  for (int tile = blockIdx.x;; tile += gridDim.x) {
    const int row = tile / across * kTile, column = tile % across * kTile;
    TileProducts<kParts, S> products(row, column, batch, elements);
    if (tile < tiles) {
      products.fetch(factors.before, warp);
      products.add(factors.before, warp);
      products.fetch(factors.below, turn);
    }
    stages.wait();
    if (tile >= tiles) {
      return;
    }
    products.add(factors.below, turn);
    products.store(partial);
    block_sync();
    const int r = threadIdx.x / 4, c = threadIdx.x % 4 * 4;
    if (r < kTile && row + r < batch) {
      finish(row + r, column + c, sum_up(partial, r, c));
    }
    if (tile + static_cast<int>(gridDim.x) < tiles) {
      block_sync();
    }
  }
}

template <typename S>
SVG_DEVICE void embed(PartialSums<S>& partial, GridBarrier& stages, const NetStep<S>& p) {
  const Factors<S> inputs{p.x, p.w_embed, nullptr, p.inputs, p.vectors_of_x};
  run_stage<1>(partial, stages, {{}, inputs}, p.batch, p.hidden, [&](int row, int column, const Quad<S>& quad) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (column + j < p.hidden) {
        store_global(p.embedded + static_cast<int64_t>(row) * p.hidden + column + j,
                     quad.v[j] + load_read_only(p.b_embed + column + j));
      }
    }
  });
}

template <typename S>
SVG_DEVICE void run_cells(PartialSums<S>& partial, GridBarrier& stages, const NetStep<S>& p, int k,
                          const Factors<S>& below) {
  const int64_t state = static_cast<int64_t>(p.batch) * p.hidden * k;
  const StepLayer<S>& layer = p.layer[k];
  const Factors<S> recurrent{p.h + state, layer.w_hh, nullptr, p.hidden, p.vectors_of_state};
  run_stage<kGates>(
      partial, stages, {recurrent, below}, p.batch, p.hidden, [&](int row, int column, const Quad<S>& quad) {
        const int unit = column / kGates, hidden = p.hidden;
        if (unit >= hidden) {
          return;
        }
        const auto bias = [&](int gate) {
          return load_read_only(layer.b_ih + gate * hidden + unit) + load_read_only(layer.b_hh + gate * hidden + unit);
        };
        const LSTMGates<S> pre{quad.v[0] + bias(0), quad.v[1] + bias(1), quad.v[2] + bias(2), quad.v[3] + bias(3)};
        const LSTMGates<S> gates = lstm_activate<ScalarMath>(pre);
        const int64_t at = state + static_cast<int64_t>(row) * hidden + unit;
        const S c = lstm_cell_state(gates, load_read_only(p.c + at));
        store_global(p.c_next + at, c);
        store_global(p.h_next + at, lstm_hidden_state<ScalarMath>(gates, c));
        if (p.gates != nullptr) {
          S* to = p.gates + kGates * (at - unit) + unit;
          store_global(to, gates.i);
          store_global(to + hidden, gates.f);
          store_global(to + 2 * hidden, gates.g);
          store_global(to + 3 * hidden, gates.o);
        }
      });
}

template <typename S>
SVG_DEVICE void predict(PartialSums<S>& partial, GridBarrier& stages, const NetStep<S>& p, const Factors<S>& top) {
  run_stage<1>(partial, stages, {{}, top}, p.batch, p.outputs, [&](int row, int column, const Quad<S>& quad) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (column + j < p.outputs) {
        const S y = quad.v[j] + load_read_only(p.b_head + column + j);
        store_global(p.output + static_cast<int64_t>(row) * p.outputs + column + j, ScalarMath::hyperbolic_tangent(y));
      }
    }
  });
}

template <typename S>
SVG_DEVICE void draw(PartialSums<S>& partial, GridBarrier& stages, const NetStep<S>& p, const Factors<S>& top) {
  run_stage<2>(partial, stages, {{}, top}, p.batch, p.outputs, [&](int row, int column, const Quad<S>& quad) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int z = column / 2 + j;
      if (z >= p.outputs) {
        return;
      }
      const int64_t at = static_cast<int64_t>(row) * p.outputs + z;
      const Gaussian<S> q{quad.v[2 * j] + load_read_only(p.b_head + z),
                          quad.v[2 * j + 1] + load_read_only(p.b_second + z)};
      store_global(p.output + at, q.mu);
      store_global(p.second_output + at, q.logvar);
      if (p.sample != nullptr) {
        const S eps = p.eps != nullptr
                          ? load_read_only(p.eps + at)
                          : normal_element<S, ScalarMath>(load_read_only(p.seed), load_read_only(p.seed + 1), at);
        store_global(p.sample + at, gaussian_sample<ScalarMath>(q, eps));
      }
    }
  });
}

template <typename S>
__global__ void __launch_bounds__(kStepThreads, 2) lstm_net_step(NetStep<S> p) {
  SVG_SHARED(PartialSums<S>, partial);
  GridBarrier stages(p.arrived);
  const int64_t state = static_cast<int64_t>(p.batch) * p.hidden;
  Factors<S> below{p.x, nullptr, nullptr, p.inputs, p.vectors_of_x};
  if (p.w_embed != nullptr) {
    embed(partial, stages, p);
    stages.end_stage();
    below = {p.embedded, nullptr, nullptr, p.hidden, p.vectors_of_state};
  }
  for (int k = 0; k < p.layers; ++k) {
    below.w = p.layer[k].w_ih;
    run_cells(partial, stages, p, k, below);
    stages.end_stage();
    below = {p.h_next + k * state, nullptr, nullptr, p.hidden, p.vectors_of_state};
  }
  below.w = p.w_head;
  below.w_second = p.w_second;
  if (p.heads == 1) {
    predict(partial, stages, p, below);
  } else if (p.heads == 2) {
    draw(partial, stages, p, below);
  }
}

}  // namespace svg_fast
