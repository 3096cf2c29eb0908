// MSE and SSIM of predicted frames. S samples of N planes, H x W pixels. A thread looks at a true plane once for all
// the samples of it. bfloat16, float16 and mixed types are converted first.
#include "frame_scores.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "../signature.h"
#include "../tensors.h"
#include "scratch.h"

namespace svg_fast {
namespace {

constexpr int64_t kTaskPixels = 1 << 14;  // they take some ten microseconds, longer than handing them to a thread

// Doubles: those of ScoreRoom, one after another.
int64_t room_size(const FramePlane& plane) { return (3 + 2 * plane.rows()) * plane.stride(); }

ScoreRoom room_for(const FramePlane& plane) {
  constexpr int64_t kFloats = sizeof(double) / sizeof(float);
  double* memory = reinterpret_cast<double*>(scratch(kFloats * room_size(plane)));
  double* sum = memory + 3 * plane.stride();
  return {memory, sum, sum + plane.rows() * plane.stride()};
}

template <typename T>
const FrameScoresFunctions<T>& kernels() {
  if constexpr (std::is_same_v<T, float>) {
    return frame_scores_kernels().float32;
  } else {
    return frame_scores_kernels().float64;
  }
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> scores_of(const Tensor& prediction, const Tensor& truth) {
  const int64_t samples = prediction.size(0), planes = prediction.size(1);
  const int64_t pixels = prediction.size(2) * prediction.size(3);
  // of planes without a pixel one side may be of any length
  const FramePlane plane = pixels > 0 ? FramePlane{prediction.size(2), prediction.size(3)} : FramePlane{0, 0};
  const Tensor mse = new_tensor<T>({samples, planes}), ssim = new_tensor<T>({samples, planes});
  const Tensor ssim_published = new_tensor<T>({samples, planes});
  const Tensor x = dense(prediction, kType<T>), y = dense(truth, kType<T>);
  const T *xs = x.const_data_ptr<T>(), *ys = y.const_data_ptr<T>();
  T *mses = mse.mutable_data_ptr<T>(), *ssims = ssim.mutable_data_ptr<T>();
  T* published = ssim_published.mutable_data_ptr<T>();
  // sample by sample of one plane, then those of the next
  const auto place = [=](int64_t k) { return k % samples * planes + k / samples; };
  const auto run = [&](int64_t begin, int64_t end) {
    const FrameScoresFunctions<T>& functions = kernels<T>();
    const ScoreRoom room = room_for(plane);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t at = place(k), next = place(std::min(k + 1, end - 1));
      const T* y_k = ys + k / samples * pixels;
      if (k == begin || k % samples == 0) {
        functions.truth(plane, y_k, room);
      }
      const FrameScores scores = functions.score(plane, xs + at * pixels, y_k, xs + next * pixels, room);
      mses[at] = static_cast<T>(scores.mse);
      ssims[at] = static_cast<T>(scores.ssim);
      published[at] = static_cast<T>(scores.ssim_published);
    }
  };
  const int64_t grain = std::max<int64_t>(1, kTaskPixels / std::max<int64_t>(1, pixels));
  torch::stable::parallel_for(0, samples * planes, grain, run);
  return {mse, ssim, ssim_published};
}

std::tuple<Tensor, Tensor, Tensor> frame_scores_fwd(const Tensor& prediction, const Tensor& truth) {
  check_rank("prediction", prediction, 4);
  check_shape("truth", truth, {prediction.size(1), prediction.size(2), prediction.size(3)});
  const bool wide = compute_dtype(prediction) == ScalarType::Double || compute_dtype(truth) == ScalarType::Double;
  return wide ? scores_of<double>(prediction, truth) : scores_of<float>(prediction, truth);
}

STABLE_TORCH_LIBRARY_IMPL(svg_fast, CPU, m) { SVG_KERNEL(m, frame_scores_fwd); }

}  // namespace
}  // namespace svg_fast
