// Convolutions between a frame of few channels and a map of many. Taps of a pixel lie side by side in memory, kernel row
// by kernel row, so gathering them is a few short copies; the rest is a matrix product.
#include "../thin_conv.h"

#include "winograd_geometry.h"

namespace svg_fast::SVG_ISA {
namespace {

constexpr int64_t kBlockPixels = 48;

int64_t stride(const ThinConv& conv) { return conv.kernel == 4 ? 2 : 1; }
int64_t taps(const ThinConv& conv) { return conv.kernel * conv.kernel * conv.maps.d1; }
int64_t padded_taps(const ThinConv& conv) { return (taps(conv) + kVector - 1) / kVector * kVector; }
int64_t small_size(const ThinConv& conv) { return conv.maps.height * conv.maps.width; }
int64_t large_size(const ThinConv& conv) { return small_size(conv) * stride(conv) * stride(conv) * conv.maps.d1; }

// The products of all pixels of an image with all taps, or a block of gathered pixels; and the weight, turned.
int64_t scratch_size(const ThinConv& conv) {
  const int64_t pixels = small_size(conv) > kBlockPixels ? small_size(conv) : kBlockPixels;
  return pixels * padded_taps(conv) + padded_taps(conv) * conv.maps.d0;
}

// rows[pixel][(row, column, d1)]: what the kernel at each of the pixels [first, last) of the small map sees.
void gather(const ThinConv& conv, const float* large, int64_t first, int64_t last, float* rows) {
  const int64_t d1 = conv.maps.d1, height = stride(conv) * conv.maps.height, width = stride(conv) * conv.maps.width;
  const int64_t count = taps(conv), row_length = padded_taps(conv);
  for (int64_t pixel = first; pixel < last; ++pixel) {
    float* row = rows + (pixel - first) * row_length;
    const int64_t top = pixel / conv.maps.width * stride(conv) - 1, left = pixel % conv.maps.width * stride(conv) - 1;
    for (int64_t a = 0; a < conv.kernel; ++a) {
      for (int64_t b = 0; b < conv.kernel; ++b) {
        const int64_t y = top + a, x = left + b;
        const bool inside = y >= 0 && y < height && x >= 0 && x < width;
        const float* from = inside ? large + (y * width + x) * d1 : kZeros;
        for (int64_t c = 0; c < d1; ++c) {
          row[(a * conv.kernel + b) * d1 + c] = from[c];
        }
      }
    }
    for (int64_t k = count; k < row_length; ++k) {
      row[k] = 0;
    }
  }
}

// Weight (d0, d1, k, k) as (k, k, d1) x d0, or d0 x (k, k, d1).
void turn_weight(const ThinConv& conv, float* turned, int64_t tap_step, int64_t d0_step) {
  const int64_t kernel_taps = conv.kernel * conv.kernel, d1 = conv.maps.d1;
  for (int64_t d0 = 0; d0 < conv.maps.d0; ++d0) {
    for (int64_t k = 0; k < padded_taps(conv); ++k) {
      const float* from = conv.weight + (d0 * d1 + k % d1) * kernel_taps + k / d1;
      turned[k * tap_step + d0 * d0_step] = k < taps(conv) ? *from : 0;
    }
  }
}

void down(const ThinConv& conv, float* scratch, int64_t first, int64_t last) {
  const int64_t d0 = conv.maps.d0, depth = taps(conv), row_length = padded_taps(conv), pixels = small_size(conv);
  float *weight = scratch, *rows = scratch + row_length * d0;
  turn_weight(conv, weight, d0, 1);
  const int64_t vectors = panel_columns(d0);
  const TileStrides strides{row_length, 1, d0, d0};
  for (int64_t image = first; image < last; ++image) {
    float* out = conv.small_out + image * pixels * d0;
    const float* addend =
        conv.addend == nullptr ? nullptr : conv.addend + image % conv.addend_images * pixels * d0;
    for (int64_t from = 0; from < pixels; from += kBlockPixels) {
      const int64_t to = from + kBlockPixels < pixels ? from + kBlockPixels : pixels;
      gather(conv, conv.large_in + image * large_size(conv), from, to, rows);
      for (int64_t pixel = from; pixel < to; ++pixel) {
        for (int64_t c = 0; c < d0; c += kVector) {
          Vec<float> start = conv.bias == nullptr ? Vec<float>{} : load(conv.bias + c);
          start = addend == nullptr ? start : start + load(addend + pixel * d0 + c);
          store<float>(out + pixel * d0 + c, start);
        }
      }
      multiply_panels(to - from, d0, depth, rows, weight, out + from * d0, vectors, vectors * kVector, strides, true);
    }
  }
}

// One pixel of the large map: its share of the products of the small pixels that see it.
float collect(const ThinConv& conv, const float* products, int64_t y, int64_t x, int64_t c) {
  const int64_t step = stride(conv), row_length = padded_taps(conv);
  float sum = 0;
  for (int64_t a = (y + 1) % step; a < conv.kernel; a += step) {
    const int64_t row = (y + 1 - a) / step;
    if (y + 1 < a || row >= conv.maps.height) {
      continue;
    }
    for (int64_t b = (x + 1) % step; b < conv.kernel; b += step) {
      const int64_t column = (x + 1 - b) / step;
      if (x + 1 >= b && column < conv.maps.width) {
        sum += products[(row * conv.maps.width + column) * row_length + (a * conv.kernel + b) * conv.maps.d1 + c];
      }
    }
  }
  return sum;
}

void up(const ThinConv& conv, float* scratch, int64_t first, int64_t last) {
  const int64_t d0 = conv.maps.d0, d1 = conv.maps.d1, row_length = padded_taps(conv), pixels = small_size(conv);
  const int64_t height = stride(conv) * conv.maps.height, width = stride(conv) * conv.maps.width;
  float *weight = scratch, *products = scratch + row_length * d0;
  turn_weight(conv, weight, 1, row_length);
  const int64_t vectors = panel_columns(row_length);
  const TileStrides strides{d0, 1, row_length, row_length};
  for (int64_t image = first; image < last; ++image) {
    multiply_panels(pixels, row_length, d0, conv.small_in + image * pixels * d0, weight, products, vectors,
                    vectors * kVector, strides, false);
    float* out = conv.large_out + image * large_size(conv);
    const float* addend =
        conv.addend == nullptr ? nullptr : conv.addend + image % conv.addend_images * large_size(conv);
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        for (int64_t c = 0; c < d1; ++c) {
          const int64_t at = (y * width + x) * d1 + c;
          out[at] = collect(conv, products, y, x, c) + (conv.bias == nullptr ? 0 : conv.bias[c]) +
                    (addend == nullptr ? 0 : addend[at]);
        }
      }
    }
  }
}

void gradient(const ThinConv& conv, float* scratch, int64_t first, int64_t last) {
  const int64_t d0 = conv.maps.d0, row_length = padded_taps(conv), pixels = small_size(conv);
  const int64_t groups = conv.maps.images < kThinGroups ? conv.maps.images : kThinGroups;
  const int64_t vectors = panel_columns(d0);
  const TileStrides strides{1, row_length, d0, d0};
  for (int64_t group = first; group < last; ++group) {
    float* out = conv.dweight + group * taps(conv) * d0;
    const int64_t begin = conv.maps.images * group / groups, end = conv.maps.images * (group + 1) / groups;
    for (int64_t image = begin; image < end; ++image) {
      for (int64_t from = 0; from < pixels; from += kBlockPixels) {
        const int64_t to = from + kBlockPixels < pixels ? from + kBlockPixels : pixels;
        gather(conv, conv.large_in + image * large_size(conv), from, to, scratch);
        multiply_panels(taps(conv), d0, to - from, scratch, conv.small_in + (image * pixels + from) * d0, out, vectors,
                        vectors * kVector, strides, image > begin || from > 0);
      }
    }
  }
}

}  // namespace

const ThinConvKernels thin_conv_kernels{scratch_size, down, up, gradient};

}  // namespace svg_fast::SVG_ISA
