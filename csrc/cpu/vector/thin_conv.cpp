// Convolutions between a frame of few channels and a map of many. Taps of a pixel lie side by side in memory, kernel
// row by kernel row, so gathering them is a few short copies; the rest is a matrix product.
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

// The large map of an image with a border of one pixel, and room for a vector that reads past the end.
int64_t bordered_size(const ThinConv& conv) {
  const int64_t height = stride(conv) * conv.maps.height, width = stride(conv) * conv.maps.width;
  return (height + 2) * (width + 2) * conv.maps.d1 + kVector;
}

// The products of all pixels with all taps, or a block of gathered pixels; the weight, turned; a bordered image.
int64_t scratch_size(const ThinConv& conv) {
  const int64_t pixels = small_size(conv) > kBlockPixels ? small_size(conv) : kBlockPixels;
  return pixels * padded_taps(conv) + kVector + padded_taps(conv) * conv.maps.d0 + bordered_size(conv);
}

struct Scratch {
  float *weight, *rows, *bordered;

  Scratch(const ThinConv& conv, float* memory)
      : weight(memory), rows(weight + padded_taps(conv) * conv.maps.d0), bordered(memory) {
    bordered += scratch_size(conv) - bordered_size(conv);
  }
};

void fill(float* to, int64_t count, float value) {
  for (int64_t k = 0; k < count; ++k) {
    to[k] = value;
  }
}

void add_border(const ThinConv& conv, const float* large, float* bordered) {
  const int64_t d1 = conv.maps.d1, height = stride(conv) * conv.maps.height,
                length = stride(conv) * conv.maps.width * d1, row_length = length + 2 * d1;
  fill(bordered, row_length, 0);
  for (int64_t y = 0; y < height; ++y) {
    float* row = bordered + (y + 1) * row_length;
    fill(row, d1, 0);
    std::memcpy(row + d1, large + y * length, length * sizeof(float));
    fill(row + d1 + length, d1, 0);
  }
  fill(bordered + (height + 1) * row_length, row_length + kVector, 0);
}

// rows[pixel][(row, column, d1)]: what the kernel at each of the pixels [first, last) of the small map sees. Copied by
// whole vectors, the surplus of each overwritten by the next.
void gather(const ThinConv& conv, const float* bordered, int64_t first, int64_t last, float* rows) {
  const int64_t d1 = conv.maps.d1, length = conv.kernel * d1;
  const int64_t row_length = (stride(conv) * conv.maps.width + 2) * d1;
  for (int64_t pixel = first; pixel < last; ++pixel) {
    float* to = rows + (pixel - first) * padded_taps(conv);
    const float* from =
        bordered + pixel / conv.maps.width * stride(conv) * row_length + pixel % conv.maps.width * stride(conv) * d1;
    for (int64_t a = 0; a < conv.kernel; ++a) {
      for (int64_t k = 0; k < length; k += kVector) {
        store<float>(to + a * length + k, load(from + a * row_length + k));
      }
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

void down(const ThinConv& conv, float* memory, int64_t first, int64_t last) {
  const int64_t d0 = conv.maps.d0, depth = taps(conv), pixels = small_size(conv);
  const Scratch scratch(conv, memory);
  turn_weight(conv, scratch.weight, d0, 1);
  const int64_t vectors = panel_columns(d0);
  const TileStrides strides{padded_taps(conv), 1, d0, d0};
  for (int64_t image = first; image < last; ++image) {
    float* out = conv.small_out + image * pixels * d0;
    const float* addend = conv.addend == nullptr ? nullptr : conv.addend + image % conv.addend_images * pixels * d0;
    add_border(conv, conv.large_in + image * large_size(conv), scratch.bordered);
    for (int64_t from = 0; from < pixels; from += kBlockPixels) {
      const int64_t to = from + kBlockPixels < pixels ? from + kBlockPixels : pixels;
      gather(conv, scratch.bordered, from, to, scratch.rows);
      for (int64_t pixel = from; pixel < to; ++pixel) {
        for (int64_t c = 0; c < d0; c += kVector) {
          Vec<float> start = conv.bias == nullptr ? Vec<float>{} : load(conv.bias + c);
          start = addend == nullptr ? start : start + load(addend + pixel * d0 + c);
          store<float>(out + pixel * d0 + c, start);
        }
      }
      multiply_panels(to - from, d0, depth, scratch.rows, scratch.weight, out + from * d0, vectors, vectors * kVector,
                      strides, true);
    }
  }
}

// Row y of the large map: the products of the small pixels that see it, each kernel row and column in turn.
void collect_row(const ThinConv& conv, const float* products, int64_t y, float* out) {
  const int64_t d1 = conv.maps.d1, step = stride(conv), width = step * conv.maps.width, columns = conv.maps.width;
  for (int64_t a = (y + 1) % step; a < conv.kernel; a += step) {
    const int64_t row = (y + 1 - a) / step;
    if (y + 1 < a || row >= conv.maps.height) {
      continue;
    }
    for (int64_t b = 0; b < conv.kernel; ++b) {
      const int64_t first = b == 0 ? 1 : 0, last = step * (columns - 1) - 1 + b < width ? columns : columns - 1;
      const float* product = products + row * columns * padded_taps(conv) + (a * conv.kernel + b) * d1;
      for (int64_t column = first; column < last; ++column) {
        for (int64_t c = 0; c < d1; ++c) {
          out[(step * column - 1 + b) * d1 + c] += product[column * padded_taps(conv) + c];
        }
      }
    }
  }
}

void up(const ThinConv& conv, float* memory, int64_t first, int64_t last) {
  const int64_t d0 = conv.maps.d0, d1 = conv.maps.d1, row_length = padded_taps(conv), pixels = small_size(conv);
  const int64_t height = stride(conv) * conv.maps.height, width = stride(conv) * conv.maps.width;
  const Scratch scratch(conv, memory);
  turn_weight(conv, scratch.weight, 1, row_length);
  const int64_t vectors = panel_columns(row_length);
  const TileStrides strides{d0, 1, row_length, row_length};
  for (int64_t image = first; image < last; ++image) {
    multiply_panels(pixels, row_length, d0, conv.small_in + image * pixels * d0, scratch.weight, scratch.rows, vectors,
                    vectors * kVector, strides, false);
    const float* addend =
        conv.addend == nullptr ? nullptr : conv.addend + image % conv.addend_images * large_size(conv);
    for (int64_t y = 0; y < height; ++y) {
      float* out = conv.large_out + image * large_size(conv) + y * width * d1;
      for (int64_t k = 0; k < width * d1; ++k) {
        out[k] = (conv.bias == nullptr ? 0 : conv.bias[k % d1]) + (addend == nullptr ? 0 : addend[y * width * d1 + k]);
      }
      collect_row(conv, scratch.rows, y, out);
    }
  }
}

void gradient(const ThinConv& conv, float* memory, int64_t first, int64_t last) {
  const int64_t d0 = conv.maps.d0, pixels = small_size(conv);
  const int64_t groups = conv.maps.images < kThinGroups ? conv.maps.images : kThinGroups;
  const Scratch scratch(conv, memory);
  const int64_t vectors = panel_columns(d0);
  const TileStrides strides{1, padded_taps(conv), d0, d0};
  for (int64_t group = first; group < last; ++group) {
    float* out = conv.dweight + group * taps(conv) * d0;
    const int64_t begin = conv.maps.images * group / groups, end = conv.maps.images * (group + 1) / groups;
    for (int64_t image = begin; image < end; ++image) {
      add_border(conv, conv.large_in + image * large_size(conv), scratch.bordered);
      for (int64_t from = 0; from < pixels; from += kBlockPixels) {
        const int64_t to = from + kBlockPixels < pixels ? from + kBlockPixels : pixels;
        gather(conv, scratch.bordered, from, to, scratch.rows);
        multiply_panels(taps(conv), d0, to - from, scratch.rows, conv.small_in + (image * pixels + from) * d0, out,
                        vectors, vectors * kVector, strides, image > begin || from > 0);
      }
    }
  }
}

}  // namespace

const ThinConvKernels thin_conv_kernels{scratch_size, down, up, gradient};

}  // namespace svg_fast::SVG_ISA
