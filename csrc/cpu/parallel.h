// How host functions cut work up for threads. Every element of a result is computed whole by one task, so results do
// not depend on the number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "../common.h"

namespace svg_fast {

// A task this long takes some microseconds, longer than handing it to a thread.
constexpr int64_t kTaskFlops = int64_t{1} << 18;

// Calls task(panel, row, rows) for all of panels x rows, which cost `flops` together. Rows are cut up, in multiples of
// tile_rows, only where the panels alone would leave threads idle.
template <typename Task>
void parallel_panels(int64_t panels, int64_t rows, int64_t tile_rows, int64_t flops, const Task& task) {
  if (panels == 0 || rows == 0) {
    return;
  }
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t tiles = divide_up(rows, tile_rows), wanted = threads / std::gcd(panels, threads);
  const int64_t block_rows = divide_up(tiles, std::min(tiles, wanted)) * tile_rows;
  const int64_t blocks = divide_up(rows, block_rows), tasks = panels * blocks;
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t row = k % blocks * block_rows;
      task(k / blocks, row, std::min(block_rows, rows - row));
    }
  };
  torch::stable::parallel_for(0, tasks, divide_up(tasks * kTaskFlops, std::max<int64_t>(flops, 1)), run);
}

}  // namespace svg_fast
