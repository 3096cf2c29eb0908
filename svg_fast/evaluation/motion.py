"""How well models know a digit's motion around its first wall hit, over many trajectories (figure 4, counted).

Until a digit has touched a wall its motion is certain, and a model's most frequent step should be the true one; the
first step away from it is drawn, and the model's steps should be spread as the true ones are. Offsets count frames from
the hit: the step into the frame of offset 0 ends at the wall, that of offset 1 leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data.displacements import Array
from ..data.synchronised import find_first_hits
from ..data.velocity import Motion
from ..files import replacing
from ..models import SVG
from ..models.config import Statistics
from .curves import colour
from .figures import VERMILLION, new_figure, png_path, write_csv
from .intervals import Interval, interval
from .trajectory import compare_displacements

_BEFORE, _AFTER = 3, 8  # frames around the hit
_HIT = _BEFORE + 1, _BEFORE + 3  # predicted frames, from 1, of the hits
OFFSETS = np.arange(-_BEFORE, _AFTER + 1)


@dataclass(frozen=True)
class MotionProfile:
    """One model's motion around the first hits of N trajectories, K = 12 offsets from -3 to 8.

    mode_share (N, K): the share of the digits whose most frequent step is the true one; nan after the hit, where the
    true step is not certain. distance (N, K): the total variation between the model's steps and the true ones, all
    digits of a trajectory together. floor (N, K): what as many true draws would have. n_digits, n_samples: of each
    trajectory, and of each digit.
    """

    n_digits: int
    n_samples: int
    mode_share: Array
    distance: Array
    floor: Array

    def until_hit(self) -> Interval:
        """mode_share up to and with the hit: a single number."""
        return interval(self.mode_share[:, OFFSETS <= 0].mean(1))

    def after_hit(self) -> Interval:
        """The distance after the hit: a single number."""
        return interval(self.distance[:, OFFSETS > 0].mean(1))


def motion_profile(
    model: SVG,
    digits: Tensor,
    *,
    motion: Motion = "uniform",
    n_trajectories: int = 20,
    n_digits: int = 25,
    n_samples: int = 40,
    statistics: Statistics = "running",
    seed: int = 0,
    progress: Callable[[int], object] = lambda _: None,
) -> MotionProfile:
    """The first n_trajectories of `MovingMNIST` that meet their first wall at the predicted frames 4 to 6.

    Arguments and errors are those of `compare_displacements`. The deterministic model has one future, and so n_samples
    times as many digits: a histogram of fewer steps would be farther from any distribution. progress: called with 1
    after each trajectory. Also ValueError for fewer than two trajectories.
    """
    if n_trajectories < 2:
        raise ValueError(f"n_trajectories must be at least 2 for an interval, got {n_trajectories}")
    config = model.config
    if config.variant == "det":
        n_digits, n_samples = n_digits * n_samples, 1
    first, last = (config.n_past + frame - 1 for frame in _HIT)
    where: Any = {"motion": motion, "seed": seed}
    found = []
    for index in find_first_hits(n_trajectories, first, last, image_size=config.image_size, **where):
        steps = compare_displacements(
            model,
            digits,
            n_digits=n_digits,
            n_samples=n_samples,
            n_future=_HIT[1] + _AFTER,
            index=index,
            statistics=statistics,
            **where,
        )
        hit = int(np.argmax(steps.p_hit > 0))  # the first one is certain
        around = slice(hit - _BEFORE, hit + _AFTER + 1)
        found.append([column[around] for column in (steps.mode_share, steps.distance, steps.floor)])
        progress(1)
    mode_share, distance, floor = np.array(found).swapaxes(0, 1)
    mode_share[:, OFFSETS > 0] = np.nan
    return MotionProfile(n_digits, n_samples, mode_share, distance, floor)


def motion_figure(profiles: Mapping[str, MotionProfile], path: str | Path, *, motion: Motion) -> None:
    """Two panels over the offset from the hit: how often the most frequent step is the true one, and the distance.

    profiles: by the models' names, of as many trajectories and futures. Bands are 95 % intervals over the trajectories.
    Writes the PNG `path` and a CSV beside it with the models in order, counted from 1.

    Raises ValueError where path does not end in .png; ImportError without matplotlib.
    """
    path, figure = png_path(path), new_figure(figsize=(10, 4.2))
    rows = []
    for k, profile in enumerate(profiles.values(), start=1):
        mode, distance, floor = map(interval, (profile.mode_share, profile.distance, profile.floor))
        columns = OFFSETS, mode.mean, mode.half, distance.mean, distance.half, floor.mean
        rows += [(k, *row) for row in zip(*columns, strict=True)]
    write_csv(path.with_suffix(".csv"), "model,offset,mode_share,mode_interval95,tv,tv_interval95,tv_floor", rows)
    _draw(figure, profiles, motion)
    with replacing(path) as part:
        figure.savefig(part, dpi=150)


def _draw(figure: Any, profiles: Mapping[str, MotionProfile], motion: Motion) -> None:
    until, after = figure.subplots(1, 2)
    for k, (name, profile) in enumerate(profiles.items()):
        for axis, values in ((until, profile.mode_share[:, OFFSETS <= 0]), (after, profile.distance)):
            line, offsets = interval(values), OFFSETS[: values.shape[1]]
            low, high = line.mean - line.half, line.mean + line.half
            axis.fill_between(offsets, low, high, color=colour(k), alpha=0.2, linewidth=0)
            axis.plot(offsets, line.mean, "o-", color=colour(k), label=name if axis is after else None)
    some = next(iter(profiles.values()))
    after.plot(OFFSETS, some.floor.mean(0), "--", color="black", label=f"{some.n_digits * some.n_samples:,} true draws")
    until.set_ylabel("clips whose mode is the true step")
    after.set_ylabel("total variation distance to the truth")
    for axis in (until, after):
        axis.axvline(0, color=VERMILLION, linewidth=1)
        axis.set_xlabel("frames from the first wall hit")
        axis.set_ylim(-0.02, 1.05)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    legend = figure.legend(fontsize=9, loc="outside lower center", ncols=4)
    for text in legend.get_texts():
        text.set_parse_math(False)
    n_digits = min(profile.n_digits for profile in profiles.values())  # the baseline has more
    figure.suptitle(
        f"Motion around the first hit, {motion}: {len(some.distance)} trajectories of {n_digits} digits", fontsize=13
    )
