// A window's sum is that of seven neighbouring columns, whose sums slide down the plane: the row that enters is added,
// the one that leaves is taken off. With n pixels in a window its sum is n times its mean m, and n sum(x^2) - sum(x)^2
// is n^2 times its variance v: means, variances and the constants beside them are all kept that large.
#include "../frame_scores.h"

#include "../vec.h"

namespace svg_fast::SVG_ISA {
namespace {

using Doubles = Vec<double>;
constexpr int64_t kVector = kLanes<double>;
constexpr double kPixels = kScoreWindow * kScoreWindow;
// (0.01 L)^2 and, of sample variances, which are n / (n - 1) times as large, (0.03 L)^2, for the data range L = 1.
constexpr double kC1 = 1e-4 * kPixels * kPixels, kC2 = 9e-4 * kPixels * (kPixels - 1);

template <typename T>
struct AsManyAsDoubles {
  typedef T type __attribute__((vector_size(kVector * sizeof(T))));
};

// Zero in the lanes from n on.
template <typename T>
SVG_INLINE Doubles widen(const T* p, int64_t n) {
  typename AsManyAsDoubles<T>::type v{};
  std::memcpy(&v, p, n * sizeof(T));
  return __builtin_convertvector(v, Doubles);
}

SVG_INLINE Doubles first_lanes(Doubles v, int64_t n) { return load_part(reinterpret_cast<const double*>(&v), n); }

// visit(k, lanes) for each vector of a row: it begins at k, and has all its lanes but at the row's end.
template <typename Visit>
SVG_INLINE void each_vector(int64_t size, const Visit& visit) {
  int64_t k = 0;
  for (; k + kVector <= size; k += kVector) {
    visit(k, kVector);
  }
  if (k < size) {
    visit(k, size - k);
  }
}

// Moves the sums of kSums quantities down the columns (kSums, stride) on to a row, and adds the row to the totals.
// pixels(at, lanes, values) tells the quantities at a vector of pixels.
template <int kSums, typename Pixels>
SVG_INLINE void slide(const FramePlane& plane, int64_t row, double* columns, Doubles (&total)[kSums],
                      const Pixels& pixels) {
  each_vector(plane.width, [&](int64_t k, int64_t lanes) {
    Doubles entering[kSums], leaving[kSums] = {};
    pixels(row * plane.width + k, lanes, entering);
    if (row >= kScoreWindow) {
      pixels((row - kScoreWindow) * plane.width + k, lanes, leaving);
    }
#pragma GCC unroll 3
    for (int s = 0; s < kSums; ++s) {
      total[s] += entering[s];
      double* sum = columns + s * plane.stride() + k;
      store<double>(sum, load(sum) + entering[s] - leaving[s]);
    }
  });
}

// Of the windows whose first columns these are.
SVG_INLINE Doubles window_sums(const double* columns) {
  const auto at = [=](int64_t k) { return load(columns + k); };
  return ((at(0) + at(1)) + (at(2) + at(3))) + ((at(4) + at(5)) + at(6));
}

void clear(const FramePlane& plane, int sums, double* columns) {
  for (int64_t k = 0; k < sums * plane.stride(); k += kVector) {
    store<double>(columns + k, Doubles{});
  }
}

template <typename T>
[[gnu::flatten]] void truth(const FramePlane& plane, const T* y, const ScoreRoom& room) {
  clear(plane, 2, room.columns);
  Doubles unused[2] = {};
  for (int64_t row = 0; row < plane.height; ++row) {
    slide(plane, row, room.columns, unused, [=](int64_t at, int64_t lanes, Doubles(&values)[2]) {
      values[0] = widen(y + at, lanes);
      values[1] = values[0] * values[0];
    });
    if (row < kScoreWindow - 1) {
      continue;
    }
    const int64_t first = (row - kScoreWindow + 1) * plane.stride();
    for (int64_t k = 0; k < plane.columns(); k += kVector) {
      const Doubles sum = window_sums(room.columns + k), squares = window_sums(room.columns + plane.stride() + k);
      store<double>(room.sum + first + k, sum);
      store<double>(room.variance + first + k, kPixels * squares - sum * sum);
    }
  }
}

// With d = x - y, SSIM is luminance times contrast and structure,
//   (2 m_x m_y + C1) / (m_x^2 + m_y^2 + C1) = 1 - m_d^2 / (m_x^2 + m_y^2 + C1) and
//   (2 cov + C2) / (v_x + v_y + C2) = 1 - v_d / (v_x + v_y + C2);
// the loss is what it lacks of one: exactly nothing where the planes agree.
struct Windows {
  Doubles mm_d, mm_xy, v_d, v_xy;  // m_d^2, m_x^2 + m_y^2, v_d, v_x + v_y

  SVG_INLINE Doubles loss(double data_range) const {
    const Doubles a = mm_xy + kC1 * data_range * data_range, b = v_xy + kC2 * data_range * data_range;
    return (mm_d * b + v_d * (a - mm_d)) / (a * b);
  }
};

template <typename T>
SVG_INLINE void prefetch(const T* p, int64_t n) {
  constexpr int64_t kCacheLine = 64 / sizeof(T);
  for (int64_t k = 0; k < n; k += kCacheLine) {
    __builtin_prefetch(p + k);
  }
}

template <typename T>
[[gnu::flatten]] FrameScores score(const FramePlane& plane, const T* x, const T* y, const T* next,
                                   const ScoreRoom& room) {
  clear(plane, 3, room.columns);
  Doubles total[3] = {}, loss{}, loss_published{};
  for (int64_t row = 0; row < plane.height; ++row) {
    prefetch(next + row * plane.width, plane.width);
    slide(plane, row, room.columns, total, [=](int64_t at, int64_t lanes, Doubles(&values)[3]) {
      const Doubles value = widen(x + at, lanes), d = value - widen(y + at, lanes);
      values[0] = value;
      values[1] = value * value;
      values[2] = d * d;
    });
    if (row < kScoreWindow - 1) {
      continue;
    }
    const int64_t first = (row - kScoreWindow + 1) * plane.stride();
    each_vector(plane.columns(), [&](int64_t k, int64_t lanes) {
      const double* columns = room.columns + k;
      const Doubles sum_x = window_sums(columns), xx = window_sums(columns + plane.stride());
      const Doubles dd = window_sums(columns + 2 * plane.stride());
      const Doubles sum_y = load(room.sum + first + k), v_y = load(room.variance + first + k);
      const Doubles d = sum_x - sum_y, mm_d = d * d, mm_x = sum_x * sum_x;
      const Windows windows{mm_d, mm_x + sum_y * sum_y, kPixels * dd - mm_d, kPixels * xx - mm_x + v_y};
      loss += first_lanes(windows.loss(1), lanes);
      loss_published += first_lanes(windows.loss(2), lanes);
    });
  }
  const double windows = plane.rows() * plane.columns();
  return {sum_lanes<double>(total[2]) / (plane.height * plane.width), 1 - sum_lanes<double>(loss) / windows,
          1 - sum_lanes<double>(loss_published) / windows};
}

}  // namespace

const FrameScoresKernels frame_scores_kernels{{truth<float>, score<float>}, {truth<double>, score<double>}};

}  // namespace svg_fast::SVG_ISA
