// The convolutions of the frame networks: checks, layouts and the cut into tasks. winograd_conv.h says what a weight's
// small and large maps are, and which way is down and up.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../signature.h"
#include "../tensors.h"
#include "channel_sums.h"
#include "parallel.h"
#include "scratch.h"
#include "thin_conv.h"
#include "winograd_conv.h"

namespace svg_fast {
namespace {

using torch::headeronly::MemoryFormat;
using torch::stable::parallel_for;

// A block's scratch should leave room in a second-level cache of 2 MiB, or of half of that with fewer registers.
constexpr int64_t kScratchFloats = int64_t{1} << 19;
constexpr int64_t kLeastColumns = 64;
// From here on the weights transformed for 4 x 4 outputs outgrow the cache; those for 2 x 2 are 2.8 times smaller.
constexpr int64_t kLargestForFour = int64_t{1} << 16;

// Pixels whose sum is worth handing to a thread, and how many such groups there are at most.
constexpr int64_t kRowsPerGroup = 1024, kMostGroups = 32;

// Tiles are multiplied by so many at once, on every instruction set.
constexpr int64_t kTileStep = 6;

void check_weight(const Tensor& weight) {
  check_rank("weight", weight, 4);
  const int64_t kernel = weight.size(2);
  STD_TORCH_CHECK((kernel == 4 || kernel == 3) && weight.size(3) == kernel,
                  "weight must be (D0, D1, 4, 4) or (D0, D1, 3, 3), got shape ", shape_text(weight.sizes()));
  const auto whole = [&](int64_t d) {
    return weight.size(d) > 0 && weight.size(d) % kWinogradChannels == 0 && weight.size(d) <= kMostConvChannels;
  };
  STD_TORCH_CHECK(whole(0) && (whole(1) || (weight.size(1) >= 1 && weight.size(1) <= kThinChannels)),
                  "weight must have multiples of ", kWinogradChannels, " channels up to ", kMostConvChannels,
                  ", or at most ", kThinChannels, " in dimension 1, got shape ", shape_text(weight.sizes()));
  check_dtype("weight", weight, ScalarType::Float);
}

bool is_thin(const Tensor& weight) { return weight.size(1) <= kThinChannels; }

const WinogradKernels::Variant& variant(const Tensor& weight) {
  const bool four = weight.size(0) * weight.size(1) <= kLargestForFour;
  const WinogradKernels& kernels = winograd_kernels();
  return weight.size(2) == 4 ? (four ? kernels.k4m4 : kernels.k4m2) : (four ? kernels.k3m4 : kernels.k3m2);
}

const WinogradKernels::Direction& direction(const Tensor& weight, bool up) {
  return up ? variant(weight).up : variant(weight).down;
}

int64_t stride(const Tensor& weight) { return weight.size(2) == 4 ? 2 : 1; }

// The maps of an input, (N, D, H, W), from which the convolution goes up or down; checks the input.
ConvMaps maps_of(const char* name, const Tensor& input, const Tensor& weight, bool up) {
  check_rank(name, input, 4);
  check_dtype(name, input, ScalarType::Float);
  const int64_t factor = up ? 1 : stride(weight), channels = weight.size(up ? 0 : 1);
  const int64_t height = input.size(2), width = input.size(3);
  STD_TORCH_CHECK(input.size(1) == channels, name, " must have ", channels, " channels, got shape ",
                  shape_text(input.sizes()));
  STD_TORCH_CHECK(height > 0 && width > 0 && height % factor == 0 && width % factor == 0, name,
                  " must have a height and width that are positive multiples of ", factor, ", got shape ",
                  shape_text(input.sizes()));
  return {input.size(0), height / factor, width / factor, weight.size(0), weight.size(1)};
}

Tensor channels_last(const Tensor& x) { return torch::stable::contiguous(x, MemoryFormat::ChannelsLast); }

Tensor empty_map(const Tensor& like, const ConvMaps& maps, const Tensor& weight, bool large) {
  const int64_t factor = large ? stride(weight) : 1;
  return torch::stable::empty({maps.images, large ? maps.d1 : maps.d0, factor * maps.height, factor * maps.width},
                              like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

// Cut [0, count) over the threads; `run(first, last)` may use its thread's scratch.
template <typename Run>
void over_tasks(int64_t count, const Run& run) {
  parallel_for(0, count, 1, run);
}

Tensor pack_for(const Tensor& weight, bool up) {
  const WinogradKernels::Direction& kernel = direction(weight, up);
  const ConvMaps maps{0, 0, 0, weight.size(0), weight.size(1)};
  const Tensor dense = torch::stable::contiguous(weight);
  const Tensor packed = torch::stable::new_empty(weight, {kernel.packed_size(maps)});
  over_tasks(up ? maps.d0 : maps.d1, [&](int64_t first, int64_t last) {
    kernel.pack(maps, dense.const_data_ptr<float>(), packed.mutable_data_ptr<float>(), first, last);
  });
  return packed;
}

std::vector<Tensor> frame_conv_pack(const Tensor& weight, bool transposed, bool backward) {
  check_weight(weight);
  if (is_thin(weight)) {
    return {};
  }
  std::vector<Tensor> packed{pack_for(weight, transposed)};
  if (backward) {
    packed.push_back(pack_for(weight, !transposed));
  }
  return packed;
}

struct Extras {
  OptionalTensor bias, addend;  // dense
};

// What the caller packed beforehand, or else packed now.
Tensor packed_weight(const Tensor& weight, const std::vector<Tensor>& packed, size_t which, bool up) {
  if (packed.size() <= which) {
    return pack_for(weight, up);
  }
  const ConvMaps maps{0, 0, 0, weight.size(0), weight.size(1)};
  STD_TORCH_CHECK(packed[which].numel() == direction(weight, up).packed_size(maps) && packed[which].is_contiguous() &&
                      packed[which].scalar_type() == ScalarType::Float,
                  "packed must be what frame_conv_pack made of this weight");
  return packed[which];
}

// input (channels last) up or down -> the other map.
Tensor convolve(const Tensor& input, const ConvMaps& maps, const Tensor& weight, const Extras& extras,
                const std::vector<Tensor>& packed, size_t which, bool up) {
  const Tensor output = empty_map(input, maps, weight, up);
  const int64_t addend_images = extras.addend.has_value() ? extras.addend->size(0) : 1;
  if (maps.images == 0) {
    return output;
  }
  if (is_thin(weight)) {
    const Tensor dense = torch::stable::contiguous(weight);
    ThinConv conv{maps,
                  weight.size(2),
                  dense.const_data_ptr<float>(),
                  data_or_null<float>(extras.bias),
                  data_or_null<float>(extras.addend),
                  addend_images,
                  nullptr,
                  nullptr,
                  nullptr,
                  nullptr,
                  nullptr};
    (up ? conv.small_in : conv.large_in) = input.const_data_ptr<float>();
    (up ? conv.large_out : conv.small_out) = output.mutable_data_ptr<float>();
    const ThinConvKernels& kernels = thin_conv_kernels();
    over_tasks(maps.images, [&](int64_t first, int64_t last) {
      (up ? kernels.up : kernels.down)(conv, scratch(kernels.scratch_size(conv)), first, last);
    });
    return output;
  }
  const WinogradKernels::Direction& kernel = direction(weight, up);
  const Tensor weights = packed_weight(weight, packed, which, up);
  const int64_t out = up ? maps.d1 : maps.d0, threads = torch::stable::get_num_threads();
  WinogradForward conv{maps,
                       input.const_data_ptr<float>(),
                       weights.const_data_ptr<float>(),
                       data_or_null<float>(extras.bias),
                       data_or_null<float>(extras.addend),
                       addend_images,
                       output.mutable_data_ptr<float>(),
                       kernel.most_tiles,
                       out};
  const int64_t tiles = kernel.tiles(maps);
  const auto tasks = [&] { return divide_up(tiles, conv.block_tiles) * divide_up(out, conv.block_columns); };
  while (conv.block_columns % (2 * kLeastColumns) == 0 &&
         (kernel.scratch_size(conv) > kScratchFloats || tasks() < threads)) {
    conv.block_columns /= 2;
  }
  // as many tasks for one thread as for the next
  int64_t blocks = divide_up(tiles, conv.block_tiles);
  while (blocks * divide_up(out, conv.block_columns) % threads != 0) {
    ++blocks;
  }
  conv.block_tiles = std::min(conv.block_tiles, divide_up(divide_up(tiles, blocks), kTileStep) * kTileStep);
  over_tasks(tasks(),
             [&](int64_t first, int64_t last) { kernel.run(conv, scratch(kernel.scratch_size(conv)), first, last); });
  return output;
}

Tensor weight_gradient(const Tensor& large, const Tensor& small, const ConvMaps& maps, const Tensor& weight) {
  const Tensor dweight = torch::stable::new_empty(weight, {maps.d0, maps.d1, weight.size(2), weight.size(2)});
  if (maps.images == 0) {
    return torch::stable::fill_(dweight, 0.0);
  }
  const WinogradKernels::Variant& kernel = variant(weight);
  const Tensor dpacked = torch::stable::new_empty(weight, {kernel.gradient_planes, maps.d0, maps.d1});
  WinogradGradient conv{maps, large.const_data_ptr<float>(), small.const_data_ptr<float>(),
                        dpacked.mutable_data_ptr<float>(), maps.d0};
  const int64_t threads = torch::stable::get_num_threads();
  const auto blocks = [&] { return divide_up(maps.d0, conv.block_d0); };
  while (kernel.gradient_tasks * blocks() < threads && conv.block_d0 % (2 * kLeastColumns) == 0) {
    conv.block_d0 /= 2;
  }
  over_tasks(kernel.gradient_tasks * blocks(), [&](int64_t first, int64_t last) {
    kernel.gradient(conv, scratch(kernel.gradient_scratch_size(maps)), first, last);
  });
  over_tasks(maps.d0, [&](int64_t first, int64_t last) {
    kernel.unpack(maps, dpacked.const_data_ptr<float>(), dweight.mutable_data_ptr<float>(), first, last);
  });
  return dweight;
}

// (k k D1, D0) of each group of images, summed in order, then turned into (D0, D1, k, k).
Tensor thin_weight_gradient(const Tensor& large, const Tensor& small, const ConvMaps& maps, const Tensor& weight) {
  const int64_t kernel = weight.size(2), taps = kernel * kernel * maps.d1, size = taps * maps.d0;
  const Tensor dweight = torch::stable::new_empty(weight, {maps.d0, maps.d1, kernel, kernel});
  const int64_t groups = std::min(kThinGroups, maps.images);
  const Tensor partial = torch::stable::new_empty(weight, {std::max<int64_t>(groups, 1), taps, maps.d0});
  ThinConv conv{maps,
                kernel,
                nullptr,
                nullptr,
                nullptr,
                1,
                large.const_data_ptr<float>(),
                small.const_data_ptr<float>(),
                nullptr,
                nullptr,
                partial.mutable_data_ptr<float>()};
  const ThinConvKernels& kernels = thin_conv_kernels();
  over_tasks(groups, [&](int64_t first, int64_t last) {
    kernels.gradient(conv, scratch(kernels.scratch_size(conv)), first, last);
  });
  const float* parts = partial.const_data_ptr<float>();
  float* sums = dweight.mutable_data_ptr<float>();
  for (int64_t d0 = 0; d0 < maps.d0; ++d0) {
    for (int64_t d1 = 0; d1 < maps.d1; ++d1) {
      for (int64_t tap = 0; tap < kernel * kernel; ++tap) {
        float sum = 0;
        for (int64_t group = 0; group < groups; ++group) {
          sum += parts[group * size + (tap * maps.d1 + d1) * maps.d0 + d0];
        }
        sums[(d0 * maps.d1 + d1) * kernel * kernel + tap] = sum;
      }
    }
  }
  return dweight;
}

// Summed in groups of pixels, then over the groups in order: the same for any number of threads.
Tensor bias_gradient(const Tensor& dy, int64_t channels) {
  const int64_t rows = channels == 0 ? 0 : dy.numel() / channels;
  const int64_t groups = std::clamp<int64_t>(rows / kRowsPerGroup, 1, kMostGroups);
  const Tensor partial = torch::stable::new_empty(dy, {groups, channels});
  const Tensor dbias = torch::stable::new_empty(dy, {channels});
  float *parts = partial.mutable_data_ptr<float>(), *sums = dbias.mutable_data_ptr<float>();
  over_tasks(groups, [&](int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group) {
      const int64_t from = rows * group / groups, to = rows * (group + 1) / groups;
      channel_sums_kernels().sum(dy.const_data_ptr<float>() + from * channels, to - from, channels,
                                 parts + group * channels);
    }
  });
  std::copy_n(parts, channels, sums);
  for (int64_t k = channels; k < groups * channels; ++k) {
    sums[k % channels] += parts[k];
  }
  return dbias;
}

Tensor frame_conv_fwd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& addend,
                      const std::vector<Tensor>& packed, bool transposed) {
  check_weight(weight);
  const ConvMaps maps = maps_of("x", x, weight, transposed);
  const int64_t channels = weight.size(transposed ? 1 : 0), factor = transposed ? stride(weight) : 1;
  Extras extras;
  if (bias.has_value()) {
    check_dtype("bias", *bias, ScalarType::Float);
    check_shape("bias", *bias, {channels});
    extras.bias = torch::stable::contiguous(*bias);
  }
  if (addend.has_value()) {
    check_rank("addend", *addend, 4);
    check_dtype("addend", *addend, ScalarType::Float);
    const int64_t images = addend->size(0);
    check_shape("addend", *addend, {images, channels, factor * maps.height, factor * maps.width});
    STD_TORCH_CHECK(images > 0 ? maps.images % images == 0 : maps.images == 0, "addend must hold a divisor of the ",
                    maps.images, " images of x, got ", images);
    extras.addend = channels_last(*addend);
  }
  return convolve(channels_last(x), maps, weight, extras, packed, 0, transposed);
}

std::tuple<Tensor, Tensor, Tensor> frame_conv_bwd(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                                  const std::vector<Tensor>& packed, bool transposed, bool need_dx,
                                                  bool need_dweight, bool need_dbias) {
  check_weight(weight);
  const ConvMaps maps = maps_of("x", x, weight, transposed);
  const ConvMaps dy_maps = maps_of("dy", dy, weight, !transposed);
  STD_TORCH_CHECK(maps.images == dy_maps.images && maps.height == dy_maps.height && maps.width == dy_maps.width,
                  "dy must have the shape of the output for x ", shape_text(x.sizes()), ", got ",
                  shape_text(dy.sizes()));
  const Tensor dense_dy = channels_last(dy), dense_x = channels_last(x);
  const auto none = [&] { return torch::stable::new_empty(x, {0}); };
  const Tensor dx = need_dx ? convolve(dense_dy, maps, weight, {}, packed, 1, !transposed) : none();
  const Tensor &large = transposed ? dense_dy : dense_x, &small = transposed ? dense_x : dense_dy;
  const auto gradient = is_thin(weight) ? thin_weight_gradient : weight_gradient;
  const Tensor dweight = need_dweight ? gradient(large, small, maps, weight) : none();
  return {dx, dweight, need_dbias ? bias_gradient(dense_dy, dy.size(1)) : none()};
}

STABLE_TORCH_LIBRARY_IMPL(svg_fast, CPU, m) {
  SVG_KERNEL(m, frame_conv_pack);
  SVG_KERNEL(m, frame_conv_fwd);
  SVG_KERNEL(m, frame_conv_bwd);
}

}  // namespace
}  // namespace svg_fast
