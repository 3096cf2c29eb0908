"""When the learned prior expects something uncertain (figure 6 of the paper): its sigma along clips of one motion.

B clips, T frames, counted from 1, D digits. The prior of frame t has seen the true frames 1 .. t - 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..data.synchronised import synchronised_clips
from ..data.velocity import Motion
from ..files import replacing
from ..models import SVG
from ..models.config import Statistics
from .figures import BLUE, VERMILLION, new_figure, png_path, write_csv

_DIGIT_COLOURS = (VERMILLION, BLUE, "#009E73", "#CC79A7")
_SPREAD = "0.8"


@dataclass(frozen=True)
class PriorSigma:
    """The prior's sigma over B clips, for the frames t = 2 .. T.

    mean, std (T - 1,): of a clip's sigma, which is the mean over the latent dimensions, over the clips.
    by_dimension (T - 1, z_dim): each dimension's mean over the clips.
    hits (T - 1, D): whether a digit touches a wall at that frame; the first uncertain frame is the next.
    """

    times: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    by_dimension: npt.NDArray[np.float64]
    hits: npt.NDArray[np.bool_]


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
    statistics: Statistics | None = None,
    seed: int = 0,
) -> PriorSigma:
    """Figure 6: mean and standard deviation of the prior's sigma over synchronised clips, the wall hits marked.

    Writes the PNG `path` and a CSV beside it: t, mean and standard deviation, each dimension's mean, and for each
    digit whether it hits a wall at t.

    digits (N, 32, 32) uint8. num_digits: in a clip, as many as the model was trained on. index: whose trajectories
    the clips follow, in `MovingMNIST` with these arguments. statistics: BatchNorm as in `SVG.sample`.

    Raises ValueError for a model without a learned prior, fewer than two clips or frames, for what `MovingMNIST`
    refuses, and where path does not end in .png; ImportError without matplotlib.
    """
    path, figure = png_path(path), new_figure(figsize=(10, 4.2))
    if n_clips < 2 or n_frames < 2:
        raise ValueError(f"n_clips and n_frames must be at least 2, got {n_clips} and {n_frames}")
    if model.config.variant != "lp":
        raise ValueError(f"the model must have a learned prior (variant lp), got variant {model.config.variant}")
    size = model.config.image_size
    clips = synchronised_clips(
        digits, n_clips, n_frames, index=index, num_digits=num_digits, image_size=size, motion=motion, seed=seed
    )
    device = next(model.parameters()).device
    prior = model.infer(clips.frames.to(device), statistics=statistics).prior
    assert prior is not None
    sigma = (prior[1] / 2).exp().cpu().double()
    by_clip = sigma.mean(dim=2)
    found = PriorSigma(
        times=np.arange(2, n_frames + 1),
        mean=by_clip.mean(dim=1).numpy(),
        std=by_clip.std(dim=1).numpy(),
        by_dimension=sigma.mean(dim=1).numpy(),
        hits=clips.hits[0, 1:].numpy(),
    )
    _draw(figure, found, f"{n_clips} clips of {num_digits} digit{'s' * (num_digits > 1)}, {motion} motion")
    header = ["t", "sigma_mean", "sigma_std", *(f"sigma_z{k + 1}" for k in range(sigma.shape[2]))]
    header += [f"hit_digit{d + 1}" for d in range(num_digits)]
    columns = found.times[:, None], found.mean[:, None], found.std[:, None], found.by_dimension, found.hits
    write_csv(path.with_suffix(".csv"), ",".join(header), np.hstack(columns))
    with replacing(path) as part:
        figure.savefig(part, dpi=150)
    return found


def _draw(figure: Any, found: PriorSigma, setting: str) -> None:
    axis = figure.subplots()
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
    axis.set_title(f"Uncertainty that the learned prior expects: {setting}", fontsize=13)
    figure.legend(fontsize=9, loc="outside lower center", ncols=4)
