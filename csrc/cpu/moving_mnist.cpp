// Whole clips of Stochastic Moving MNIST. B clips, T frames, D digits, S side of the canvas; N images; R tables of C
// velocities. Digit by digit a clip is flown, frame by frame it is drawn, while it is in the cache.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <tuple>

#include "../common.h"
#include "../philox.h"
#include "../signature.h"

namespace svg_fast {
namespace {

constexpr int64_t kDigitSize = 32;
constexpr int64_t kWallTables = 9, kReflectingTables = 1;
constexpr uint32_t kStream = 0x4D4E5354;  // the reference's counters ("MNST")
// A task of this many pixels takes some 20 microseconds, much longer than handing it to a thread.
constexpr int64_t kPixelsPerTask = int64_t{1} << 19;

struct Vector {
  int64_t x, y;
};

// What all clips have in common.
struct Scene {
  const uint8_t* digits;     // (N, 32, 32)
  const int64_t* bounds;     // (R, C)
  const Vector* velocities;  // (C,)
  int64_t n_images, n_tables, n_cells;
  int64_t n_frames, num_digits, size;
  uint64_t seed;
};

// Where one clip goes.
struct Clip {
  uint8_t* frames;     // (T, S, S)
  Vector* positions;   // (T, D)
  Vector* velocities;  // (T, D)
  bool* hits;          // (T, D)
  int64_t* chosen;     // (D,)
};

// The random words of one digit of one clip: image, x, y and velocity, then one for each frame.
class DigitWords {
 public:
  DigitWords(uint64_t seed, int64_t index, int64_t digit) : seed_(seed), index_(index), digit_(digit) {}

  uint32_t operator[](int64_t k) {
    if (k / 4 != block_) {
      block_ = k / 4;
      words_ = philox4x32({{static_cast<uint32_t>(index_), static_cast<uint32_t>(index_ >> 32),
                            static_cast<uint32_t>(block_), kStream + static_cast<uint32_t>(digit_)}},
                          seed_);
    }
    return words_.word[k % 4];
  }

  // Uniform in 0 .. n - 1.
  int64_t below(int64_t k, int64_t n) { return static_cast<int64_t>(uint64_t{(*this)[k]} * n >> 32); }

 private:
  uint64_t seed_;
  int64_t index_, digit_, block_ = -1;
  PhiloxWords words_{};
};

Vector draw_velocity(const Scene& scene, int64_t table, uint32_t word) {
  const int64_t* bounds = scene.bounds + table * scene.n_cells;
  return scene.velocities[std::upper_bound(bounds, bounds + scene.n_cells, int64_t{word}) - bounds];
}

int64_t sign(int64_t value) { return (value > 0) - (value < 0); }

void fly(const Scene& scene, int64_t index, const Clip& clip) {
  constexpr int64_t kStart = 4;
  const int64_t places = scene.size - kDigitSize;
  const bool reflects = scene.n_tables == kReflectingTables;
  for (int64_t d = 0; d < scene.num_digits; ++d) {
    DigitWords words(scene.seed, index, d);
    clip.chosen[d] = words.below(0, scene.n_images);
    Vector place{words.below(1, places), words.below(2, places)};
    Vector velocity = draw_velocity(scene, scene.n_tables / 2, words[3]);
    for (int64_t t = 0; t < scene.n_frames; ++t) {
      const Vector inside{std::clamp<int64_t>(place.x, 0, places - 1), std::clamp<int64_t>(place.y, 0, places - 1)};
      const Vector wall{sign(place.x - inside.x), sign(place.y - inside.y)};
      const bool hit = wall.x != 0 || wall.y != 0;
      if (hit && reflects) {
        velocity = {wall.x != 0 ? -velocity.x : velocity.x, wall.y != 0 ? -velocity.y : velocity.y};
      } else if (hit) {
        velocity = draw_velocity(scene, 3 * wall.x + wall.y + kWallTables / 2, words[kStart + t]);
      }
      const int64_t at = t * scene.num_digits + d;
      clip.positions[at] = inside;
      clip.velocities[at] = velocity;
      clip.hits[at] = hit;
      place = {inside.x + velocity.x, inside.y + velocity.y};
    }
  }
}

// Written so that the compiler sees the bytes' own saturation: what is there leaves room for the digit.
void add_row(const uint8_t* __restrict digit, uint8_t* __restrict row) {
  for (int64_t x = 0; x < kDigitSize; ++x) {
    const uint8_t room = 255 - row[x];
    row[x] += std::min(digit[x], room);
  }
}

void draw(const Scene& scene, const Clip& clip) {
  for (int64_t t = 0; t < scene.n_frames; ++t) {
    uint8_t* frame = clip.frames + t * scene.size * scene.size;
    std::memset(frame, 0, scene.size * scene.size);
    for (int64_t d = 0; d < scene.num_digits; ++d) {
      const uint8_t* digit = scene.digits + clip.chosen[d] * kDigitSize * kDigitSize;
      const Vector place = clip.positions[t * scene.num_digits + d];
      uint8_t* corner = frame + place.y * scene.size + place.x;
      for (int64_t y = 0; y < kDigitSize; ++y) {
        if (d == 0) {
          std::memcpy(corner + y * scene.size, digit + y * kDigitSize, kDigitSize);
        } else {
          add_row(digit + y * kDigitSize, corner + y * scene.size);
        }
      }
    }
  }
}

void check_arguments(const Tensor& index, const Tensor& digits, const Tensor& bounds, const Tensor& velocities,
                     int64_t n_frames, int64_t num_digits, int64_t image_size) {
  check_rank("index", index, 1);
  check_rank("digits", digits, 3);
  check_rank("bounds", bounds, 2);
  check_shape("digits", digits, {digits.size(0), kDigitSize, kDigitSize});
  check_shape("velocities", velocities, {bounds.size(1), 2});
  check_dtype("index", index, ScalarType::Long);
  check_dtype("digits", digits, ScalarType::Byte);
  check_dtype("bounds", bounds, ScalarType::Long);
  check_dtype("velocities", velocities, ScalarType::Long);
  STD_TORCH_CHECK(bounds.size(0) == kReflectingTables || bounds.size(0) == kWallTables, "bounds must have ",
                  kReflectingTables, " or ", kWallTables, " rows, got ", bounds.size(0));
  check_at_least("the number of digits", digits.size(0), 1);
  check_at_least("the number of velocities", bounds.size(1), 1);
  check_at_least("n_frames", n_frames, 1);
  check_at_least("num_digits", num_digits, 1);
  check_at_least("image_size", image_size, kDigitSize + 1);
}

// Every word must find its velocity.
void check_ascent(const Scene& scene) {
  for (int64_t r = 0; r < scene.n_tables; ++r) {
    const int64_t *row = scene.bounds + r * scene.n_cells, *end = row + scene.n_cells;
    STD_TORCH_CHECK(std::is_sorted(row, end) && row[0] >= 0 && end[-1] == int64_t{1} << 32,
                    "each row of bounds must ascend from 0 or more to 2**32, got ", row[0], " to ", end[-1], " in row ",
                    r);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> moving_mnist_clips(const Tensor& index, const Tensor& digits,
                                                                      const Tensor& bounds, const Tensor& velocities,
                                                                      int64_t seed, int64_t n_frames,
                                                                      int64_t num_digits, int64_t image_size) {
  check_arguments(index, digits, bounds, velocities, n_frames, num_digits, image_size);
  using torch::stable::contiguous, torch::stable::new_empty;
  const Tensor dense_index = contiguous(index), dense_digits = contiguous(digits), dense_bounds = contiguous(bounds),
               dense_velocities = contiguous(velocities);
  const Scene scene{dense_digits.const_data_ptr<uint8_t>(),
                    dense_bounds.const_data_ptr<int64_t>(),
                    reinterpret_cast<const Vector*>(dense_velocities.const_data_ptr<int64_t>()),
                    digits.size(0),
                    bounds.size(0),
                    bounds.size(1),
                    n_frames,
                    num_digits,
                    image_size,
                    static_cast<uint64_t>(seed)};
  check_ascent(scene);

  const int64_t n_clips = index.size(0);
  const Tensor frames = new_empty(index, {n_clips, n_frames, 1, image_size, image_size}, ScalarType::Byte);
  const Tensor positions = new_empty(index, {n_clips, n_frames, num_digits, 2});
  const Tensor velocities_out = new_empty(index, {n_clips, n_frames, num_digits, 2});
  const Tensor hits = new_empty(index, {n_clips, n_frames, num_digits}, ScalarType::Bool);
  const Tensor chosen = new_empty(index, {n_clips, num_digits});
  const Clip first{frames.mutable_data_ptr<uint8_t>(), reinterpret_cast<Vector*>(positions.mutable_data_ptr<int64_t>()),
                   reinterpret_cast<Vector*>(velocities_out.mutable_data_ptr<int64_t>()), hits.mutable_data_ptr<bool>(),
                   chosen.mutable_data_ptr<int64_t>()};
  const int64_t* indices = dense_index.const_data_ptr<int64_t>();

  const int64_t clip_pixels = n_frames * image_size * image_size, clip_flights = n_frames * num_digits;
  const auto make = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Clip clip{first.frames + b * clip_pixels, first.positions + b * clip_flights,
                      first.velocities + b * clip_flights, first.hits + b * clip_flights,
                      first.chosen + b * num_digits};
      fly(scene, indices[b], clip);
      draw(scene, clip);
    }
  };
  torch::stable::parallel_for(0, n_clips, std::max<int64_t>(1, kPixelsPerTask / clip_pixels), make);
  return {frames, positions, velocities_out, hits, chosen};
}

STABLE_TORCH_LIBRARY_IMPL(svg_fast, CPU, m) { SVG_KERNEL(m, moving_mnist_clips); }

}  // namespace
}  // namespace svg_fast
