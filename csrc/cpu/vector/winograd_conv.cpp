// Forward in both directions: transform tiles of the input, multiply them with packed weights, transform back. A block
// of tiles and what it becomes stay in the second-level cache; weights stream through once for each block.
#include "winograd_gradient.h"

namespace svg_fast::SVG_ISA {
namespace {

// Tiles of a block: every block reads all weights, so the more the better while it fits.
template <typename G>
constexpr int64_t kBlockTiles = (kRegisters == 32 ? 2 : 1) * (G::P == 3 ? 60 : 24);
constexpr int64_t kBlockDepth = kRegisters == 32 ? 128 : 64;  // input channels transformed at once

template <typename G>
int64_t packed_size(const ConvMaps& maps) {
  return G::kOutPhases * G::kOutPhases * G::P * G::P * G::kInPhases * G::kInPhases * maps.d0 * maps.d1;
}

// The taps of one phase of the filters from input channel `in` to kVector output channels, transformed into U. `taps`
// is [kernel][kernel][lane].
template <typename G>
SVG_INLINE void transform_taps(const float* taps, int phase_y, int phase_x, Vec<float> (&u)[G::P][G::P]) {
  Vec<float> g[G::kTaps][G::kTaps];
#pragma GCC unroll 4
  for (int b = 0; b < G::kTaps; ++b) {
#pragma GCC unroll 4
    for (int a = 0; a < G::kTaps; ++a) {
      g[b][a] = load(taps + (G::tap(phase_y, a) * G::kKernel + G::tap(phase_x, b)) * kVector);
    }
  }
  multiply_both<typename G::Weight>(g, u);
}

// The transformed taps from one input channel to kVector output channels, into their rows of every plane.
template <typename G>
SVG_INLINE void pack_vector(const float* weight, int64_t out_step, int64_t in_channels, int64_t plane,
                            int64_t phase_step, float* packed) {
  constexpr int kTapCount = G::kKernel * G::kKernel;
  alignas(kVectorBytes) float taps[kTapCount * kVector];
  for (int64_t lane = 0; lane < kVector; ++lane) {
    for (int t = 0; t < kTapCount; ++t) {
      taps[t * kVector + lane] = weight[lane * out_step + t];
    }
  }
  for (int phase = 0; phase < G::kStride * G::kStride; ++phase) {
    Vec<float> u[G::P][G::P];
    transform_taps<G>(taps, phase / G::kStride, phase % G::kStride, u);
    float* at = packed + (G::kUp ? phase * G::P * G::P * plane : phase * in_channels * phase_step);
    for (int p = 0; p < G::P * G::P; ++p) {
      store<float>(at + p * plane, u[p / G::P][p % G::P]);
    }
  }
}

// packed: [out phase][P^2][panel][in phase, input channel][panel's output channels].
template <typename G>
void pack(const ConvMaps& maps, const float* weight, float* packed, int64_t first, int64_t last) {
  constexpr int kTapCount = G::kKernel * G::kKernel;
  const int64_t in = G::in_channels(maps), out = G::out_channels(maps), depth = G::kInPhases * G::kInPhases * in;
  const int64_t in_step = kTapCount * (G::kUp ? maps.d1 : 1), out_step = kTapCount * (G::kUp ? 1 : maps.d1);
  const int64_t panel = panel_columns(out) * kVector;
  for (int64_t start = 0; start < out; start += panel) {
    for (int64_t k = first; k < last; ++k) {
      for (int64_t o = start; o < start + panel; o += kVector) {
        pack_vector<G>(weight + o * out_step + k * in_step, out_step, in, out * depth, panel,
                       packed + start * depth + k * panel + o - start);
      }
    }
  }
}

template <typename G>
struct Block {
  const WinogradForward& conv;
  Tiles tiles;
  int64_t first_tile, count, first_column, columns;
  float *transformed, *products;  // [P^2][tile][channel]

  static constexpr int64_t kInStride = kBlockDepth + kPad, kInPlane = kBlockTiles<G> * kInStride;
  int64_t out_stride() const { return conv.block_columns + kPad; }
  int64_t out_plane() const { return kBlockTiles<G> * out_stride(); }

  // `depth` channels of one phase of the input's windows, from channel `from` on.
  void transform_input(int in_phase, int out_phase, int64_t from, int64_t depth) const {
    const ConvMaps& maps = conv.maps;
    const int64_t channels = G::in_channels(maps), height = G::kInPhases * maps.height,
                  width = G::kInPhases * maps.width;
    const int phase_y = in_phase / G::kInPhases + out_phase / G::kOutPhases,
              phase_x = in_phase % G::kInPhases + out_phase % G::kOutPhases;
    for (int64_t t = 0; t < count; ++t) {
      const Tile tile(tiles, first_tile + t);
      const Window<G::P, G::P> window(conv.input + tile.image * height * width * channels, height, width, channels,
                                      G::kInPhases * G::M * tile.row - 1 + phase_y, G::kInPhases,
                                      G::kInPhases * G::M * tile.column - 1 + phase_x, G::kInPhases);
      float* out = transformed + t * kInStride;
      for (int64_t c = 0; c < depth; c += kVector) {
        Vec<float> x[G::P][G::P], v[G::P][G::P];
#pragma GCC unroll 8
        for (int b = 0; b < G::P; ++b) {
#pragma GCC unroll 8
          for (int a = 0; a < G::P; ++a) {
            x[b][a] = load(window.pixel[b][a] + from + c);
          }
        }
        multiply_both<typename G::Input>(x, v);
#pragma GCC unroll 36
        for (int p = 0; p < G::P * G::P; ++p) {
          store<float>(out + p * kInPlane + c, v[p / G::P][p % G::P]);
        }
      }
    }
  }

  void multiply(int in_phase, int out_phase, int64_t from, int64_t depth) const {
    const int64_t in = G::in_channels(conv.maps), out = G::out_channels(conv.maps),
                  all = G::kInPhases * G::kInPhases * in;
    const int64_t vectors = panel_columns(out), panel = vectors * kVector;
    const TileStrides strides{kInStride, 1, panel, out_stride()};
    for (int p = 0; p < G::P * G::P; ++p) {
      const float* weights =
          conv.packed + ((out_phase * G::P * G::P + p) * out + first_column) * all + (in_phase * in + from) * panel;
      multiply_panels(count, columns, depth, transformed + p * kInPlane, weights, products + p * out_plane(), vectors,
                      all * panel, strides, in_phase + from > 0);
    }
  }

  void transform_output(int out_phase) const {
    const ConvMaps& maps = conv.maps;
    const int64_t channels = G::out_channels(maps), width = G::kOutPhases * maps.width;
    const int64_t image = G::kOutPhases * maps.height * width * channels;
    const int64_t row_step = G::kOutPhases * width * channels, column_step = G::kOutPhases * channels;
    const int64_t phase = (out_phase / G::kOutPhases * width + out_phase % G::kOutPhases) * channels + first_column;
    for (int64_t t = 0; t < count; ++t) {
      const Tile tile(tiles, first_tile + t);
      const int64_t rows = maps.height - tile.row * G::M, valid_columns = maps.width - tile.column * G::M;
      const int64_t corner = tile.row * G::M * row_step + tile.column * G::M * column_step + phase;
      float* out = conv.output + tile.image * image + corner;
      const float* addend =
          conv.addend == nullptr ? nullptr : conv.addend + tile.image % conv.addend_images * image + corner;
      const float* product = products + t * out_stride();
      for (int64_t c = 0; c < columns; c += kVector) {
        Vec<float> m[G::P][G::P], y[G::M][G::M];
#pragma GCC unroll 36
        for (int p = 0; p < G::P * G::P; ++p) {
          m[p % G::P][p / G::P] = load(product + p * out_plane() + c);
        }
        multiply_both<typename G::Output>(m, y);
        const Vec<float> bias = conv.bias == nullptr ? Vec<float>{} : load(conv.bias + first_column + c);
#pragma GCC unroll 16
        for (int p = 0; p < G::M * G::M; ++p) {
          const int a = p / G::M, b = p % G::M;
          if (a < rows && b < valid_columns) {
            const int64_t at = a * row_step + b * column_step + c;
            const Vec<float> value = y[a][b] + bias;
            store<float>(out + at, addend == nullptr ? value : value + load(addend + at));
          }
        }
      }
    }
  }

  void run() const {
    const int64_t in = G::in_channels(conv.maps);
    for (int out_phase = 0; out_phase < G::kOutPhases * G::kOutPhases; ++out_phase) {
      for (int in_phase = 0; in_phase < G::kInPhases * G::kInPhases; ++in_phase) {
        for (int64_t from = 0; from < in; from += kBlockDepth) {
          const int64_t depth = in - from < kBlockDepth ? in - from : kBlockDepth;
          transform_input(in_phase, out_phase, from, depth);
          multiply(in_phase, out_phase, from, depth);
        }
      }
      transform_output(out_phase);
    }
  }
};

template <typename G>
int64_t tiles(const ConvMaps& maps) {
  return maps.images * Tiles(maps, G::M).per_image();
}

template <typename G>
int64_t scratch_size(const WinogradForward& conv) {
  return G::P * G::P * kBlockTiles<G> * (kBlockDepth + kPad + conv.block_columns + kPad);
}

template <typename G>
void run(const WinogradForward& conv, float* scratch, int64_t first, int64_t last) {
  const int64_t out = G::out_channels(conv.maps), column_blocks = (out + conv.block_columns - 1) / conv.block_columns;
  const int64_t all_tiles = tiles<G>(conv.maps);
  for (int64_t task = first; task < last; ++task) {
    const int64_t tile = task / column_blocks * conv.block_tiles, column = task % column_blocks * conv.block_columns;
    const int64_t count = all_tiles - tile < conv.block_tiles ? all_tiles - tile : conv.block_tiles;
    const int64_t columns = out - column < conv.block_columns ? out - column : conv.block_columns;
    float* products = scratch + G::P * G::P * kBlockTiles<G> * (kBlockDepth + kPad);
    Block<G>{conv, Tiles(conv.maps, G::M), tile, count, column, columns, scratch, products}.run();
  }
}

template <int kKernel, int M, bool kUp>
constexpr WinogradKernels::Direction direction() {
  using G = Geometry<kKernel, M, kUp>;
  return {pack<G>, packed_size<G>, run<G>, tiles<G>, kBlockTiles<G>, scratch_size<G>};
}

template <int kKernel, int M>
constexpr WinogradKernels::Variant variant() {
  using G = Geometry<kKernel, M, false>;
  return {direction<kKernel, M, false>(),        direction<kKernel, M, true>(), gradient<G>, G::P * G::kStride,
          G::P * G::P * G::kStride * G::kStride, gradient_scratch_size<G>,      unpack<G>};
}

}  // namespace

const WinogradKernels winograd_kernels{variant<4, 2>(), variant<4, 4>(), variant<3, 2>(), variant<3, 4>()};

}  // namespace svg_fast::SVG_ISA
