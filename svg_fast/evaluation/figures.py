"""Figures of the paper, each a PNG with the numbers it shows beside it as CSV."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.velocity import MAX_SPEED, velocity_probabilities
from ..files import replacing

Probabilities = npt.NDArray[np.float64]

# Okabe and Ito's, which differ for every kind of colour vision
BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "0.45"


def velocity_figure(path: str | Path) -> None:
    """Figure 3: the velocities of non-uniform SM-MNIST, at the start and after a hit on the right wall.

    Args:
        path: the PNG, in a folder that exists; the CSV beside it has a row per velocity: dx and dy in pixels
            per frame and the two probabilities.

    Raises:
        ValueError: path does not end in .png.
        ImportError: matplotlib is not installed.
    """
    path = png_path(path)
    start = velocity_probabilities("nonuniform")
    after = velocity_probabilities("nonuniform", wall_x=1)
    figure = _draw_velocities(start, after)
    dx, dy = np.indices(start.shape).reshape(2, -1) - MAX_SPEED
    rows = zip(dx, dy, start.flat, after.flat, strict=True)
    write_csv(path.with_suffix(".csv"), "dx,dy,p_start,p_after_right_wall", rows)
    with replacing(path) as part:
        figure.savefig(part, dpi=200)


def loss_figure(csv: Path, path: Path) -> None:
    """Curves of a run's losses.csv (step, then a column per loss), raw and smoothed, to the PNG `path`."""
    names = csv.read_text(encoding="utf-8").splitlines()[0].split(",")[1:]
    table = np.loadtxt(csv, delimiter=",", skiprows=1, ndmin=2)
    step = table[:, 0]
    width = max(1, len(step) // 50)
    figure = new_figure(figsize=(4 * len(names), 3))
    for axis, name, values in zip(figure.subplots(1, len(names)), names, table[:, 1:].T, strict=True):
        smooth = np.convolve(values, np.full(width, 1 / width), mode="valid")
        axis.plot(step, values, color="C0", alpha=0.25, linewidth=0.8)
        axis.plot(step[width - 1 :], smooth, color="C0")
        axis.set_yscale("log" if (values > 0).all() else "linear")  # the baseline has no kl
        axis.set_xlabel("step")
        axis.set_title(name)
        axis.grid(alpha=0.3)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


def png_path(path: str | Path) -> Path:
    """`path`, which must end in .png (ValueError)."""
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"path must end in .png, got {path.name!r}")
    return path


def new_figure(figsize: tuple[float, float]) -> Any:
    """A matplotlib Figure outside pyplot; ImportError where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib, which is not installed: pip install 'svg_fast[train]'") from error
    return Figure(figsize=figsize, layout="constrained")


def write_csv(path: Path, header: str, rows: Iterable[Iterable[float]]) -> None:
    """The rows of numbers below a header of names with commas, to nine digits."""
    lines = [header, *(",".join(f"{value:.9g}" for value in row) for row in rows)]
    with replacing(path) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _draw_velocities(start: Probabilities, after: Probabilities) -> Any:
    figure = new_figure(figsize=(9.2, 4.4))
    axes = figure.subplots(1, 2, sharey=True)
    titles = "at the start: p(dx, dy) ∝ exp((|dx| + |dy|) / 2)", "after a hit on the right wall"
    for axis, p, title in zip(axes, (start, after), titles, strict=True):
        image = draw_heat_map(axis, p, 100 * after.max())
        axis.set_title(title, fontsize=11)
    axes[1].text((MAX_SPEED + 1) / 2, 0, "into the wall:\nnever", ha="center", va="center", color="0.4")
    axes[0].set_ylabel("dy (pixels per frame, down)")
    figure.colorbar(image, ax=axes, label="probability (%)", shrink=0.9, pad=0.02)
    figure.suptitle("Velocities of non-uniform SM-MNIST", fontsize=13)
    return figure


def draw_heat_map(axis: Any, p: Probabilities, top: float, *, gamma: float = 1, numbers: bool = True) -> Any:
    """A (9, 9) table over (dx, dy) in percent, dy downwards as on the canvas; impossible cells stay blank.

    Colours go with the percentage to the power of gamma, up to `top`. numbers: the percentages in the cells.
    """
    from matplotlib.colors import PowerNorm

    edge = MAX_SPEED + 0.5
    percent = 100 * np.where(p > 0, p, np.nan).T
    image = axis.imshow(percent, extent=(-edge, edge, edge, -edge), norm=PowerNorm(gamma, 0, top), cmap="magma_r")
    for (row, column), value in np.ndenumerate(percent):
        if numbers and np.isfinite(value):
            axis.text(
                column - MAX_SPEED,
                row - MAX_SPEED,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if value > top / 2 else "black",
            )
    ticks = range(-MAX_SPEED, MAX_SPEED + 1)
    axis.set_xticks(ticks)
    axis.set_yticks(ticks)
    axis.set_facecolor("0.93")
    axis.set_xlabel("dx (pixels per frame, right)")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    return image
