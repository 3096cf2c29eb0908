"""PSNR and SSIM of predicted frames.

A plane is one channel of one frame, (H, W) in [0, 1]. Every metric is computed plane by plane, then averaged over the
channels, as the published evaluation does. x is predicted, y true.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .. import ops

SSIMForm = Literal["skimage", "published", "finn"]

_FORMS = {"skimage": "ssim", "published": "ssim_published", "finn": "ssim_finn"}
_SIZES = {"psnr": 1, "ssim": 7, "ssim_published": 7, "ssim_finn": 11}  # of the windows, along a side in pixels
_SIGMA = 1.5  # of finn's, in pixels
_PIECE_CPU, _PIECE_ELSEWHERE = 2**15, 2**22  # pixels at once: what fits a CPU's cache; elsewhere what is worth a launch


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """10 log10(1 / mse) in dB for each channel, then the mean over channels: (..., C, H, W) -> (...).

    A channel that is identical gives inf, as in scikit-image. Arguments and errors are those of `frame_scores`.
    """
    return frame_scores(prediction, truth, ["psnr"])["psnr"]


def ssim(prediction: Tensor, truth: Tensor, form: SSIMForm = "skimage") -> Tensor:
    """Structural similarity, the mean over channels: (..., C, H, W) -> (...).

    "skimage": scikit-image's with its default window, 7x7 pixels of equal weight, sample covariance, data range 1.
    "published": the same with data range 2, which the scripts of 2018 got from scikit-image for frames in floating
    point; scores come out too high and compare with published ones alone. "finn": a Gaussian window of 11x11 pixels,
    sigma 1.5, data range 1; a channel whose score is not a number counts as -1.

    Arguments and errors are those of `frame_scores`; also ValueError for an unknown form.
    """
    if form not in _FORMS:
        raise ValueError(f"form must be one of {', '.join(_FORMS)}, got {form!r}")
    return frame_scores(prediction, truth, [_FORMS[form]])[_FORMS[form]]


@torch.no_grad()
def frame_scores(prediction: Tensor, truth: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Several metrics of the same frames, which share their work: the scores by name.

    S samples of B clips with F frames: prediction (S, B, F, C, H, W), truth (B, F, C, H, W) -> (S, B, F) each.
    In general prediction (..., C, H, W) -> (...), and truth's leading dimensions broadcast to prediction's; what
    is computed of truth alone is computed once for all samples.

    Frames are floating point in [0, 1]; bytes are refused, divide them by 255. The scores are float64 where one of the
    two is, else float32; the sums behind them are float64. A call takes little memory, but for a copy of what is not
    contiguous, or neither float32 nor float64.

    Args:
        names: out of "psnr", "ssim", "ssim_published" and "ssim_finn" (see `ssim`).

    Raises:
        ValueError: an unknown name; tensors that are not floating point, not on one device or whose shapes do not go
            together; frames smaller than a window.
    """
    _check(prediction, truth, names)
    lead, (channels, height, width) = prediction.shape[:-3], prediction.shape[-3:]
    truth = truth[(None,) * (prediction.dim() - truth.dim())]
    shared = next((k for k, size in enumerate(truth.shape[:-3]) if size != 1), len(lead))  # dimensions truth lacks
    n_samples, n_planes = math.prod(lead[:shared]), math.prod(lead[shared:]) * channels
    x = prediction.reshape(n_samples, n_planes, height, width)
    y = truth.expand(*truth.shape[:shared], *prediction.shape[shared:]).reshape(n_planes, height, width)

    planes: dict[str, Tensor] = {}
    if set(names) - {"ssim_finn"}:
        mse, planes["ssim"], planes["ssim_published"] = ops.frame_scores(x, y)
        planes["psnr"] = -10 * mse.log10()
    if "ssim_finn" in names:
        planes["ssim_finn"] = _ssim_finn(x, y)
    return {name: planes[name].view(*lead, channels).mean(dim=-1) for name in names}


def _ssim_finn(prediction: Tensor, truth: Tensor) -> Tensor:
    """prediction (S, N, H, W), truth (N, H, W) -> (S, N), some planes at a time in float64.

    SSIM with data range 1, and means, variances and covariance under a Gaussian window; see `ops.frame_scores`.
    """
    c1, c2 = 0.01**2, 0.03**2
    down, along = (_gaussian_windows(size, prediction.device) for size in truth.shape[1:])
    dtype = torch.float64 if torch.float64 in (prediction.dtype, truth.dtype) else torch.float32
    scores = prediction.new_empty(prediction.shape[:2], dtype=dtype)
    at_once = max(1, (_PIECE_CPU if prediction.is_cpu else _PIECE_ELSEWHERE) // math.prod(truth.shape[1:]))
    for x_piece, y_piece, piece in zip(
        prediction.split(at_once, 1), truth.split(at_once), scores.split(at_once, 1), strict=True
    ):
        y = y_piece.double()
        m_y, yy = down @ torch.stack((y, y * y)) @ along.mT
        for sample, score in zip(x_piece, piece, strict=True):
            x = sample.double()
            m_x, xx, xy = down @ torch.stack((x, x * x, x * y)) @ along.mT
            m_xy, mm = m_x * m_y, m_x * m_x + m_y * m_y
            similarity = (2 * m_xy + c1) * (2 * (xy - m_xy) + c2) / ((mm + c1) * (xx + yy - mm + c2))
            score.copy_(similarity.mean(dim=(1, 2)).nan_to_num(nan=-1))
    return scores


def _gaussian_windows(size: int, device: torch.device) -> Tensor:
    """(size - 10, size): each row has the weights of finn's window at one place."""
    reach = _SIZES["ssim_finn"] // 2
    places = torch.arange(size, dtype=torch.float64, device=device)
    offsets = places - places[reach : size - reach, None]
    weights = torch.where(offsets.abs() <= reach, torch.exp(-((offsets / _SIGMA) ** 2) / 2), 0.0)
    return weights / weights.sum(dim=1, keepdim=True)


def _check(prediction: Tensor, truth: Tensor, names: Sequence[str]) -> None:
    for name in names:
        if name not in _SIZES:
            raise ValueError(f"names must be out of {', '.join(_SIZES)}, got {name!r}")
    for argument, tensor in (("prediction", prediction), ("truth", truth)):
        if not tensor.is_floating_point():
            raise ValueError(f"{argument} must be floating point in [0, 1], got {tensor.dtype}")
        if tensor.dim() < 3:
            raise ValueError(f"{argument} must have dimensions (..., C, H, W), got shape {list(tensor.shape)}")
    if truth.device != prediction.device:
        raise ValueError(f"truth must be on {prediction.device} like prediction, got {truth.device}")
    missing = prediction.dim() - truth.dim()
    fits = missing >= 0 and truth.shape[-3:] == prediction.shape[-3:]
    if not fits or any(a not in (1, b) for a, b in zip(truth.shape[:-3], prediction.shape[missing:-3], strict=True)):
        raise ValueError(
            f"truth must have prediction's C, H and W, and leading dimensions that broadcast to prediction's, "
            f"{list(prediction.shape)}, got {list(truth.shape)}"
        )
    size = max((_SIZES[name] for name in names), default=1)
    if min(prediction.shape[-2:]) < size:
        raise ValueError(f"frames must be at least {size}x{size} pixels, a window, got shape {list(prediction.shape)}")
