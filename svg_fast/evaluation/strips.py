"""Sample strips, as in figures 1 and 2 of the paper: rows of frames for fixed clips, as one PNG and one animated GIF.

Rows: the truth, the best of n samples (by their mean PSNR), two random ones, and the reconstruction by
the approximate posterior's mean. Given frames have a green edge, generated ones a red edge.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..files import replacing
from ..models import SVG

_GIVEN, _GENERATED = (0, 150, 60), (200, 40, 40)
_EDGE = 2  # pixels around a frame
_LABEL_WIDTH = 72
_MILLISECONDS = 150  # a frame of the GIF
_RANDOM_ROWS = 2


class Row(NamedTuple):
    """One labelled row: frames (B, T, C, H, W) in [0, 1], of which the first n_given were given."""

    label: str
    frames: Tensor
    n_given: int


def write_strips(path: Path, model: SVG, frames: Tensor, n_samples: int, *, seed: int) -> None:
    """Write `path`, a GIF, and a PNG of the same name, for test clips (B, T, C, H, W) with T > n_past.

    The model's mode is left as it was; OSError leaves older pictures as they are.
    """
    rows = make_rows(model, frames, n_samples, seed)
    n_frames = frames.shape[1]
    with replacing(path.with_suffix(".png")) as part:
        compose(rows, range(n_frames)).save(part)
    images = [compose(rows, [t], scale=2) for t in range(n_frames)]
    with replacing(path) as part:
        images[0].save(part, save_all=True, append_images=images[1:], duration=_MILLISECONDS, loop=0)


@torch.no_grad()
def make_rows(model: SVG, frames: Tensor, n_samples: int, seed: int) -> list[Row]:
    """The rows of a strip; the noise depends on `seed` alone."""
    n_past, n_frames = model.config.n_past, frames.shape[1]
    truth = model.prepare_frames(frames)
    generator = torch.Generator().manual_seed(seed)
    samples = model.sample(frames[:, :n_past], n_frames - n_past, n_samples, generator=generator)
    psnr = -10 * (samples - truth)[:, :, n_past:].square().mean(dim=(3, 4, 5)).log10()  # (S, B, T)
    best = psnr.mean(dim=2).argmax(dim=0)
    rows = [Row("truth", truth, n_frames)]
    if model.config.variant == "det":
        return [*rows, Row("predicted", samples[0], n_past)]
    rows.append(Row(f"best of {n_samples}", samples[best, torch.arange(len(frames), device=best.device)], n_past))
    rows += [Row(f"random {k + 1}", samples[k], n_past) for k in range(min(_RANDOM_ROWS, n_samples))]
    return [*rows, Row("posterior", reconstruct(model, frames), 1)]


@torch.no_grad()
def reconstruct(model: SVG, frames: Tensor) -> Tensor:
    """Each frame predicted from the true ones before it and the posterior's mean: (B, T, C, H, W), the first given.

    BatchNorm as in `SVG.sample`; mode and running statistics of the model are left as they were.
    """
    mode, running = model.training, {name: buffer.clone() for name, buffer in model.named_buffers()}
    eps = None
    if model.config.variant != "det":
        eps = torch.zeros(frames.shape[1] - 1, len(frames), model.config.z_dim, device=frames.device)
    try:
        out = model.train(model.config.sampling_statistics() == "batch")(frames, eps)
    finally:
        model.train(mode)
        model.load_state_dict(running, strict=False)
    return torch.cat((model.prepare_frames(frames[:, :1]), out.prediction), dim=1)


def compose(rows: list[Row], times: range | list[int], scale: int = 1) -> Image.Image:
    """A picture of these time steps: each clip's rows one under the other, or of one step, the clips side by side."""
    n_clips = len(rows[0].frames)
    side_by_side = len(times) == 1
    cell = rows[0].frames.shape[-1] * scale + 2 * _EDGE
    blocks = 1 if side_by_side else n_clips
    columns = n_clips if side_by_side else len(times)
    canvas = Image.new("RGB", (_LABEL_WIDTH + columns * cell, blocks * (len(rows) * cell + 4 * _EDGE)), "white")
    draw = ImageDraw.Draw(canvas)
    for block in range(blocks):
        for r, row in enumerate(rows):
            top = block * (len(rows) * cell + 4 * _EDGE) + r * cell
            draw.text((4, top + cell // 2 - 6), row.label, fill="black")
            for column in range(columns):
                clip, t = (column, times[0]) if side_by_side else (block, times[column])
                picture = Image.new("RGB", (cell, cell), _GIVEN if t < row.n_given else _GENERATED)
                picture.paste(_to_image(row.frames[clip, t], scale), (_EDGE, _EDGE))
                canvas.paste(picture, (_LABEL_WIDTH + column * cell, top))
    return canvas


def _to_image(frame: Tensor, scale: int) -> Image.Image:
    """A frame (C, H, W) in [0, 1] as RGB, each pixel `scale` wide."""
    pixels = (frame.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    array = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(array.repeat(scale, 0).repeat(scale, 1)))
