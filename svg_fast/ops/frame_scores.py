"""MSE and SSIM of predicted frames in one pass over them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import frame_scores as reference
from ._checks import check_floating, check_rank, check_tensor
from ._declare import declare, refuse_gradient

_NO_GRADIENT = (
    "frame_scores has no gradient: it must be called under torch.no_grad(), or without tensors that require one"
)


def frame_scores(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean squared error and structural similarity of S samples of the same N planes: channels of frames, in [0, 1].

    prediction (S, N, H, W), truth (N, H, W) -> mse, ssim, ssim_published, (S, N) each.

    ssim is scikit-image's with its default window: 7 x 7 pixels of equal weight, sample covariance, data range 1, the
    mean over all windows that lie inside the plane; ssim_published has data range 2, as the published scores have. Both
    are not a number where H or W is less than 7. Identical planes score exactly 0 and, in a kernel, exactly 1.

    All is summed in float64. The scores are float64 where one of the two is, else float32, which holds them to 6e-8:
    as they are many, and averaged next. Tensors that are not contiguous, or neither float32 nor float64, are copied.

    For evaluation: it has no gradient.

    Raises ValueError on a shape or device that does not fit, TypeError on a dtype that is not floating point,
    RuntimeError where an argument requires a gradient and gradients are enabled.
    """
    check_floating("prediction", prediction)
    check_rank("prediction", prediction, "S, N, H, W")
    check_tensor("truth", truth, prediction, tuple(prediction.shape[1:]))
    if torch.is_grad_enabled() and (prediction.requires_grad or truth.requires_grad):
        raise RuntimeError(_NO_GRADIENT)
    scores: tuple[Tensor, Tensor, Tensor] = _frame_scores(prediction, truth)
    return scores


def _fake(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape, dtype = prediction.shape[:2], reference.score_dtype(prediction, truth)
    mse, ssim, published = (prediction.new_empty(shape, dtype=dtype) for _ in range(3))
    return mse, ssim, published


_frame_scores = declare(
    "frame_scores_fwd(Tensor prediction, Tensor truth) -> (Tensor mse, Tensor ssim, Tensor ssim_published)",
    reference=reference.frame_scores_fwd,
    fake=_fake,
)
refuse_gradient("frame_scores_fwd", _NO_GRADIENT)
