"""MSE and SSIM of predicted frames, plane by plane: one channel of one frame, (H, W) in [0, 1].

S samples of N planes; x is predicted, y true. SSIM (Wang et al. 2004), in the form of scikit-image with its default
window, is the mean over all windows of 7 x 7 pixels that lie inside the plane of

    (2 m_x m_y + C1) (2 cov + C2) / ((m_x^2 + m_y^2 + C1) (v_x + v_y + C2))     C1 = (0.01 L)^2, C2 = (0.03 L)^2

with a window's means m, its sample variances v and covariance, and the data range L.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

WINDOW = 7
DATA_RANGES = (1, 2)  # of frames in [0, 1]; of frames in [-1, 1], as which the published scores took them


def score_dtype(prediction: Tensor, truth: Tensor) -> torch.dtype:
    """float64 where one of them is, else float32."""
    return torch.float64 if torch.float64 in (prediction.dtype, truth.dtype) else torch.float32


def frame_scores_fwd(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """prediction (S, N, H, W), truth (N, H, W) -> mse, ssim with L = 1, ssim with L = 2, (S, N) each.

    Not a number where a plane has no pixel, or no window. Computed in float64, since variances are differences of
    large sums, and sample by sample, since that takes a dozen maps as large as truth.
    """
    shape, dtype = prediction.shape[:2], score_dtype(prediction, truth)
    mse, *ssims = (prediction.new_full(shape, torch.nan, dtype=dtype) for _ in range(1 + len(DATA_RANGES)))
    y = truth.double()
    for s in range(len(prediction)):
        x = prediction[s].double()
        mse[s] = (x - y).square().mean((1, 2))
        if min(y.shape[1:]) >= WINDOW:
            for ssim, scores in zip(ssims, _ssim(x, y), strict=True):
                ssim[s] = scores
    return mse, ssims[0], ssims[1]


def _window_mean(x: Tensor) -> Tensor:
    """(N, H, W) -> (N, H - 6, W - 6)"""
    return x.unfold(1, WINDOW, 1).mean(-1).unfold(2, WINDOW, 1).mean(-1)


def _ssim(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """For each data range: (N, H, W) twice -> (N,)"""
    m_x, m_y, xx, yy, xy = map(_window_mean, (x, y, x * x, y * y, x * y))
    m_xy, mm = m_x * m_y, m_x * m_x + m_y * m_y
    sample = WINDOW**2 / (WINDOW**2 - 1)
    covariance, variances = sample * (xy - m_xy), sample * (xx + yy - mm)
    for data_range in DATA_RANGES:
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        yield ((2 * m_xy + c1) * (2 * covariance + c2) / ((mm + c1) * (variances + c2))).mean((1, 2))
