"""When the learned prior expects something uncertain (figure 6 of the paper): its sigma along clips of one motion.

B clips, T frames, counted from 1, D digits. The prior of frame t has seen the true frames 1 .. t - 1: if a digit
touches a wall at frame t - 1, frame t is the first one that it cannot know.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..data.moving_mnist import Clips, MovingMNIST
from ..data.synchronised import synchronised_clips
from ..data.velocity import Motion
from ..files import replacing
from ..models import SVG
from ..models.config import Statistics
from .figures import BLUE, VERMILLION, new_figure, png_path, write_csv
from .intervals import interval

_DIGIT_COLOURS = (VERMILLION, BLUE, "#009E73", "#CC79A7")
_SPREAD = "0.8"
_AROUND = np.arange(-3, 7)  # frames from a hit


@dataclass(frozen=True)
class PriorSigma:
    """The prior's sigma over B clips, for the frames t = 2 .. T.

    mean, std (T - 1,): of a clip's sigma, which is the mean over the latent dimensions, over the clips.
    by_dimension (T - 1, z_dim): each dimension's mean over the clips.
    hits (T - 1, D): whether a digit touches a wall at that frame; the first uncertain frame is the next.
    around: the same quantity around the hits of clips that each have their own motion.
    """

    times: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    by_dimension: npt.NDArray[np.float64]
    hits: npt.NDArray[np.bool_]
    around: SigmaAroundHits


@dataclass(frozen=True)
class SigmaAroundHits:
    """A clip's sigma by its distance from wall hits, over B clips on trajectories of their own.

    offsets, mean, half (K,): frames from a hit, the mean of all frames that far from one, and half the width of its
    95 % interval, over the clips. at_hits, elsewhere: means of the frames right after a hit, and of all others.
    difference, difference_half: of the two in each clip, its mean over the clips with its 95 % interval; clips without
    a hit are left out. not a number where there are no such frames.
    """

    offsets: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]
    half: npt.NDArray[np.float64]
    at_hits: float
    elsewhere: float
    difference: float
    difference_half: float


def prior_figure(
    model: SVG,
    digits: Tensor,
    path: str | Path,
    *,
    motion: Motion = "uniform",
    num_digits: int = 2,
    n_clips: int = 500,
    n_frames: int = 100,
    index: int = 0,
    statistics: Statistics = "running",
    seed: int = 0,
) -> PriorSigma:
    """Figure 6: mean and standard deviation of the prior's sigma over synchronised clips, the wall hits marked.

    Beside it, the mean around the hits of as many clips that are not synchronised.

    Writes the PNG `path` and a CSV beside it: t, mean and standard deviation, each dimension's mean, and for each
    digit whether it hits a wall at t; and <name>-hits.csv: frames from a hit, mean, half of its 95 % interval.

    digits (N, 32, 32) uint8. num_digits: in a clip, as many as the model was trained on. index: whose trajectories
    the clips follow, in `MovingMNIST` with these arguments. statistics: BatchNorm's; those of a batch of
    clips that are all at the same place take that place out of what the nets see.

    Raises ValueError for a model without a learned prior, fewer than two clips or frames, for what `MovingMNIST`
    refuses, and where path does not end in .png; ImportError without matplotlib.
    """
    path, figure = png_path(path), new_figure(figsize=(11, 4.2))
    if n_clips < 2 or n_frames < 2:
        raise ValueError(f"n_clips and n_frames must be at least 2, got {n_clips} and {n_frames}")
    if model.config.variant != "lp":
        raise ValueError(f"the model must have a learned prior (variant lp), got variant {model.config.variant}")
    size = model.config.image_size
    setting: Any = {"num_digits": num_digits, "image_size": size, "motion": motion, "seed": seed}
    clips = synchronised_clips(digits, n_clips, n_frames, index=index, **setting)
    sigma = _sigma(model, clips, statistics)
    by_clip = sigma.mean(dim=2)
    found = PriorSigma(
        times=np.arange(2, n_frames + 1),
        mean=by_clip.mean(dim=1).numpy(),
        std=by_clip.std(dim=1).numpy(),
        by_dimension=sigma.mean(dim=1).numpy(),
        hits=clips.hits[0, 1:].numpy(),
        around=_around_hits(model, MovingMNIST(digits, n_frames, **setting).clips(range(n_clips)), statistics),
    )
    _draw(figure, found, f"{n_clips} clips of {num_digits} digit{'s' * (num_digits > 1)}, {motion} motion")
    header = ["t", "sigma_mean", "sigma_std", *(f"sigma_z{k + 1}" for k in range(sigma.shape[2]))]
    header += [f"hit_digit{d + 1}" for d in range(num_digits)]
    columns = found.times[:, None], found.mean[:, None], found.std[:, None], found.by_dimension, found.hits
    write_csv(path.with_suffix(".csv"), ",".join(header), np.hstack(columns))
    around = zip(found.around.offsets, found.around.mean, found.around.half, strict=True)
    write_csv(path.with_name(f"{path.stem}-hits.csv"), "frames_from_hit,sigma_mean,sigma_interval95", around)
    with replacing(path) as part:
        figure.savefig(part, dpi=150)
    return found


def _sigma(model: SVG, clips: Clips, statistics: Statistics) -> Tensor:
    """(T - 1, B, z_dim) float64."""
    prior = model.infer(clips.frames.to(next(model.parameters()).device), statistics=statistics).prior
    assert prior is not None
    return (prior[1] / 2).exp().cpu().double()


def _around_hits(model: SVG, clips: Clips, statistics: Statistics) -> SigmaAroundHits:
    sigma = _sigma(model, clips, statistics).mean(dim=2).T.numpy()  # (B, T - 1): the frames 2 .. T
    hit = clips.hits.any(dim=2).numpy()  # (B, T): the frames 1 .. T
    n_frames = hit.shape[1]
    lines = []
    for offset in _AROUND:
        at = np.zeros_like(hit)
        at[:, max(offset, 0) : n_frames + min(offset, 0)] = hit[:, max(-offset, 0) : n_frames - max(offset, 0)]
        lines.append(_mean_interval(_means(sigma, at[:, 1:])))
    mean, half = np.array(lines).T
    after = hit[:, :-1]
    at_hits, elsewhere = _means(sigma, after), _means(sigma, ~after)
    difference, difference_half = _mean_interval(at_hits - elsewhere)
    return SigmaAroundHits(
        offsets=_AROUND,
        mean=mean,
        half=half,
        at_hits=_mean_interval(at_hits)[0],
        elsewhere=_mean_interval(elsewhere)[0],
        difference=difference,
        difference_half=difference_half,
    )


def _means(sigma: npt.NDArray[np.float64], chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Of each clip (B, T - 1), the mean over its chosen frames; not a number for none."""
    number = chosen.sum(axis=1)
    return np.where(number > 0, (sigma * chosen).sum(axis=1) / np.maximum(number, 1), np.nan)


def _mean_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The mean of the numbers among the clips' values, and half the width of its 95 % interval."""
    numbers = values[np.isfinite(values)]
    if len(numbers) < 2:
        return float(numbers.mean()) if len(numbers) else np.nan, np.nan
    mean, half = interval(numbers)
    return float(mean), float(half)


def _draw(figure: Any, found: PriorSigma, setting: str) -> None:
    axis, beside = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    low, high = found.mean - found.std, found.mean + found.std
    axis.fill_between(found.times, low, high, color=_SPREAD, label="± one standard deviation over the clips")
    axis.plot(found.times, found.mean, color="black", zorder=3, label="mean")
    for d, hits in enumerate(found.hits.T):
        colour = _DIGIT_COLOURS[d % len(_DIGIT_COLOURS)]
        for k, t in enumerate(found.times[hits]):
            label = f"digit {d + 1} hits a wall" if k == 0 else None
            axis.axvline(t, color=colour, linewidth=1.2, linestyle=("-", "--")[d % 2], label=label)
    axis.set_xlim(1, found.times[-1] + 1)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("t (frame)")
    axis.set_ylabel("sigma of the learned prior")
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["right", "top"]].set_visible(False)
    around = found.around
    beside.fill_between(around.offsets, around.mean - around.half, around.mean + around.half, color=_SPREAD)
    beside.plot(around.offsets, around.mean, "o-", color="black")
    beside.axvline(0, color=VERMILLION, linewidth=1.2)
    beside.set_xlabel("frames from a hit, other clips (95 %)")
    beside.grid(axis="y", alpha=0.3)
    beside.spines[["right", "top"]].set_visible(False)
    figure.suptitle(f"Uncertainty that the learned prior expects: {setting}", fontsize=13)
    figure.legend(fontsize=9, loc="outside lower center", ncols=4)
