"""Velocities of Stochastic Moving MNIST: (dx, dy) in pixels per frame on the grid -4..4 x -4..4.

Which walls a digit touches is written wall = (wall_x, wall_y): -1 left or top, +1 right or bottom, 0 none.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Motion = Literal["uniform", "nonuniform", "deterministic"]
MOTIONS: tuple[Motion, ...] = get_args(Motion)
MAX_SPEED = 4
_STEPS = 2 * MAX_SPEED + 1


def velocity_probabilities(motion: Motion, wall_x: int = 0, wall_y: int = 0) -> npt.NDArray[np.float64]:
    """Distribution of the velocity a digit starts with, or leaves the touched walls with.

    Args:
        motion: "uniform": section 4.1 of the paper; away from one wall every velocity is equally likely. A
            corner is two walls in turn, top or bottom first, and the side wall draws both components again.
            "nonuniform": appendix B; p(dx, dy) is proportional to exp((|dx| + |dy|) / 2), so the four fastest
            diagonals are the four peaks, 55 times as likely as standing still. Directions into a touched wall
            have probability zero and the rest is renormalised; sliding along the wall stays possible.
            "deterministic": starts as "uniform" does; at a wall it reflects and nothing is drawn.
        wall_x, wall_y: -1, 0 or +1, as in the module's docstring.

    Returns:
        (9, 9), summing to one; entry [dx + 4, dy + 4] belongs to (dx, dy).

    Raises:
        ValueError: an unknown motion or wall, or walls with deterministic motion.
    """
    if motion not in MOTIONS:
        raise ValueError(f"motion must be one of {', '.join(MOTIONS)}, got {motion!r}")
    if wall_x not in (-1, 0, 1) or wall_y not in (-1, 0, 1):
        raise ValueError(f"wall_x and wall_y must be -1, 0 or 1, got {wall_x!r} and {wall_y!r}")
    if motion == "deterministic" and (wall_x or wall_y):
        raise ValueError("deterministic motion reflects at a wall and draws no velocity there, got a touched wall")
    dx, dy = np.mgrid[-MAX_SPEED : MAX_SPEED + 1, -MAX_SPEED : MAX_SPEED + 1]
    if motion == "nonuniform":
        weight = np.exp((abs(dx) + abs(dy)) / 2) * (dx * wall_x <= 0) * (dy * wall_y <= 0)
    elif wall_x:
        weight = (dx * wall_x < 0).astype(np.float64)
    elif wall_y:
        weight = (dy * wall_y < 0).astype(np.float64)
    else:
        weight = np.ones((_STEPS, _STEPS))
    return np.asarray(weight / weight.sum(), dtype=np.float64)


def velocity_table(motion: Motion) -> tuple[Tensor, Tensor]:
    """The distributions of a motion for `moving_mnist_clips`, which draws from them with one 32-bit word.

    Returns:
        bounds (9, 81) int64, or (1, 81) for deterministic motion: row 3 * wall_x + wall_y + 4 holds where the
        interval of each velocity ends in [0, 2**32].
        velocities (81, 2) int64: (dx, dy) in pixels per frame.
    """
    walls = (0,) if motion == "deterministic" else (-1, 0, 1)
    cumulative = np.stack([velocity_probabilities(motion, x, y).reshape(-1).cumsum() for x in walls for y in walls])
    bounds = np.rint(cumulative / cumulative[:, -1:] * 2.0**32).astype(np.int64)
    velocities = np.indices((_STEPS, _STEPS)).reshape(2, -1).T - MAX_SPEED
    return torch.from_numpy(bounds), torch.from_numpy(np.ascontiguousarray(velocities))
