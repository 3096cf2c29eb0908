"""Where a known digit is in a frame, read off by cross-correlation (section 4.2 of the paper).

A position is that of the template's top-left corner in pixels, x to the right and y down.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

# A window with less than half the contrast of the frame's most contrasted one is scored as if it had half. Else a
# faint ghost of the digit, such as skip connections leave behind, would win over the blurred digit itself.
_LEAST_ENERGY = 1 / 4
_BLANK = 1e-6  # mean square contrast (pixels in [0, 1]) below which there is nothing but rounding
_FRAMES_AT_ONCE = 1024
_INSIDE = slice(1, -1)  # of the places that `_correlate` knows


class Tracks(NamedTuple):
    """Positions of a template in frames (...).

    positions (..., 2) int64: (x, y) of the best match. refined (..., 2): the same to a fraction of a pixel.
    scores (...): the correlation there, 1 for the template itself at any brightness and contrast, 0 where there is
    nothing like it.
    """

    positions: Tensor
    refined: Tensor
    scores: Tensor


@torch.no_grad()
def track(frames: Tensor, template: Tensor) -> Tracks:
    """The place of a template (h, w) in each of the frames (..., H, W), both in [0, 1] or uint8.

    With templates (B, h, w), B for frames (..., B, H, W), each is sought in its own frames.

    The arg max, over all places inside the frame, of the zero-mean normalised cross-correlation: unlike the plain one
    it prefers the digit's shape to anything bright. Of a digit on black it is 1 at the true place and less elsewhere.
    A paraboloid fitted to the peak refines the place; a digit moved by part of a pixel is found to 0.15 pixels, and
    mostly to 0.03.

    Raises ValueError for no frames or frames that do not fit the templates, or a template of a single value.
    """
    batch, one = frames.shape[:-2], template.dim() == 2
    fits = template.dim() in (2, 3) and template.dim() <= frames.dim() and frames.numel() > 0
    fits = fits and all(t <= f for t, f in zip(template.shape[-2:], frames.shape[-2:], strict=True))
    if not fits or template.shape[:-2] != frames.shape[-template.dim() : -2]:
        raise ValueError(
            f"frames must be (..., H, W), one at least, as large as a template of (h, w), or (..., B, H, W) for "
            f"templates (B, h, w), got {list(frames.shape)} and {list(template.shape)}"
        )
    shapes = _unit(template.unsqueeze(0) if one else template).to(frames.device)
    shapes = shapes - shapes.mean(dim=(1, 2), keepdim=True)
    if not shapes.flatten(1).any(1).all():
        raise ValueError("a template must have more than one value, got a blank one")
    pieces = frames.reshape(-1, len(shapes), *frames.shape[-2:]).split(max(1, _FRAMES_AT_ONCE // len(shapes)))
    positions, refined, scores = map(torch.cat, zip(*(_track(_unit(piece), shapes) for piece in pieces), strict=True))
    return Tracks(positions.view(*batch, 2), refined.view(*batch, 2), scores.view(batch))


def _unit(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def _track(frames: Tensor, shapes: Tensor) -> Tracks:
    """Frames (N, B, H, W) and the templates (B, h, w) less their means -> the tracks (N * B)."""
    scores = _correlate(frames, shapes).flatten(0, 1)
    inside = scores[:, _INSIDE, _INSIDE]
    best = inside.flatten(1).argmax(1)
    width = inside.shape[2]
    x, y = best % width, best // width
    frame, three = (torch.arange(n, device=best.device) for n in (len(best), 3))
    around = scores[frame[:, None, None], y[:, None, None] + three[:, None], x[:, None, None] + three]
    positions = torch.stack((x, y), dim=-1)
    return Tracks(positions, positions + _summit(around), around[:, 1, 1])


def _correlate(frames: Tensor, shapes: Tensor) -> Tensor:
    """Frames (N, B, H, W) with templates (B, h, w) of mean 0, normalised: (N, B, H - h + 3, W - w + 3).

    The outermost places are a pixel outside the frame, in black, so that those at its edge have neighbours too.
    """
    frames = pad(frames, (1, 1, 1, 1))
    size, (h, w) = frames.shape[2:], shapes.shape[1:]
    # by FFT: a convolution with so large a kernel is slower, and on a GPU may be rounded to TF32
    spectrum = torch.fft.rfft2(frames) * torch.fft.rfft2(shapes, s=size).conj()
    product = torch.fft.irfft2(spectrum, s=size)[..., : size[0] - h + 1, : size[1] - w + 1] / (h * w)
    mean, mean_square = (avg_pool2d(avg_pool2d(x, (h, 1), 1), (1, w), 1) for x in (frames, frames.square()))
    energy = mean_square - mean.square()
    least = energy[..., _INSIDE, _INSIDE].amax(dim=(2, 3), keepdim=True) * _LEAST_ENERGY
    contrast = shapes.square().mean(dim=(1, 2))[:, None, None]
    return product / (energy.maximum(least).clamp_min(_BLANK) * contrast).sqrt()


def _summit(scores: Tensor) -> Tensor:
    """Scores (N, 3, 3) around a peak -> (N, 2), (x, y) of the summit from it, at most a pixel away.

    That of the paraboloid fitted to the logarithm by least squares. Its cross term matters: the peak of a slanted
    stroke is a slanted ridge, which a parabola in x and one in y would take for a summit up to half a pixel away.
    """
    z = scores.clamp_min(1e-3).log()
    x, y = z.sum(1), z.sum(2)  # sums over the columns' and the rows' three scores
    gx, gy = (x[:, 2] - x[:, 0]) / 6, (y[:, 2] - y[:, 0]) / 6
    hxx, hyy = ((v[:, 0] - 2 * v[:, 1] + v[:, 2]) / 3 for v in (x, y))
    hxy = (z[:, 0, 0] + z[:, 2, 2] - z[:, 0, 2] - z[:, 2, 0]) / 4
    determinant = hxx * hyy - hxy.square()
    move = torch.stack((hxy * gy - hyy * gx, hxy * gx - hxx * gy), dim=-1) / determinant.clamp_min(1e-12)[:, None]
    return move.clamp(-1, 1) * (determinant > 0)[:, None]
