"""How a digit of Stochastic Moving MNIST truly moves, as probabilities.

A displacement is (dx, dy) in pixels from one frame to the next, x to the right and y down; its probability is entry
[dx + 4, dy + 4] of a table (9, 9). F steps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..reference.moving_mnist import DIGIT_SIZE
from .velocity import MAX_SPEED, Motion, velocity_probabilities

Array = npt.NDArray[np.float64]

SIDE = 2 * MAX_SPEED + 1
CELLS = SIDE * SIDE
_WALLS = (-1, 0, 1)  # as in `velocity_probabilities`


class Displacements(NamedTuple):
    """p (F, 9, 9): the distribution of each step; p_hit (F,): the probability that it ends at a wall."""

    p: Array
    p_hit: Array


def displacements(
    position: tuple[int, int], velocity: tuple[int, int], n_steps: int, *, motion: Motion, image_size: int = 64
) -> Displacements:
    """The next F = n_steps steps of a digit, exactly: the probabilities of all its states, frame after frame.

    A step that is cut short by a wall counts as far as it goes. Until the first wall, and in deterministic motion
    always, a single displacement has all of the mass.

    position: (x, y) in a frame, pixels. velocity: (dx, dy) with which the digit leaves it, pixels per frame.

    Raises ValueError for a position outside 0 .. image_size - 33, or a velocity outside -4 .. 4.
    """
    places = image_size - DIGIT_SIZE  # in x and in y
    if not all(0 <= p < places for p in position) or any(abs(v) > MAX_SPEED for v in velocity):
        raise ValueError(
            f"position must be in 0 .. {places - 1} and velocity in {-MAX_SPEED} .. {MAX_SPEED}, "
            f"got {position} and {velocity}"
        )
    x, y, dx, dy = np.indices((places, places, SIDE, SIDE)).reshape(4, -1)
    dx, dy = dx - MAX_SPEED, dy - MAX_SPEED
    to_x, to_y = (x + dx).clip(0, places - 1), (y + dy).clip(0, places - 1)
    wall_x, wall_y = np.sign(x + dx - to_x), np.sign(y + dy - to_y)
    hit = (wall_x != 0) | (wall_y != 0)
    cell, place = _cell(to_x - x, to_y - y), to_x * places + to_y
    # in free flight, or reflected, a state has one successor; where the velocity is drawn it has one for each
    drawn = hit & (motion != "deterministic")
    successor = place * CELLS + _cell(np.where(wall_x != 0, -dx, dx), np.where(wall_y != 0, -dy, dy))
    touched = place * len(_WALLS) ** 2 + len(_WALLS) * (wall_x + 1) + wall_y + 1
    tables = np.zeros((len(_WALLS) ** 2, CELLS))
    if motion != "deterministic":
        tables[:] = [velocity_probabilities(motion, wx, wy).reshape(-1) for wx in _WALLS for wy in _WALLS]

    p = np.zeros(places * places * CELLS)
    p[(position[0] * places + position[1]) * CELLS + _cell(*velocity)] = 1
    steps = Displacements(np.empty((n_steps, SIDE, SIDE)), np.empty(n_steps))
    for k in range(n_steps):
        steps.p[k] = np.bincount(cell, p, minlength=CELLS).reshape(SIDE, SIDE)
        steps.p_hit[k] = p[hit].sum()
        arrived = np.bincount(touched, p * drawn, minlength=places * places * len(tables))
        p = np.bincount(successor, p * ~drawn, minlength=len(p)) + (arrived.reshape(-1, len(tables)) @ tables).ravel()
    return steps


def expected_distance(p: Array, n_draws: int) -> Array:
    """The total variation to be expected between distributions p (F, ...) and histograms of n_draws from each: (F,).

    Half the sum of every cell's mean absolute deviation, E|X - n p| = 2 m C(n, m) p^m (1 - p)^(n - m + 1) for X
    binomial and m = floor(n p) + 1 (de Moivre).
    """
    cells = torch.from_numpy(p.reshape(len(p), -1))
    n = torch.tensor(float(n_draws), dtype=torch.float64)
    m = (n * cells).floor() + 1
    some = (cells > 0) & (m <= n)  # what is certain, either way, does not deviate
    m, q = torch.where(some, m, 1), torch.where(some, cells, 0.5)
    log_choose = torch.lgamma(n + 1) - torch.lgamma(m + 1) - torch.lgamma(n - m + 1)
    deviation = 2 * m * (log_choose + m * q.log() + (n - m + 1) * (-q).log1p()).exp()
    return np.asarray((deviation * some).sum(1) / (2 * n_draws))


def _cell(dx: npt.NDArray[np.int64] | int, dy: npt.NDArray[np.int64] | int) -> npt.NDArray[np.int64] | int:
    return (dx + MAX_SPEED) * SIDE + dy + MAX_SPEED
