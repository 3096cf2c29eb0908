"""What a model believes of a digit's motion, beside what is true (section 4.2 and figure 4 of the paper).

Many digits on one trajectory are continued many times; in every generated frame the digit is found again, and how far
it moved is counted. F predicted frames; displacements and their tables are those of `data.displacements`. Times count
frames from 1, so the frames 1 .. n_past are given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..data.displacements import CELLS, SIDE, Array, displacements, expected_distance
from ..data.moving_mnist import Clips
from ..data.synchronised import find_first_hits, synchronised_clips
from ..data.velocity import MAX_SPEED, Motion
from ..files import replacing
from ..models import SVG
from ..models.config import Statistics
from .figures import BLUE, GREY, VERMILLION, draw_heat_map, new_figure, png_path, write_csv
from .tracking import Tracks, track

_OUTSIDE, _LOST = CELLS, CELLS + 1  # what is counted beside the cells
_FOUND = 0.5  # the least correlation of a digit with a frame that shows it; noise reaches 0.1
_CERTAIN = 1 - 1e-9
_FIRST_HIT = 3, 5  # predicted frames, from 1, at which the trajectory meets its first wall
_COLUMNS = 6


@dataclass(frozen=True)
class Comparison:
    """True and generated displacements, step by step.

    times (F,): the frame into which the step leads. p_true, p_model (F, 9, 9): the former sums to one, the latter with
    outside (F,), the share beyond the table, and lost (F,), the share without a digit in one of the two frames.
    p_hit (F,): how likely the digit truly touches a wall at that frame. mode_share (F,): the share of the digits whose
    most frequent step is the true one, nan where that is not certain.
    distance (F,): the total variation between the two, from 0 to 1. floor (F,): what n_draws true draws would have.
    """

    motion: Motion
    n_draws: int
    times: npt.NDArray[np.int64]
    p_true: Array
    p_model: Array
    outside: Array
    lost: Array
    p_hit: Array
    mode_share: Array

    @property
    def distance(self) -> Array:
        difference = np.abs(self.p_true - self.p_model).sum(axis=(1, 2))
        return np.asarray((difference + self.outside + self.lost) / 2)

    @property
    def floor(self) -> Array:
        return expected_distance(self.p_true, self.n_draws)


def trajectory_figure(
    model: SVG,
    digits: Tensor,
    path: str | Path,
    *,
    motion: Motion = "uniform",
    n_digits: int = 100,
    n_samples: int = 100,
    n_future: int = 15,
    index: int | None = None,
    statistics: Statistics = "running",
    seed: int = 0,
) -> Comparison:
    """Figure 4: distributions of (dx, dy) around a wall hit, true above, the model's below, and their distance.

    Writes the PNG `path`, a CSV beside it with a row for each time and displacement, and <name>-distance.csv with a
    row for each time. Arguments and errors are those of `compare_displacements`; also ValueError where path does not
    end in .png, ImportError without matplotlib.
    """
    path, figure = png_path(path), new_figure(figsize=(11, 6.7))
    found = compare_displacements(
        model,
        digits,
        motion=motion,
        n_digits=n_digits,
        n_samples=n_samples,
        n_future=n_future,
        index=index,
        statistics=statistics,
        seed=seed,
    )
    futures = found.n_draws // n_digits
    of_each = f"{futures} future{'s' * (futures > 1)} of each"
    _draw(figure, found, f"{n_digits:,} digits, {of_each}, {model.config.n_past} frames given")
    write_csv(path.with_suffix(".csv"), "t,dx,dy,p_true,p_model", _displacement_rows(found))
    columns = found.p_hit, found.mode_share, found.distance, found.floor, found.outside, found.lost
    by_time = zip(found.times, *columns, strict=True)
    write_csv(path.with_name(f"{path.stem}-distance.csv"), "t,p_hit,mode_share,tv,tv_floor,outside,lost", by_time)
    with replacing(path) as part:
        figure.savefig(part, dpi=150)
    return found


@torch.no_grad()
def compare_displacements(
    model: SVG,
    digits: Tensor,
    *,
    motion: Motion = "uniform",
    n_digits: int = 100,
    n_samples: int = 100,
    n_future: int = 15,
    index: int | None = None,
    statistics: Statistics = "running",
    seed: int = 0,
) -> Comparison:
    """Continue n_digits clips on one trajectory n_samples times each, and compare their motion with the true one.

    The deterministic model has one future of each.

    digits (N, 32, 32) uint8. index: of the trajectory in `MovingMNIST` with these digits, motion and seed; None is
    the first that meets its first wall at one of the predicted frames 3 to 5. statistics: as in `SVG.sample`; those of
    a batch of clips that are all at the same place take that place out of what the nets see.

    Raises ValueError for n_past = 1 or a trajectory that touches a wall in the given frames, whose velocity is not
    known; and for what `SVG.sample` and `MovingMNIST` refuse.
    """
    n_past, size = model.config.n_past, model.config.image_size
    n_samples = min(n_samples, 1) if model.config.variant == "det" else n_samples
    if n_past < 2 or n_samples < 1 or n_future < 1:
        raise ValueError(
            f"n_past must be at least 2 for the velocity to be known, n_samples and n_future at least 1, "
            f"got {n_past}, {n_samples} and {n_future}"
        )
    if index is None:
        first, last = (n_past + frame - 1 for frame in _FIRST_HIT)
        (index,) = find_first_hits(1, first, last, image_size=size, motion=motion, seed=seed)
    clips = synchronised_clips(digits, n_digits, n_past, index=index, image_size=size, motion=motion, seed=seed)
    if clips.hits.any():
        raise ValueError(f"the trajectory must not touch a wall in its {n_past} given frames, that of {index=} does")
    position, velocity = ((int(x), int(y)) for x, y in (clips.positions[0, -1, 0], clips.velocities[0, -1, 0]))
    true = displacements(position, velocity, n_future, motion=motion, image_size=size)
    counts = _count(model, clips, digits, n_future, n_samples, statistics, seed).cpu().numpy()
    shares = counts.sum(1) / (n_digits * n_samples)
    p_true = true.p.reshape(n_future, CELLS)
    agrees = (counts.argmax(2) == p_true.argmax(1)[:, None]).mean(1)
    return Comparison(
        motion=motion,
        n_draws=n_digits * n_samples,
        times=n_past + 1 + np.arange(n_future),
        p_true=true.p,
        p_model=shares[:, :CELLS].reshape(-1, SIDE, SIDE),
        outside=shares[:, _OUTSIDE],
        lost=shares[:, _LOST],
        p_hit=true.p_hit,
        mode_share=np.where(p_true.max(1) > _CERTAIN, agrees, np.nan),
    )


def _count(
    model: SVG,
    clips: Clips,
    digits: Tensor,
    n_future: int,
    n_samples: int,
    statistics: Statistics,
    seed: int,
) -> Tensor:
    """How often each displacement, or something else, was generated of the given clips: (F, B, 83) int64."""
    n_past = clips.frames.shape[1]
    given = clips.frames.to(next(model.parameters()).device)
    templates = digits[clips.digits[:, 0]].to(given.device)
    counts = torch.zeros(n_future, len(given), _LOST + 1, dtype=torch.int64, device=given.device)
    for _, of, video, _ in model.sample_chunks(given, n_future, n_samples, statistics=statistics, seed=seed):
        tracks = track(video[:, :, n_past - 1 :, 0].transpose(1, 2), templates[of.start : of.stop])
        cells = _cells(tracks).permute(1, 2, 0)
        counts[:, of.start : of.stop].scatter_add_(2, cells, torch.ones_like(cells))
    return counts


def _cells(tracks: Tracks) -> Tensor:
    """Tracks (S, F + 1, B) -> (S, F, B) int64: the cell of each displacement, or why it has none."""
    step = tracks.positions.diff(dim=1) + MAX_SPEED
    in_table = ((step >= 0) & (step < SIDE)).all(-1)
    found = tracks.scores >= _FOUND
    cells = torch.where(in_table, step[..., 0] * SIDE + step[..., 1], _OUTSIDE)
    return torch.where(found[:, 1:] & found[:, :-1], cells, _LOST)


def _displacement_rows(found: Comparison) -> Iterable[tuple[Any, ...]]:
    for t, p_true, p_model in zip(found.times, found.p_true, found.p_model, strict=True):
        for (column, row), p in np.ndenumerate(p_true):
            yield t, column - MAX_SPEED, row - MAX_SPEED, p, p_model[column, row]


def _draw(figure: Any, found: Comparison, setting: str) -> None:
    (certain,) = np.nonzero(found.p_hit > _CERTAIN)
    hit = int(certain[0]) if len(certain) else None
    first = 0 if hit is None else max(0, min(hit - 1, len(found.times) - _COLUMNS))
    shown = range(len(found.times))[first : first + _COLUMNS]
    maps, curves = figure.subfigures(2, 1, height_ratios=(1.6, 1))
    _draw_maps(maps, found, shown, hit)
    _draw_distance(curves.subplots(), found, hit)
    curves.legend(fontsize=9, loc="outside lower center", ncols=4)
    figure.suptitle(f"How a digit moves, {found.motion} motion: {setting}", fontsize=13)


def _draw_maps(figure: Any, found: Comparison, shown: range, hit: int | None) -> None:
    axes = figure.subplots(2, len(shown), sharex=True, sharey=True, squeeze=False)
    for column, k in enumerate(shown):
        for axis, p in zip(axes[:, column], (found.p_true[k], found.p_model[k]), strict=True):
            image = draw_heat_map(axis, p, 100, gamma=1 / 3, numbers=False)
            axis.set_xticks((-MAX_SPEED, 0, MAX_SPEED))
            axis.set_yticks((-MAX_SPEED, 0, MAX_SPEED))
            axis.set_xlabel("")
        words, colour = (", wall hit", VERMILLION) if k == hit else ("", "black")
        axes[0, column].set_title(f"t = {found.times[k]}{words}", color=colour)
    for axis, name in zip(axes[:, 0], ("true", "model"), strict=True):
        axis.set_ylabel(f"{name}\ndy (px/frame, down)")
    figure.supxlabel("dx (px/frame, right)", fontsize=10)
    bar = figure.colorbar(image, ax=axes, label="probability (%)", pad=0.01, aspect=30)
    bar.set_ticks((0.1, 1, 3, 10, 30, 100), labels=("0.1", "1", "3", "10", "30", "100"))


def _draw_distance(axis: Any, found: Comparison, hit: int | None) -> None:
    axis.plot(found.times, found.distance, "o-", color=BLUE, label="model and truth")
    axis.plot(found.times, found.floor, "--", color="black", label=f"{found.n_draws:,} draws from the truth, and truth")
    axis.plot(found.times, found.outside + found.lost, ":", color=GREY, label="not found, or faster than 4 px/frame")
    if hit is not None:
        axis.axvline(found.times[hit], color=VERMILLION, label="first wall hit")
    axis.set_xlim(found.times[0] - 0.5, found.times[-1] + 0.5)
    axis.set_ylim(-0.02, 1.05)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("t (frame)")
    axis.set_ylabel("total variation distance")
    axis.grid(alpha=0.3)
