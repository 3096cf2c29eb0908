// Products of activations with weights that are read once: tiles of 16 rows of a batch B by 16 columns. The warps of a
// block divide the inputs of a tile among them, straight from memory to tensor cores, and meet in shared memory.
#pragma once

#include <cstdint>

#include "../lstm_cell.h"
#include "half_pair.cuh"
#include "primitives.h"

namespace svg_fast {

constexpr int kTile = 16;  // rows and columns: the M of the mma and twice its N
constexpr int kStepWarps = 8, kStepThreads = 32 * kStepWarps;

// What is multiplied: x (B, width) by the rows of weights, that long too. `vectors`: x and w lie, row by row, at
// multiples of 16 bytes.
template <typename S>
struct Factors {
  const S *x, *w;
  const S* w_second;  // of the second head
  int width;
  bool vectors;
};

// Sums of a tile, of the inputs that each warp multiplied; padded so that rows lie in different banks.
template <typename S>
constexpr int kPartialSums = kStepWarps;
template <>
inline constexpr int kPartialSums<double> = 1;
template <typename S>
struct PartialSums {
  alignas(16) S sum[kPartialSums<S>][kTile][kTile + 4];
};

// Four neighbouring columns of a row.
template <typename S>
struct Quad {
  S v[4];
};

// Column n of a stage is part n % kParts of element n / kParts: a gate of a unit, or what a head says. In memory all
// elements of the first gate come first.
template <int kParts, typename S>
SVG_DEVICE const S* weight_row(const Factors<S>& f, int column, int elements) {
  const int part = column % kParts, element = column / kParts;
  if (element >= elements) {
    return nullptr;
  }
  const S* w = kParts == 2 && part == 1 ? f.w_second : f.w;
  const int64_t row = kParts == kGates ? static_cast<int64_t>(part) * elements + element : element;
  return w + row * f.width;
}

template <typename S>
SVG_DEVICE const S* input_row(const Factors<S>& f, int row, int batch) {
  return row < batch ? f.x + static_cast<int64_t>(row) * f.width : nullptr;
}

// Numbers [k, k + 4) of a row, zeros beyond its end; `load` reads from memory.
template <typename Load>
SVG_DEVICE float4 load_quad(const float* row, int k, const Factors<float>& f, const Load& load) {
  if (row == nullptr || k >= f.width) {
    return {};
  }
  if (f.vectors) {
    return load(reinterpret_cast<const float4*>(row + k));
  }
  const auto number = [&](int j) { return k + j < f.width ? load(row + k + j) : 0.f; };
  return {number(0), number(1), number(2), number(3)};
}

SVG_DEVICE float largest_of(const float4& q) {
  return fmaxf(fmaxf(fabsf(q.x), fabsf(q.y)), fmaxf(fabsf(q.z), fabsf(q.w)));
}

constexpr int kChunkDepth = 4, kChunk = 16 * kChunkDepth;  // inputs that a warp takes at a time
constexpr SVG_INLINE int chunks_of(int width) { return (width + kChunk - 1) / kChunk; }

// Of a power of two, from its exponent: kept beside it, it would take a register.
SVG_DEVICE float inverse_of(float power) { return bits_as<float>((2 * 127 << 23) - bits_as<int>(power)); }

// Four numbers of each k-step of a chunk, of rows lane / 4 and lane / 4 + 8 of an operand. In which order the mma takes
// inputs is all the same, as long as both operands agree: a lane's four are neighbours in memory.
struct ChunkRows {
  float4 value[2][kChunkDepth];

  template <typename Row, typename Load>
  SVG_DEVICE void load(const Factors<float>& f, int chunk, const Row& row, const Load& load_number) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* from = row(lane / 4 + 8 * half);
#pragma unroll
      for (int d = 0; d < kChunkDepth; ++d) {
        value[half][d] = load_quad(from, chunk * kChunk + 16 * d + lane % 4 * 4, f, load_number);
      }
    }
  }

  // The power of two that takes a row's numbers to the range of fp16.
  SVG_DEVICE float scale(int half) const {
    float largest = 0.f;
#pragma unroll
    for (int d = 0; d < kChunkDepth; ++d) {
      largest = fmaxf(largest, largest_of(value[half][d]));
    }
    largest = fmaxf(largest, shuffle_xor(largest, 1));
    largest = fmaxf(largest, shuffle_xor(largest, 2));
    return scale_for(largest).factor;
  }
};

// One k-step's four numbers of two rows, scaled and in pairs: the first two and the last two.
struct QuadPairs {
  HalfPairs first[2], last[2];

  SVG_DEVICE QuadPairs(const ChunkRows& rows, int d, const float (&scale)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 v = rows.value[half][d];
      first[half] = split(v.x * scale[half], v.y * scale[half]);
      last[half] = split(v.z * scale[half], v.w * scale[half]);
    }
  }
};

// The products of a tile of rows of the batch and columns of a stage, each warp's sums of its own inputs.
template <int kParts, typename S>
class TileProducts;

template <int kParts>
class TileProducts<kParts, float> {
 public:
  SVG_DEVICE TileProducts(int row, int column, int batch, int elements)
      : row_(row), column_(column), batch_(batch), elements_(elements) {}

  // The weights of a chunk, for `add` to begin with.
  SVG_DEVICE void fetch(const Factors<float>& f, int chunk) {
    if (chunk < chunks_of(f.width)) {
      weights_.load(
          f, chunk, [&](int i) { return weight_row<kParts>(f, column_ + i, elements_); },
          [](const auto* p) { return load_read_only(p); });
    }
  }

  // The chunks from this one on that are the warp's.
  SVG_DEVICE void add(const Factors<float>& f, int chunk) {
    for (; chunk < chunks_of(f.width); chunk += kStepWarps) {
      ChunkRows x;
      x.load(
          f, chunk, [&](int i) { return input_row(f, row_ + i, batch_); },
          [](const auto* p) { return load_global(p); });
      add_chunk(x);
      fetch(f, chunk + kStepWarps);
    }
  }

  SVG_DEVICE void store(PartialSums<float>& partial) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* to = &partial.sum[warp][lane / 4 + 8 * half][8 * t + lane % 4 * 2];
        store_shared(shared_address(to), float2{total_[t].r[2 * half], total_[t].r[2 * half + 1]});
      }
    }
  }

 private:
  SVG_DEVICE void add_chunk(const ChunkRows& x) {
    const float x_scale[2] = {x.scale(0), x.scale(1)}, w_scale[2] = {weights_.scale(0), weights_.scale(1)};
    FragmentC sum[2] = {}, rest[2] = {};
#pragma unroll
    for (int d = 0; d < kChunkDepth; ++d) {
      const QuadPairs a(x, d, x_scale), b(weights_, d, w_scale);
      const FragmentA high{{a.first[0].high, a.first[1].high, a.last[0].high, a.last[1].high}};
      const FragmentA low{{a.first[0].low, a.first[1].low, a.last[0].low, a.last[1].low}};
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        mma_m16n8k16(sum[t], high, {{b.first[t].high, b.last[t].high}});
        mma_m16n8k16(rest[t], high, {{b.first[t].low, b.last[t].low}});
        mma_m16n8k16(rest[t], low, {{b.first[t].high, b.last[t].high}});
      }
    }
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {  // the scale of a column is with the lanes that loaded it
        const float of_column = shuffle_xor(inverse_of(w_scale[t]), lane ^ 4 * (lane % 4 * 2 + r % 2));
        total_[t].r[r] += (sum[t].r[r] + rest[t].r[r]) * inverse_of(x_scale[r / 2]) * of_column;
      }
    }
  }

  int row_, column_, batch_, elements_;
  ChunkRows weights_;
  FragmentC total_[2] = {};
};

// Nobody samples in float64: it is for comparison, and only has to be right. A thread for each sum.
template <int kParts>
class TileProducts<kParts, double> {
 public:
  SVG_DEVICE TileProducts(int row, int column, int batch, int elements)
      : row_(row + threadIdx.x / kTile), column_(column + threadIdx.x % kTile), batch_(batch), elements_(elements) {}

  SVG_DEVICE void fetch(const Factors<double>&, int) {}

  SVG_DEVICE void add(const Factors<double>& f, int) {
    const double *x = input_row(f, row_, batch_), *w = weight_row<kParts>(f, column_, elements_);
    for (int k = 0; x != nullptr && w != nullptr && k < f.width; ++k) {
      total_ += load_global(x + k) * load_read_only(w + k);
    }
  }

  SVG_DEVICE void store(PartialSums<double>& partial) const {
    store_shared(shared_address(&partial.sum[0][threadIdx.x / kTile][threadIdx.x % kTile]), total_);
  }

 private:
  int row_, column_, batch_, elements_;
  double total_ = 0;
};

template <typename S>
SVG_DEVICE Quad<S> sum_up(const PartialSums<S>& partial, int row, int column) {
  Quad<S> quad = {};
#pragma unroll
  for (int k = 0; k < kPartialSums<S>; ++k) {
    const uint32_t from = shared_address(&partial.sum[k][row][column]);
    if constexpr (sizeof(S) == sizeof(float)) {
      const float4 part = load_shared<float4>(from);
      quad = {quad.v[0] + part.x, quad.v[1] + part.y, quad.v[2] + part.z, quad.v[3] + part.w};
    } else {
      quad = {load_shared<S>(from), load_shared<S>(from + 8), load_shared<S>(from + 16), load_shared<S>(from + 24)};
    }
  }
  return quad;
}

}  // namespace svg_fast
