"""The `samples` figure, figures 1 and 2 of the paper: what a model makes of some clips, beside what came."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files import replacing
from ..models import SVG
from ..models.generation import SampleOptions
from .figures import png_path
from .metrics import psnr, ssim
from .strips import Row, draw_grid, draw_strip, sample_rows, to_cells, to_uint8, write_gif

_SCORES = {"ssim": ssim, "psnr": psnr}
_COLUMNS = 12


@torch.no_grad()
def samples_figure(
    path: str | Path,
    model: SVG,
    frames: Tensor,
    n_samples: int = 100,
    *,
    seed: int,
    baseline: SVG | None = None,
    best_by: Literal["ssim", "psnr"] = "ssim",
    n_random: int = 3,
    times: Sequence[int] | None = None,
    n_past: int | None = None,
    sampling: SampleOptions | None = None,
) -> None:
    """Rows of frames for test clips: the truth, the deterministic baseline, the best sample, some random samples.

    Given frames have a green edge, generated ones a red edge. Three files of one name: `path`, a PNG with chosen time
    steps as columns; a GIF that plays all frames, the rows side by side; and an .npz with the frames of each row,
    (B, T, C, H, W) uint8 under the row's name.

    frames (B, T, C, H, W), float in [0, 1] or uint8, T > n_past. n_samples: futures drawn for each clip, of which the
    one with the best mean SSIM or PSNR over the predicted frames is shown. baseline: a deterministic model of the same
    data. times: the columns, frames counted from 1; None is the first and the last given frame, then predicted ones
    evenly to the end. n_past: given frames, by default the configuration's. sampling: options of `SVG.sample`, for the
    baseline too. The noise depends on `seed` alone.

    Raises ValueError where path does not end in .png, for a baseline with latents, times outside the clip, and for
    frames that do not fit; OSError leaves an older picture as it is.
    """
    path = png_path(path)
    if baseline is not None and baseline.config.variant != "det":
        raise ValueError(f"baseline must be a deterministic model (det), got {baseline.config.variant}")
    if best_by not in _SCORES:
        raise ValueError(f"best_by must be ssim or psnr, got {best_by!r}")
    n_frames = frames.shape[1]
    n_past = n_past or model.config.n_past
    columns = _default_times(n_past, n_frames) if times is None else list(times)
    if not columns or not all(1 <= t <= n_frames for t in columns):
        raise ValueError(f"times must be one or more of the frames 1 to {n_frames}, got {columns}")
    truth = model.prepare_frames(frames)
    rows = [Row("truth", truth, n_frames)]
    score = _SCORES[best_by]
    if baseline is not None:
        (predicted,) = sample_rows(baseline, truth, n_past, 1, 0, score, seed, sampling)
        rows.append(predicted._replace(label="deterministic"))
    rows += sample_rows(model, truth, n_past, n_samples, n_random, score, seed, sampling)
    levels: dict[str, Any] = {row.label: to_uint8(row.frames) for row in rows}
    with replacing(path.with_suffix(".npz")) as part:
        np.savez_compressed(part, **levels)
    with replacing(path) as part:
        draw_strip(rows, [t - 1 for t in columns]).save(part)
    write_gif(path.with_suffix(".gif"), list(_moments(rows, n_past)))


def _moments(rows: Sequence[Row], n_past: int) -> Iterator[Image.Image]:
    """A picture for each time step: a line for each clip, a column for each row."""
    cells = [to_cells(row) for row in rows]
    n_clips, n_frames = rows[0].frames.shape[:2]
    for t in range(n_frames):
        lines = [[row[clip][t] for row in cells] for clip in range(n_clips)]
        title = f"t = {t + 1}, {'given' if t < n_past else 'predicted'}"
        yield draw_grid(lines, columns=[row.label for row in rows], title=title, scale=2)


def _default_times(n_past: int, n_frames: int) -> list[int]:
    """Frames counted from 1: the first and last given, then as many predicted ones as columns are left, evenly."""
    given = sorted({1, n_past})
    future = np.linspace(n_past + 1, n_frames, min(_COLUMNS - len(given), max(n_frames - n_past, 0)))
    return [*given, *np.round(future).astype(int).tolist()]
