#include "../channel_sums.h"

#include "../vec.h"

namespace svg_fast::SVG_ISA {
namespace {

constexpr int64_t kVector = kLanes<float>;
constexpr int kAtOnce = 4;  // vectors summed at once: enough to hide an addition's latency

// As many vectors as there are channels hold whole pixels: element e of them is of channel e % channels.
void sum_few(const float* x, int64_t rows, int64_t channels, float* sums) {
  Vec<float> block[kAtOnce] = {};
  const int64_t count = rows * channels, step = channels * kVector, whole = count / step * step;
  for (int64_t k = 0; k < whole; k += step) {
    for (int64_t v = 0; v < channels; ++v) {
      block[v] += load(x + k + v * kVector);
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    sums[c] = 0;
  }
  for (int64_t e = 0; e < step; ++e) {
    sums[e % channels] += block[e / kVector][e % kVector];
  }
  for (int64_t k = whole; k < count; ++k) {
    sums[k % channels] += x[k];
  }
}

void sum(const float* x, int64_t rows, int64_t channels, float* sums) {
  if (channels <= kAtOnce) {
    return sum_few(x, rows, channels, sums);
  }
  for (int64_t c = 0; c < channels; c += kAtOnce * kVector) {
    const int64_t vectors = channels - c < kAtOnce * kVector ? (channels - c) / kVector : kAtOnce;
    Vec<float> total[kAtOnce] = {};
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t v = 0; v < vectors; ++v) {
        total[v] += load(x + row * channels + c + v * kVector);
      }
    }
    for (int64_t v = 0; v < vectors; ++v) {
      store<float>(sums + c + v * kVector, total[v]);
    }
  }
}

}  // namespace

const ChannelSumsKernels channel_sums_kernels{sum};

}  // namespace svg_fast::SVG_ISA
