"""Sample strips, as in figures 1 and 2 of the paper: rows of frames for fixed clips, as one PNG and one animated GIF.

Rows: the truth, the best of n samples (by their mean PSNR), two random ones, and what the approximate posterior's mean
makes. Given frames have a green edge, generated ones a red edge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files import replacing
from ..models import SVG
from ..models.generation import SampleOptions
from .metrics import psnr

GIVEN, GENERATED = (0, 150, 60), (200, 40, 40)
_EDGE = 2  # pixels around a frame
_GAP = 2  # pixels between frames; between clips four times as many
_TEXT = 16  # pixels of a line
_FONT_SIZE = 12
_MILLISECONDS = 150  # a frame of the GIF
_RANDOM_ROWS = 2

Score = Callable[[Tensor, Tensor], Tensor]


class Row(NamedTuple):
    """One labelled row: frames (B, T, C, H, W) in [0, 1], of which the first n_given were given."""

    label: str
    frames: Tensor
    n_given: int


class Cell(NamedTuple):
    """One frame of a picture, (H, W, 3) uint8, and whether it was given."""

    pixels: npt.NDArray[np.uint8]
    given: bool


def write_strips(path: Path, model: SVG, frames: Tensor, n_samples: int, *, seed: int) -> None:
    """Write `path`, a GIF, and a PNG of the same name, for test clips (B, T, C, H, W) with T > n_past.

    The model's mode is left as it was; OSError leaves older pictures as they are.
    """
    write_rows(path, make_rows(model, frames, n_samples, seed))


def write_rows(path: Path, rows: Sequence[Row]) -> tuple[Path, Path]:
    """Write rows of frames as a PNG, and as `path`, a GIF; returns both paths."""
    cells, labels = [to_cells(row) for row in rows], [row.label for row in rows]
    n_frames = rows[0].frames.shape[1]
    with replacing(path.with_suffix(".png")) as part:
        draw_strip(rows, range(n_frames)).save(part)
    moments = ([[clip[t] for clip in row] for row in cells] for t in range(n_frames))
    images = [draw_grid(m, labels, title=f"t = {t + 1}", scale=2, block=len(rows)) for t, m in enumerate(moments)]
    write_gif(path, images)
    return path.with_suffix(".png"), path


@torch.no_grad()
def make_rows(model: SVG, frames: Tensor, n_samples: int, seed: int) -> list[Row]:
    """The rows of a strip; the noise depends on `seed` alone."""
    truth, n_past = model.prepare_frames(frames), model.config.n_past
    rows = [
        Row("truth", truth, frames.shape[1]),
        *sample_rows(model, truth, n_past, n_samples, _RANDOM_ROWS, psnr, seed),
    ]
    return rows if model.config.variant == "det" else [*rows, Row("posterior", reconstruct(model, truth), n_past)]


@torch.no_grad()
def sample_rows(
    model: SVG,
    truth: Tensor,
    n_past: int,
    n_samples: int,
    n_random: int,
    score: Score,
    seed: int,
    sampling: SampleOptions | None = None,
) -> list[Row]:
    """Each clip's best sample and the first n_random of all; of the deterministic baseline its one prediction.

    truth (B, T, C, H, W) in [0, 1]; the first n_past frames are given. score: frames (S, B, F, C, H, W) and the true
    ones (B, F, C, H, W) -> (S, B, F); best is the greatest mean over the F = T - n_past predicted frames. sampling:
    further options of `SVG.sample`.
    """
    batch, n_frames = truth.shape[:2]
    given, options = truth[:, :n_past], SampleOptions(**(sampling or {}), seed=seed)
    if model.config.variant == "det":
        return [Row("predicted", model.sample(given, n_frames - n_past, **options)[0], n_past)]
    best, quality = torch.empty_like(truth), truth.new_full((batch,), -torch.inf)
    first = truth.new_empty((min(n_random, n_samples), *truth.shape))
    for samples, clips, video, _ in model.sample_chunks(given, n_frames - n_past, n_samples, **options):
        here = slice(clips.start, clips.stop)
        found = score(video[:, :, n_past:], truth[here, n_past:]).mean(dim=2).max(dim=0)
        better = ~(found.values <= quality[here])
        quality[here] = torch.where(better, found.values.to(quality), quality[here])
        champions = video[found.indices, torch.arange(len(clips), device=video.device)]
        best[here] = torch.where(better[:, None, None, None, None], champions, best[here])
        wanted = range(samples.start, min(samples.stop, len(first)))
        first[wanted.start : wanted.stop, here] = video[: len(wanted)]
    rows = [Row(f"best of {n_samples}", best, n_past)]
    return [*rows, *(Row(f"random {k + 1}", sample, n_past) for k, sample in enumerate(first))]


@torch.no_grad()
def reconstruct(model: SVG, truth: Tensor) -> Tensor:
    """The rollout that the approximate posterior's mean of every true next frame drives: truth's shape (B, T, ...)."""
    n_past, (batch, n_frames) = model.config.n_past, truth.shape[:2]
    eps = truth.new_zeros(n_frames - 1, 1, batch, model.config.z_dim)
    return model.sample(truth, n_frames - n_past, latents="posterior", eps=eps)[0]


def to_uint8(frames: Tensor) -> npt.NDArray[np.uint8]:
    """Frames in [0, 1] of any shape as grey levels, on the CPU."""
    levels: npt.NDArray[np.uint8] = (frames.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return levels


def to_cells(row: Row) -> list[list[Cell]]:
    """The frames of a row, [clip][time step]."""
    colours = to_uint8(row.frames.expand(-1, -1, 3, -1, -1).permute(0, 1, 3, 4, 2))
    return [[Cell(pixels, t < row.n_given) for t, pixels in enumerate(clip)] for clip in colours]


def draw_strip(rows: Sequence[Row], times: Sequence[int]) -> Image.Image:
    """These time steps (frames counted from 0) as columns; a block for each clip, the rows one under the other."""
    cells = [to_cells(row) for row in rows]
    lines = [[row[clip][t] for t in times] for clip in range(len(cells[0])) for row in cells]
    labels = [row.label for row in rows] * len(cells[0])
    columns, title = [f"t = {t + 1}" for t in times], "green edge: given, red edge: generated"
    return draw_grid(lines, labels, columns, title=title, block=len(rows))


def draw_grid(
    lines: Sequence[Sequence[Cell]],
    labels: Sequence[str] = (),
    columns: Sequence[str] = (),
    *,
    title: str = "",
    scale: int = 1,
    block: int = 1,
) -> Image.Image:
    """A picture of lines of cells, each pixel `scale` wide.

    labels: words to the left of each line; columns: above each column; title: above all. A wider gap follows every
    `block` lines.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    height, width = (side * scale + 2 * _EDGE + _GAP for side in lines[0][0].pixels.shape[:2])
    left = max((int(font.getlength(label)) + 4 * _GAP for label in labels), default=_GAP)
    top = _GAP + _TEXT * bool(title) + _TEXT * bool(columns)
    blocks = -(-len(lines) // block)
    size = (left + len(lines[0]) * width, top + len(lines) * height + (blocks - 1) * 3 * _GAP)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((left, _GAP), title, "black", font)
    for column, words in enumerate(columns):
        middle = left + column * width + (width - _GAP) // 2
        draw.text((middle, top - _TEXT // 2 - _GAP), words, "black", font, anchor="mm")
    for k, line in enumerate(lines):
        y = top + k * height + k // block * 3 * _GAP
        if labels:
            draw.text((_GAP, y + (height - _GAP) // 2), labels[k], "black", font, anchor="lm")
        for column, cell in enumerate(line):
            x = left + column * width
            draw.rectangle((x, y, x + width - _GAP - 1, y + height - _GAP - 1), GIVEN if cell.given else GENERATED)
            picture = Image.fromarray(cell.pixels.repeat(scale, 0).repeat(scale, 1))
            canvas.paste(picture, (x + _EDGE, y + _EDGE))
    return canvas


def write_gif(path: Path, images: Sequence[Image.Image]) -> None:
    """An endless GIF of the images, written whole or not at all."""
    with replacing(path) as part:
        images[0].save(part, save_all=True, append_images=images[1:], duration=_MILLISECONDS, loop=0)
