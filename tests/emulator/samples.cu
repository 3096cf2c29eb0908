// Small kernels that test the emulator: each uses a few primitives for something that plain arithmetic can check.
#include <torch/csrc/stable/ops.h>

#include "launch.h"

namespace svg_fast {
namespace {

constexpr int kWarp = 32;

const float* values(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }
float* values(Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

// a (16, 16) b (16, 8) + c (16, 8) -> d (16, 8); a, c and d lie column by column in memory. Where a fragment's element
// lies is CUTLASS's own description, SM80_16x8x16_F32F16F16F32_TN: strides of lane and value.
__global__ void mma(const float* a, const float* b, const float* c, float* d) {
  const int lane = threadIdx.x;
  const auto at_a = [=](int v) { return lane % 4 * 32 + lane / 4 + v % 2 * 16 + v / 2 % 2 * 8 + v / 4 * 128; };
  const auto at_b = [=](int v) { return lane % 4 * 16 + lane / 4 + v % 2 * 8 + v / 2 * 64; };
  const auto at_c = [=](int v) { return lane % 4 * 32 + lane / 4 + v % 2 * 16 + v / 2 * 8; };
  FragmentA fragment_a;
  FragmentB fragment_b;
  FragmentC fragment_c;
  for (int r = 0; r < 4; ++r) {
    fragment_a.r[r] = pack_half(a[at_a(2 * r)], a[at_a(2 * r + 1)]);
    fragment_c.r[r] = c[at_c(r)];
  }
  for (int r = 0; r < 2; ++r) {
    fragment_b.r[r] = pack_half(b[at_b(2 * r)], b[at_b(2 * r + 1)]);
  }
  mma_m16n8k16(fragment_c, fragment_a, fragment_b);
  for (int r = 0; r < 4; ++r) {
    d[at_c(r)] = fragment_c.r[r];
  }
}

// a (16, 16), b (8, 16), row by row -> a b^T (16, 8): fragments by ldmatrix.
__global__ void product(const float* a, const float* b, float* d) {
  SVG_SHARED(uint16_t[24][24], rows);  // of a, then of b; the padding keeps rows in different banks
  const int lane = threadIdx.x;
  for (int k = lane; k < 24 * 8; k += kWarp) {
    const float* pair = k < 16 * 8 ? a + 2 * k : b + 2 * (k - 16 * 8);
    store_shared(shared_address(&rows[k / 8][k % 8 * 2]), pack_half(pair[0], pair[1]));
  }
  warp_sync();
  FragmentA fragment_a;
  FragmentC sum = {};
  uint32_t r[4];
  ldmatrix_x4(fragment_a.r, shared_address(&rows[lane % 16][lane / 16 * 8]));
  ldmatrix_x4(r, shared_address(&rows[16 + lane % 8][lane / 8 % 2 * 8]));
  mma_m16n8k16(sum, fragment_a, FragmentB{{r[0], r[1]}});
  for (int k = 0; k < 4; ++k) {
    d[(lane / 4 + k / 2 * 8) * 8 + lane % 4 * 2 + k % 2] = sum.r[k];
  }
}

constexpr int kThreads = 96;

// x (96) -> x from the last to the first, plus the value of the neighbour of each pair.
__global__ void reverse(const float* x, float* y) {
  SVG_SHARED(float[kThreads], all);
  const int k = threadIdx.x;
  store_shared(shared_address(&all[k]), load_read_only(x + k));
  block_sync();
  const float mine = load_shared(shared_address(&all[kThreads - 1 - k]));
  y[k] = mine + shuffle_xor(mine, 1);
}

constexpr int kBlocks = 4, kUnits = 64;

// x (4, 64) -> after so many steps, in each of which every block's row becomes the mean of all rows, backwards.
__global__ void exchange(const float* x, float* y, int steps) {
  SVG_SHARED(float[2][kBlocks][kUnits], received);
  SVG_SHARED(uint64_t[2], arrival);
  const int rank = cluster_rank(), k = threadIdx.x;
  if (k == 0) {
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(shared_address(&arrival[i]), 1);
      mbarrier_arrive_expect_tx(shared_address(&arrival[i]), sizeof(received[i]));
    }
    fence_mbarrier_init();
  }
  cluster_arrive();
  cluster_wait();
  float value = x[rank * kUnits + k];
  for (int t = 0; t < steps; ++t) {
    const int now = t % 2;
    const uint32_t to = shared_address(&received[now][rank][k]), barrier = shared_address(&arrival[now]);
    for (int peer = 0; peer < kBlocks; ++peer) {
      store_async(peer_address(to, peer), value, peer_address(barrier, peer));
    }
    mbarrier_wait(barrier, t / 2 % 2);
    if (k == 0) {
      mbarrier_arrive_expect_tx(barrier, sizeof(received[now]));
    }
    value = 0;
    for (int peer = 0; peer < kBlocks; ++peer) {
      value += load_shared(shared_address(&received[now][peer][kUnits - 1 - k])) / kBlocks;
    }
  }
  y[rank * kUnits + k] = value;
}

// x (B, 64) -> sums (B, 64) of rows 0 to b, each block adding its row to its neighbour's sum, backwards.
__global__ void running_sum(const float* x, float* sums, uint32_t* flags) {
  const int block = blockIdx.x, k = threadIdx.x;
  float before = 0;
  if (block > 0) {
    if (k == 0) {
      wait_at_least(flags + block - 1, 1);
    }
    block_sync();
    before = load_global(sums + (block - 1) * kUnits + kUnits - 1 - k);
  }
  store_global(sums + block * kUnits + k, before + x[block * kUnits + k]);
  block_sync();
  if (k == 0) {
    add_release_gpu(flags + block, 1);
  }
}

// What only the sanitizers see, for these are accesses of plain C++.
__global__ void unordered(float* y) {
  SVG_SHARED(float[kThreads], all);
  const int k = threadIdx.x;
  all[k] = k;
  y[k] = all[kThreads - 1 - k];
}

__global__ void beyond(float* y) {
  SVG_SHARED(float[kThreads], all);
  const int k = threadIdx.x;
  float* next = all + 1;
  next[k] = k;
  block_sync();
  y[k] = all[k];
}

}  // namespace

Tensor sample_mma(const Tensor& a, const Tensor& b, const Tensor& c) {
  Tensor d = torch::stable::empty_like(c);
  launch(mma, {.grid = {1}, .block = {kWarp}}, current_stream(a), values(a), values(b), values(c), values(d));
  return d;
}

Tensor sample_product(const Tensor& a, const Tensor& b, const Tensor& like) {
  Tensor d = torch::stable::empty_like(like);
  launch(product, {.grid = {1}, .block = {kWarp}}, current_stream(a), values(a), values(b), values(d));
  return d;
}

Tensor sample_reverse(const Tensor& x) {
  Tensor y = torch::stable::empty_like(x);
  launch(reverse, {.grid = {1}, .block = {kThreads}}, current_stream(x), values(x), values(y));
  return y;
}

Tensor sample_exchange(const Tensor& x, int64_t steps) {
  Tensor y = torch::stable::empty_like(x);
  const LaunchShape shape{.grid = {kBlocks}, .block = {kUnits}, .cluster = kBlocks};
  launch(exchange, shape, current_stream(x), values(x), values(y), steps);
  return y;
}

Tensor sample_running_sum(const Tensor& x, Tensor flags) {
  Tensor sums = torch::stable::empty_like(x);
  const LaunchShape shape{.grid = {static_cast<uint32_t>(x.size(0))}, .block = {kUnits}, .cooperative = true};
  launch(running_sum, shape, current_stream(x), values(x), values(sums),
         static_cast<uint32_t*>(flags.mutable_data_ptr()));
  return sums;
}

Tensor sample_unordered(const Tensor& like) {
  Tensor y = torch::stable::empty_like(like);
  launch(unordered, {.grid = {1}, .block = {kThreads}}, current_stream(y), values(y));
  return y;
}

Tensor sample_beyond(const Tensor& like) {
  Tensor y = torch::stable::empty_like(like);
  launch(beyond, {.grid = {1}, .block = {kThreads}}, current_stream(y), values(y));
  return y;
}

SVG_CUDA_LIBRARY(m) {
  SVG_KERNEL(m, sample_mma);
  SVG_KERNEL(m, sample_product);
  SVG_KERNEL(m, sample_reverse);
  SVG_KERNEL(m, sample_exchange);
  SVG_KERNEL(m, sample_running_sum);
  SVG_KERNEL(m, sample_unordered);
  SVG_KERNEL(m, sample_beyond);
}

}  // namespace svg_fast
