"""PSNR and SSIM of predicted frames.

A plane is one channel of one frame, (H, W) in [0, 1]. Every metric is computed plane by plane, then averaged over the
channels, as the published evaluation does. x is predicted, y true, d = x - y.

SSIM is the mean, over all windows that lie inside the plane, of luminance times contrast and structure:

    (2 m_x m_y + C1) / (m_x^2 + m_y^2 + C1) = 1 - m_d^2 / (m_x^2 + m_y^2 + C1)      C1 = (0.01 L)^2, L the data range
    (2 cov + C2) / (v_x + v_y + C2)         = 1 - v_d / (v_x + v_y + C2)            C2 = (0.03 L)^2

with means m, covariance and variances v = k (E[x^2] - E[x]^2) under the window's weights; k makes it the sample's.
That difference cancels, the more the larger the values. So a plane's own mean is taken off first, which changes no
variance, and the right-hand forms are used, whose v_d is small where the frames agree: float32 frames score within
1e-6 of float64. They do not, and may be 5e-5 off, where one half of a plane is flat and predicted too bright and the
other flat and too dark, by 0.15 and more between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

SSIMForm = Literal["skimage", "published", "finn"]

# Elements worked on at once: what fits a CPU's cache; elsewhere what is worth a launch.
_PIECE_CPU, _PIECE_ELSEWHERE = 2**17, 2**22


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
    names = {"skimage": "ssim", "published": "ssim_published", "finn": "ssim_finn"}
    if form not in names:
        raise ValueError(f"form must be one of {', '.join(names)}, got {form!r}")
    return frame_scores(prediction, truth, [names[form]])[names[form]]


@torch.no_grad()
def frame_scores(prediction: Tensor, truth: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Several metrics of the same frames, which share their work: the scores by name.

    S samples of B clips with F frames: prediction (S, B, F, C, H, W), truth (B, F, C, H, W) -> (S, B, F) each.
    In general prediction (..., C, H, W) -> (...), and truth's leading dimensions broadcast to prediction's; what
    is computed of truth alone is computed once for all samples.

    Frames are floating point in [0, 1]; bytes are refused, divide them by 255. float64 is computed in float64, all
    else in float32, the scores' dtype. Only a few frames are worked on at once, so a call takes little memory, but
    for a copy of a prediction that is not contiguous.

    Args:
        names: out of "psnr", "ssim", "ssim_published" and "ssim_finn" (see `ssim`).

    Raises:
        ValueError: an unknown name; tensors that are not floating point, not on one device or whose shapes do not go
            together; frames smaller than a window.
    """
    _check(prediction, truth, names)
    lead, (channels, height, width) = prediction.shape[:-3], prediction.shape[-3:]
    dtype = torch.float64 if torch.float64 in (prediction.dtype, truth.dtype) else torch.float32
    truth = truth[(None,) * (prediction.dim() - truth.dim())]
    shared = next((k for k, size in enumerate(truth.shape[:-3]) if size != 1), len(lead))  # dimensions truth lacks
    n_samples, n_planes = math.prod(lead[:shared]), math.prod(lead[shared:]) * channels
    x = prediction.reshape(n_samples, n_planes, height, width)
    y = truth.expand(*truth.shape[:shared], *prediction.shape[shared:]).reshape(n_planes, height, width)

    at_once = min(n_planes, max(1, (_PIECE_CPU if x.is_cpu else _PIECE_ELSEWHERE) // (height * width)))
    room = x.new_zeros((3, 3, at_once, height, width), dtype=dtype)
    scores = {name: x.new_empty((n_samples, n_planes), dtype=dtype) for name in names}
    for start in range(0, n_planes, max(1, at_once)):
        # The last piece is as large as the others: it does some planes again.
        piece = slice(min(start, n_planes - at_once), min(start + at_once, n_planes))
        judges = _judges(names, y[piece].to(dtype), room)
        for s in range(n_samples):
            x_piece = x[s, piece].to(dtype)
            for judge in judges:
                for name, score in judge(x_piece).items():
                    scores[name][s, piece] = score
    if "ssim_finn" in scores:
        scores["ssim_finn"].nan_to_num_(nan=-1)
    return {name: score.view(*lead, channels).mean(dim=-1) for name, score in scores.items()}


class _PSNR:
    """Against one piece of truth, (P, H, W); room as of `_SSIM`."""

    def __init__(self, truth: Tensor, room: Tensor) -> None:
        self.truth, self.d = truth, room[0, 0]

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        d = torch.sub(x, self.truth, out=self.d)
        return {"psnr": -10 * d.square_().mean(dim=(1, 2)).log10()}


def _slide_box(x: Tensor, step: int, spare: Tensor, out: Tensor) -> None:
    """out[i] = x[i] + x[i + step] + ... + x[i + 6 step] of a flat x: a pair and a pair, a pair, one more."""
    n = len(x) - 6 * step
    pairs = torch.add(x[:-step], x[step:], out=spare[: len(x) - step])
    fours = torch.add(pairs[:n], pairs[2 * step :][:n], out=out[:n])
    fours.add_(pairs[4 * step :][:n]).add_(x[6 * step :])


def _gaussian_weights(size: int, sigma: float) -> tuple[float, ...]:
    heights = [math.exp(-(((k - size // 2) / sigma) ** 2) / 2) for k in range(size)]
    return tuple(height / sum(heights) for height in heights)


_GAUSSIAN = _gaussian_weights(11, 1.5)


def _slide_gaussian(x: Tensor, step: int, spare: Tensor, out: Tensor) -> None:
    """The same with 11 weights; the small ones come first, for the rounding."""
    total = out[: len(x) - 10 * step].zero_()
    for k in sorted(range(11), key=_GAUSSIAN.__getitem__):
        total.add_(x[k * step :][: len(total)], alpha=_GAUSSIAN[k])


class _Window(NamedTuple):
    """Weights along one side, the factor k of variances, data ranges by metric, and how the window slides along x."""

    weights: tuple[float, ...]
    k: float
    ranges: dict[str, float]
    slide: Callable[[Tensor, int, Tensor, Tensor], None]


_WINDOWS = (
    _Window((1.0,) * 7, 49 / 48, {"ssim": 1.0, "ssim_published": 2.0}, _slide_box),
    _Window(_GAUSSIAN, 1.0, {"ssim_finn": 1.0}, _slide_gaussian),
)
_SIZES = {"psnr": 1} | {name: len(window.weights) for window in _WINDOWS for name in window.ranges}


def _judges(names: Sequence[str], truth: Tensor, room: Tensor) -> list[Callable[[Tensor], dict[str, Tensor]]]:
    """What gives a piece of prediction (P, H, W) its scores (P,) by name; work is shared within each."""
    judges: list[Callable[[Tensor], dict[str, Tensor]]] = [_PSNR(truth, room)] if "psnr" in names else []
    for window in _WINDOWS:
        if ranges := {name: window.ranges[name] for name in names if name in window.ranges}:
            judges.append(_SSIM(window, ranges, truth, room))
    return judges


class _SSIM:
    """Under one window, against one piece of truth (P, H, W), whose sums are kept for all samples.

    room (3, 3, P, H, W) is scratch, allocated once: three maps, three times. A map has a window's figure at that
    window's first pixel; what it has in its last rows and columns means nothing. With n the total weight of a window,
    its sum is n m, and n sum(x^2) - sum(x)^2 = n^2 v / k: means and variances are kept that large.
    """

    def __init__(self, window: _Window, ranges: dict[str, float], truth: Tensor, room: Tensor) -> None:
        self.window, self.ranges, self.room = window, ranges, room
        self.n = float(torch.tensor(window.weights, dtype=truth.dtype).double().sum()) ** 2  # as they are rounded
        mean = truth.mean(dim=(1, 2), keepdim=True)
        self.own_mean, self.y = mean, truth - mean
        room[0, 0] = self.y
        torch.mul(self.y, self.y, out=room[0, 1])
        y, yy = self._sums(2)
        self.sums, self.v = y.clone(), self.n * yy - y * y
        self.mm = (y + self.n * mean).square_()

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """m_d^2, m_x^2 + m_y^2, v_d, v_x + v_y."""
        n, own_mean = self.n, x.mean(dim=(1, 2), keepdim=True)
        d, dd, xx = self.room[0]
        x = torch.sub(x, own_mean, out=self.room[1, 0])
        torch.mul(x, x, out=xx)
        torch.sub(x, self.y, out=d)
        torch.mul(d, d, out=dd)
        d, dd, xx = self._sums(3)
        mm_d = torch.add(d, n * (own_mean - self.own_mean), out=self.room[1, 0]).square_()
        v_d = dd.mul_(n).addcmul_(d, d, value=-1)
        x = d.add_(self.sums)
        v_xy = torch.add(self.v, xx, alpha=n, out=xx).addcmul_(x, x, value=-1)
        m_x = x.add_(n * own_mean)
        mm_xy = torch.addcmul(self.mm, m_x, m_x, out=self.room[1, 1])
        return mm_d, mm_xy, v_d, v_xy

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        mm_d, mm_xy, v_d, v_xy = self._moments(x)
        size, (height, width) = len(self.window.weights), x.shape[1:]
        loss, b = self.room[2, :2]
        scores = {}
        for name, data_range in self.ranges.items():
            torch.add(mm_xy, (0.01 * data_range * self.n) ** 2, out=loss)
            torch.div(mm_d, loss, out=loss)
            torch.add(v_xy, (0.03 * data_range * self.n) ** 2 / self.window.k, out=b)
            torch.div(v_d, b, out=b)
            loss.addcmul_(loss, b, value=-1).add_(b)  # 1 - (1 - a) (1 - b)
            # One dimension after the other: both at once, of what is not contiguous, would sum row after row.
            scores[name] = 1 - loss[:, : height - size + 1].mean(dim=1)[:, : width - size + 1].mean(dim=1)
        return scores

    def _sums(self, maps: int) -> Tensor:
        """Over the windows of the first maps in the room, in their place."""
        x, out, spare = (buffer.flatten() for buffer in self.room[:, :maps])
        n = len(x)
        for step in (self.room.shape[-1], 1):  # down the columns, then along the rows, which lie end to end
            self.window.slide(x[:n], step, spare, out)
            n -= (len(self.window.weights) - 1) * step
            x, out = out, x
        return self.room[0, :maps]


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
